"""A virtual environment for each peer under .bench/, made on first use; nothing goes into the environment that runs this."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent.parent
_FOLDER = ROOT / ".bench"

REQUIREMENTS = {
    "litserve": ["litserve==0.2.19"],
    "bentoml": ["bentoml==1.4.39"],  # 1.4.40 asks for certifi>=2026.10.19, which was not published when this was written
    "mlserver": ["mlserver==1.7.1", "uvloop<0.22"],  # its processes ask for an event loop in a way that later ones refuse
    "ray": ["ray[serve]==2.60.0"],
}
"""The versions that the serving code was written for and tested with."""

_WORK = ("onnxruntime", "tokenizers", "pillow")  # in the same versions for all: the work is the same
_NEEDED = ("numpy", "pydantic")  # in whatever version fits the peer


def environment(peer: str) -> Path:
    """The folder of the peer's environment; created and filled if its requirements are not what is installed."""
    folder = _FOLDER / peer
    requirements = [*REQUIREMENTS[peer], *(f"{name}=={version(name)}" for name in _WORK), *_NEEDED]
    stamp = folder / "requirements.txt"
    wanted = "\n".join(requirements) + "\n"
    if stamp.exists() and stamp.read_text() == wanted:
        return folder
    print(f"installing {', '.join(requirements)} into {folder.relative_to(ROOT)}", file=sys.stderr, flush=True)
    if not (folder / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *requirements], check=True)
    stamp.write_text(wanted)
    return folder
