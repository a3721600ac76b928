from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architectures.transformer import (
    AddNorm,
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    MultiHeadAttention,
    TransformerClassifier,
    TransformerConfig,
    causal_mask,
    masked_mean,
)

WIDTH, HEADS, INNER = 24, 4, 40
_LENGTHS = (7, 4, 1)


def _real(lengths: tuple[int, ...] = _LENGTHS) -> Tensor:
    """bool (N, L): True at real tokens."""
    return torch.arange(max(lengths)).expand(len(lengths), -1) < torch.tensor(lengths)[:, None]


def _shake(module: nn.Module) -> None:
    """Gives gamma, beta and every bias values that matter."""
    for parameter in module.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.5, 0.5)


def _copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    """torch keeps query, key and value in one matrix."""
    parts = (ours.query, ours.key, ours.value)
    assert theirs.in_proj_weight is not None
    theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
    theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    theirs.out_proj.load_state_dict(ours.output.state_dict())


def _copy(ours: EncoderLayer | DecoderLayer, theirs: Any) -> None:
    """Copies the weights of one of our layers into torch's layer of the same kind."""
    norms = [ours.attention_norm, ours.feed_forward_norm]
    with torch.no_grad():
        _copy_attention(ours.attention, theirs.self_attn)
        if isinstance(ours, DecoderLayer):
            _copy_attention(ours.cross_attention, theirs.multihead_attn)
            norms.insert(1, ours.cross_attention_norm)
        theirs.linear1.load_state_dict(ours.feed_forward.inner.state_dict())
        theirs.linear2.load_state_dict(ours.feed_forward.outer.state_dict())
        for i, norm in enumerate(norms, start=1):
            getattr(theirs, f"norm{i}").load_state_dict(norm.state_dict())


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_encoder_layer_is_torchs(norm_first: bool, padded: bool) -> None:
    """With the same weights and dropout 0: real tokens and their gradients within 1e-5, post-norm and pre-norm, with padding."""
    torch.manual_seed(0)
    ours = EncoderLayer(WIDTH, HEADS, INNER, 0.0, norm_first)
    _shake(ours)
    theirs = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, 0.0, "relu", batch_first=True, norm_first=norm_first)
    _copy(ours, theirs)
    real = _real() if padded else _real((7, 7, 7))
    x = torch.randn(3, 7, WIDTH)
    mine, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
    actual = ours(mine, real[:, None, None])[real]
    expected = theirs(reference, src_key_padding_mask=~real)[real]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    for output in (actual, expected):
        output.square().sum().backward()
    torch.testing.assert_close(mine.grad, reference.grad, atol=1e-3, rtol=1e-4)  # sums of hundreds of terms


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_decoder_layer_is_torchs(norm_first: bool, padded: bool) -> None:
    """With a causal mask and padding on both sides: real tokens within 1e-5 of torch's, post-norm and pre-norm."""
    torch.manual_seed(1)
    ours = DecoderLayer(WIDTH, HEADS, INNER, 0.0, norm_first)
    _shake(ours)
    theirs = nn.TransformerDecoderLayer(WIDTH, HEADS, INNER, 0.0, "relu", batch_first=True, norm_first=norm_first)
    _copy(ours, theirs)
    real = _real() if padded else _real((7, 7, 7))
    memory_real = _real((2, 5, 3)) if padded else _real((5, 5, 5))
    x, memory = torch.randn(3, 7, WIDTH), torch.randn(3, 5, WIDTH)
    causal = causal_mask(7)
    actual = ours(x, memory, causal & real[:, None, None], memory_real[:, None, None])
    expected = theirs(
        x,
        memory,
        tgt_mask=~causal[0, 0],
        tgt_key_padding_mask=~real,
        memory_key_padding_mask=~memory_real,
    )
    torch.testing.assert_close(actual[real], expected[real], atol=1e-5, rtol=1e-5)


def test_layers_without_masks_are_torchs() -> None:
    """No mask means that every token sees every token, in both kinds of layer."""
    torch.manual_seed(2)
    x, memory = torch.randn(2, 5, WIDTH), torch.randn(2, 3, WIDTH)
    encoder = EncoderLayer(WIDTH, HEADS, INNER, 0.0)
    their_encoder = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, 0.0, "relu", batch_first=True)
    _copy(encoder, their_encoder)
    torch.testing.assert_close(encoder(x), their_encoder(x), atol=1e-5, rtol=1e-5)
    decoder = DecoderLayer(WIDTH, HEADS, INNER, 0.0)
    their_decoder = nn.TransformerDecoderLayer(WIDTH, HEADS, INNER, 0.0, "relu", batch_first=True)
    _copy(decoder, their_decoder)
    torch.testing.assert_close(decoder(x, memory), their_decoder(x, memory), atol=1e-5, rtol=1e-5)


