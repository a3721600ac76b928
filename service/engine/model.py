"""A served model: photos or texts in, scores and statistics out. Runs one batch at a time, on a thread of its own."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.artifact import Artifact
from models.postprocessing import softmax
from models.preprocessing import (
    ImagePreprocessing,
    TextPreprocessing,
    decode_image,
    encode_text,
    pad_tokens,
)
from service.engine.session import Feed, Session
from service.errors import OverloadedError
from service.settings import Settings
from service.statistics.layers import BatchStatistics, SampleStatistics, SideLayout, batch_statistics
from service.statistics.store import TrafficStatistics

Prepared = NDArray[np.float32] | NDArray[np.int64]
"""One input after preprocessing: an image float32 (3, H, W) or token ids int64 (L,)."""


@dataclass(frozen=True)
class Prediction:
    """The outcome for one input: scores float64 (classes,) that sum to 1, and its statistics if they were computed."""

    scores: NDArray[np.float64]
    truncated: bool
    statistics: SampleStatistics | None


@dataclass(frozen=True)
class Timing:
    """Where the time of a request went, in milliseconds."""

    preprocess_ms: float
    queue_ms: float
    inference_ms: float


class ServedModel:
    """One loaded version of a model."""

    def __init__(self, artifact: Artifact, settings: Settings, threads: int) -> None:
        """Loads the sessions and runs each once, so that the first request is as fast as the others.

        Raises:
            ArtifactError: the artifact cannot be loaded or run.
        """
        self.manifest = artifact.manifest
        self.layout = SideLayout(tuple(self.manifest.layers))
        self.traffic = TrafficStatistics(self.layout)
        self._settings = settings
        self._tokenizer = (
            self.manifest.preprocessing.load_tokenizer(artifact.folder)
            if isinstance(self.manifest.preprocessing, TextPreprocessing)
            else None
        )
        taps = [layer.tensors[side] for layer, side in self.layout.rows]
        self._tapped = Session(artifact, taps, threads)
        self._plain = self._tapped if settings.traffic_statistics else Session(artifact, [], threads)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"run-{self.manifest.name}")
        self._preparers = ThreadPoolExecutor(threads, thread_name_prefix=f"prepare-{self.manifest.name}")
        self._reducers = ThreadPoolExecutor(threads, thread_name_prefix=f"reduce-{self.manifest.name}")
        self.waiting = 0
        self._warm_up()

    def _warm_up(self) -> None:
        if isinstance(self.manifest.preprocessing, ImagePreprocessing):
            side = self.manifest.preprocessing.crop
            example: Prepared = np.zeros((3, side, side), np.float32)
        else:
            example = np.zeros(1, np.int64)
        for session in {id(s): s for s in (self._tapped, self._plain)}.values():
            session.run(self._feed([example]))

    def prepare(self, item: bytes | str) -> tuple[Prepared, bool]:
        """One encoded image or text -> (model input, whether the text was cut).

        Raises:
            InvalidInputError: not an image, a broken or too large one; a text without words.
        """
        preprocessing = self.manifest.preprocessing
        if isinstance(preprocessing, ImagePreprocessing):
            assert isinstance(item, bytes)  # the API gives image models bytes
            return preprocessing.apply(decode_image(item, self._settings.max_image_pixels)), False
        assert isinstance(item, str)  # and text models strings
        assert self._tokenizer is not None
        return encode_text(self._tokenizer, item, preprocessing.max_length)

    def _feed(self, items: Sequence[Prepared]) -> Feed:
        names = [spec.name for spec in self.manifest.inputs]
        if isinstance(self.manifest.preprocessing, ImagePreprocessing):
            return {names[0]: np.stack(items)}
        return dict(zip(names, pad_tokens([row.astype(np.int64) for row in items]), strict=True))

    async def predict(self, items: Sequence[bytes] | Sequence[str], *, statistics: bool) -> tuple[list[Prediction], Timing]:
        """Prepares and runs all inputs of one request.

        Raises:
            InvalidInputError: an input cannot be used.
            OverloadedError: more requests wait than `max_queue`.
        """
        loop = asyncio.get_running_loop()
        if self.waiting >= self._settings.max_queue:
            raise OverloadedError(
                f"the queue of {self.manifest.name} is full",
                value=self.waiting,
                limit=self._settings.max_queue,
                remedy="try again later, or raise NORMSCOPE_MAX_QUEUE",
            )
        self.waiting += 1
        try:
            start = time.perf_counter()
            prepared = await asyncio.gather(*(loop.run_in_executor(self._preparers, self.prepare, i) for i in items))
            queued = time.perf_counter()
            predictions, began, ended = await loop.run_in_executor(self._worker, self._run, prepared, statistics)
        finally:
            self.waiting -= 1
        timing = Timing(
            preprocess_ms=(queued - start) * 1000, queue_ms=(began - queued) * 1000, inference_ms=(ended - began) * 1000
        )
        return predictions, timing

    def _run(self, prepared: Sequence[tuple[Prepared, bool]], statistics: bool) -> tuple[list[Prediction], float, float]:
        began = time.perf_counter()
        watched = statistics or self._settings.traffic_statistics
        session = self._tapped if watched else self._plain
        predictions: list[Prediction] = []
        size = self._settings.max_batch_size
        for first in range(0, len(prepared), size):
            chunk = prepared[first : first + size]
            self.traffic.count(len(chunk))
            feed = self._feed([item for item, _ in chunk])
            result = session.run(feed)
            observed: BatchStatistics | None = None
            if watched:
                observed = batch_statistics(self.layout, result.tensors, feed, self._reducers)
                if self._settings.traffic_statistics:
                    self.traffic.add(observed)
            scores = softmax(result.logits)
            for i, (_, truncated) in enumerate(chunk):
                sample = observed.sample(i) if observed is not None and statistics else None
                predictions.append(Prediction(scores[i], truncated, sample))
        return predictions, began, time.perf_counter()

    def close(self) -> None:
        """Waits for the work in hand and ends the threads."""
        self._preparers.shutdown()
        self._worker.shutdown()
        self._reducers.shutdown()
