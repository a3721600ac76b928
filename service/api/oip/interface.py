"""What a model takes and gives in the terms of the protocol: a served model in, declared tensors out. Made once for each model."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

from models.artifact import Manifest, TensorSpec
from models.preprocessing import ImagePreprocessing
from service.api.oip.datatypes import BYTES, NUMPY_TYPES
from service.api.oip.layer_statistics import StatisticsCatalogue
from service.engine.model import ServedModel

_DATATYPES: Mapping[str, str] = {dtype.name: datatype for datatype, dtype in NUMPY_TYPES.items()} | {"string": BYTES}


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
    """The declared tensors of one version of a model; the first dimension of each is the batch, where the model has one.

    Attributes:
        manifest: of the model.
        encoded: the BYTES input: encoded images or texts; None for a model that takes tensors only.
        raw: the inputs of the graph; a request gives all of them, or `encoded`.
        outputs: those of the graph by name.
        statistics: the outputs that are not declared in the metadata.
    """

    manifest: Manifest
    encoded: DeclaredTensor | None
    raw: tuple[DeclaredTensor, ...]
    outputs: Mapping[str, DeclaredTensor]
    statistics: StatisticsCatalogue

    @classmethod
    def of(cls, served: ServedModel) -> "ModelInterface":
        """The interface of a model, kept as long as the model is."""
        if (known := _interfaces.get(served)) is None:
            known = _interfaces[served] = cls.made_of(served.manifest, StatisticsCatalogue(served.layout))
        return known

    @classmethod
    def made_of(cls, manifest: Manifest, statistics: StatisticsCatalogue) -> "ModelInterface":
        raw = tuple(map(_declared, manifest.inputs))
        outputs = {spec.name: _declared(spec) for spec in manifest.outputs}
        return cls(manifest, _encoded(manifest, raw), raw, outputs, statistics)

    @property
    def takes_images(self) -> bool:
        return isinstance(self.manifest.preprocessing, ImagePreprocessing)

    @cached_property
    def scores(self) -> str | None:
        """The output that holds scores of the labels."""
        chosen = self.manifest.scores_output
        return None if chosen is None else self.manifest.outputs[chosen].name

    @cached_property
    def inputs(self) -> dict[str, DeclaredTensor]:
        """All inputs by name, the encoded one first."""
        return {tensor.name: tensor for way in self.ways for tensor in way}

    @cached_property
    def ways(self) -> tuple[tuple[DeclaredTensor, ...], ...]:
        """The sets of inputs of which a request gives one, whole."""
        return (self.raw,) if self.encoded is None else ((self.encoded,), self.raw)

    def describe_ways(self) -> str:
        """In words, what a request may give."""
        return ", or ".join(" and ".join(tensor.name for tensor in way) for way in self.ways)


_interfaces: WeakKeyDictionary[ServedModel, ModelInterface] = WeakKeyDictionary()


def _encoded(manifest: Manifest, raw: tuple[DeclaredTensor, ...]) -> DeclaredTensor | None:
    if manifest.preprocessing is None:
        return None
    name: str = manifest.preprocessing.kind
    if any(spec.name == name for spec in manifest.inputs):
        name = f"encoded_{name}"
    return DeclaredTensor(name, BYTES, raw[0].dimensions[:1] if manifest.batched else (1,))


def _declared(spec: TensorSpec) -> DeclaredTensor:
    dimensions = tuple(f"dimension {i}" if extent is None else extent for i, extent in enumerate(spec.shape))
    return DeclaredTensor(spec.name, _DATATYPES[spec.dtype], dimensions)
