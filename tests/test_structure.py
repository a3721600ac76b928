"""What the folders promise to each other: which way data flows."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_TRAINING_ONLY = {"torch", "onnxscript", "onnx_ir", "tqdm"}
_SHARED = ("models.artifact", "models.preprocessing", "models.postprocessing", "models.instrument", "models.statistics")


def imports_of(path: Path) -> set[str]:
    """The full names of all modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_service_never_imports_torch() -> None:
    """Neither directly nor through anything it imports: the serving image has no torch."""
    code = f"import sys, service.server; print(sorted({_TRAINING_ONLY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    [
        "evaluation",
        "artifact",
        "instrument.probes",
        "data.imagenette",
        "data.clinc150",
        "card",
        "graph_import",
        "quantization",
        "ablation",
        "reference",
    ],
)
def test_what_needs_no_training_imports_no_torch(command: str) -> None:
    """Evaluation, import, quantization, inspection and data work where torch is not installed."""
    code = f"import sys, models.{command}; print(bool({_TRAINING_ONLY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("path", sorted((ROOT / "service").rglob("*.py")), ids=lambda path: path.name)
def test_service_takes_only_the_contract_from_models(path: Path) -> None:
    """Of `models` the service imports the artifact, pre- and postprocessing, instrumentation and statistics, nothing else."""
    foreign = {name for name in imports_of(path) if name.startswith("models") and not name.startswith(_SHARED)}
    assert not foreign


@pytest.mark.parametrize("path", sorted((ROOT / "models").rglob("*.py")), ids=lambda path: path.name)
def test_models_never_imports_service(path: Path) -> None:
    """Data flows one way: what builds models knows nothing of what serves them."""
    assert not {name for name in imports_of(path) if name.partition(".")[0] == "service"}
