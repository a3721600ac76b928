"""The work itself, the same for every peer and for the run without HTTP: encoded photos or texts in, labels out.

It is imported in the environments of the peers, so it needs no more than `models.preprocessing` and onnxruntime.
"""

import base64
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.preprocessing import (
    ImagePreprocessing,
    InvalidInputError,
    TextPreprocessing,
    decode_image,
    encode_texts,
    pad_tokens,
)
from tests.benchmarks.peers.arrangement import Arrangement

SHIPPED = Path(__file__).resolve().parent.parent.parent.parent / "models" / "artifacts"

Item = bytes | str


class Classifier:
    """One loaded artifact; may be called from several threads."""

    def __init__(self, model: str, arrangement: Arrangement) -> None:
        """Loads `models/artifacts/{model}/1` with the options of the arrangement."""
        folder = SHIPPED / model / "1"
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self._labels: list[str] = manifest["labels"]
        self._inputs = [spec["name"] for spec in manifest["inputs"]]
        preprocessing = manifest["preprocessing"]
        self._text = TextPreprocessing.model_validate(preprocessing) if preprocessing["kind"] == "text" else None
        self._image = ImagePreprocessing.model_validate(preprocessing) if preprocessing["kind"] == "image" else None
        self._tokenizer = self._text.load_tokenizer(folder) if self._text else None
        # a worker with two threads for a run has two for decoding; with one it decodes where it runs
        self._decoders = ThreadPoolExecutor(arrangement.threads) if arrangement.threads > 1 else None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = arrangement.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(arrangement.spinning)))
        self._session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])

    @classmethod
    def of_environment(cls) -> "Classifier":
        """The model and the arrangement that the benchmark asks for."""
        return cls(os.environ["BENCH_MODEL"], Arrangement.read())

    def __call__(self, items: Sequence[Item]) -> list[str]:
        """The best label of every item; all run at once."""
        (logits,) = self._session.run(None, self._feed(items))
        return [self._labels[i] for i in np.asarray(logits).argmax(-1)]

    def _feed(self, items: Sequence[Item]) -> dict[str, NDArray[Any]]:
        if self._text and self._tokenizer:
            rows = encode_texts(self._tokenizer, [item for item in items if isinstance(item, str)], self._text.max_length)
            arrays = pad_tokens([row[0] for row in rows if not isinstance(row, InvalidInputError)])
            return dict(zip(self._inputs, arrays, strict=True))
        decode = self._decoders.map if self._decoders and len(items) > 1 else map
        return {self._inputs[0]: np.stack(list(decode(self._decode, items)))}

    def _decode(self, item: Item) -> NDArray[np.float32]:
        assert self._image is not None  # only photos come here
        assert isinstance(item, bytes)
        return self._image.apply(decode_image(item))


def from_base64(items: Sequence[str]) -> list[bytes]:
    """Photos as JSON carries them -> encoded photos."""
    return [base64.b64decode(item) for item in items]
