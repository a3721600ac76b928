"""The batcher with runs that the tests hold and release, and a real model whose answers must not depend on the batch."""

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from models.artifact import Artifact, load_artifact
from models.postprocessing import rank, softmax
from models.preprocessing import InvalidInputError
from service.engine import session
from service.engine.batching import Batch, Batcher, BatchResult, run_error, share
from service.engine.calls import Call, Job
from service.engine.counters import Counters
from service.engine.inputs import InputReader, Item, TensorInput
from service.engine.model import ServedModel
from service.engine.outcomes import Outcome
from service.engine.session import RunResult
from service.engine.waiting import BatchLimits
from service.errors import DeadlineExceededError, InvalidRequestError, ModelRunError, OverloadedError
from service.settings import Settings
from tests.conftest import SmallRepository
from tests.networks import SENTENCES
from tests.oracle import assert_statistics_close

POISON = 999


def result_of(batch: Batch) -> BatchResult:
    """The first number of each row as its output; fails where a row holds the poison."""
    rows = batch.rows
    if any((row.arrays[0] == POISON).any() for row in rows):
        raise RuntimeError("node /secret failed. Status Message: indices element out of data bounds")
    logits = [row.arrays[0].ravel()[:1].astype(np.float32) for row in rows]
    outcomes = [
        Outcome((each,), softmax(each), rank(softmax(each)), row.truncated, None) for each, row in zip(logits, rows, strict=True)
    ]
    return BatchResult(outcomes, 1, 2, 3)


