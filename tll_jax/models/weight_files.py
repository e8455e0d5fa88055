"""Settings and variables of a backbone from a weight file: the architecture is derived from its tensors and config."""

import json
import logging
import math
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tll_jax.errors import InvalidValue, UserError
from tll_jax.files import expand
from tll_jax.models.convnext import ConvNeXt
from tll_jax.models.resnet import IMAGENET_MEAN, IMAGENET_STD
from tll_jax.models.torch_files import FILES, INDEX, SUFFIXES, find_weights, tensor_shapes
from tll_jax.models.vit import VisionTransformer
from tll_jax.models.weight_names import FAMILIES, Shapes, block_count, place_of, recognize
from tll_jax.models.weights import WeightFile, load_backbone
from tll_jax.typing import Backbone

logger = logging.getLogger(__name__)

HALF = (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MAX_CONFIG = 2**24
"""Largest size of a config file in bytes."""

MODEL_TYPES = {
    "vit": "transformers-vit",
    "deit": "transformers-vit",
    "dinov2": "transformers-dinov2",
    "dinov2_with_registers": "transformers-dinov2",
    "dinov3_vit": "transformers-dinov3",
    "clip": "transformers-clip",
    "clip_vision_model": "transformers-clip",
    "siglip": "transformers-siglip",
    "siglip_vision_model": "transformers-siglip",
    "siglip2": "transformers-siglip2",
    "siglip2_vision_model": "transformers-siglip2",
    "convnext": "transformers-convnext",
    "dinov3_convnext": "transformers-dinov3-convnext",
}
"""Layouts by the "model_type" in the config.json of transformers."""

NONLINEARITIES = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu-tanh",
    "gelu_new": "gelu-tanh",
    "quick_gelu": "quick-gelu",
    "silu": "silu",
}
NUM_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16, 4096: 32}
"""Number of heads by width, for widths whose heads do not have 64 dimensions, if no config has it; DINOv3's of width
1280 has 20."""

RESAMPLING = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's filters by their number in preprocessor_config.json."""


class Preprocessing(NamedTuple):
    """Pillow preprocessing of the family's reference code: the fields of `data.geometry.PillowResize`."""

    size: int
    """Height and width in pixels."""
    shortest_edge: int
    """Length in pixels of the shorter side before the central square crop; 0 to resize the picture to a square."""
    interpolation: Literal["bilinear", "bicubic", "lanczos"]
    squash: bool
    """Whether both sides are resized to `shortest_edge`, as for DeiT, without keeping the aspect ratio."""


class PretrainedBackbone(NamedTuple):
    """Backbone, variables and preprocessing from a weight file."""

    backbone: Backbone
    variables: dict[str, Any]
    preprocessing: Preprocessing
    notes: tuple[str, ...]
    """Assumptions that were made because no config has the value."""


def from_weights(path: str | PathLike[str], *, pooling: Literal["class", "norm", "attention", "mean", ""] = "") -> Any:
    """Settings of the backbone of a weight file or folder; the weights are read when it is used.

    Args:
      path: a .safetensors, .pth, .pt or .bin file, an index of shards, or a folder with one; `$NAME` and `~` are
        expanded. A config.json and a preprocessor_config.json in the same folder are read too.
      pooling: pooling instead of the family's own; spatial decomposition is exact for "mean".

    Raises:
      FileNotFoundError, ImportError: there is no such file, or `tll_jax[weights]` is not installed.
      InvalidValue: the file cannot be read, or is of no known family.
    """
    backbone, _, _ = describe(path)
    if pooling:
        backbone.pooling = pooling
        backbone.projection = 0 if pooling == "mean" else getattr(backbone, "projection", 0)
    backbone.check()
    return backbone


def open_weights(path: str | PathLike[str]) -> PretrainedBackbone:
    """Load the backbone of a weight file, its variables and its preprocessing.

    Raises:
      FileNotFoundError, ImportError, InvalidValue: as `from_weights`.
    """
    backbone, preprocessing, notes = describe(path)
    for note in notes:
        logger.info("%s: %s", fspath(path), note)
    return PretrainedBackbone(backbone, load_backbone(backbone, backbone.weights), preprocessing, notes)


def holds_weights(path: Path) -> bool:
    """Whether a path is a file or folder of weights of a known family, rather than a model file or a run."""
    file = next((path / name for name in FILES if (path / name).is_file()), path) if path.is_dir() else path
    if not file.is_file() or not file.name.endswith((*SUFFIXES, INDEX)):
        return False
    if file.suffix != ".safetensors":
        return True
    try:
        recognize(tensor_shapes(file))
    except UserError:
        return False
    return True


