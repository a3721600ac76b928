"""Weights that an ONNX model keeps in files of their own: a model in, a copy of all its files in another folder out.

Weights are copied as they are, of any type and size; nothing of them is read into memory.
"""

import re
import shutil
from pathlib import Path

import onnx

from models.artifact import CARD, MANIFEST, MODEL, REFERENCE, is_plain_name
from models.external_tensors import external_locations
from models.instrument.graph_file import GraphFileError

_TAKEN = {MODEL, MANIFEST, CARD, REFERENCE, "tokenizer.json"}


def copy_model(path: Path, folder: Path) -> list[str]:
    """Copies a model as `model.onnx`, and beside it the files of its external data.

    A file in a folder below that of the model, or of a name that an artifact needs, gets another name, and the copy tells of it.

    Returns:
        the names of all files in `folder`, the model first.

    Raises:
        GraphFileError: not ONNX, or external data that is missing or lies outside the folder of the model.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's exceptions share no base with OSError
        raise GraphFileError(f"{path} cannot be read as ONNX ({error}); give the file that an exporter wrote") from error
    entries = external_locations(model)
    names: dict[str, str] = {}
    for location in dict.fromkeys(entry.value for entry in entries):
        source = _inside(path, location)
        names[location] = _free_name(location, {*_TAKEN, *names.values()})
        shutil.copyfile(source, folder / names[location])
    if all(location == name for location, name in names.items()):
        shutil.copyfile(path, folder / MODEL)
    else:
        for entry in entries:
            entry.value = names[entry.value]
        onnx.save(model, folder / MODEL)
    return [MODEL, *names.values()]


def _inside(path: Path, location: str) -> Path:
    folder = path.parent.resolve()
    if not (folder / location).exists():  # a link to a model may stand alone
        folder = path.resolve().parent
    source = (folder / location).resolve()
    if not source.is_relative_to(folder):
        raise GraphFileError(
            f"{path} keeps weights in {location}, outside its folder; put the files themselves, no links, beside the model"
        )
    if not source.is_file():
        raise GraphFileError(f"{path} keeps weights in {location}, which is not there; put it beside the model")
    return source


def _free_name(location: str, taken: set[str]) -> str:
    if is_plain_name(location) and location not in taken:
        return location
    base = re.sub(r"[^A-Za-z0-9_-]", "-", Path(location).stem)[:50]
    candidates = (f"weights-{base}{suffix}.bin" for suffix in ("", *(f"-{i}" for i in range(2, len(taken) + 3))))
    return next(name for name in candidates if name not in taken)
