"""Official archives: a URL and a SHA-256 in, a verified local file out.

Resumes, and never leaves a half file under the final name.
"""

import http.client
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from models.checksum import sha256_of

CACHE_DIR = Path.home() / ".cache" / "normscope"
_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 30


class DownloadError(RuntimeError):
    """The archive could not be fetched or is not the published one; the message states the remedy."""


@dataclass(frozen=True)
class OfficialArchive:
    """One published file: where it is and what its content hashes to."""

    url: str
    sha256: str

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


def fetch(archive: OfficialArchive, folder: Path = CACHE_DIR) -> Path:
    """The local path of `archive`, downloaded into `folder` unless it is there already.

    A broken transfer leaves `NAME.part`, from which the next call goes on (HTTP Range).

    Raises:
        DownloadError: no connection, an HTTP error, or a SHA-256 that is not the published one (the part is deleted then).
    """
    target = folder / archive.file_name
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        _transfer(archive.url, part)
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(
            f"cannot download {archive.url}: {error}; run again to resume, or fetch the file by other means and "
            "pass --archive PATH (quantize and reference: --data PATH)"
        ) from error
    digest = sha256_of(part)
    if digest != archive.sha256:
        part.unlink()
        raise DownloadError(f"{archive.url} has SHA-256 {digest}, expected {archive.sha256}; the file was deleted, run again")
    part.replace(target)
    return target


def _transfer(url: str, part: Path) -> None:
    from tqdm import tqdm  # of the training extra; whoever has an archive already goes without

    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the part is already whole: the checksum decides
            return
        raise
    with response:
        resumed = response.status == 206
        size = response.headers.get("Content-Length")
        total = int(size) + (have if resumed else 0) if size else None
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(total=total, initial=have if resumed else 0, unit="B", unit_scale=True, desc=part.stem) as bar,
        ):
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and part.stat().st_size < total:
            raise OSError(f"the connection closed after {part.stat().st_size} of {total} bytes")