def describe(path: str | PathLike[str]) -> tuple[Any, Preprocessing, tuple[str, ...]]:
    """Settings of the backbone, preprocessing and notes, from names, shapes and configs only."""
    file = find_weights(expand(fspath(path)))
    config, image_config = read_configs(file.parent)
    shapes = tensor_shapes(file)
    try:
        known = layout_of_config(config)
        layout, prefix = recognize(shapes)
        if known is not None and not layout.startswith(known):
            raise InvalidValue(
                f"config.json says {config['model_type']!r}, but the tensors are named as those of {layout!r}"
            )
        source = Source(layout, prefix, shapes, vision_config(config), image_config)
        backbone = convnext_of(source) if "convnext" in layout else transformer_of(source)
        backbone.check()
    except ValueError as error:
        raise InvalidValue(f"{file}: {error}") from error
    backbone.weights = WeightFile(path=fspath(path))
    return backbone, preprocessing_of(source, backbone), tuple(source.notes)


class Source:
    """A weight file's layout, tensor shapes and configs, without its values."""

    def __init__(
        self, layout: str, prefix: str, shapes: Shapes, config: Mapping[str, Any], image_config: Mapping[str, Any]
    ) -> None:
        self.layout, self.prefix, self.shapes = layout, prefix, shapes
        self.config, self.image_config = config, image_config
        self.notes: list[str] = []

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape in the file of the tensor with the canonical name `name`; None if it is missing."""
        place = place_of(self.layout, self.prefix, name)
        return None if place is None else self.shapes.get(place.name)

    def has(self, name: str) -> bool:
        return self.shape(name) is not None

    def needed(self, name: str) -> tuple[int, ...]:
        """`shape`, or InvalidValue if the tensor is missing."""
        found = self.shape(name)
        if found is None:
            place = place_of(self.layout, self.prefix, name)
            raise InvalidValue(f"the weights lack {name if place is None else place.name!r}")
        return found

    def blocks(self, name: str) -> int:
        """Number of blocks that have the tensor `name`, given its name in block 0."""
        place = place_of(self.layout, self.prefix, name)
        assert place is not None
        head, _, tail = place.name.rpartition("0.")
        return block_count(self.shapes, f"{head}*.{tail}")

    def number(self, name: str, default: float, found: int | None = None) -> Any:
        """A number of config.json, or the default; it must equal `found`, its value by the tensors, if given."""
        value = self.config.get(name, default if found is None else found)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise InvalidValue(f"config.json has {name} {value!r}; it must be a positive number")
        if found is not None and value != found:
            raise InvalidValue(f"config.json has {name} {value}, but by the tensors it is {found}")
        return value


def transformer_of(source: Source) -> VisionTransformer:
    layout, config = source.layout, source.config
    kernel = source.needed("patches.weight")
    width = source.number("hidden_size", 0, kernel[0])
    patch = round(math.sqrt(kernel[1] / 3)) if len(kernel) == 2 else kernel[-1]
    source.number("patch_size", 0, patch)
    is_gated = source.has("blocks.0.mlp.gate.weight")
    has_class, has_distillation = (source.has(f"tokens.{name}") for name in ("class", "distillation"))
    side, class_position = position_grid(source, has_class + has_distillation)
    nonlinearity: Any = "silu" if is_gated and "dinov3" not in layout else nonlinearity_of(source, is_gated=is_gated)
    mean, std = normalization(source)
    registers = source.shape("tokens.registers")
    projection = source.shape("projection.weight")
    pooling: Any = "class" if has_class else "attention" if source.has("pooler.probe") else "mean"
    hidden = source.needed("blocks.0.mlp.project.weight")[1]
    return VisionTransformer(
        width=width,
        depth=source.number("num_hidden_layers", 0, source.blocks("blocks.0.norm1.weight")),
        num_heads=source.number("num_attention_heads", heads_of(layout, width)),
        mlp_width=hidden,
        patch_size=patch,
        image_size=side * patch if side else square(source.config.get("image_size", 224)),
        positions="learned" if side else "rotary",
        interpolation=interpolation_of(source, registers),
        rotary_base=float(source.number("rope_theta", 100.0)),
        class_token=has_class,
        distillation_token=has_distillation,
        num_registers=0 if registers is None else registers[1],
        class_position=class_position,
        pre_norm=source.has("pre_norm.weight"),
        patch_bias=source.has("patches.bias"),
        biases=tuple(name for name in ("query", "key", "value") if source.has(f"blocks.0.attention.{name}.bias")),
        layer_scale=source.has("blocks.0.scale1"),
        nonlinearity=nonlinearity,
        gated=is_gated,
        pooling=pooling,
        projection=0 if projection is None else projection[0 if layout != "openai" else 1],
        epsilon=float(config.get("layer_norm_eps", EPSILONS.get(layout.removesuffix("-gated"), 1e-6))),
        mean=mean,
        std=std,
        names=layout,
        prefix=source.prefix,
    )


EPSILONS = {"transformers-vit": 1e-12, "transformers-clip": 1e-5, "openai": 1e-5}
EPSILONS |= {"transformers-dinov3": 1e-5, "facebook-dinov3": 1e-5, "timm-dinov3": 1e-5}
"""Epsilon of layer normalization if no config has it; 1e-6 for other layouts."""


def heads_of(layout: str, width: int) -> int:
    if "dinov3" in layout and width != 4096:
        return max(1, width // 64)
    return NUM_HEADS.get(width, max(1, width // 64))


def position_grid(source: Source, num_own: int) -> tuple[int, bool]:
    """Side of the grid of learned positions, in patches (0 without any), and whether the class token has a position.

    Raises:
      InvalidValue: the grid of positions is not square.
    """
    shape = source.shape("tokens.positions")
    if shape is None:
        if "dinov3" not in source.layout:
            source.needed("tokens.positions")
        return 0, True
    count = shape[-2]
    for own in (num_own, 0):
        side = math.isqrt(max(0, count - own))
        if side and side**2 == count - own:
            return side, own > 0 or num_own == 0
    raise InvalidValue(f"the weights have {count} positions, which are no square of patches; such are not read")


def nonlinearity_of(source: Source, *, is_gated: bool) -> Any:
    value = source.config.get("hidden_act")
    if value is None and source.layout == "openai":
        is_quick = source.config.get("quick_gelu", "input_resolution" in source.shapes)
        value = "quick_gelu" if is_quick else "gelu"
        if "quick_gelu" not in source.config:
            source.notes.append(f"no config says which nonlinearity: {value} is assumed")
    if value is None:
        defaults = {"transformers-clip": "quick_gelu", "transformers-siglip": "gelu_pytorch_tanh"}
        defaults["transformers-siglip2"] = "gelu_pytorch_tanh"
        is_quick = "quickgelu" in str(source.config.get("architecture", ""))
        value = "silu" if is_gated else "quick_gelu" if is_quick else defaults.get(source.layout, "gelu")
    if value not in NONLINEARITIES:
        raise InvalidValue(f"config.json has hidden_act {value!r}; known are {', '.join(NONLINEARITIES)}")
    return NONLINEARITIES[value]


def interpolation_of(source: Source, registers: tuple[int, ...] | None) -> Any:
    """Interpolation of position embeddings in the reference code."""
    if source.layout == "transformers-siglip2":
        return "bilinear-antialiased"
    is_timm = source.layout.startswith("timm") and "architecture" in source.config
    return "bicubic-antialiased" if is_timm or registers is not None else "bicubic"


def convnext_of(source: Source) -> ConvNeXt:
    depths = tuple(source.blocks(f"stages.{stage}.blocks.0.gamma") for stage in range(4))
    widths = tuple(source.needed(f"stages.{stage}.blocks.0.gamma")[0] for stage in range(4))
    for name, found in (("depths", depths), ("hidden_sizes", widths)):
        said = source.config.get(name, found)
        if list(said) != list(found):
            raise InvalidValue(f"config.json has {name} {said}, but by the tensors they are {list(found)}")
    mean, std = normalization(source)
    is_first = source.layout == "transformers-convnext"
    return ConvNeXt(
        widths=widths,  # type: ignore[arg-type]
        depths=depths,  # type: ignore[arg-type]
        # transformers' ConvNeXt takes the epsilon of its config for the last normalization only.
        epsilon=1e-6 if is_first else float(source.config.get("layer_norm_eps", 1e-6)),
        pooling_epsilon=float(source.config.get("layer_norm_eps", 1e-12 if is_first else 1e-6)),
        mean=mean,
        std=std,
        names=source.layout,
        prefix=source.prefix,
    )


def normalization(source: Source) -> tuple[Any, Any]:
    """Mean and standard deviation of the channels, from the preprocessing config or the family's default."""
    given = [source.image_config.get(name) for name in ("image_mean", "image_std")]
    if all(isinstance(values, list) and len(values) == 3 for values in given):
        return tuple(tuple(map(float, values)) for values in given)  # type: ignore[arg-type,return-value]
    layout = source.layout
    kind = "CLIP's" if layout in ("transformers-clip", "openai") else "ImageNet's"
    if layout in ("transformers-vit", "transformers-siglip", "transformers-siglip2") or source.has("pooler.probe"):
        kind = "one half"
    source.notes.append(f"no config of preprocessing: mean and deviation of the channels are taken to be {kind}")
    values = {"CLIP's": (CLIP_MEAN, CLIP_STD), "ImageNet's": (IMAGENET_MEAN, IMAGENET_STD), "one half": (HALF, HALF)}
    return values[kind]


