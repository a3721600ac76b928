"""The official ImageNet checkpoints of torchvision's ResNet-50 (`resnet50-*.pth`) in, an artifact of 1000 classes out."""

from dataclasses import dataclass
from pathlib import Path

import torch

from models.architectures.resnet import ResNet, resnet_config
from models.artifact import Artifact, Manifest, Provenance
from models.data.imagenet_labels import LABELS
from models.export import IMAGE_SIGNATURE
from models.package import finish, write_model
from models.preprocessing import ImagePreprocessing
from models.staging import staged

_CROP = 224


@dataclass(frozen=True)
class OfficialCheckpoint:
    """One published set of weights: the resize that its accuracy was measured with."""

    title: str
    resize: int


CHECKPOINTS = {
    "0676ba61": OfficialCheckpoint("IMAGENET1K_V1", resize=256),
    "11ad3fa6": OfficialCheckpoint("IMAGENET1K_V2", resize=232),
}
"""The hash in the file's name -> what it is (https://pytorch.org/vision/stable/models/generated/torchvision.models.resnet50.html)."""


class CheckpointError(ValueError):
    """The file is not a ResNet-50 checkpoint, it is not known how it wants its images, or the artifact exists already."""


def import_torchvision(checkpoint: Path, folder: Path, resize: int | None = None) -> Artifact:
    """Makes an artifact of an official checkpoint, or of any other with the same parameters; nothing is left behind if that fails.

    Args:
        checkpoint: `resnet50-XXXXXXXX.pth`.
        folder: NAME/VERSION of the artifact, which must not exist.
        resize: shorter side before the crop of 224 px; known for the official names.

    Raises:
        CheckpointError: unreadable, other parameters, an unknown name without `resize`, or a folder that exists.
        ExportError: the export does not agree with torch.
        StagingError: the folder cannot be written.
    """
    if folder.exists():
        raise CheckpointError(f"{folder} exists already; choose another --version, or remove it")
    digest = checkpoint.stem.rpartition("-")[2]
    official = CHECKPOINTS.get(digest)
    if resize is None and official is None:
        known = ", ".join(f"resnet50-{name}.pth" for name in CHECKPOINTS)
        raise CheckpointError(f"{checkpoint.name} is not one of {known}; pass --resize with the side that its images had")
    network = ResNet(resnet_config(50, classes=1000))
    try:
        network.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True), strict=True)
    except Exception as error:  # torch.load raises many types for a file that is none of its own
        raise CheckpointError(f"{checkpoint} is not a checkpoint of ResNet-50 with 1000 classes: {error}") from error
    title = official.title if official else "unknown weights"
    draft = Manifest(
        name=folder.parent.name,
        version=folder.name,
        task="image-classification",
        description=f"ResNet-50 of torchvision, {title}, 1000 classes of ImageNet",
        inputs=[],
        outputs=[],
        preprocessing=ImagePreprocessing(resize=resize or (official.resize if official else _CROP), crop=_CROP),
        labels=list(LABELS),
        layers=[],
        training=Provenance(
            data="ImageNet-1k, by torchvision",
            samples=None,
            selection_samples=None,
            seed=None,
            settings={"checkpoint": checkpoint.name},
        ),
        metrics={},
        libraries={},
        files={},
    )
    with staged(folder) as working:
        artifact = write_model(
            working,
            network,
            examples=[(torch.randn(2, 3, _CROP, _CROP),), (torch.randn(1, 3, 96, 160),), (torch.randn(5, 3, 64, 64),)],
            signature=IMAGE_SIGNATURE,
            half=True,
            manifest=draft,
        )
        manifest = finish(working, artifact.manifest).manifest
    return Artifact(folder, manifest)
