"""The server as KServe's REST client sees it; the client runs in an environment of its own, see `kserve_calls.py`."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.service.api.test_predict import image

_SCRIPT = Path(__file__).parent / "kserve_calls.py"
_PYTHON = os.environ.get("KSERVE_PYTHON") or (sys.executable if importlib.util.find_spec("kserve") else "")


@pytest.mark.skipif(not _PYTHON, reason="set KSERVE_PYTHON to a Python that has the package kserve")
def test_every_call_of_the_rest_client(client: httpx.Client, tmp_path: Path) -> None:
    """Health and inference, JSON and binary both ways, and errors in the server's words."""
    photo = tmp_path / "photo.png"
    photo.write_bytes(image())
    done = subprocess.run([_PYTHON, _SCRIPT, str(client.base_url), photo], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