def test_attention_is_scaled_dot_product_attention() -> None:
    """softmax(Q K^T / sqrt(D/H)) V in every head, as torch's own function computes it, within 1e-5."""
    torch.manual_seed(3)
    attention = MultiHeadAttention(WIDTH, HEADS, 0.0)
    x, memory, visible = torch.randn(2, 6, WIDTH), torch.randn(2, 4, WIDTH), torch.rand(2, 1, 6, 4) < 0.6
    visible[..., 0] = True  # no row is hidden whole

    def heads(y: Tensor) -> Tensor:
        return y.view(*y.shape[:2], HEADS, -1).transpose(1, 2)

    joined = F.scaled_dot_product_attention(
        heads(attention.query(x)), heads(attention.key(memory)), heads(attention.value(memory)), attn_mask=visible
    )
    expected = attention.output(joined.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, memory, visible), expected, atol=1e-5, rtol=1e-5)


def test_attention_refuses_a_width_that_the_heads_do_not_divide() -> None:
    """The error names both numbers and the remedy."""
    with pytest.raises(ValueError, match="width 24 is not divisible by 5 heads; choose a divisor of 24"):
        MultiHeadAttention(24, 5, 0.0)


def test_attention_stays_finite_where_everything_is_hidden() -> None:
    """A row without any visible token gives finite numbers and finite gradients, not NaN."""
    torch.manual_seed(4)
    attention = MultiHeadAttention(WIDTH, HEADS, 0.0)
    x = torch.randn(2, 3, WIDTH, requires_grad=True)
    y = attention(x, x, torch.zeros(2, 1, 1, 3, dtype=torch.bool))
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_causal_mask_shows_the_past_and_the_present() -> None:
    """Token i sees tokens 0 to i."""
    mask = causal_mask(4)
    assert mask.shape == (1, 1, 4, 4)
    assert all(bool(mask[0, 0, i, j]) == (j <= i) for i in range(4) for j in range(4))


def test_decoder_cannot_look_ahead() -> None:
    """Under the causal mask a change of a token changes nothing before it, bit for bit."""
    torch.manual_seed(5)
    layer = DecoderLayer(WIDTH, HEADS, INNER, 0.0)
    x, memory = torch.randn(1, 6, WIDTH), torch.randn(1, 3, WIDTH)
    changed = x.clone()
    changed[:, 4] += 1
    before, after = layer(x, memory, causal_mask(6)), layer(changed, memory, causal_mask(6))
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


def test_add_norm_is_layer_norm_of_the_sum() -> None:
    """Post-norm: LayerNorm(x + Sublayer(x))."""
    torch.manual_seed(6)
    unit, sublayer, x = AddNorm(WIDTH, 0.0, norm_first=False), nn.Linear(WIDTH, WIDTH), torch.randn(2, 3, WIDTH)
    _shake(unit)
    expected = F.layer_norm(x + sublayer(x), (WIDTH,), unit.weight, unit.bias)
    assert torch.equal(unit(x, sublayer), expected)


def test_add_norm_with_norm_first_normalizes_the_branch() -> None:
    """Pre-norm: x + Sublayer(LayerNorm(x)), the identity is not normalized."""
    torch.manual_seed(7)
    unit, sublayer, x = AddNorm(WIDTH, 0.0, norm_first=True), nn.Linear(WIDTH, WIDTH), torch.randn(2, 3, WIDTH)
    _shake(unit)
    expected = x + sublayer(F.layer_norm(x, (WIDTH,), unit.weight, unit.bias))
    assert torch.equal(unit(x, sublayer), expected)


@pytest.mark.parametrize("norm_first", [False, True])
def test_add_norm_drops_the_branch_and_never_the_identity(norm_first: bool) -> None:
    """With dropout 1 in training only x is left of the sum; in eval mode dropout is off."""
    torch.manual_seed(8)
    unit, sublayer, x = AddNorm(WIDTH, 1.0, norm_first), nn.Linear(WIDTH, WIDTH), torch.randn(2, 3, WIDTH)
    dropped = unit.train()(x, sublayer)
    torch.testing.assert_close(dropped, x if norm_first else F.layer_norm(x, (WIDTH,)))
    assert not torch.allclose(unit.eval()(x, sublayer), dropped)


