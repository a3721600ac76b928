"""CLINC150: the official file in, tokenizer and batches of queries out. Seeded like `models.data.imagenette`.

150 intents of ten domains and queries that belong to none (Larson et al. 2019, "An Evaluation Dataset for Intent Classification and
Out-of-Scope Prediction", https://github.com/clinc/oos-eval). `train` is trained on, `val` is used for choices (and never trained
on), `test` and the out-of-scope queries are only ever evaluated.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from models.data.batch import Batch
from models.data.download import OfficialArchive, fetch
from models.preprocessing import encode_text, pad_tokens

OFFICIAL = OfficialArchive(
    url="https://raw.githubusercontent.com/clinc/oos-eval/master/data/data_full.json",
    sha256="36923c3705a59e08fe9c3883d8bc2dd966ef93e22cb78ac41171782a698d56e0",
)

PAD, UNKNOWN, START = "[PAD]", "[UNK]", "[CLS]"
PAD_ID = 0
_UNKNOWN_ID = 1
_POOL_BATCHES = 16

Split = Literal["train", "val", "test", "oos_val", "oos_test"]


@dataclass(frozen=True)
class Queries:
    """One split: texts and their intents ("oos" for out-of-scope)."""

    texts: list[str]
    intents: list[str]


def load_queries(split: Split, archive: Path | None = None) -> Queries:
    """Reads one split (the official file is downloaded where no path is given).

    Raises:
        DownloadError: the official file cannot be fetched.
        ValueError: the file is not `data_full.json`.
    """
    path = archive or fetch(OFFICIAL)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))[split]
        return Queries([str(text) for text, _ in rows], [str(intent) for _, intent in rows])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not CLINC150's data_full.json ({error!r}); see {OFFICIAL.url}") from error


def labels_of(train: Queries) -> list[str]:
    """The intents in the order of the model's outputs: alphabetical."""
    return sorted(set(train.intents))


def train_tokenizer(texts: list[str], vocabulary: int) -> Tokenizer:
    """A word-piece tokenizer (lower case, accents stripped, [CLS] in front) trained on the texts.

    Source: Wu et al. 2016 (arXiv:1609.08144, section 4.1) and the `tokenizers` library.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    # The trainer numbers continuations in the random order of a hash table and breaks ties by number: number them beforehand.
    continuations = sorted({f"##{c}" for text in texts for c in normalizer.normalize_str(text) if not c.isspace()})
    special = [PAD, UNKNOWN, START]
    learner = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    learner.normalizer, learner.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=special + continuations, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(models.WordPiece(learner.get_vocab(), unk_token=UNKNOWN))  # in which continuations are not special
    tokenizer.normalizer, tokenizer.pre_tokenizer = learner.normalizer, learner.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, tokenizer.token_to_id(START))]
    )
    return tokenizer


@dataclass(frozen=True)
class TokenizedQueries:
    """Token ids of each query and its class index int64 (n,)."""

    rows: list[NDArray[np.int64]]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


def tokenize(queries: Queries, tokenizer: Tokenizer, labels: list[str], max_length: int) -> TokenizedQueries:
    """Texts to ids; an intent outside `labels` (out-of-scope) becomes class -1."""
    index = {label: i for i, label in enumerate(labels)}
    rows = [encode_text(tokenizer, text, max_length)[0] for text in queries.texts]
    return TokenizedQueries(rows, np.array([index.get(intent, -1) for intent in queries.intents], dtype=np.int64))


@dataclass(frozen=True)
class Clinc150Training:
    """The batches that `models.training.Trainer` asks for.

    `word_dropout` replaces tokens by [UNK] at random, so that no single word decides (Iyyer et al. 2015, "Deep Unordered
    Composition Rivals Syntactic Methods for Text Classification", section 3.2).
    """

    train: TokenizedQueries
    selection: TokenizedQueries
    seed: int
    word_dropout: float = 0.1

    def __len__(self) -> int:
        return len(self.train)

    def batches(self, epoch: int, batch_size: int, size: int) -> Iterator[Batch]:
        """One epoch of ((ids, mask) int64 (B, L), labels int64 (B,)); incomplete batches are left out."""
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.train))
        lengths = np.array([len(row) for row in self.train.rows])
        pool = batch_size * _POOL_BATCHES  # similar lengths share a batch, so that little of it is padding
        parts = [order[start : start + pool] for start in range(0, len(order), pool)]
        parts = [part[np.argsort(lengths[part], kind="stable")] for part in parts]
        batches = [part[i : i + batch_size] for part in parts for i in range(0, len(part) - batch_size + 1, batch_size)]
        for position in rng.permutation(len(batches)):
            chosen = batches[position]
            ids, mask = pad_tokens([self.train.rows[i] for i in chosen], PAD_ID)
            dropped = (rng.random(ids.shape) < self.word_dropout) & (mask == 1)
            dropped[:, 0] = False  # [CLS]
            ids[dropped] = _UNKNOWN_ID
            yield (ids, mask), self.train.labels[chosen]

    def selection_batches(self, batch_size: int, size: int) -> Iterator[Batch]:
        """The selection queries once, in order."""
        yield from evaluation_batches(self.selection, batch_size)


def evaluation_batches(queries: TokenizedQueries, batch_size: int) -> Iterator[Batch]:
    """All queries in order: ((ids, mask) int64 (B, L), labels int64 (B,))."""
    for start in range(0, len(queries), batch_size):
        ids, mask = pad_tokens(queries.rows[start : start + batch_size], PAD_ID)
        yield (ids, mask), queries.labels[start : start + batch_size]
