"""What a model takes and gives in the terms of the protocol: a served model in, declared tensors out. Made once for each model."""

from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

from models.artifact import Manifest, TensorSpec
from models.preprocessing import ImagePreprocessing
from service.api.oip.datatypes import BYTES
from service.api.oip.layer_statistics import StatisticsCatalogue
from service.engine.model import ServedModel

_DATATYPES = {"float32": "FP32", "int64": "INT64"}


@dataclass(frozen=True)
class DeclaredTensor:
    """One input or output; a dimension is a number, or a name where any number from 1 fits, the same for one name."""

    name: str
    datatype: str
    dimensions: tuple[int | str, ...]

    @property
    def shape(self) -> list[int]:
        """As the metadata shows it: -1 for any number."""
        return [extent if isinstance(extent, int) else -1 for extent in self.dimensions]


@dataclass(frozen=True)
class ModelInterface:
    """The declared tensors of one version of a model; the first dimension of each is the batch.

    Attributes:
        manifest: of the model.
        encoded: the BYTES input: encoded images or texts.
        raw: the inputs of the graph; a request gives all of them, or `encoded`.
        output: the logits.
        statistics: the outputs that are not declared in the metadata.
    """

    manifest: Manifest
    encoded: DeclaredTensor
    raw: tuple[DeclaredTensor, ...]
    output: DeclaredTensor
    statistics: StatisticsCatalogue

    @classmethod
    def of(cls, served: ServedModel) -> "ModelInterface":
        """The interface of a model, kept as long as the model is."""
        if (known := _interfaces.get(served)) is None:
            known = _interfaces[served] = cls.made_of(served.manifest, StatisticsCatalogue(served.layout))
        return known

    @classmethod
    def made_of(cls, manifest: Manifest, statistics: StatisticsCatalogue) -> "ModelInterface":
        name = "image" if isinstance(manifest.preprocessing, ImagePreprocessing) else "text"
        if any(spec.name == name for spec in manifest.inputs):
            name = f"encoded_{name}"
        raw = tuple(map(_declared, manifest.inputs))
        batch = raw[0].dimensions[:1]
        return cls(manifest, DeclaredTensor(name, BYTES, batch), raw, _declared(manifest.outputs[0]), statistics)

    @property
    def takes_images(self) -> bool:
        return isinstance(self.manifest.preprocessing, ImagePreprocessing)

    @cached_property
    def inputs(self) -> dict[str, DeclaredTensor]:
        """All inputs by name, the encoded one first."""
        return {tensor.name: tensor for tensor in (self.encoded, *self.raw)}

    def describe_ways(self) -> str:
        """In words, what a request may give."""
        return f"{self.encoded.name}, or {' and '.join(tensor.name for tensor in self.raw)}"


_interfaces: WeakKeyDictionary[ServedModel, ModelInterface] = WeakKeyDictionary()


def _declared(spec: TensorSpec) -> DeclaredTensor:
    dimensions = tuple(f"dimension {i}" if extent is None else extent for i, extent in enumerate(spec.shape))
    return DeclaredTensor(spec.name, _DATATYPES[spec.dtype], dimensions)
