"""Settings that backbones share whose weights come from files of several sources."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self

from tll_jax.models.resnet import IMAGENET_MEAN, IMAGENET_STD
from tll_jax.serialize import NO_IDENTITY
from tll_jax.typing import Weights


@dataclass(kw_only=True, unsafe_hash=True)
class DescribedByFile:
    """Base class of the settings that `weight_files.from_weights` derives from a weight file."""

    epsilon: float = 1e-6
    """Epsilon of layer normalization."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    """Mean and standard deviation of the channels of images in [0, 1], by which they are normalized."""
    weights: Weights | None = field(default=None, metadata=NO_IDENTITY)
    """File of pretrained weights, which a model or a system loads; None for random initialization."""
    names: str = field(default="", metadata=NO_IDENTITY)
    """Naming scheme of weight files: a key of `weight_names.LAYOUTS`."""
    prefix: str = field(default="", metadata=NO_IDENTITY)
    """Prefix of the tensor names in weight files."""

    def without_file(self) -> Self:
        """A hashable copy without the file: tuples take the place of lists."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        tuples: dict[str, Any] = {
            name: tuple(value) for name, value in values.items() if isinstance(value, list | tuple)
        }
        return dataclasses.replace(self, **tuples, weights=None, names="", prefix="")
