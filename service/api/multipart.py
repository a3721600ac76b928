"""Several images in one body: multipart/form-data in, files out."""

import asyncio
from collections.abc import AsyncGenerator

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.errors import InvalidRequestError

_PART_BYTES = 1 << 18


class _WholeParser(MultiPartParser):
    """Parses a body that is in memory already, and takes none whose end is missing."""

    spool_max_size = 1 << 40  # never to a file: the disk may be read-only
    _ended = False

    def on_end(self) -> None:
        self._ended = True

    async def parse(self) -> FormData:
        try:
            form = await super().parse()
            if not self._ended:
                raise MultiPartException("the last boundary is missing")
        except BaseException:
            for file in self._files_to_close_on_error:  # of parts without an end, too
                file.close()
            raise
        return form


async def multipart_images(headers: Headers, body: bytes) -> list[bytes]:
    """The files of all parts, which are named `image`.

    Raises:
        InvalidRequestError: broken, or other parts.
    """

    async def stream() -> AsyncGenerator[bytes]:
        for start in range(0, len(body), _PART_BYTES):
            await asyncio.sleep(0)  # other requests have their turn in between
            yield body[start : start + _PART_BYTES]

    try:
        form = await _WholeParser(headers, stream(), max_files=10_000).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise InvalidRequestError(
            f"the multipart body is broken ({getattr(error, 'message', error)!s})",
            value=f"{len(body)} bytes",
            remedy="send multipart/form-data with a boundary and `image` parts, as curl -F image=@photo.jpg does",
        ) from None
    try:
        if strangers := sorted({name for name, _ in form.multi_items()} - {"image"}):
            raise InvalidRequestError(
                f"unknown parts: {', '.join(strangers)[:200]}",
                value=strangers[:10],
                limit="image",
                remedy="name every part `image`",
            )
        return [await _file_content(part) for part in form.getlist("image")]
    finally:
        await form.close()


async def _file_content(part: UploadFile | str) -> bytes:
    if not isinstance(part, UploadFile):
        raise InvalidRequestError(
            "the part `image` is a field, not a file",
            value=part,
            limit="a file",
            remedy="send a file: curl -F image=@photo.jpg",
        )
    return await part.read()
