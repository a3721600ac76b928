import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.data.batch import Batch
from models.data.clinc150 import (
    PAD_ID,
    Clinc150Training,
    Queries,
    TokenizedQueries,
    evaluation_batches,
    labels_of,
    load_queries,
    tokenize,
    train_tokenizer,
)

_UNKNOWN_ID, _START_ID = 1, 2
_FILE = {
    "train": [["what is my balance", "balance"], ["hello there", "greeting"], ["how much money do I have", "balance"]],
    "val": [["is any money left", "balance"]],
    "test": [["good morning", "greeting"]],
    "oos_train": [["who wrote hamlet", "oos"]],
    "oos_val": [["why is the sky blue", "oos"]],
    "oos_test": [["how tall is the moon", "oos"], ["sing a song", "oos"]],
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A tiny file in the official layout."""
    path = tmp_path / "data_full.json"
    path.write_text(json.dumps(_FILE))
    return path


def _tokenized(count: int = 40, classes: int = 4) -> TokenizedQueries:
    """Queries of 2 to 9 tokens; the second token is 100 + the number of the query, the others are 50."""
    rows = [np.array([_START_ID, 100 + i] + [50] * (i * 7 % 8), dtype=np.int64) for i in range(count)]
    return TokenizedQueries(rows, np.arange(count, dtype=np.int64) % classes)


def _training(seed: int = 0, count: int = 40, word_dropout: float = 0.0) -> Clinc150Training:
    return Clinc150Training(_tokenized(count), _tokenized(5), seed, word_dropout)


def _same(one: list[Batch], other: list[Batch]) -> bool:
    def arrays(batches: list[Batch]) -> list[NDArray[Any]]:
        return [array for inputs, labels in batches for array in (*inputs, labels)]

    pairs = zip(arrays(one), arrays(other), strict=True)
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in pairs)


def test_each_split_is_read_from_its_key(archive: Path) -> None:
    """Texts and intents in the order of the file; the queries out of scope are their own splits."""
    assert load_queries("train", archive).texts == ["what is my balance", "hello there", "how much money do I have"]
    assert load_queries("val", archive) == Queries(["is any money left"], ["balance"])
    assert load_queries("test", archive) == Queries(["good morning"], ["greeting"])
    assert load_queries("oos_val", archive) == Queries(["why is the sky blue"], ["oos"])
    assert load_queries("oos_test", archive).intents == ["oos", "oos"]


@pytest.mark.parametrize(
    "content",
    ["", "<html>404</html>", "[1, 2]", "3", "null", '{"rows": []}', '{"train": [["text"]]}', '{"train": [1]}', '{"train": null}'],
)
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    """Whatever the file holds instead, the error names it and where the right one is."""
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"other.json is not CLINC150's data_full.json .*https://"):
        load_queries("train", path)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    """The same error for bytes that are no text."""
    path = tmp_path / "other.json"
    path.write_bytes(b"\x1f\x8b\xff\xfe")
    with pytest.raises(ValueError, match="is not CLINC150"):
        load_queries("train", path)


def test_labels_are_the_intents_in_alphabetical_order() -> None:
    """The order of the model's outputs does not depend on the order of the file."""
    assert labels_of(Queries(["a", "b", "c"], ["weather", "balance", "weather"])) == ["balance", "weather"]


def test_tokenizer_puts_cls_first() -> None:
    """Every text begins with [CLS], also an empty one; [PAD] is 0 and [UNK] is 1."""
    tokenizer = train_tokenizer(_texts(), 120)
    assert [tokenizer.token_to_id(token) for token in ("[PAD]", "[UNK]", "[CLS]")] == [PAD_ID, _UNKNOWN_ID, _START_ID]
    assert tokenizer.encode("what is my balance").ids[0] == _START_ID
    assert tokenizer.encode("").ids == [_START_ID]
    assert tokenizer.get_vocab_size() <= 120


def test_tokenizer_ignores_case_and_accents() -> None:
    """`Café` is `cafe`; a character that was never seen is [UNK]; words it was trained on come back."""
    tokenizer = train_tokenizer(_texts(), 400)
    assert tokenizer.encode("Whát IS").ids == tokenizer.encode("what is").ids
    assert tokenizer.encode("日").ids == [_START_ID, _UNKNOWN_ID]
    assert tokenizer.decode(tokenizer.encode("What is my balance").ids) == "what is my balance"


def _texts() -> list[str]:
    return [text for rows in _FILE.values() for text, _ in rows]


def test_training_the_tokenizer_is_reproducible() -> None:
    """The same texts give the same vocabulary with the same ids: a run can be repeated from its seed."""
    vocabularies = [train_tokenizer(_texts(), 80).get_vocab() for _ in range(4)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)


def test_out_of_scope_is_class_minus_one(archive: Path) -> None:
    """Known intents become their index, any other -1; texts are cut at the longest length."""
    train, labels = load_queries("train", archive), ["balance", "greeting"]
    tokenizer = train_tokenizer(train.texts, 200)
    assert tokenize(train, tokenizer, labels, 64).labels.tolist() == [0, 1, 0]
    outside = tokenize(load_queries("oos_test", archive), tokenizer, labels, 4)
    assert outside.labels.tolist() == [-1, -1]
    assert outside.labels.dtype == np.int64
    assert len(outside) == 2
    assert all(len(row) == 4 and row[0] == _START_ID for row in outside.rows)


def test_batches_depend_on_seed_and_epoch_only() -> None:
    """The same (seed, epoch) gives the same batches, whatever ran before; another seed or epoch gives others."""
    data = _training(word_dropout=0.3)
    first = list(data.batches(3, 4, 0))
    list(data.batches(0, 4, 0))
    assert _same(first, list(data.batches(3, 4, 0)))
    assert _same(first, list(_training(word_dropout=0.3).batches(3, 4, 0)))
    assert not _same(first, list(data.batches(4, 4, 0)))
    assert not _same(first, list(_training(seed=1, word_dropout=0.3).batches(3, 4, 0)))


@pytest.mark.parametrize(("count", "batch_size"), [(40, 4), (40, 7), (200, 3), (5, 5), (3, 4)])
def test_batches_hold_whole_queries_once(count: int, batch_size: int) -> None:
    """count // batch_size batches of int64 ids, mask and labels; every query at most once, with its own label and mask."""
    queries = _tokenized(count)
    batches = list(_training(count=count).batches(0, batch_size, 0))
    assert len(batches) == count // batch_size
    seen = []
    for (ids, mask), labels in batches:
        assert ids.dtype == mask.dtype == labels.dtype == np.int64
        assert ids.shape == mask.shape
        assert ids.shape[0] == len(labels) == batch_size
        for row, real, label in zip(ids, mask, labels, strict=True):
            query = int(row[1]) - 100
            seen.append(query)
            assert label == queries.labels[query]
            assert row[real == 1].tolist() == queries.rows[query].tolist()
            assert (row[real == 0] == PAD_ID).all()
    assert len(set(seen)) == len(seen)


def test_similar_lengths_share_a_batch() -> None:
    """Little of a batch is padding: far less than if queries were drawn at random."""
    batches = list(_training(count=400).batches(0, 16, 0))
    padding = 1 - sum(mask.sum() for (_, mask), _ in batches) / sum(mask.size for (_, mask), _ in batches)
    assert padding < 0.1


def test_word_dropout_hides_words_and_nothing_else() -> None:
    """About the given fraction of the words becomes [UNK], another one each epoch; [CLS] and padding stay, and the data set too."""
    data = _training(count=400, word_dropout=0.25)
    hidden, words = 0, 0
    for (ids, mask), _ in data.batches(0, 16, 0):
        assert (ids[:, 0] == _START_ID).all()
        assert (ids[mask == 0] == PAD_ID).all()
        hidden += int((ids == _UNKNOWN_ID).sum())
        words += int(mask[:, 1:].sum())
    assert abs(hidden / words - 0.25) < 0.04
    assert not any((row == _UNKNOWN_ID).any() for row in data.train.rows)


def test_evaluation_batches_are_all_queries_in_order() -> None:
    """Nothing is shuffled, dropped or hidden; the last batch is as small as it is."""
    queries = _tokenized(10)
    batches = list(evaluation_batches(queries, 4))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert np.concatenate([labels for _, labels in batches]).tolist() == queries.labels.tolist()
    rows = [row[real == 1].tolist() for (ids, mask), _ in batches for row, real in zip(ids, mask, strict=True)]
    assert rows == [row.tolist() for row in queries.rows]


def test_selection_batches_are_the_selection_queries() -> None:
    """Every one, in order, without word dropout."""
    data = _training(word_dropout=0.9)
    assert len(data) == 40
    assert _same(list(data.selection_batches(2, 0)), list(evaluation_batches(data.selection, 2)))
