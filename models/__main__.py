"""The command line that builds models: `python -m models train|evaluate|export|import|quantize|reference|inspect`.

Only what a command needs is imported: all but `train`, `export` and `import --torchvision` run without torch.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.artifact import Artifact

_NEEDS_TRAIN = "this command needs the training extra: pip install 'normscope[train]'"
_MODELS = ("resnet50", "encoder")
_OF_ONNX = ("labels", "preprocessing", "mask", "extent")  # options of `import` that a checkpoint does without
_NO_SETS = Path()  # `--shift` without a file
_ARTIFACTS = Path(__file__).parent / "artifacts"  # what the service serves by default


def _train(arguments: argparse.Namespace) -> None:
    import torch
    from tokenizers import Tokenizer

    from models.recipes import RECIPES
    from models.training import Trainer, seed_everything

    recipe, run = RECIPES[arguments.model], arguments.run
    if (run / "checkpoint.pt").exists() and not arguments.resume:
        raise FileExistsError(f"{run} holds a run already; go on with --resume, or name another folder with --run")
    seed_everything(recipe.training.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    saved = run / "tokenizer.json"
    material = recipe.material(arguments.archive, Tokenizer.from_file(str(saved)) if arguments.resume and saved.exists() else None)
    vocabulary = 0
    run.mkdir(parents=True, exist_ok=True)
    if material.tokenizer is not None:
        vocabulary = material.tokenizer.get_vocab_size()
        material.tokenizer.save(str(saved))
    network = recipe.network(len(material.labels), vocabulary)
    trainer = Trainer(network, material.data, recipe.training, run, device)
    if arguments.resume:
        trainer.resume()
    torch.save(trainer.run().state_dict(), run / "weights.pt")
    print(f"wrote {run / 'weights.pt'}; next: python -m models export {recipe.name} --run {run}")


def _export(arguments: argparse.Namespace) -> None:
    from models.artifact import is_plain_name

    folder = arguments.output or _ARTIFACTS / arguments.model / "1"
    if not (is_plain_name(folder.parent.name) and is_plain_name(folder.name)):
        raise ValueError(f"--output {folder} is no folder NAME/VERSION of letters, digits, points, dashes and underscores")

    from models.package import package_recipe
    from models.recipes import RECIPES

    artifact = package_recipe(RECIPES[arguments.model], arguments.run, arguments.archive, folder)
    print(f"wrote {folder}")
    _print_metrics(artifact.manifest.metrics)


def _import(arguments: argparse.Namespace) -> None:
    from models.artifact import is_plain_name

    name = arguments.name or ("resnet50-imagenet" if arguments.torchvision else None)
    if name is None or not (is_plain_name(name) and is_plain_name(arguments.version)):
        raise ValueError("name the model by --name NAME: letters, digits, points, dashes and underscores")
    folder = arguments.output / name / arguments.version
    if arguments.torchvision:
        alone = {"the ONNX file": arguments.model} | {f"--{key}": vars(arguments)[key] for key in _OF_ONNX}
        if given := [name for name, value in alone.items() if value]:
            raise ValueError(f"--torchvision goes without {', '.join(given)}; leave that out")
        from models.torchvision_import import import_torchvision

        artifact = import_torchvision(arguments.torchvision, folder, arguments.resize)
    elif arguments.model:
        if arguments.resize:
            raise ValueError("--resize is of checkpoints: give --torchvision, or name the size in the file of --preprocessing")
        from models.graph_import import ImportOptions, import_graph

        options = ImportOptions(arguments.labels, arguments.preprocessing, arguments.mask, dict(arguments.extent or ()))
        artifact = import_graph(arguments.model, folder, options)
    else:
        raise ValueError("give the ONNX file, or --torchvision CHECKPOINT")
    for note in artifact.manifest.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"wrote {folder}: {len(artifact.manifest.labels)} labels, {len(artifact.manifest.layers)} layers")
    print(f"serve it: NORMSCOPE_MODEL_REPOSITORY={arguments.output} python -m service")


def _evaluate(arguments: argparse.Namespace) -> None:
    from models.artifact import load_artifact
    from models.evaluation import evaluate

    artifact = load_artifact(_artifact_folder(arguments.artifact))
    if arguments.shift is not None:
        _evaluate_shifts(artifact, arguments)
        return
    if arguments.samples is not None:
        raise ValueError("--samples is of shifts: give --shift too, or leave it out")
    metrics = evaluate(artifact, arguments.archive)
    if arguments.json:
        print(json.dumps(metrics, indent=1))
    else:
        _print_metrics(metrics)


def _evaluate_shifts(artifact: "Artifact", arguments: argparse.Namespace) -> None:
    from models.shift_evaluation import DEFAULT_SAMPLES, evaluate_shifts
    from models.shift_table import shift_table

    report = evaluate_shifts(
        artifact,
        arguments.archive,
        arguments.shift if arguments.shift != _NO_SETS else None,
        DEFAULT_SAMPLES if arguments.samples is None else arguments.samples,
        lambda name: print(f"{name} ...", file=sys.stderr, flush=True),
    )
    print(json.dumps(asdict(report), indent=1) if arguments.json else shift_table(report))


def _quantize(arguments: argparse.Namespace) -> None:
    from models.artifact import load_artifact
    from models.quantization import SUFFIX, QuantizationOptions, quantize

    source = _artifact_folder(arguments.artifact)
    artifact = load_artifact(source)
    repository = arguments.output or source.parent.parent
    folder = repository / artifact.manifest.name / f"{artifact.manifest.version}{SUFFIX}"
    made = quantize(artifact, folder, arguments.data, QuantizationOptions(arguments.photos, arguments.max_loss)).manifest
    for note in made.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"wrote {folder}: {len(made.layers)} of {len(artifact.manifest.layers)} layers")
    _print_metrics(made.metrics)


def _reference(arguments: argparse.Namespace) -> None:
    from models.artifact import REFERENCE, load_artifact
    from models.reference import add_reference

    folder = _artifact_folder(arguments.artifact)
    artifact = add_reference(load_artifact(folder), arguments.data)
    print(f"wrote {folder / REFERENCE}: {artifact.manifest.reference_samples} samples")


def _artifact_folder(text: str) -> Path:
    """A folder NAME/VERSION, or version 1 of a model that is shipped."""
    shipped = _ARTIFACTS / text / "1"
    return shipped if text in _MODELS and shipped.exists() else Path(text)


def _inspect(arguments: argparse.Namespace) -> None:
    from models.artifact import Layer, load_artifact
    from models.instrument.graph_file import read_graph, remarks
    from models.instrument.probes import find_probes

    if not arguments.artifact.exists():
        raise FileNotFoundError(f"{arguments.artifact} does not exist; give a folder NAME/VERSION, or an ONNX file")
    if arguments.samples is not None and arguments.data is None:
        raise ValueError("--samples is of the evaluation data: give --data too, or leave it out")
    if arguments.data is not None:
        _ablate(arguments)
        return
    if arguments.artifact.is_file():
        model = read_graph(arguments.artifact)
        layers = [Layer.of(probe) for probe in find_probes(model)]
        said = remarks(model, sum(layer.kind != "residual_add" for layer in layers))
    else:
        manifest = load_artifact(arguments.artifact).manifest
        layers, said = manifest.layers, manifest.notes
    for remark in said:
        print(f"note: {remark}", file=sys.stderr)
    if arguments.json:
        print(json.dumps([layer.model_dump(mode="json") for layer in layers], indent=1))
        return
    width = max([len(layer.layer) for layer in layers], default=5)
    print(f"{'layer':{width}}  {'kind':14} {'shape':28} {'gamma mean+-std':20} beta mean+-std")
    for layer in layers:
        gamma, beta = (
            f"{parameter.mean:8.4f}+-{parameter.std:.4f}" if parameter else "" for parameter in (layer.gamma, layer.beta)
        )
        print(f"{layer.layer:{width}}  {layer.kind:14} {layer.shape!s:28} {gamma:20} {beta}".rstrip())


def _ablate(arguments: argparse.Namespace) -> None:
    from models.ablation import ablate
    from models.artifact import load_artifact

    report = ablate(load_artifact(arguments.artifact), arguments.data, arguments.samples)
    if arguments.json:
        print(json.dumps(asdict(report), indent=1))
        return
    print(f"accuracy {report.accuracy:.4f} on {report.samples} samples of the evaluation data; without F(x) of a block:")
    width = max(len(block.layer) for block in report.blocks)
    print(f"{'layer':{width}}  residual_ratio  accuracy   change  surplus")
    for block in report.blocks:
        change, surplus = block.accuracy - report.accuracy, "  yes" if block.surplus else ""
        print(f"{block.layer:{width}}  {block.residual_ratio:14.4f}  {block.accuracy:8.4f}  {change:+7.4f}{surplus}")


def _print_metrics(metrics: dict[str, float]) -> None:
    from models.card import format_metric

    for name, value in metrics.items():
        print(f"{name:28} {format_metric(value)}")


def _extent(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition("=")
    if not name or not number.isdecimal() or not int(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER")
    return name, int(number)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(prog="python -m models", description="Builds the models that `python -m service` serves.")
    commands = parser.add_subparsers(dest="command", required=True)

    def archive_option(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--archive", type=Path, help="local archive of the data set; without it the official one is downloaded"
        )

    train = commands.add_parser("train", help="train a model from random weights")
    train.add_argument("model", choices=_MODELS)
    archive_option(train)
    train.add_argument("--run", type=Path, required=True, help="folder for checkpoint.pt, metrics.jsonl and weights.pt")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint of the run")
    train.set_defaults(action=_train)

    export = commands.add_parser("export", help="make the artifact of a finished run and evaluate it")
    export.add_argument("model", choices=_MODELS)
    export.add_argument("--run", type=Path, required=True, help="folder of the finished run")
    archive_option(export)
    export.add_argument("--output", type=Path, help="folder NAME/VERSION; default models/artifacts/MODEL/1")
    export.set_defaults(action=_export)

    importing = commands.add_parser("import", help="make an artifact of any ONNX model, or of torchvision's ResNet-50 checkpoint")
    importing.add_argument("model", type=Path, nargs="?", help="an ONNX file; weights in other files lie beside it")
    importing.add_argument("--name", help="of the model")
    importing.add_argument("--version", default="1", help="of the model; default 1")
    importing.add_argument("--labels", type=Path, help="file of the classes: one a line, or a JSON array")
    importing.add_argument("--preprocessing", type=Path, help="JSON file: how photos or texts become inputs; tokenizer beside it")
    importing.add_argument("--mask", metavar="INPUT", help="input that is 1 at tokens, 0 at padding; by default told by its name")
    importing.add_argument(
        "--extent", type=_extent, action="append", metavar="NAME=NUMBER", help="of a dynamic dimension, where none is guessed"
    )
    importing.add_argument("--torchvision", type=Path, metavar="CHECKPOINT", help="resnet50-XXXXXXXX.pth instead of an ONNX file")
    importing.add_argument("--resize", type=_positive, help="shorter side before the crop of 224; known for the official files")
    importing.add_argument("--output", type=Path, default=_ARTIFACTS, help="model repository; default models/artifacts")
    importing.set_defaults(action=_import)

    evaluate = commands.add_parser("evaluate", help="measure an artifact on its evaluation data")
    evaluate.add_argument("artifact", help="resnet50, encoder, or a folder NAME/VERSION")
    archive_option(evaluate)
    _shift_options(evaluate)

    quantize = commands.add_parser("quantize", help="make the 8-bit version NAME/VERSION-int8 of a photo model, and measure it")
    quantize.add_argument("artifact", help="resnet50, or a folder NAME/VERSION")
    quantize.add_argument("--data", type=Path, help="local archive of the data set; without it the official one is downloaded")
    quantize.add_argument("--photos", type=_positive, default=512, help="of the training split to calibrate on; default 512")
    quantize.add_argument("--max-loss", type=float, default=0.005, help="of accuracy that is accepted, 0..1; default 0.005")
    quantize.add_argument("--output", type=Path, help="model repository; default that of the artifact")
    quantize.set_defaults(action=_quantize)

    reference = commands.add_parser(
        "reference",
        help="store in an artifact what its layers look like for data like those of training; traffic is compared with it",
    )
    reference.add_argument("artifact", help="resnet50, encoder, or a folder NAME/VERSION")
    reference.add_argument("--data", type=Path, help="local archive of the data set; without it the official one is downloaded")
    reference.set_defaults(action=_reference)

    inspect = commands.add_parser("inspect", help="print the probes of an artifact, or of any ONNX model")
    inspect.add_argument("artifact", type=Path, help="folder NAME/VERSION, or an ONNX file", metavar="ARTIFACT|MODEL.ONNX")
    inspect.add_argument("--json", action="store_true", help="as JSON")
    inspect.add_argument(
        "--data", type=Path, help="archive of the data set: rank the blocks of an artifact, and tell its accuracy without each"
    )
    inspect.add_argument("--samples", type=_positive, help="of the evaluation data, by a fixed seed; default all")
    inspect.set_defaults(action=_inspect)
    return parser


def _shift_options(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument(
        "--shift",
        type=Path,
        nargs="?",
        const=_NO_SETS,
        metavar="FILE",
        help="tell shifted inputs from the evaluation data; FILE is an archive of foreign ones, left out without it",
    )
    evaluate.add_argument("--samples", type=_positive, help="most inputs of a shift; default 400")
    evaluate.add_argument("--json", action="store_true", help="as JSON")
    evaluate.set_defaults(action=_evaluate)


def main(argv: list[str] | None = None) -> None:
    """Runs one command; errors that a user can mend are printed without a traceback."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.action(arguments)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "onnx_ir", "onnxscript", "tqdm"):
            raise
        sys.exit(f"{_NEEDS_TRAIN} ({error})")
    except KeyboardInterrupt:
        sys.exit("stopped; training goes on from its last epoch with --resume" if arguments.command == "train" else "stopped")
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
