import io
import itertools
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.data import imagenette
from models.data.batch import Batch
from models.data.imagenette import (
    CLASSES,
    ImagenetteTraining,
    Photos,
    at_size,
    evaluation_batches,
    load_photos,
    random_resized_crop,
    read_split,
    served_batches,
)
from models.preprocessing import ImagePreprocessing

_KEPT = 5
_TRAIN_FILES = 3 * len(CLASSES)
_PREPROCESSING = ImagePreprocessing(resize=36, crop=32)


def _jpeg(shade: int, size: tuple[int, int] = (48, 40)) -> bytes:
    """A photo whose bytes and whose grey tell it apart from every other."""
    file = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(file, "JPEG", quality=95)
    return file.getvalue()


def _write(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def _official_layout() -> list[tuple[str, bytes]]:
    """Three photos of each class to train on, one to evaluate, and what else lies in such archives."""
    files = [
        ("imagenette2-320/noise.csv", b"path,label"),
        ("imagenette2-320/train/n99999999/n99999999_0.JPEG", b"no class of ours"),
    ]
    for i, wnid in enumerate(CLASSES):
        files += [(f"imagenette2-320/train/{wnid}/{wnid}_{j}.JPEG", _jpeg(5 * (3 * i + j) + 3)) for j in range(3)]
        files.append((f"imagenette2-320/val/{wnid}/{wnid}_0.JPEG", _jpeg(20 * i + 1, (40, 56))))
    return files


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny archive in the official layout, of which five photos are kept for choices."""
    monkeypatch.setattr(imagenette, "SELECTION_COUNT", _KEPT)
    return _write(tmp_path / "imagenette2-320.tgz", _official_layout())


def _training(seed: int = 0, count: int = 10) -> ImagenetteTraining:
    """Photos with a gradient and a shade each, so that crops, mirrors and samples can be told apart."""
    ramp = np.linspace(0, 100, 48).astype(np.uint8)
    images = [Image.fromarray(np.broadcast_to((ramp + 10 * i)[None, :, None], (40, 48, 3)).copy()) for i in range(count)]
    photos = Photos(images, np.arange(count, dtype=np.int64))
    return ImagenetteTraining(photos, photos, _PREPROCESSING, seed)


def _same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a[0][0], b[0][0]) and np.array_equal(a[1], b[1]) for a, b in zip(one, other, strict=True)
    )


def test_train_and_selection_are_disjoint_and_together_all(archive: Path) -> None:
    """Nothing that choices are made on is trained on, and no photo is lost."""
    train, selection = ({data for data, _ in read_split(split, archive)} for split in ("train", "selection"))
    assert len(selection) == _KEPT
    assert len(train) == _TRAIN_FILES - _KEPT
    assert not train & selection
    assert train | selection == {data for name, data in _official_layout() if "/train/n0" in name}


def test_val_is_the_official_one(archive: Path) -> None:
    """The evaluation split is the archive's own, whole, and shares no photo with the others."""
    val = read_split("val", archive)
    assert [label for _, label in val] == list(range(len(CLASSES)))
    assert {data for data, _ in val} == {data for name, data in _official_layout() if "/val/" in name}


def test_labels_follow_the_order_of_the_classes(archive: Path) -> None:
    """The class index of a photo is the position of its folder in `CLASSES`."""
    wnids = list(CLASSES)
    by_content = {data: wnids.index(name.split("/")[2]) for name, data in _official_layout() if "/n0" in name}
    splits: tuple[imagenette.Split, ...] = ("train", "selection", "val")
    for split in splits:
        assert all(by_content[data] == label for data, label in read_split(split, archive))


def test_order_does_not_depend_on_the_archive(archive: Path, tmp_path: Path) -> None:
    """The same split in the same order at every call and from an archive packed in another order or under another folder."""
    files = [(name.replace("imagenette2-320/", "./imagenette2/"), data) for name, data in reversed(_official_layout())]
    repacked = _write(tmp_path / "repacked.tgz", files)
    assert read_split("train", archive) == read_split("train", archive) == read_split("train", repacked)
    assert read_split("selection", archive) == read_split("selection", repacked)


def test_photos_are_decoded_and_large_ones_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are RGB with the shorter side at most 256 and their aspect ratio kept; labels are int64."""
    monkeypatch.setattr(imagenette, "SELECTION_COUNT", 0)
    first, second = list(CLASSES)[:2]
    files = [(f"a/train/{first}/1.JPEG", _jpeg(9, (1024, 512))), (f"a/train/{second}/2.JPEG", _jpeg(90, (60, 50)))]
    photos = load_photos("train", _write(tmp_path / "a.tgz", files))
    assert len(photos) == 2
    assert [(image.mode, image.size) for image in photos.images] == [("RGB", (512, 256)), ("RGB", (60, 50))]
    assert photos.labels.dtype == np.int64
    assert photos.labels.tolist() == [0, 1]


def test_hidden_files_are_no_photos(tmp_path: Path) -> None:
    """What macOS adds beside every photo is left out."""
    wnid = next(iter(CLASSES))
    files = [(f"a/val/{wnid}/._1.JPEG", b"attributes"), (f"a/val/{wnid}/1.JPEG", _jpeg(9))]
    assert read_split("val", _write(tmp_path / "a.tgz", files)) == [(_jpeg(9), 0)]


def test_a_photo_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    """The error says which of the files it is, whoever decodes it."""
    wnid = next(iter(CLASSES))
    archive = _write(tmp_path / "a.tgz", [(f"a/val/{wnid}/1.JPEG", _jpeg(9)[:200])])
    with pytest.raises(ValueError, match=rf"the photo a/val/{wnid}/1\.JPEG of the archive cannot be used"):
        load_photos("val", archive)
    with pytest.raises(ValueError, match=rf"a/val/{wnid}/1\.JPEG"):
        list(served_batches(read_split("val", archive), _PREPROCESSING, 4))


def test_an_archive_in_another_layout_is_refused(tmp_path: Path) -> None:
    """The error says what was looked for and where the right archive is."""
    path = _write(tmp_path / "other.tgz", [("photos/cat.jpg", _jpeg(3))])
    with pytest.raises(ValueError, match=r"no train/<wnid>/\*.JPEG; expected the layout of https://"):
        read_split("train", path)
    with pytest.raises(ValueError, match="no val/"):
        load_photos("val", path)


@pytest.mark.parametrize("kept_bytes", [0, 600])
def test_a_file_that_is_no_archive_is_refused(archive: Path, kept_bytes: int) -> None:
    """A saved error page and an archive that broke off are told apart from a programming error; the error names the file."""
    archive.write_bytes(archive.read_bytes()[:kept_bytes] or b"<html>404 Not Found</html>")
    with pytest.raises(ValueError, match=archive.name):
        load_photos("train", archive)


def test_batches_depend_on_seed_and_epoch_only() -> None:
    """The same (seed, epoch) gives the same bits, whatever ran before; another seed or epoch gives others."""
    data = _training()
    first = list(data.batches(3, 4, 32))
    list(data.batches(0, 4, 32))
    next(data.batches(1, 4, 32))
    assert _same(first, list(data.batches(3, 4, 32)))
    assert _same(first, list(_training().batches(3, 4, 32)))
    assert not _same(first, list(data.batches(4, 4, 32)))
    assert not _same(first, list(_training(seed=1).batches(3, 4, 32)))


@pytest.mark.parametrize(("batch_size", "size"), [(4, 32), (5, 24), (10, 48)])
def test_batches_have_the_size_of_the_phase(batch_size: int, size: int) -> None:
    """float32 (B, 3, size, size) and int64 (B,); the incomplete last batch is left out."""
    batches = list(_training().batches(0, batch_size, size))
    assert len(batches) == 10 // batch_size
    for (images,), labels in batches:
        assert images.dtype == np.float32
        assert images.shape == (batch_size, 3, size, size)
        assert labels.dtype == np.int64
        assert labels.shape == (batch_size,)


def test_no_photo_comes_twice_in_an_epoch() -> None:
    """An epoch is a permutation of the photos, and another one each time."""
    orders = [np.concatenate([labels for _, labels in _training().batches(epoch, 5, 16)]) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(10)) for order in orders)
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(orders, 2))


def test_fewer_photos_than_a_batch_give_no_batch() -> None:
    """Only the incomplete batch is there, and it is left out."""
    assert list(_training(count=3).batches(0, 4, 16)) == []


def test_selection_is_prepared_as_the_service_would() -> None:
    """Every photo once, in order, the last batch as small as it is; resize and crop in the ratio of the preprocessing."""
    data = _training()
    batches = list(data.selection_batches(4, 16))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert np.concatenate([labels for _, labels in batches]).tolist() == list(range(10))
    expected = np.stack([ImagePreprocessing(resize=18, crop=16).apply(image) for image in data.selection.images])
    assert np.array_equal(np.concatenate([images for (images,), _ in batches]), expected)


def test_another_image_size_keeps_the_ratio_of_resize_to_crop() -> None:
    """256 to 224 becomes 146 to 128; mean and std stay."""
    preprocessing = ImagePreprocessing(resize=256, crop=224, mean=(0.1, 0.2, 0.3))
    assert at_size(preprocessing, 128) == ImagePreprocessing(resize=146, crop=128, mean=(0.1, 0.2, 0.3))
    assert at_size(preprocessing, 224) == preprocessing


def test_evaluation_batches_are_the_preprocessing_of_every_photo() -> None:
    """What is measured is what is served."""
    photos = _training().train
    ((images,), labels), *rest = evaluation_batches(photos, _PREPROCESSING, 8)
    assert len(rest) == 1
    assert np.array_equal(images[3], _PREPROCESSING.apply(photos.images[3]))
    assert labels.tolist() == list(range(8))


def test_random_crops_are_parts_of_the_photo_and_half_are_mirrored() -> None:
    """Crops of a ramp from dark to light: within its values, of many widths, rising in about half and falling in the others."""
    image = _training().train.images[0]
    rng = np.random.default_rng(0)
    crops = [random_resized_crop(image, 16, rng).astype(int) for _ in range(200)]
    rises = np.array([crop[8, -1, 0] - crop[8, 0, 0] for crop in crops])
    assert all(crop.shape == (16, 16, 3) and crop.min() >= 0 and crop.max() <= 100 for crop in crops)
    assert 70 < (rises > 0).sum() < 130
    assert 70 < (rises < 0).sum() < 130
    assert np.unique(abs(rises)).size > 20


def test_a_photo_too_narrow_for_every_crop_is_taken_whole() -> None:
    """1 x 40 pixels hold no crop of 35 % of their area at a ratio near 1: the whole is resized."""
    strip = Image.new("RGB", (1, 40), (10, 20, 30))
    crop = random_resized_crop(strip, 8, np.random.default_rng(0))
    assert crop.shape == (8, 8, 3)
    assert (crop == (10, 20, 30)).all()
