"""The recipes behind the two shipped models: architecture, data, preprocessing and training settings, all in one place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from models.architectures.resnet import ResNet, resnet_config
from models.architectures.transformer import TransformerClassifier, TransformerConfig
from models.data import clinc150, imagenette
from models.export import IMAGE_SIGNATURE, TEXT_SIGNATURE, Signature
from models.preprocessing import ImagePreprocessing, TextPreprocessing
from models.training import Phase, TrainingConfig, TrainingData


@dataclass(frozen=True)
class Material:
    """What an archive gives: the data to train on, the labels and, for text, the tokenizer."""

    data: TrainingData
    labels: list[str]
    tokenizer: Tokenizer | None = None


@dataclass(frozen=True)
class Recipe:
    """How one model is made.

    Attributes:
        name: of the model.
        task: as in the manifest.
        description: one line for the model card.
        source: the data set and its licence, for the manifest.
        training: the settings of the training loop.
        preprocessing: how inputs are prepared, at training, evaluation and serving.
        signature: of the exported graph.
        half: whether large weights are stored as float16.
        material: (archive or None, tokenizer of an earlier run or None) -> data, labels, tokenizer; seeded by the settings.
        network: (number of labels, vocabulary) -> the untrained network.
        example: (batch, extent) -> inputs of a size that the network takes, for export and parity.
        parity_shapes: (batch, extent) at which the export is compared with torch; exported at the first, at least 2 along each.
    """

    name: str
    task: Literal["image-classification", "text-classification"]
    description: str
    source: str
    training: TrainingConfig
    preprocessing: ImagePreprocessing | TextPreprocessing
    signature: Signature
    half: bool
    material: Callable[[Path | None, Tokenizer | None], Material]
    network: Callable[[int, int], nn.Module]
    example: Callable[[int, int], tuple[Tensor, ...]]
    parity_shapes: Sequence[tuple[int, int]]


# ResNet-50 on Imagenette: small images first, where an epoch costs a fraction; the second and third part start with a learning rate
# of 0.6 and 0.36 of the first. Served at the size of the last epochs. Accuracy on the selection photos by shorter edge / crop in
# pixels: 128/128 85.2 %, 144/128 86.4, 152/128 86.4 (with the lowest loss), 160/128 86.7, 168/128 85.4; 112/112 83.2, 160/160 85.9.
_RESNET_TRAINING = TrainingConfig(
    phases=(Phase(10, 48), Phase(6, 64), Phase(3, 96), Phase(9, 64), Phase(4, 96), Phase(1, 128), Phase(6, 96), Phase(5, 128)),
    batch_size=64,
    peak_lr=3e-3,
    restarts=(19, 33),
    restart_decay=0.6,
    weight_decay=0.05,
    channels_last=True,
)
_RESNET_PREPROCESSING = ImagePreprocessing(resize=152, crop=128)


def _resnet_material(archive: Path | None, tokenizer: Tokenizer | None) -> Material:
    train, selection = (imagenette.load_photos(split, archive) for split in ("train", "selection"))
    data = imagenette.ImagenetteTraining(train, selection, _RESNET_PREPROCESSING, _RESNET_TRAINING.seed)
    return Material(data, list(imagenette.CLASSES.values()))


# The encoder on CLINC150: small, strongly regularized, because 100 queries for each intent are few.
_VOCABULARY = 6000
_MAX_LENGTH = 64
_ENCODER_TRAINING = TrainingConfig(
    phases=(Phase(20),),
    batch_size=64,
    peak_lr=2e-3,
    weight_decay=0.05,
    warmup=0.15,
    clip_norm=1.0,
    consistency=1.0,
    precision="fp32",
)


def _encoder_material(archive: Path | None, tokenizer: Tokenizer | None) -> Material:
    train, selection = (clinc150.load_queries(split, archive) for split in ("train", "val"))
    tokenizer = tokenizer or clinc150.train_tokenizer(train.texts, _VOCABULARY)
    labels = clinc150.labels_of(train)
    tokenized, kept = (clinc150.tokenize(queries, tokenizer, labels, _MAX_LENGTH) for queries in (train, selection))
    return Material(clinc150.Clinc150Training(tokenized, kept, _ENCODER_TRAINING.seed), labels, tokenizer)


def _tokens(batch: int, length: int) -> tuple[Tensor, Tensor]:
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[0, 1:] = 0  # a padded sample among whole ones
    return torch.randint(1, 1000, (batch, length)) * mask, mask


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="resnet50",
            task="image-classification",
            description="ResNet-50 (v1.5, batch normalization) trained from random weights on Imagenette, 10 classes of photos",
            source="Imagenette, train split (https://github.com/fastai/imagenette, Apache-2.0; photos as in ImageNet)",
            training=_RESNET_TRAINING,
            preprocessing=_RESNET_PREPROCESSING,
            signature=IMAGE_SIGNATURE,
            half=True,
            material=_resnet_material,
            network=lambda classes, vocabulary: ResNet(resnet_config(50, classes=classes)),
            example=lambda batch, size: (torch.randn(batch, 3, size, size),),
            parity_shapes=((5, 96), (1, 96), (1, 224), (2, 64)),
        ),
        Recipe(
            name="encoder",
            task="text-classification",
            description="Transformer encoder (post-norm Add & Norm) trained from random weights on CLINC150, 150 intents",
            source="CLINC150, train split (https://github.com/clinc/oos-eval, CC BY 3.0, Larson et al., EMNLP 2019)",
            training=_ENCODER_TRAINING,
            preprocessing=TextPreprocessing(max_length=_MAX_LENGTH),
            signature=TEXT_SIGNATURE,
            half=False,
            material=_encoder_material,
            network=lambda classes, vocabulary: TransformerClassifier(
                TransformerConfig(vocabulary, classes, layers=3, width=128, heads=4, feed_forward=256, dropout=0.2)
            ),
            example=_tokens,
            parity_shapes=((5, 8), (1, 8), (1, 1), (3, _MAX_LENGTH)),
        ),
    )
}
