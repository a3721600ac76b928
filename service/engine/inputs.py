"""What a model takes, one input at a time: encoded image, text or raw tensors in, rows out; rows -> one feed.

A row has no batch axis, unless the model has none: then it is a whole request, and the only row of its feed.
"""

import os
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models.artifact import Artifact, TensorSpec
from models.preprocessing import ImagePreprocessing, InvalidInputError, TextPreprocessing, decode_image, encode_texts
from service.engine.session import Feed


class TensorInput:
    """One row: an array for each input of the graph.

    Attributes:
        arrays: never written to; of an image (float32 (3, H, W),), of a text (ids int64 (L,), mask int64 (L,)).
        truncated: whether its text was cut.
        elements: numbers in the largest array.
    """

    __slots__ = ("arrays", "elements", "truncated")

    def __init__(self, arrays: tuple[NDArray[Any], ...], truncated: bool = False) -> None:
        self.arrays, self.truncated = arrays, truncated
        self.elements = max([array.size for array in arrays], default=0)  # read many times


_USUAL_TOKENS = 32
_MOST_PADDING = 0.2  # of the tokens of a run: more costs more time than a second run does
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # batches are short: handing texts to threads takes longer than tokenizing

Item = bytes | str | TensorInput
"""An encoded image, a text, or a row that is ready."""


_OF_COUNT: dict[str, Callable[[int], NDArray[Any]]] = {"token_type_ids": np.zeros, "position_ids": np.arange}
"""What a text model may ask for beside ids and mask, from the number of tokens."""


class InputReader:
    """Turns items into rows, and rows into the feed of one run; safe to use from several threads."""

    def __init__(self, artifact: Artifact, max_image_pixels: int) -> None:
        self._manifest = manifest = artifact.manifest
        self._names = [spec.name for spec in manifest.inputs]
        self._preprocessing = manifest.preprocessing
        self._max_image_pixels = max_image_pixels
        known = all(isinstance(extent, int) for spec in manifest.outputs for extent in spec.shape[1:])
        self.pads = False
        """Rows of different length can share a run: padding is masked in every layer, and no output has the length of its input."""
        self._tokenizer: Tokenizer | None = None
        self._makers: list[tuple[np.dtype[Any], Callable[[int], NDArray[Any]] | None]] = []
        """The type of each input of a text model, and what makes it of the number of tokens; None for the ids."""
        if isinstance(self._preprocessing, TextPreprocessing):
            self.pads = manifest.hides_padding and known
            self._tokenizer = self._preprocessing.load_tokenizer(artifact.folder)
            makers = _OF_COUNT | {str(manifest.mask_input): np.ones}
            for spec in manifest.inputs:
                self._makers.append((_numpy_type(spec), None if spec.name == "input_ids" else makers[spec.name]))

    @property
    def reads_texts(self) -> bool:
        """Whether it tokenizes."""
        return self._tokenizer is not None

    def example(self) -> TensorInput:
        """A row of usual size that the model can run, to warm up."""
        extents = self._manifest.extents
        side = 1
        if isinstance(self._preprocessing, ImagePreprocessing):
            side = self._preprocessing.crop
        elif isinstance(self._preprocessing, TextPreprocessing):
            side = min(_USUAL_TOKENS, self._preprocessing.max_length)
        arrays = []
        for spec in self._manifest.inputs:
            dynamic = [extent if isinstance(extent, int) else extents.get(str(extent), side) for extent in spec.shape]
            value = "" if spec.dtype == "string" else int(spec.name == self._manifest.mask_input)
            arrays.append(np.full(dynamic[1:] if self._manifest.batched else dynamic, value, _numpy_type(spec)))
        return TensorInput(tuple(arrays))

    def image(self, data: bytes) -> TensorInput:
        """Decodes one image.

        Raises:
            InvalidInputError: not an image, a broken or a too large one.
        """
        assert isinstance(self._preprocessing, ImagePreprocessing)  # the API gives bytes to image models only
        pixels = self._preprocessing.apply(decode_image(data, self._max_image_pixels))
        return self._row((pixels.astype(_numpy_type(self._manifest.inputs[0]), copy=False),))

    def texts(self, texts: Sequence[str]) -> list[TensorInput | InvalidInputError]:
        """Tokenizes many texts at once; a text that cannot be used gives its error instead of a row."""
        assert isinstance(self._preprocessing, TextPreprocessing)  # and strings to text models
        assert self._tokenizer is not None
        return [
            encoded if isinstance(encoded, InvalidInputError) else self._text(*encoded)
            for encoded in encode_texts(self._tokenizer, texts, self._preprocessing.max_length)
        ]

    def _text(self, ids: NDArray[np.int64], truncated: bool) -> TensorInput:
        count = len(ids)
        arrays = [(ids if make is None else make(count)).astype(dtype, copy=False) for dtype, make in self._makers]
        return self._row(tuple(arrays), truncated)

    def _row(self, arrays: tuple[NDArray[Any], ...], truncated: bool = False) -> TensorInput:
        return TensorInput(arrays if self._manifest.batched else tuple(array[None] for array in arrays), truncated)

    def feed(self, rows: Sequence[TensorInput]) -> Feed:
        """Rows -> arrays (N, ...) by input name; tokens are padded with 0 on the right, masked by 0; one row without batch.

        Raises:
            ValueError: rows of different shape that cannot be padded.
        """
        if not self._manifest.batched:
            (row,) = rows
            return dict(zip(self._names, row.arrays, strict=True))
        arrays = [[row.arrays[i] for row in rows] for i in range(len(self._names))]
        return {name: self._stack(column) for name, column in zip(self._names, arrays, strict=True)}

    def _stack(self, column: list[NDArray[Any]]) -> NDArray[Any]:
        if len(column) == 1:
            return column[0][None].copy()  # an eighth of the time
        if not self.pads or all(array.shape == column[0].shape for array in column):
            return np.stack(column)
        stacked = np.zeros((len(column), max(len(array) for array in column)), column[0].dtype)
        for i, array in enumerate(column):
            stacked[i, : len(array)] = array
        return stacked

    def compatible(self, first: TensorInput, rows: Sequence[TensorInput], max_rows: int, max_elements: int) -> list[int]:
        """Which of `rows` should share a run with `first`: the nearest in length that fit, or those of its very shape.

        Returns:
            indices, the best first, at most `max_rows` - 1, so that the feed holds at most `max_elements` numbers in an input, and
            at most a fifth of its tokens are padding.
        """
        if not self.pads:
            shapes = [array.shape for array in first.arrays]
            room = min(max_rows, max_elements // max(first.elements, 1)) - 1
            alike = (i for i, row in enumerate(rows) if [array.shape for array in row.arrays] == shapes)
            return list(islice(alike, max(room, 0)))
        length = longest = tokens = first.elements
        chosen: list[int] = []
        for i in sorted(range(len(rows)), key=lambda i: abs(rows[i].elements - length)):
            if len(chosen) + 1 >= max_rows:
                break
            widest, together = max(longest, rows[i].elements), tokens + rows[i].elements
            taken = (len(chosen) + 2) * widest
            if taken <= max_elements and taken - together <= taken * _MOST_PADDING:
                longest, tokens = widest, together
                chosen.append(i)
        return chosen


def _numpy_type(spec: TensorSpec) -> np.dtype[Any]:
    return np.dtype(object if spec.dtype == "string" else spec.dtype)
