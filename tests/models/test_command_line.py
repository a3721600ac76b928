"""What the commands refuse before any work, and in which words."""

from pathlib import Path
from typing import Never

import pytest

import models.__main__ as command_line
from models.__main__ import main

_NUMBERS = [
    ["evaluate", "resnet50", "--shift", "--samples"],
    ["inspect", "m/1", "--data", "data.tar", "--samples"],
    ["quantize", "m/1", "--photos"],
    ["import", "--torchvision", "weights.pth", "--resize"],
]


@pytest.mark.parametrize("command", _NUMBERS, ids=lambda command: command[0])
@pytest.mark.parametrize("number", ["0", "-5", "1.5", "many"])
def test_numbers_are_at_least_one(command: list[str], number: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The option and its value are named."""
    with pytest.raises(SystemExit):
        main([*command[:-1], f"{command[-1]}={number}"])
    assert f"argument {command[-1]}: {number!r} is not a number of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("import m.onnx --torchvision w.pth", "--torchvision goes without the ONNX file"),
        ("import --torchvision w.pth --labels l --extent n=3", "--torchvision goes without --labels, --extent"),
        ("import --torchvision w.pth --preprocessing p --mask m", "--torchvision goes without --preprocessing, --mask"),
        ("import m.onnx --name m --resize 256", "--resize is of checkpoints"),
        ("export resnet50 --run run --output name", "--output name is no folder NAME/VERSION"),
        ("export resnet50 --run run --output ../.hidden", "is no folder NAME/VERSION"),
        ("inspect . --samples 5", "give --data too"),
        ("inspect typo.onnx", "typo.onnx does not exist; give a folder NAME/VERSION, or an ONNX file"),
    ],
)
def test_options_that_do_not_go_together(command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused rather than ignored, with a remedy."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refused:
        main(command.split())
    assert message in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("command", "resumes"), [(["train", "encoder", "--run", "run"], True), (["inspect", "m.onnx"], False)])
def test_only_training_goes_on(command: list[str], resumes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stops another command is told of no --resume, which it does not have."""

    def interrupted(_: object) -> Never:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, f"_{command[0]}", interrupted)
    with pytest.raises(SystemExit, match="stopped") as stopped:
        main(command)
    assert ("--resume" in str(stopped.value)) is resumes
