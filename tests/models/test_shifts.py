"""Shifts of a model: which there are, that their inputs are the stated ones, seeded, and what their archive must look like."""

import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.artifact import Artifact, DataType, TensorSpec
from models.data.shift_sets import read_photo_sets, read_text_sets
from models.preprocessing import ImagePreprocessing, TextPreprocessing, decode_image
from models.shifts import Shift, bgr, not_normalized, shifts_of, unscaled
from tests.networks import draft_manifest, small_tokenizer
from tests.photos import write_archive

_SIDE = 8
_PREPROCESSING = ImagePreprocessing(resize=_SIDE, crop=_SIDE)


def write_sets(path: Path, members: dict[str, bytes]) -> Path:
    """A tar file."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def png(value: int) -> bytes:
    """A photo of one grey value."""
    file = io.BytesIO()
    Image.new("RGB", (_SIDE, _SIDE), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def photo_model(folder: Path, dtype: DataType, *, batched: bool) -> Artifact:
    """The manifest alone: nothing is run."""
    draft = draft_manifest(folder, labels=["a"], preprocessing=_PREPROCESSING)
    spec = TensorSpec(name="image", dtype=dtype, shape=["batch" if batched else 1, 3, _SIDE, _SIDE])
    return Artifact(folder, draft.model_copy(update={"inputs": [spec], "batched": batched}))


@pytest.fixture
def shifts(tmp_path: Path) -> list[Shift]:
    """Of a photo model, 8 inputs of each of group 2, with one set of 3 photos."""
    artifact = photo_model(tmp_path, "float32", batched=True)
    archive = write_archive(tmp_path / "imagenette.tar", {"val": 2}, _SIDE)
    sets = write_sets(tmp_path / "shift.tar", {f"shift/foreign/{i}.png": png(i) for i in (3, 1, 2)})
    return shifts_of(artifact, archive, sets, 8, 5)


def images(shift: Shift) -> NDArray[np.float32]:
    """All its inputs."""
    return np.concatenate([inputs for (inputs,), _ in shift.batches()])


def test_photo_shifts_of_both_groups(shifts: list[Shift]) -> None:
    """Four kinds at five severities, a quarter of the inputs each; the others; the sets of the archive. All of them in batches."""
    assert [shift.name for shift in shifts if shift.group == 1] == [
        f"{kind} {severity}" for kind in ("blur", "contrast", "jpeg", "noise") for severity in range(1, 6)
    ]
    wrong = ["BGR", "not normalized", "0..255"]
    assert [shift.name for shift in shifts if shift.group == 2] == [
        "rotation", "greyscale", "brightness", "low resolution", *wrong, "foreign"
    ]  # fmt: skip
    assert [shift.name for shift in shifts if shift.wrong_preprocessing] == wrong
    for shift in shifts:
        expected = 3 if shift.name == "foreign" else 2 if shift.group == 1 else 8
        assert images(shift).shape == (expected, 3, _SIDE, _SIDE), shift.name
        assert max(len(labels) for _, labels in shift.batches()) <= 5


def test_inputs_are_always_the_same(shifts: list[Shift]) -> None:
    """Noise and the choice of photos are seeded; each shift chooses its own."""
    for shift in shifts:
        np.testing.assert_array_equal(images(shift), images(shift))
    named = {shift.name: shift for shift in shifts}
    mean = images(named["noise 1"]).mean((1, 2, 3)), images(named["noise 2"]).mean((1, 2, 3))
    assert not np.allclose(*mean, atol=0.05)


def test_sets_are_run_as_they_are(shifts: list[Shift]) -> None:
    """Every photo of the archive once, prepared as the service does."""
    expected = np.stack([_PREPROCESSING.apply(decode_image(png(i))) for i in (1, 2, 3)])
    found = images(shifts[-1])
    np.testing.assert_array_equal(found[found[:, 0, 0, 0].argsort()], expected)


def test_inputs_fit_the_model(shifts: list[Shift], tmp_path: Path) -> None:
    """Half precision and one at a time where the model takes nothing else: the same inputs, rounded."""
    model = photo_model(tmp_path, "float16", batched=False)
    found = shifts_of(model, tmp_path / "imagenette.tar", tmp_path / "shift.tar", 8, 5)
    for shift, usual in zip(found, shifts, strict=True):
        batches = [inputs for (inputs,), _ in shift.batches()]
        assert {(len(each), each.dtype) for each in batches} == {(1, np.dtype(np.float16))}, shift.name
        np.testing.assert_array_equal(np.concatenate(batches), images(usual).astype(np.float16))


def test_texts_fit_the_model(tmp_path: Path) -> None:
    """Every input by its name and type, as the evaluation feeds it."""
    tokenizer = small_tokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    specs = [TensorSpec(name=name, dtype="int32", shape=["batch", "length"]) for name in ("attention_mask", "input_ids")]
    draft = draft_manifest(tmp_path, labels=["a"], preprocessing=TextPreprocessing(max_length=16))
    texts = [["one", "oos"], ["two three four", "oos"]]
    (tmp_path / "data.json").write_text(json.dumps({"oos_val": texts, "oos_test": texts}))
    model = Artifact(tmp_path, draft.model_copy(update={"inputs": specs}))
    for shift in shifts_of(model, tmp_path / "data.json", None, 8, 5):
        (((mask, ids), _),) = shift.batches()
        assert {mask.dtype, ids.dtype} == {np.dtype(np.int32)}
        assert mask.sum(1).tolist() == [(row != 0).sum() for row in ids]
        assert set(mask.ravel().tolist()) == {0, 1}


def test_wrong_preprocessings() -> None:
    """Red where blue belongs, values in 0..1, and the bytes as they are; each by numpy within 1e-6."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    mean, std = (np.array(each)[:, None, None] for each in (_PREPROCESSING.mean, _PREPROCESSING.std))
    planes = pixels.transpose(2, 0, 1).astype(np.float64)
    np.testing.assert_allclose(bgr(pixels, _PREPROCESSING), (planes[::-1] / 255 - mean) / std, atol=1e-6)
    np.testing.assert_allclose(not_normalized(pixels, _PREPROCESSING), planes / 255, atol=1e-6)
    np.testing.assert_array_equal(unscaled(pixels, _PREPROCESSING), planes)
    assert {change(pixels, _PREPROCESSING).dtype for change in (bgr, not_normalized, unscaled)} == {np.dtype(np.float32)}


