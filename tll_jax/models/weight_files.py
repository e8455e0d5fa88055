"""Settings and variables of a backbone from a weight file: the architecture is derived from its tensors and config."""

import json
import logging
import math
from collections.abc import Mapping
from functools import cache
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tll_jax.annotations import fits, shown
from tll_jax.errors import InvalidValue
from tll_jax.files import expand
from tll_jax.models.convnext import ConvNeXt
from tll_jax.models.preprocessing import (
    Family,
    ImageConfig,
    Preprocessing,
    normalization_of,
    preprocessing_of,
    square,
)
from tll_jax.models.torch_files import INDEX, SUFFIXES, find_weights, safetensors_header, tensor_shapes
from tll_jax.models.vit import VisionTransformer
from tll_jax.models.weight_names import FAMILIES, Shapes, block_count, place_of, recognize
from tll_jax.models.weights import WeightFile, load_backbone
from tll_jax.settings import validate
from tll_jax.typing import Backbone

logger = logging.getLogger(__name__)

MAX_CONFIG = 2**24
"""Largest size of a config file in bytes."""
CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json", "open_clip_config.json")
"""Files in a weight file's folder that are read, if they are there."""

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
    backbone, _, notes = describe(path)
    _log(fspath(path), notes)
    if pooling == "attention" and backbone.pooling != "attention":
        raise InvalidValue(f"pooling is 'attention', for which {fspath(path)} has no tensors; SigLIP's files have them")
    if pooling:
        backbone.pooling = pooling
        backbone.projection = 0 if pooling == "mean" else getattr(backbone, "projection", 0)
    validate(backbone, path="from_weights")
    return backbone


def open_weights(path: str | PathLike[str]) -> PretrainedBackbone:
    """Load the backbone of a weight file, its variables and its preprocessing.

    Raises:
      FileNotFoundError, ImportError, InvalidValue: as `from_weights`.
    """
    backbone, preprocessing, notes = describe(path)
    _log(fspath(path), notes)
    return PretrainedBackbone(backbone, load_backbone(backbone, backbone.weights), preprocessing, notes)


@cache
def _log(path: str, notes: tuple[str, ...]) -> None:
    """Log what was assumed about a weight file, once in a process."""
    for note in notes:
        logger.info("%s: %s", path, note)


def is_weight_file(path: Path) -> bool:
    """Whether a path is a file of weights of any family, or an index of shards, rather than a model file."""
    if not path.is_file() or not path.name.endswith((*SUFFIXES, INDEX)):
        return False
    metadata = safetensors_header(path).get("__metadata__") if path.suffix == ".safetensors" else None
    return not (isinstance(metadata, Mapping) and "tll_jax" in metadata)


def describe(path: str | PathLike[str]) -> tuple[Any, Preprocessing, tuple[str, ...]]:
    """Settings of the backbone, preprocessing and notes, from names, shapes and configs only."""
    file = find_weights(expand(fspath(path)))
    config, image_config = read_configs(file)
    shapes = tensor_shapes(file)
    try:
        known = layout_of_config(config)
        layout, prefix = recognize(shapes)
        if known is not None and not layout.startswith(known):
            raise InvalidValue(
                f"config.json says {config['model_type']!r}, but the tensors are named as those of {layout!r}"
            )
        source = Source(layout, prefix, shapes, vision_config(config), image_config)
        backbone: Any = convnext_of(source) if "convnext" in layout else transformer_of(source)
        backbone.check()
        preprocessing, notes = preprocessing_of(image_config, source.family, backbone.image_size)
        patch = getattr(backbone, "patch_size", 1)
        if preprocessing.size % patch:
            raise InvalidValue(
                f"pictures are prepared with {preprocessing.size} pixels, no multiple of the patch of {patch}: give "
                "another size in preprocessor_config.json"
            )
    except ValueError as error:
        raise InvalidValue(f"{file}: {error}") from error
    backbone.weights = WeightFile(path=fspath(path))
    return backbone, preprocessing, (*source.notes, *notes)


