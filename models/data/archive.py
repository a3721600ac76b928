"""Tar archives: a path in, their files out, each with its name, so that an error can say which file it is about."""

import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Self

from PIL import Image

from models.preprocessing import InvalidInputError, decode_image

# KeyError: a link to what is not there
_BROKEN = (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, KeyError)


class ArchivedFile(bytes):
    """The content of a file.

    Attributes:
        path: in the archive.
    """

    path: PurePosixPath

    def __new__(cls, content: bytes, path: PurePosixPath) -> Self:
        made = super().__new__(cls, content)
        made.path = path
        return made


def read_files(archive: Path, wanted: Callable[[PurePosixPath], bool], remedy: str) -> Iterator[ArchivedFile]:
    """The files whose path is wanted, in the order of the archive; none whose name begins with a dot, as those that macOS adds.

    Raises:
        ValueError: not a whole tar file; the message ends with `remedy`.
    """
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if path.name.startswith(".") or not wanted(path):
                    continue
                stream = tar.extractfile(member)
                if stream is not None:  # a folder has none
                    yield ArchivedFile(stream.read(), path)
    except _BROKEN as error:
        raise ValueError(f"{archive} is not a whole archive ({error}); {remedy}") from error


def decode_photo(file: ArchivedFile) -> Image.Image:
    """The photo as the service decodes it.

    Raises:
        ValueError: it cannot be decoded; the message names the file.
    """
    try:
        return decode_image(file)
    except InvalidInputError as error:
        raise ValueError(f"the photo {file.path} of the archive cannot be used: {error}") from error