class HeldRuns:
    """A run that blocks until it is released, keeps the batches it saw, and fails where a row holds the poison."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.began, self.released = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, batch: Batch) -> BatchResult:
        self.batches.append([int(row.arrays[0].flat[0]) for row in batch.rows])
        self.began.release()
        self.released.acquire()
        return result_of(batch)

    def release(self, runs: int = 100) -> None:
        self.released.release(runs)


def tokens(first: int, length: int = 1) -> TensorInput:
    """A row of a text, made of one token."""
    ids = np.full(length, first)
    return TensorInput((ids, np.ones_like(ids)))


def pixels(first: int, side: int = 2) -> TensorInput:
    """A row of an image of one colour."""
    return TensorInput((np.full((3, side, side), first, np.float32),))


@pytest.fixture
def readers(small_repository: SmallRepository) -> dict[str, InputReader]:
    """Of the text model, which pads, and of the image model, which does not."""
    return {name: InputReader(load_artifact(small_repository.folder / name / "1"), 1000) for name in ("text", "vision")}


async def outcomes_of(call: Call) -> list[float]:
    """The first number of each row of a call, once it is answered."""
    return [float(outcome.outputs[0][0]) for outcome in await call.future]


def batched(
    reader: InputReader,
    scenario: Callable[[Callable[..., Call], HeldRuns, Batcher], Awaitable[None]],
    *,
    max_size: int = 4,
    max_elements: int = 1000,
    max_delay_s: float = 0,
) -> list[list[int]]:
    """Runs a scenario; the first batch is already held when it starts, so all that it submits waits. Returns the later batches."""
    held, counters = HeldRuns(), Counters()
    batcher = Batcher("test", reader, held, counters, BatchLimits(max_size, max_elements, max_delay_s))

    def submit(*items: Item, timeout_s: float = 60) -> Call:
        call = Call(len(items), statistics=False, timeout_s=timeout_s)
        for i, item in enumerate(items):
            batcher.put(Job(call, i, item, item if isinstance(item, TensorInput) else None))
        return call

    async def main() -> None:
        first = submit(tokens(-1) if reader.pads else pixels(-1))
        if not max_delay_s:
            held.began.acquire()
        await scenario(submit, held, batcher)
        held.release()
        await first.future

    try:
        asyncio.run(main())
    finally:
        held.release()
        batcher.close()
    return held.batches[1:] if not max_delay_s else held.batches


def test_what_waits_while_the_runtime_is_busy_runs_together(readers: dict[str, InputReader]) -> None:
    """Jobs of several calls share runs of at most max_size, and every call gets its own outcomes in its own order."""

    async def scenario(submit: Callable[..., Call], held: HeldRuns, batcher: Batcher) -> None:
        calls = [submit(tokens(1), tokens(2)), submit(tokens(3)), submit(tokens(4), tokens(5), tokens(6))]
        held.release()
        assert [await outcomes_of(call) for call in calls] == [[1, 2], [3], [4, 5, 6]]

    assert batched(readers["text"], scenario) == [[1, 2, 3, 4], [5, 6]]


def test_texts_of_similar_length_run_together(readers: dict[str, InputReader]) -> None:
    """The oldest goes first, with those nearest to it in length; nobody is left behind."""

    async def scenario(submit: Callable[..., Call], held: HeldRuns, batcher: Batcher) -> None:
        calls = [submit(tokens(i, length)) for i, length in enumerate([3, 50, 4, 49])]
        held.release()
        assert [await outcomes_of(call) for call in calls] == [[0], [1], [2], [3]]

    assert batched(readers["text"], scenario, max_size=2) == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("lengths", "batches"),
    [
        ([10, 5, 8, 5], [[0, 2], [1, 3]]),  # 10 and 8 tokens share a run, which 5 more do not join
        ([10, 10, 14, 10, 5], [[0, 1, 3, 4], [2]]),  # 14 are nearer than 5, but would pad all others
    ],
)
def test_a_run_is_padded_by_a_fifth_at_most(lengths: list[int], batches: list[list[int]], readers: dict[str, InputReader]) -> None:
    """Texts that would need more padding run by themselves, and do not keep others from the run."""

    async def scenario(submit: Callable[..., Call], held: HeldRuns, batcher: Batcher) -> None:
        calls = [submit(tokens(i, length)) for i, length in enumerate(lengths)]
        held.release()
        assert [await outcomes_of(call) for call in calls] == [[i] for i in range(len(lengths))]

    assert batched(readers["text"], scenario) == batches


def test_a_broken_photo_fails_alone(readers: dict[str, InputReader], monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos are decoded by the thread that runs them; one that cannot be leaves its neighbours in their run.

    What its own request brings besides is not decoded any more.
    """
    decoded = []

    def decode(data: bytes) -> TensorInput:
        decoded.append(data)
        if data == b"broken":
            raise InvalidInputError("not an image", value=data, limit="an image", remedy="send one")
        return pixels(len(data), side=readers["vision"].example().arrays[0].shape[-1])

    async def scenario(submit: Callable[..., Call], held: HeldRuns, batcher: Batcher) -> None:
        monkeypatch.setattr(readers["vision"], "image", decode)
        good, broken, other, wholly_broken = submit(b"a"), submit(b"aa", b"broken"), submit(b"aaa"), submit(b"broken", b"late")
        held.release()
        assert [await outcomes_of(call) for call in (good, other)] == [[1], [3]]
        for call in (broken, wholly_broken):
            with pytest.raises(InvalidInputError, match="not an image"):
                await call.future

    assert batched(readers["vision"], scenario, max_size=8, max_elements=100_000) == [[1, 2, 3]]
    assert b"late" not in decoded


@pytest.mark.parametrize(("max_size", "batches"), [(8, [[1, 2, 3]]), (2, [[1, 2], [3]])])
def test_photos_that_come_while_others_are_decoded_join_them(
    readers: dict[str, InputReader], monkeypatch: pytest.MonkeyPatch, max_size: int, batches: list[list[int]]
) -> None:
    """In one run with them, as far as it has room; also what comes while those are decoded."""

    async def scenario(submit: Callable[..., Call], held: HeldRuns, batcher: Batcher) -> None:
        later = {data: Call(1, statistics=False, timeout_s=60) for data in (b"aa", b"aaa")}

        def decode(data: bytes) -> TensorInput:
            if (call := later.get(data + b"a")) is not None:
                batcher.put(Job(call, 0, data + b"a"))
            return pixels(len(data), side=readers["vision"].example().arrays[0].shape[-1])

        monkeypatch.setattr(readers["vision"], "image", decode)
        first = submit(b"a")
        held.release()
        assert [await outcomes_of(call) for call in (first, *later.values())] == [[1], [2], [3]]

    assert batched(readers["vision"], scenario, max_size=max_size, max_elements=100_000) == batches