class Source:
    """A weight file's layout, tensor shapes and configs, without its values."""

    def __init__(
        self, layout: str, prefix: str, shapes: Shapes, config: Mapping[str, Any], image_config: ImageConfig
    ) -> None:
        self.layout, self.prefix, self.shapes = layout, prefix, shapes
        self.config, self.image_config = config, image_config
        self.notes: list[str] = []

    @property
    def family(self) -> Family:
        """Family by its preprocessing."""
        by_layout: dict[str, Family] = {
            "transformers-dinov3-convnext": "dinov3",
            "transformers-siglip": "siglip",
            "transformers-siglip2": "siglip2",
        }
        if self.layout in by_layout:
            return by_layout[self.layout]
        if self.has("pre_norm.weight"):
            return "clip"
        if self.has("pooler.probe"):
            return "siglip"
        families: tuple[Family, ...] = ("convnext", "dinov2", "dinov3")
        named = [family for family in families if family in self.layout]
        if named:
            return named[0]
        if self.layout.startswith("timm"):
            return "timm"
        return "deit" if self.has("tokens.distillation") else "vit"

    def has(self, name: str) -> bool:
        """Whether the file has the tensor with the canonical name `name`."""
        place = place_of(self.layout, self.prefix, name)
        return place is not None and place.name in self.shapes

    def shape(self, name: str, *num_axes: int) -> tuple[int, ...]:
        """Shape in the file of the tensor with the canonical name `name`.

        Args:
          num_axes: allowed numbers of axes.

        Raises:
          InvalidValue: the tensor is missing, or has another number of axes.
        """
        place = place_of(self.layout, self.prefix, name)
        found = None if place is None else self.shapes.get(place.name)
        shown_name = name if place is None else repr(place.name)
        if found is None:
            raise InvalidValue(f"the weights lack {shown_name}")
        if len(found) not in num_axes:
            allowed = " or ".join(map(str, num_axes))
            raise InvalidValue(f"the weights' {shown_name} is of shape {found}; it must have {allowed} axes")
        return found

    def blocks(self, name: str) -> int:
        """Number of blocks that have the tensor `name`, given its name in block 0."""
        place = place_of(self.layout, self.prefix, name)
        assert place is not None
        head, _, tail = place.name.rpartition("0.")
        count = block_count(self.shapes, f"{head}*.{tail}")
        if not count:
            raise InvalidValue(f"the weights lack {place.name!r}")
        return count

    def number(self, name: str, default: float, *, whole: bool = False) -> Any:
        """A positive number of config.json, or the default; with `whole`, a whole number."""
        value = self.config.get(name)
        value = default if value is None else value
        if not fits(value, int if whole else float) or value <= 0:
            raise InvalidValue(f"config.json has {name} {shown(value)}; it must be a positive number")
        return value

    def agree(self, name: str, found: int) -> int:
        """The value `found` by the tensors, which a number of config.json must equal."""
        value = self.config.get(name)
        if value is not None and value != found:
            raise InvalidValue(f"config.json has {name} {shown(value)}, but by the tensors it is {found}")
        return found


def transformer_of(source: Source) -> VisionTransformer:
    layout = source.layout
    kernel = source.shape("patches.weight", 2, 4)
    width = source.agree("hidden_size", kernel[0])
    patch = source.agree("patch_size", round(math.sqrt(kernel[1] / 3)) if len(kernel) == 2 else kernel[-1])
    is_gated = source.has("blocks.0.mlp.gate.weight")
    has_class, has_distillation = (source.has(f"tokens.{name}") for name in ("class", "distillation"))
    side, class_position = position_grid(source, has_class + has_distillation)
    nonlinearity: Any = "silu" if is_gated and "dinov3" not in layout else nonlinearity_of(source, is_gated=is_gated)
    num_heads = source.number("num_attention_heads", heads_of(layout, width), whole=True)
    if source.config.get("num_attention_heads") is None:
        source.notes.append(f"no config has the number of heads: it is taken to be {num_heads}")
    mean, std, notes = normalization_of(source.image_config, source.family)
    source.notes += notes
    has_registers, has_projection = source.has("tokens.registers"), source.has("projection.weight")
    pooling: Any = "class" if has_class else "attention" if source.has("pooler.probe") else "mean"
    return VisionTransformer(
        width=width,
        depth=source.agree("num_hidden_layers", source.blocks("blocks.0.norm1.weight")),
        num_heads=num_heads,
        mlp_width=source.shape("blocks.0.mlp.project.weight", 2)[1],
        patch_size=patch,
        image_size=side * patch if side else square(source.config.get("image_size", 224)),
        positions="learned" if side else "rotary",
        interpolation=interpolation_of(source, has_registers=has_registers),
        rotary_base=float(source.number("rope_theta", 100.0)),
        class_token=has_class,
        distillation_token=has_distillation,
        num_registers=source.shape("tokens.registers", 3)[1] if has_registers else 0,
        class_position=class_position,
        pre_norm=source.has("pre_norm.weight"),
        patch_bias=source.has("patches.bias"),
        biases=tuple(name for name in ("query", "key", "value") if source.has(f"blocks.0.attention.{name}.bias")),
        layer_scale=source.has("blocks.0.scale1"),
        nonlinearity=nonlinearity,
        gated=is_gated,
        pooling=pooling,
        projection=source.shape("projection.weight", 2)[0 if layout != "openai" else 1] if has_projection else 0,
        epsilon=float(source.number("layer_norm_eps", EPSILONS.get(source.family, 1e-6))),
        mean=mean,
        std=std,
        names=layout,
        prefix=source.prefix,
    )