def preprocessing_of(source: Source, backbone: Any) -> Preprocessing:
    """Resizing of the reference code, from the preprocessing config or the family's default."""
    config, layout = source.image_config, source.layout
    interpolation: Any = "bicubic"
    size, edge = backbone.image_size, 0
    if layout in ("transformers-clip", "openai"):
        edge = size
    elif "dinov2" in layout or "convnext" in layout or layout.startswith(("facebook", "timm")):
        size = 224 if "dinov2" in layout else size
        edge = size * 8 // 7
    if "dinov3" in layout and "convnext" not in layout:
        size, edge, interpolation = 224, 0, "bilinear"
    if layout in ("transformers-vit", "transformers-siglip2"):
        interpolation = "bilinear"
    if config:
        size, edge = sizes_of(config, size, edge)
        interpolation = RESAMPLING.get(config.get("resample", 0), config.get("interpolation", interpolation))
        if interpolation not in RESAMPLING.values():
            raise InvalidValue(f"the config of preprocessing has interpolation {interpolation!r}, which is not known")
    patch = getattr(backbone, "patch_size", 1)
    if size % patch:
        raise InvalidValue(f"the config of preprocessing has {size} pixels, no multiple of the patch of {patch}")
    given = config.get("size")
    is_squashed = bool(edge) and isinstance(given, Mapping) and "height" in given
    return Preprocessing(size, edge, interpolation, is_squashed)