def test_photos_decoded_beforehand(readers: dict[str, InputReader], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where runs are elsewhere, others decode: a broken photo fails its call, the next runs and is not decoded again."""

    async def scenario(submit: Callable[..., Call], held: HeldRuns, batcher: Batcher) -> None:
        monkeypatch.setattr(readers["vision"], "image", Broken(lambda data: pixels(len(data)), RuntimeError("a fault"), times=1))
        broken, good = (Call(1, statistics=False, timeout_s=60) for _ in range(2))
        for call in (broken, good):
            batcher.put_decoded(Job(call, 0, b"aa"))
        monkeypatch.setattr(readers["vision"], "image", Broken(pixels, RuntimeError("decoded again"), times=1))
        held.release()
        with pytest.raises(RuntimeError, match="a fault"):
            await broken.future
        assert await outcomes_of(good) == [2]

    assert batched(readers["vision"], scenario) == [[2]]


@pytest.mark.parametrize("row", [tokens(7), tokens(POISON)])
def test_a_run_on_the_event_loop(readers: dict[str, InputReader], row: TensorInput) -> None:
    """Ends as one on a thread does, well or badly, before the call returns."""
    held = HeldRuns()
    held.release()
    batcher = Batcher("test", readers["text"], held, Counters(), BatchLimits(4, 1000, 0))

    async def main() -> None:
        call = Call(1, statistics=False, timeout_s=60)
        batcher.run_here(Job(call, 0, row, row))
        assert held.batches == [[row.arrays[0][0]]]
        if row.arrays[0][0] == POISON:
            with pytest.raises(ModelRunError, match="out of data bounds"):
                await call.future
        else:
            assert call.future.done()
            assert await outcomes_of(call) == [7]

    try:
        asyncio.run(main())
    finally:
        batcher.close()


def test_a_text_that_is_longer_than_usual_does_not_run_on_the_event_loop(readers: dict[str, InputReader]) -> None:
    """Few characters may be many tokens: a thread runs them. What was given up does not run at all."""
    held = HeldRuns()
    batcher = Batcher("test", readers["text"], held, Counters(), BatchLimits(4, 1000, 0))
    length = readers["text"].example().elements + 1

    async def main() -> None:
        given_up, call = (Call(1, statistics=False, timeout_s=60) for _ in range(2))
        given_up.abandoned = True
        batcher.run_here(Job(given_up, 0, tokens(1), tokens(1)))
        batcher.run_here(Job(call, 0, tokens(7, length), tokens(7, length)))  # returns, though no run is released
        held.release()
        assert await outcomes_of(call) == [7]

    try:
        asyncio.run(main())
    finally:
        held.release()
        batcher.close()
    assert held.batches == [[7]]


def test_a_fault_on_the_event_loop_fails_its_call(readers: dict[str, InputReader], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong beside the run reaches the request that waits."""
    held = HeldRuns()
    held.release()
    batcher = Batcher("test", readers["text"], held, Counters(), BatchLimits(4, 1000, 0))

    async def main() -> None:
        call = Call(1, statistics=False, timeout_s=60)
        monkeypatch.setattr(call, "finish", Broken(call.finish, RuntimeError("a fault"), times=1))
        batcher.run_here(Job(call, 0, tokens(1), tokens(1)))
        with pytest.raises(RuntimeError, match="a fault"):
            await call.future

    try:
        asyncio.run(main())
    finally:
        batcher.close()


def test_images_of_different_size_never_share_a_run(readers: dict[str, InputReader]) -> None:
    """Only rows of the very same shape can be stacked."""

    async def scenario(submit: Callable[..., Call], held: HeldRuns, batcher: Batcher) -> None:
        calls = [submit(pixels(i, side)) for i, side in enumerate([2, 4, 2, 4])]
        held.release()
        assert [await outcomes_of(call) for call in calls] == [[0], [1], [2], [3]]

    assert batched(readers["vision"], scenario) == [[0, 2], [1, 3]]


def test_a_batch_is_bounded_by_the_numbers_in_it(readers: dict[str, InputReader]) -> None:
    """Padding counts: rows x longest never exceeds max_elements, but one row always runs."""

    async def scenario(submit: Callable[..., Call], held: HeldRuns, batcher: Batcher) -> None:
        calls = [submit(tokens(0, 40)), submit(tokens(1, 10)), submit(tokens(2, 60)), submit(tokens(3, 200))]
        held.release()
        await asyncio.gather(*(call.future for call in calls))

    assert batched(readers["text"], scenario, max_elements=120) == [[0, 2], [1], [3]]


def test_abandoned_work_is_dropped_before_it_runs(readers: dict[str, InputReader]) -> None:
    """A call that was given up never reaches the runtime, and its neighbours are answered."""

    async def scenario(submit: Callable[..., Call], held: HeldRuns, batcher: Batcher) -> None:
        kept, given_up, late = submit(tokens(1)), submit(tokens(2)), submit(tokens(3), timeout_s=0)
        given_up.abandoned = True
        held.release()
        assert await outcomes_of(kept) == [1]
        assert not given_up.future.done()
        assert not late.future.done()  # its own timer answers it

    assert batched(readers["text"], scenario) == [[1]]


def test_a_poisonous_input_fails_alone(readers: dict[str, InputReader]) -> None:
    """A batch that fails runs again one by one; the error names the reason, not the internals."""

    async def scenario(submit: Callable[..., Call], held: HeldRuns, batcher: Batcher) -> None:
        calls = [submit(tokens(1)), submit(tokens(POISON)), submit(tokens(2), tokens(3))]
        held.release()
        assert await outcomes_of(calls[0]) == [1]
        assert await outcomes_of(calls[2]) == [2, 3]
        with pytest.raises(ModelRunError, match="out of data bounds") as caught:
            await calls[1].future
        assert "secret" not in str(caught.value)

    assert batched(readers["text"], scenario) == [[1, POISON, 2, 3], [1], [POISON], [2], [3]]


def test_a_text_that_cannot_be_used_fails_alone(readers: dict[str, InputReader]) -> None:
    """Texts are tokenized together, and a blank one fails its own call only."""

    async def scenario(submit: Callable[..., Call], held: HeldRuns, batcher: Batcher) -> None:
        good, blank = submit(SENTENCES[0]), submit("   ")
        held.release()
        with pytest.raises(InvalidInputError, match="blank"):
            await blank.future
        assert len(await good.future) == 1

    assert len(batched(readers["text"], scenario)) == 1


def test_a_batch_waits_for_more_only_until_it_is_full(readers: dict[str, InputReader]) -> None:
    """With a delay far beyond the test's time limit, a batch runs as soon as max_size inputs are there."""

    async def scenario(submit: Callable[..., Call], held: HeldRuns, batcher: Batcher) -> None:
        held.release()
        assert await outcomes_of(submit(tokens(1))) == [1]

    assert batched(readers["text"], scenario, max_size=2, max_delay_s=3600) == [[-1, 1]]


def test_a_batch_that_is_not_full_runs_once_its_oldest_has_waited(readers: dict[str, InputReader]) -> None:
    """With an hour of delay two inputs wait; a third that came almost an hour ago ends the wait, and all three run of four."""
    hour_s = 3600

    async def scenario(submit: Callable[..., Call], held: HeldRuns, batcher: Batcher) -> None:
        held.release()
        other, old = submit(tokens(1)), Call(1, statistics=False, timeout_s=2 * hour_s)
        old.started_ns -= int((hour_s - 0.02) * 1e9)
        batcher.put(Job(old, 0, tokens(2), tokens(2)))
        assert [await outcomes_of(call) for call in (other, old)] == [[1], [2]]

    assert batched(readers["text"], scenario, max_size=4, max_delay_s=hour_s) == [[-1, 1, 2]]


def test_what_a_batch_leaves_behind_does_not_wait_again(readers: dict[str, InputReader]) -> None:
    """Texts that do not fit the oldest run right after it, however long a batch may wait for more."""

    async def scenario(submit: Callable[..., Call], held: HeldRuns, batcher: Batcher) -> None:
        held.release()
        calls = [submit(tokens(i, length)) for i, length in enumerate([50, 1, 100])]
        assert [await outcomes_of(call) for call in calls] == [[0], [1], [2]]

    assert batched(readers["text"], scenario, max_size=4, max_delay_s=3600) == [[-1, 1], [0], [2]]


class Broken:
    """A function that fails so many times, then does what it does."""

    def __init__(self, function: Callable[..., Any], error: BaseException, times: int) -> None:
        self._function, self._error, self._left = function, error, times

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self._left:
            self._left -= 1
            raise self._error
        return self._function(*args, **options)


class Panic(BaseException):
    """What the tokenizer raises where its own code fails: no Exception."""


@pytest.mark.parametrize(
    ("error", "seen"), [(RuntimeError("a fault"), "a fault"), (Panic("a panic"), "the tokenizer failed: a panic")]
)
def test_a_tokenizer_that_fails_fails_one_call(
    readers: dict[str, InputReader], error: BaseException, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of two texts together fails by itself; the other and later ones are answered by the same thread."""

    async def scenario(submit: Callable[..., Call], held: HeldRuns, batcher: Batcher) -> None:
        monkeypatch.setattr(readers["text"], "texts", Broken(readers["text"].texts, error, times=2))
        calls = [submit(sentence) for sentence in SENTENCES[:2]]
        held.release()
        with pytest.raises(RuntimeError, match=seen):
            await calls[0].future
        assert len(await calls[1].future) == 1
        assert len(await submit(SENTENCES[2]).future) == 1

    assert len(batched(readers["text"], scenario)) == 2


def test_a_fault_while_a_batch_is_chosen_fails_those_that_wait(
    readers: dict[str, InputReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nobody else: the thread goes on."""

    async def scenario(submit: Callable[..., Call], held: HeldRuns, batcher: Batcher) -> None:
        monkeypatch.setattr(readers["text"], "compatible", Broken(readers["text"].compatible, RuntimeError("a fault"), times=1))
        calls = [submit(tokens(i)) for i in range(2)]
        held.release()
        for call in calls:
            with pytest.raises(RuntimeError, match="a fault"):
                await call.future
        assert await outcomes_of(submit(tokens(3))) == [3]

    assert batched(readers["text"], scenario) == [[3]]


def test_a_fault_after_a_run_fails_its_batch(readers: dict[str, InputReader], monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody else: the thread goes on."""

    async def scenario(submit: Callable[..., Call], held: HeldRuns, batcher: Batcher) -> None:
        calls = [submit(tokens(i)) for i in range(2)]
        monkeypatch.setattr(calls[1], "finish", Broken(calls[1].finish, RuntimeError("a fault"), times=1))
        held.release()
        for call in calls:
            with pytest.raises(RuntimeError, match="a fault"):
                await call.future
        assert await outcomes_of(submit(tokens(3))) == [3]

    assert batched(readers["text"], scenario) == [[0, 1], [3]]


@pytest.mark.parametrize("fails", [False, True])
def test_calls_of_a_closed_loop_end_nothing(readers: dict[str, InputReader], fails: bool) -> None:
    """A run that ends well or badly after its event loop was closed leaves the thread to the calls of another."""
    held = HeldRuns()
    batcher = Batcher("test", readers["text"], held, Counters(), BatchLimits(4, 1000, 0))

    async def submit(first: int) -> Call:
        call = Call(1, statistics=False, timeout_s=60)
        batcher.put(Job(call, 0, tokens(first), tokens(first)))
        return call

    async def answered() -> list[float]:
        return await outcomes_of(await submit(2))

    try:
        asyncio.run(submit(POISON if fails else 1))
        held.began.acquire()
        held.release()
        assert asyncio.run(answered()) == [2]
    finally:
        held.release()
        batcher.close()


@pytest.mark.parametrize(
    ("says", "shown"),
    [
        ("indices element out of data bounds, idx=7", "indices element out of data bounds, idx=7"),
        ("/src/ops.h:583 void ort::Append(ptrdiff_t) axis == 1 was false. Attempting to broadcast. 24 by 50", "24 by 50"),
        ("/src/core/ops.cc:12 int ort::Compute(Context*) bad allocation", "RuntimeError"),
        ("", "RuntimeError"),
    ],
)
def test_the_reason_of_a_failed_run_names_no_source(says: str, shown: str) -> None:
    """A client is told what the runtime says of the input, never where in its sources it says so."""
    error = str(run_error(RuntimeError(f"Non-zero status code. Name:'/secret/node' Status Message: {says}\nmore")))
    assert shown in error
    assert not re.search(r"secret|/src|ort::|\.cc|\.h\b|more", error)


@pytest.fixture
def text_model(small_repository: SmallRepository) -> Iterator[ServedModel]:
    """A model that waits for a second input, practically for ever, so that a single one can be given up while it waits."""
    settings = Settings(max_queue_delay_ms=3_600_000, max_batch_size=2, max_queue=2, max_batch_elements=100)
    served = ServedModel(load_artifact(small_repository.folder / "text" / "1"), settings, threads=1)
    yield served
    served.close()


def test_a_request_is_answered_at_its_deadline(text_model: ServedModel) -> None:
    """Also while its inputs wait: the caller is told within the time it asked for."""
    with pytest.raises(DeadlineExceededError, match=r"0\.01 s"):
        asyncio.run(text_model.predict(["hello"], statistics=False, timeout_s=0.01))
    assert text_model.counters.snapshot().fail.count == 1


@pytest.mark.parametrize(
    ("waiting", "runs", "running", "threads", "expected"),
    [
        (1, 0, 0, 2, (1, True)),
        (4, 0, 0, 2, (2, False)),
        (4, 1, 4, 2, (4, False)),
        (7, 1, 1, 2, (4, False)),
        (1, 1, 9, 2, (1, False)),
        (8, 0, 0, 16, (8, True)),
        (9, 0, 0, 16, (1, False)),
    ],
)
def test_threads_share_the_work(waiting: int, runs: int, running: int, threads: int, expected: tuple[int, bool]) -> None:
    """All threads get the same number of inputs, unless there are so few that one run on all threads is faster."""
    assert share(waiting, runs, running, threads) == expected


def test_runs_go_on_beside_each_other(readers: dict[str, InputReader]) -> None:
    """With two threads a second run begins before the first has ended; all are answered, and closing ends both threads."""
    held = HeldRuns()
    batcher = Batcher("test", readers["text"], held, Counters(), BatchLimits(32, 1000, 0), runs_at_once=2)

    async def main() -> None:
        calls = []
        for i in range(2):
            call = Call(1, statistics=False, timeout_s=60)
            batcher.put(Job(call, 0, tokens(i), tokens(i)))
            held.began.acquire()
            calls.append(call)
        held.release()
        assert [await outcomes_of(call) for call in calls] == [[0], [1]]

    try:
        asyncio.run(main())
    finally:
        held.release()
        batcher.close()
    assert held.batches == [[0], [1]]


def test_places_are_bounded(text_model: ServedModel) -> None:
    """`max_queue` requests may be in hand; one more is refused at once with the limit, and a place given back can be taken."""
    assert text_model.acquire()
    assert text_model.acquire()
    with pytest.raises(OverloadedError) as caught:
        text_model.acquire()
    assert caught.value.limit == 2
    text_model.release()
    assert text_model.acquire()
    text_model.release()
    text_model.release()


def test_inputs_in_hand_are_bounded(text_model: ServedModel) -> None:
    """Together they fill `max_queue` runs at most, here 2 of 100 numbers; one request alone may hold more."""

    def predict(rows: int) -> asyncio.Task[Any]:
        return asyncio.create_task(text_model.predict([tokens(1, 20)] * rows, statistics=False))

    async def scenario() -> None:
        waiting = predict(1)
        with pytest.raises(OverloadedError, match="NORMSCOPE_MAX_QUEUE") as caught:
            await predict(10)
        assert (caught.value.value, caught.value.limit) == (220, 200)
        await predict(1)
        await waiting
        outcomes, _ = await predict(12)
        assert len(outcomes) == 12

    asyncio.run(scenario())


def test_an_input_larger_than_a_batch_may_be_is_refused(text_model: ServedModel) -> None:
    """With the number, the limit and the setting."""
    with pytest.raises(InvalidRequestError, match="NORMSCOPE_MAX_BATCH_ELEMENTS"):
        asyncio.run(text_model.predict([tokens(1, 101)], statistics=False))


@pytest.mark.parametrize("statistics_sample", [0, 1])
def test_an_answer_does_not_depend_on_its_batch(small_repository: SmallRepository, statistics_sample: float) -> None:
    """Texts of different length alone and together: logits within 1e-5, statistics within the stated tolerances."""
    artifact = load_artifact(small_repository.folder / "text" / "1")
    served = ServedModel(artifact, Settings(statistics_sample=statistics_sample), threads=1)
    words = " ".join(SENTENCES).split()
    texts = [" ".join(words[:count]) for count in (17, 15, 16, 14)]
    layers = artifact.manifest.layers

    async def scenario() -> tuple[list[Outcome], list[Outcome], list[Outcome]]:
        alone = [(await served.predict([text], statistics=True))[0][0] for text in texts]
        together, _ = await served.predict(texts, statistics=True)
        plain, _ = await served.predict(texts, statistics=False)
        return alone, together, plain

    try:
        alone, together, plain = asyncio.run(scenario())
    finally:
        served.close()
    sizes = served.counters.snapshot().batches
    assert set(sizes) == {1, 4}
    for one, other, quick in zip(alone, together, plain, strict=True):
        np.testing.assert_allclose(one.outputs[0], other.outputs[0], atol=1e-5)
        np.testing.assert_allclose(one.outputs[0], quick.outputs[0], atol=1e-5)
        assert one.statistics is not None
        assert other.statistics is not None
        assert quick.statistics is None
        assert_statistics_close(one.statistics.describe(layers, channels=False), other.statistics.describe(layers, channels=False))


@pytest.mark.parametrize(
    ("text", "delay_ms", "others", "here"),
    [("hello", 0, 0, True), ("hello", 0, 1, False), ("hello", 1, 0, False), ("hello " * 50, 0, 0, False)],
)
def test_a_short_text_alone_runs_on_the_event_loop(
    small_repository: SmallRepository, text: str, delay_ms: float, others: int, here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a run takes less time than waking a thread; not if others are in hand or could come, nor if the text is long."""
    monkeypatch.setattr(session, "_QUICK_S", 60)  # however busy the machine is
    settings = Settings(statistics_sample=0, max_queue_delay_ms=delay_ms)
    served = ServedModel(load_artifact(small_repository.folder / "text" / "1"), settings, threads=2)
    threads = []
    run = served._plain.run

    def noted(*args: Any, **options: Any) -> RunResult:
        threads.append(threading.current_thread())
        return run(*args, **options)

    monkeypatch.setattr(served._plain, "run", noted)
    for _ in range(others + 1):
        served.acquire()
    try:
        outcomes, _ = asyncio.run(served.predict([text], statistics=False))
    finally:
        for _ in range(others + 1):
            served.release()
        served.close()
    assert len(outcomes) == 1
    assert (threads == [threading.main_thread()]) == here


@pytest.mark.parametrize(("shape", "pads"), [(["batch", "length", 8], False), (["batch", 8], True)])
def test_texts_share_a_run_only_where_all_layers_are_masked(
    small_repository: SmallRepository, shape: list[str | int], pads: bool
) -> None:
    """The statistics of a layer that grows with the text, and whose padding cannot be told, must not depend on the batch."""
    artifact = load_artifact(small_repository.folder / "text" / "1")
    assert InputReader(artifact, 1000).pads
    unmasked = artifact.manifest.layers[0].model_copy(update={"mask": None, "shape": shape})
    manifest = artifact.manifest.model_copy(update={"layers": [unmasked, *artifact.manifest.layers[1:]]})
    assert InputReader(Artifact(artifact.folder, manifest), 1000).pads == pads