EPSILONS: Mapping[Family, float] = {"vit": 1e-12, "deit": 1e-12, "clip": 1e-5, "dinov3": 1e-5}
"""Epsilon of a transformer's layer normalization if no config has it; 1e-6 for other families."""


def heads_of(layout: str, width: int) -> int:
    if "dinov3" in layout and width != 4096:
        return max(1, width // 64)
    return NUM_HEADS.get(width, max(1, width // 64))


def position_grid(source: Source, num_own: int) -> tuple[int, bool]:
    """Side of the grid of learned positions, in patches (0 without any), and whether the class token has a position.

    Raises:
      InvalidValue: the grid of positions is not square.
    """
    if "dinov3" in source.layout and not source.has("tokens.positions"):
        return 0, True
    count = source.shape("tokens.positions", 2, 3)[-2]
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
    if not isinstance(value, str) or value not in NONLINEARITIES:
        raise InvalidValue(f"config.json has hidden_act {shown(value)}; known are {', '.join(NONLINEARITIES)}")
    return NONLINEARITIES[value]


def interpolation_of(source: Source, *, has_registers: bool) -> Any:
    """Interpolation of position embeddings in the reference code."""
    if source.layout == "transformers-siglip2":
        return "bilinear-antialiased"
    is_timm = source.layout.startswith("timm") and "architecture" in source.config
    return "bicubic-antialiased" if is_timm or has_registers else "bicubic"


def convnext_of(source: Source) -> ConvNeXt:
    depths = tuple(source.blocks(f"stages.{stage}.blocks.0.gamma") for stage in range(4))
    widths = tuple(source.shape(f"stages.{stage}.blocks.0.gamma", 1)[0] for stage in range(4))
    for name, found in (("depths", depths), ("hidden_sizes", widths)):
        said = source.config.get(name)
        if said is not None and said != list(found):
            raise InvalidValue(f"config.json has {name} {shown(said)}, but by the tensors they are {list(found)}")
    mean, std, notes = normalization_of(source.image_config, source.family)
    source.notes += notes
    is_first = source.layout == "transformers-convnext"
    return ConvNeXt(
        widths=widths,  # type: ignore[arg-type]
        depths=depths,  # type: ignore[arg-type]
        # transformers' ConvNeXt takes the epsilon of its config for the last normalization only.
        epsilon=1e-6 if is_first else float(source.number("layer_norm_eps", 1e-6)),
        pooling_epsilon=float(source.number("layer_norm_eps", 1e-12 if is_first else 1e-6)),
        mean=mean,
        std=std,
        names=source.layout,
        prefix=source.prefix,
    )


def read_configs(file: Path) -> tuple[Mapping[str, Any], ImageConfig]:
    """Read the configs of the model and of preprocessing in a weight file's folder; empty if there are none.

    Of a folder with transformers' and open_clip's files, open_clip's config is for the files that open_clip names.

    Raises:
      InvalidValue: a config is not a JSON object.
    """
    config, image_config, processor, open_clip = (_read_json(file.with_name(name)) for name in CONFIGS)
    if open_clip and (not config or file.name.startswith("open_clip")):
        quick_gelu = _part(open_clip, "model_cfg").get("quick_gelu") is True
        return {"quick_gelu": quick_gelu}, ImageConfig(_part(open_clip, "preprocess_cfg"), "open_clip")
    # Newer versions of transformers save the image processor's config in that of the text's.
    image_config = image_config or _part(processor, "image_processor")  # type: ignore[assignment]
    if not image_config and "pretrained_cfg" in config:
        return config, ImageConfig(_part(config, "pretrained_cfg"), "timm")
    return config, ImageConfig(image_config)


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name)
    return part if isinstance(part, Mapping) else {}


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
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        raise InvalidValue(
            f"config.json has model_type {str(kind)[:100]!r}, which is not known; known are {', '.join(MODEL_TYPES)}: "
            f"{FAMILIES}"
        )
    return MODEL_TYPES[kind]


def vision_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Part of config.json about the image tower."""
    return _part(config, "vision_config") or config