def sizes_of(config: Mapping[str, Any], size: int, edge: int) -> tuple[int, int]:
    """Size and shortest edge from a preprocessor_config.json or from timm's config."""
    given = config.get("size", {})
    if isinstance(given, Mapping) and "shortest_edge" in given:
        edge = square(given["shortest_edge"])
        size = square(config["crop_size"]) if config.get("do_center_crop") and "crop_size" in config else edge
        if "crop_pct" in config and config["crop_pct"] is not None:
            # ConvNeXt's preprocessing crops below 384 pixels, and resizes to a square from there on.
            size, edge = edge, int(edge / config["crop_pct"]) if edge < 384 else 0
    elif given:
        size, edge = square(given), 0
        if config.get("do_center_crop") and "crop_size" in config:
            size, edge = square(config["crop_size"]), size
    elif "input_size" in config:
        size = square(config["input_size"][-1])
        edge = math.floor(size / float(config.get("crop_pct") or 1))
    return size, edge


def square(value: Any) -> int:
    """Side in pixels, from a number, a pair of equal numbers, or a mapping of height and width."""
    sides = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
    if not sides or any(side != sides[0] for side in sides) or not isinstance(sides[0], int) or sides[0] < 1:
        raise InvalidValue(f"the config has the size {value!r}; only square ones are read")
    return sides[0]


def read_configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the configs of the model and of preprocessing in a weight file's folder; empty if there are none.

    Raises:
      InvalidValue: a config is not a JSON object.
    """
    config, image_config = (_read_json(folder / name) for name in ("config.json", "preprocessor_config.json"))
    open_clip = _read_json(folder / "open_clip_config.json")
    if "pretrained_cfg" in config:
        given = config["pretrained_cfg"]
        image_config = image_config or {**given, "image_mean": given.get("mean"), "image_std": given.get("std")}
    if open_clip and not config:
        model, given = open_clip.get("model_cfg", {}), open_clip.get("preprocess_cfg", {})
        config = {"quick_gelu": bool(model.get("quick_gelu", False))}
        image_config = image_config or {"image_mean": given.get("mean"), "image_std": given.get("std")}
    return config, image_config


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise InvalidValue(f"it has more than {MAX_CONFIG:,} bytes")
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidValue(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidValue(f"{path} holds no settings by name")
    return found


def layout_of_config(config: Mapping[str, Any]) -> str | None:
    """Prefix of the layout's name according to the config.json of transformers; None without a model type.

    Raises:
      InvalidValue: the model type is unknown.
    """
    kind = config.get("model_type")
    if kind is None:
        return None
    if kind not in MODEL_TYPES:
        raise InvalidValue(
            f"config.json has model_type {str(kind)[:100]!r}, which is not known; known are {', '.join(MODEL_TYPES)}: "
            f"{FAMILIES}"
        )
    return MODEL_TYPES[kind]


def vision_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Part of config.json about the image tower."""
    part = config.get("vision_config", config)
    return part if isinstance(part, Mapping) else {}
