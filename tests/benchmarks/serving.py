"""The service as its users start it, for benchmarks: a repository and settings in, a ready server process out."""

import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from models.artifact import REFERENCE, Artifact, load_artifact, write_manifest
from tests.benchmarks.peers.environments import ROOT
from tests.benchmarks.peers.processes import Server, free_port, running

_START_S = 120


@contextmanager
def serving(repository: Path, folder: Path, settings: Mapping[str, str]) -> Iterator[Server]:
    """`python -m service` over a repository, ready; its output goes to `folder`/server.log, and ends with the context.

    Raises:
        RuntimeError: it is not ready in time; shows the end of the log.
    """
    folder.mkdir()
    port = free_port()
    variables = {"NORMSCOPE_MODEL_REPOSITORY": str(repository), "PYTHONPATH": str(ROOT), **settings}
    with running([sys.executable, "-m", "service", "--port", str(port)], variables, folder, port) as server:
        _await_ready(server, folder)
        yield server


def _await_ready(server: Server, folder: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if httpx.get(f"{server.url}/readyz").is_success:
                return
        except httpx.TransportError:  # does not listen yet
            pass
        time.sleep(0.1)
    tail = (folder / "server.log").read_text(errors="replace")[-2000:]
    raise RuntimeError(f"the service has ended, or is not ready after {_START_S} s; its log ends with:\n{tail}")


def changed(artifact: Artifact, repository: Path, **changes: object) -> Artifact:
    """A copy of an artifact in a repository, of whose manifest some fields are changed.

    The reference is left out where the layers are others than those that it tells of.
    """
    folder = repository / artifact.manifest.name / artifact.manifest.version
    folder.mkdir(parents=True)
    manifest = artifact.manifest.model_copy(update=changes)
    names = [name for name in manifest.files if name != REFERENCE or manifest.layers == artifact.manifest.layers]
    for name in names:
        shutil.copyfile(artifact.folder / name, folder / name)
    write_manifest(folder, manifest, names)
    return load_artifact(folder)
