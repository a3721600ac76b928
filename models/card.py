"""The model card: a manifest in, the Markdown that lies beside the model out."""

from models.artifact import Manifest


def format_metric(value: float) -> str:
    """Four digits behind the point; counts without."""
    return f"{value:.4f}" if value % 1 else f"{value:.0f}"


def model_card(manifest: Manifest) -> str:
    """A page for people: what the model is, where it comes from, what it was measured to do, what it is not for."""
    metrics = "\n".join(f"| {name} | {format_metric(value)} |" for name, value in manifest.metrics.items()) or "| none | |"
    inputs = "\n".join(f"- `{spec.name}`: {spec.dtype} {spec.shape}" for spec in manifest.inputs)
    settings = manifest.preprocessing.model_dump() if manifest.preprocessing else {"kind": "none, it takes tensors"}
    preprocessing = "\n".join(f"- {name}: {value}" for name, value in settings.items())
    kinds = {layer.kind: sum(other.kind == layer.kind for other in manifest.layers) for layer in manifest.layers}
    probes = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
    samples = manifest.training.samples
    reference = f"- Reference: the statistics of {manifest.reference_samples} of these\n" if manifest.reference_samples else ""
    notes = "".join(f"- {note}\n" for note in manifest.notes)
    return f"""# {manifest.name} {manifest.version}

{manifest.description}.

- Task: {manifest.task}, {len(manifest.labels) or "no"} labels
- Training data: {manifest.training.data}
- Trained on {samples if samples is not None else "unknown"} samples, {manifest.training.selection_samples or 0} kept for choices
{reference}- Probes: {probes}
{notes}
## Measured on the evaluation data

| metric | value |
| --- | --- |
{metrics}

## Inputs

{inputs}

Preprocessing:

{preprocessing}

## Limits

{_limits(manifest)}
"""


def _limits(manifest: Manifest) -> str:
    if not manifest.labels:
        return "What the model was made for, and what it is not fit for, is known to those who made it."
    return (
        f"The model knows its {len(manifest.labels)} labels and nothing else: every input gets one of them. It was trained to\n"
        "show how normalization and residual adds behave in a real network, not for decisions about people."
    )