def test_feed_forward_treats_each_token_alone() -> None:
    """max(0, x W1 + b1) W2 + b2 for every token, whatever lies beside it."""
    torch.manual_seed(9)
    layer, x = FeedForward(WIDTH, INNER, 0.0), torch.randn(2, 5, WIDTH)
    expected = torch.clamp(x @ layer.inner.weight.T + layer.inner.bias, min=0) @ layer.outer.weight.T + layer.outer.bias
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer(x[:, 2:3]), layer(x)[:, 2:3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_masked_mean_is_the_mean_of_the_real_tokens(dtype: torch.dtype) -> None:
    """Padding has no part in it, whatever the type of the mask."""
    torch.manual_seed(10)
    x = torch.randn(3, 7, WIDTH)
    x[~_real()] = 1e4
    actual = masked_mean(x, _real().to(dtype))
    for i, length in enumerate(_LENGTHS):
        torch.testing.assert_close(actual[i], x[i, :length].mean(0), atol=1e-5, rtol=1e-5)


def test_masked_mean_never_divides_by_zero() -> None:
    """A sample without any real token gives zeros, and finite gradients."""
    x = torch.randn(2, 3, WIDTH, requires_grad=True)
    pooled = masked_mean(x, torch.tensor([[0, 0, 0], [1, 0, 0]]))
    assert pooled[0].eq(0).all()
    assert torch.equal(pooled[1], x[1, 0])
    pooled.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.isfinite().all()


def _classifier(norm_first: bool = False, dropout: float = 0.1) -> TransformerClassifier:
    torch.manual_seed(11)
    config = TransformerConfig(50, 6, layers=2, width=WIDTH, heads=HEADS, feed_forward=INNER, max_length=12, dropout=dropout)
    network = TransformerClassifier(TransformerConfig(**{**vars(config), "norm_first": norm_first})).eval()
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            _shake(module)
    return network


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_answer_does_not_depend_on_padding(norm_first: bool) -> None:
    """A text alone, padded by 1 to 7 tokens of any id, and in a batch of longer texts: the same logits within 1e-5."""
    network = _classifier(norm_first)
    text = torch.tensor([[2, 17, 33, 5, 8]])
    with torch.no_grad():
        alone = network(text, torch.ones_like(text))
        for padding in range(1, 8):
            ids = torch.cat([text, torch.randint(0, 50, (1, padding))], 1)
            mask = torch.tensor([[1] * 5 + [0] * padding])
            torch.testing.assert_close(network(ids, mask), alone, atol=1e-5, rtol=1e-5)
            others = torch.randint(0, 50, (3, 5 + padding))
            batch = network(torch.cat([others, ids]), torch.cat([torch.ones_like(others), mask]))
            torch.testing.assert_close(batch[3:], alone, atol=1e-5, rtol=1e-5)


def test_a_text_of_padding_only_has_finite_logits() -> None:
    """Nothing to attend to and nothing to average is not an error of arithmetic."""
    ids = torch.zeros(2, 4, dtype=torch.int64)
    with torch.no_grad():
        assert _classifier()(ids, torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0]])).isfinite().all()


def test_order_of_the_tokens_matters() -> None:
    """Without the position embedding attention could not tell a text from its reverse."""
    network, ids = _classifier(), torch.tensor([[2, 17, 33, 5, 8]])
    with torch.no_grad():
        forward, reverse = (network(x, torch.ones_like(x)) for x in (ids, ids.flip(1)))
        assert not torch.allclose(forward, reverse, atol=1e-3)
        nn.init.zeros_(network.position_embedding.weight)
        forward, reverse = (network(x, torch.ones_like(x)) for x in (ids, ids.flip(1)))
    torch.testing.assert_close(forward, reverse, atol=1e-5, rtol=1e-5)


def test_shapes_from_one_token_to_max_length() -> None:
    """Logits (N, classes) for every length up to `max_length`."""
    network = _classifier()
    for length in (1, 2, 12):
        ids = torch.ones(3, length, dtype=torch.int64)
        with torch.no_grad():
            assert network(ids, ids).shape == (3, 6)


def test_dropout_works_in_training_only() -> None:
    """Two passes differ in training mode and are equal in eval mode."""
    network, ids = _classifier(dropout=0.5), torch.ones(2, 5, dtype=torch.int64)
    with torch.no_grad():
        assert torch.equal(network(ids, ids), network(ids, ids))
        network.train()
        assert not torch.equal(network(ids, ids), network(ids, ids))


@pytest.mark.parametrize("norm_first", [False, True])
def test_pre_norm_ends_with_a_norm(norm_first: bool) -> None:
    """Every block has two Add & Norm units; only a pre-norm encoder needs one more norm after the last block."""
    network = _classifier(norm_first)
    assert sum(isinstance(module, AddNorm) for module in network.modules()) == 2 * 2
    assert isinstance(network.final_norm, nn.LayerNorm if norm_first else nn.Identity)
