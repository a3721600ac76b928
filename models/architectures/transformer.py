"""Transformer encoder and decoder layers in which "Add & Norm" is one unit with a before (the sum) and an after.

Post-norm, as published: y = LayerNorm(x + Dropout(Sublayer(x))). With `norm_first` the norm moves into the branch:
y = x + Dropout(Sublayer(LayerNorm(x))).

Shapes: N samples, L tokens (S of the other sequence in cross-attention), D width, H heads, D/H width of one head.

Sources: Vaswani et al. 2017, "Attention Is All You Need" (arXiv:1706.03762), sections 3.1 to 3.5 and figure 1; the pre-norm
variant and why it trains without warm-up: Xiong et al. 2020 (arXiv:2002.04745).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class TransformerConfig:
    """Size and shape of an encoder.

    Attributes:
        vocabulary: number of token ids.
        classes: number of classes.
        layers: number of blocks.
        width: D, divisible by `heads`.
        heads: attention heads of each block.
        feed_forward: inner width of the feed-forward sub-layer.
        max_length: longest sequence, in tokens (rows of the learned position embedding).
        dropout: probability of zeroing an element after a sub-layer and after the embedding.
        norm_first: pre-norm instead of post-norm; a last LayerNorm follows the blocks then.
    """

    vocabulary: int
    classes: int
    layers: int = 4
    width: int = 128
    heads: int = 4
    feed_forward: int = 512
    max_length: int = 64
    dropout: float = 0.1
    norm_first: bool = False


class AddNorm(nn.LayerNorm):
    """The Add & Norm unit around one sub-layer; a LayerNorm that knows where the residual branch enters."""

    def __init__(self, width: int, dropout: float, norm_first: bool) -> None:
        super().__init__(width)
        self.dropout = nn.Dropout(dropout)
        self.norm_first = norm_first

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:  # type: ignore[override]
        # (N, L, D) -> (N, L, D); a unit takes a sub-layer beside x, which a plain LayerNorm does not
        if self.norm_first:
            branch: Tensor = self.dropout(sublayer(super().forward(x)))
            return x + branch
        return super().forward(x + self.dropout(sublayer(x)))


class MultiHeadAttention(nn.Module):
    """softmax(Q K^T / sqrt(D/H)) V in H heads (Vaswani et al. 2017, equation 1 and section 3.2.2)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads; choose a divisor of {width}")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def _split(self, x: Tensor) -> Tensor:  # (N, L, D) -> (N, H, L, D/H)
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, memory: Tensor, visible: Tensor | None = None) -> Tensor:
        """x (N, L, D) attends to memory (N, S, D); visible: bool, broadcastable to (N, H, L, S), False is hidden."""
        query = self._split(self.query(x))  # (N, H, L, D/H)
        key = self._split(self.key(memory))  # (N, H, S, D/H)
        value = self._split(self.value(memory))  # (N, H, S, D/H)
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5  # (N, H, L, S)
        if visible is not None:
            # the lowest finite number, not -inf: a row without any visible token stays finite
            scores = torch.where(visible, scores, torch.finfo(scores.dtype).min)
        weights = self.dropout(scores.softmax(-1))  # (N, H, L, S)
        joined = (weights @ value).transpose(1, 2).flatten(2)  # (N, L, D)
        out: Tensor = self.output(joined)
        return out


class FeedForward(nn.Module):
    """max(0, x W1 + b1) W2 + b2, for each token alone (Vaswani et al. 2017, equation 2)."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(width, inner)
        self.outer = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # (N, L, D) -> (N, L, D)
        out: Tensor = self.outer(self.dropout(F.relu(self.inner(x))))  # (N, L, F) in between
        return out


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each in an Add & Norm: Vaswani et al. 2017, figure 1, left."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float, norm_first: bool = False) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(width, heads, dropout)
        self.attention_norm = AddNorm(width, dropout, norm_first)
        self.feed_forward = FeedForward(width, feed_forward, dropout)
        self.feed_forward_norm = AddNorm(width, dropout, norm_first)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:  # (N, L, D), bool (N, 1, 1, L)
        x = self.attention_norm(x, lambda x: self.attention(x, x, visible))
        out: Tensor = self.feed_forward_norm(x, self.feed_forward)
        return out


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention to the encoder's output, feed-forward: Vaswani et al. 2017, figure 1, right."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float, norm_first: bool = False) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(width, heads, dropout)
        self.attention_norm = AddNorm(width, dropout, norm_first)
        self.cross_attention = MultiHeadAttention(width, heads, dropout)
        self.cross_attention_norm = AddNorm(width, dropout, norm_first)
        self.feed_forward = FeedForward(width, feed_forward, dropout)
        self.feed_forward_norm = AddNorm(width, dropout, norm_first)

    def forward(self, x: Tensor, memory: Tensor, visible: Tensor | None = None, memory_visible: Tensor | None = None) -> Tensor:
        """x (N, L, D), memory (N, S, D); visible (N or 1, 1, L, L), memory_visible (N, 1, 1, S): bool, False is hidden."""
        x = self.attention_norm(x, lambda x: self.attention(x, x, visible))
        x = self.cross_attention_norm(x, lambda x: self.cross_attention(x, memory, memory_visible))
        out: Tensor = self.feed_forward_norm(x, self.feed_forward)
        return out


def causal_mask(length: int) -> Tensor:
    """Bool (1, 1, L, L): token i sees the tokens up to i."""
    return torch.ones(length, length, dtype=torch.bool).tril()[None, None]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the real tokens: x (N, L, D), mask (N, L) of 0 and 1 -> (N, D); zeros where a sample has no real token."""
    weights = mask.unsqueeze(-1).to(x.dtype)  # (N, L, 1)
    return (x * weights).sum(1) / weights.sum(1).clamp(min=1)


class TransformerClassifier(nn.Module):
    """Token and position embeddings, encoder layers, masked mean over the tokens, linear classifier."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.max_length, config.width)
        self.embedding_norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            EncoderLayer(config.width, config.heads, config.feed_forward, config.dropout, config.norm_first)
            for _ in range(config.layers)
        )
        self.final_norm = nn.LayerNorm(config.width) if config.norm_first else nn.Identity()
        self.classifier = nn.Linear(config.width, config.classes)
        for embedding in (self.token_embedding, self.position_embedding):
            nn.init.normal_(embedding.weight, std=config.width**-0.5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 (N, L) ids and (N, L) mask, 1 at real tokens -> logits float32 (N, classes).

        L is at most `max_length`.
        """
        length = input_ids.shape[1]
        x = self.token_embedding(input_ids) + self.position_embedding.weight[:length]  # (N, L, D)
        x = self.dropout(self.embedding_norm(x))
        visible = attention_mask.unsqueeze(1).unsqueeze(1) != 0  # (N, 1, 1, L)
        for block in self.blocks:
            x = block(x, visible)  # (N, L, D)
        pooled = self.dropout(masked_mean(self.final_norm(x), attention_mask))  # (N, D)
        logits: Tensor = self.classifier(pooled)
        return logits