def test_a_model_of_tensors_has_no_shifts(tmp_path: Path) -> None:
    """Nobody knows what its inputs mean."""
    manifest = draft_manifest(tmp_path, labels=["a"], preprocessing=_PREPROCESSING).model_copy(update={"preprocessing": None})
    artifact = Artifact(tmp_path, manifest)
    with pytest.raises(ValueError, match="takes tensors only"):
        shifts_of(artifact, None, None, 8, 5)


def test_sets_of_an_archive(tmp_path: Path) -> None:
    """Photos by folder and texts by file, in the order of names; blank lines are no texts."""
    path = write_sets(
        tmp_path / "shift.tar",
        {"s/dogs/2.png": b"2", "s/dogs/1.png": b"1", "./s/cats/1.png": b"3", "s/bank.txt": "pay me\n\n  \nnöw\n".encode()},
    )
    assert read_photo_sets(path) == {"cats": [b"3"], "dogs": [b"1", b"2"]}
    assert read_text_sets(path) == {"bank": ["pay me", "nöw"]}


def test_archives_that_are_none(tmp_path: Path) -> None:
    """No tar file, a cut one, none of the wanted kind, or texts that are not UTF-8: the error names the file and the layout."""
    (tmp_path / "no.tar").write_bytes(b"nothing" * 200)
    with pytest.raises(ValueError, match=r"(?s)no\.tar is not a whole archive .* expected a tar file"):
        read_photo_sets(tmp_path / "no.tar")
    whole = write_sets(tmp_path / "whole.tar", {"s/dogs/1.png": b"1" * 5000}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:2000])
    with pytest.raises(ValueError, match=r"cut\.tar is not a whole archive"):
        read_photo_sets(tmp_path / "cut.tar")
    with pytest.raises(ValueError, match=r"whole\.tar holds no texts"):
        read_text_sets(tmp_path / "whole.tar")
    with pytest.raises(ValueError, match=r"s/bank\.txt in .* is not UTF-8"):
        read_text_sets(write_sets(tmp_path / "bank.tar", {"s/bank.txt": b"\xff\xfe"}))
    with pytest.raises(ValueError, match=r"bank\.tar holds no photos"):
        read_photo_sets(tmp_path / "bank.tar")
    with pytest.raises(ValueError, match=r"the set s/empty\.txt in .*sets\.tar holds no texts"):
        read_text_sets(write_sets(tmp_path / "sets.tar", {"s/bank.txt": b"pay", "s/empty.txt": b" \n\n"}))


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_compressed_archives_that_are_damaged(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """Bytes that are no compressed data any more are no traceback."""
    packed = write_sets(tmp_path / "packed.tar", {"s/dogs/1.png": np.random.default_rng(0).bytes(60_000)})
    data = bytearray(compress(packed.read_bytes()))
    data[20_000:40_000] = b"\xff" * 20_000
    packed.write_bytes(data)
    with pytest.raises(ValueError, match=r"packed\.tar is not a whole archive"):
        read_photo_sets(packed)


def test_a_link_to_what_is_not_there(tmp_path: Path) -> None:
    """The error names what is missing."""
    with tarfile.open(tmp_path / "linked.tar", "w") as tar:
        member = tarfile.TarInfo("s/dogs/1.png")
        member.type, member.linkname = tarfile.SYMTYPE, "away.png"
        tar.addfile(member)
    with pytest.raises(ValueError, match=r"linked\.tar is not a whole archive .*away\.png"):
        read_photo_sets(tmp_path / "linked.tar")


def test_hidden_files_belong_to_no_set(tmp_path: Path) -> None:
    """What macOS adds to an archive is neither a photo nor a text."""
    members = {"s/dogs/._1.png": b"no", "s/dogs/1.png": b"1", "s/._bank.txt": b"\xff", "s/bank.txt": b"pay"}
    path = write_sets(tmp_path / "mac.tar", members)
    assert read_photo_sets(path) == {"dogs": [b"1"]}
    assert read_text_sets(path) == {"bank": ["pay"]}


def test_a_photo_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    """Of thousands somebody must find it."""
    archive = write_archive(tmp_path / "imagenette.tar", {"val": 1}, _SIDE)
    sets = write_sets(tmp_path / "shift.tar", {"s/dogs/1.png": b"no photo"})
    *_, dogs = shifts_of(photo_model(tmp_path, "float32", batched=True), archive, sets, 4, 5)
    with pytest.raises(ValueError, match=r"the photo s/dogs/1\.png of the archive cannot be used"):
        images(dogs)
