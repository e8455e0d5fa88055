"""Resizing and normalization of pictures as by the reference code of a pretrained backbone's family."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from tll_jax.annotations import fits, shown
from tll_jax.errors import InvalidValue
from tll_jax.models.resnet import IMAGENET_MEAN, IMAGENET_STD

Family = Literal["vit", "deit", "timm", "dinov2", "dinov3", "clip", "siglip", "siglip2", "convnext"]
"""Families by their preprocessing; "timm" is every one of timm's without a family of its own."""
Interpolation = Literal["bilinear", "bicubic", "lanczos"]
Channels = tuple[float, float, float]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
MAX_SIDE = 2**13
"""Largest side of an image in pixels."""

FILTERS: Mapping[int, Interpolation] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's filters by their number in preprocessor_config.json."""
PROCESSORS = {"deit": "DeiT", "dinov2": "Bit", "clip": "CLIP", "convnext": "ConvNext"}
"""First part of the names of transformers' image processors by family, for those that crop."""


class Preprocessing(NamedTuple):
    """Pillow preprocessing of the family's reference code: the fields of `data.geometry.PillowResize`."""

    size: int
    """Height and width in pixels."""
    shortest_edge: int = 0
    """Length in pixels of the shorter side before the central square crop; 0 to resize the picture to a square."""
    interpolation: Interpolation = "bicubic"
    squash: bool = False
    """Whether both sides are resized to `shortest_edge`, as for DeiT, without keeping the aspect ratio."""


class ImageConfig(NamedTuple):
    """The config of preprocessing in a weight file's folder; without values if there is none."""

    values: Mapping[str, Any] = {}
    package: Literal["transformers", "timm", "open_clip"] = "transformers"
    """The package whose fields it has."""


def normalization_of(config: ImageConfig, family: Family) -> tuple[Channels, Channels, tuple[str, ...]]:
    """Mean and standard deviation of the channels of images in [0, 1], and notes on what was assumed.

    Raises:
      InvalidValue: the config's are not three finite numbers, or a deviation is not above 0.
    """
    kind, mean, std = "ImageNet's", IMAGENET_MEAN, IMAGENET_STD
    if family == "clip":
        kind, mean, std = "CLIP's", CLIP_MEAN, CLIP_STD
    elif family in ("vit", "siglip", "siglip2"):
        kind, mean, std = "one half", HALF, HALF
    if config.values.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), ()
    prefix = "image_" if config.package == "transformers" else ""
    given_mean, given_std = (_channels(config, f"{prefix}{name}") for name in ("mean", "std"))
    if given_std is not None and min(given_std) <= 0:
        raise InvalidValue(f"the config of preprocessing has {prefix}std {list(given_std)}; it must be above 0")
    notes = ()
    if given_mean is None or given_std is None:
        notes = (  # type: ignore[assignment]
            f"no config of preprocessing has mean and deviation of the channels: they are taken to be {kind}",
        )
    return given_mean or mean, given_std or std, notes


def _channels(config: ImageConfig, name: str) -> Channels | None:
    value = config.values.get(name)
    if value is None:
        return None
    value = [value] * 3 if fits(value, float) else value
    if not fits(value, Channels):
        raise InvalidValue(f"the config of preprocessing has {name} {shown(value)}; it must be three numbers")
    red, green, blue = map(float, value)
    return red, green, blue


def preprocessing_of(config: ImageConfig, family: Family, image_size: int) -> tuple[Preprocessing, tuple[str, ...]]:
    """Resizing by a config of preprocessing, or as by the family's released ones, and notes on what differs.

    Args:
      image_size: height and width in pixels of the pretraining images.

    Raises:
      InvalidValue: the config asks for something that is not followed.
    """
    found = _default(family, image_size)
    notes: tuple[str, ...] = ()
    if not config.values:
        notes = ("no config of preprocessing: size, crop and filter are those of the family's released ones",)
    if config.package == "transformers":
        found, more = _by_transformers(config.values, family, found)
        notes += more
    elif config.package == "timm":
        found = _by_timm(config.values, found)
    else:
        found = _by_open_clip(config.values, image_size, found)
    if found.interpolation not in get_args(Interpolation):
        raise InvalidValue(
            f"the config of preprocessing has interpolation {shown(found.interpolation)}; known are "
            f"{', '.join(get_args(Interpolation))}"
        )
    if found.shortest_edge and found.shortest_edge < found.size:
        raise InvalidValue(
            f"the config of preprocessing crops {found.size} pixels from pictures of {found.shortest_edge}"
        )
    return found, notes


def _default(family: Family, image_size: int) -> Preprocessing:
    """Preprocessing of the family's released configs, or else of its image processor's defaults."""
    if family == "dinov2":
        return Preprocessing(224, 256)
    if family == "dinov3":
        return Preprocessing(224, 0, "bilinear")
    if family == "clip":
        return Preprocessing(image_size, image_size)
    if family in ("deit", "convnext", "timm"):
        return Preprocessing(image_size, image_size * 8 // 7, squash=family == "deit")
    return Preprocessing(image_size, 0, "bicubic" if family == "siglip" else "bilinear")


def _by_transformers(
    config: Mapping[str, Any], family: Family, default: Preprocessing
) -> tuple[Preprocessing, tuple[str, ...]]:
    for name in ("do_resize", "do_rescale"):
        if config.get(name) is False:
            raise InvalidValue(f"the config of preprocessing has {name} false, which is not followed; set it to true")
    factor = config.get("rescale_factor")
    if factor is not None and not (fits(factor, float) and abs(255 * factor - 1) < 1e-3):
        raise InvalidValue(f"the config of preprocessing has rescale_factor {shown(factor)}; it must be 1 / 255")
    notes: tuple[str, ...] = ()
    if family == "siglip2":
        notes = ("SigLIP 2's own preprocessing keeps the aspect ratio; here pictures are resized to squares",)
    filter_number = config.get("resample")
    interpolation = default.interpolation
    if filter_number is not None:
        if not fits(filter_number, int) or filter_number not in FILTERS:
            known = ", ".join(f"{number} ({name})" for number, name in FILTERS.items())
            raise InvalidValue(
                f"the config of preprocessing has resample {shown(filter_number)}, which is not followed; it must be "
                f"one of {known}"
            )
        interpolation = FILTERS[filter_number]
    given = config.get("size")
    if given is None:
        return default._replace(interpolation=interpolation), notes
    named = config.get("image_processor_type") or config.get("feature_extractor_type")
    processor = str(named or PROCESSORS.get(family, ""))
    keeps_ratio = isinstance(given, Mapping) and given.keys() == {"shortest_edge"}
    if fits(given, int):
        # As in the configs of older versions.
        keeps_ratio = processor.startswith(("Bit", "CLIP", "ConvNext"))
    elif isinstance(given, Mapping) and not keeps_ratio and given.keys() != {"height", "width"}:
        raise InvalidValue(
            f"the config of preprocessing has size {shown(given)}; it must be height and width, or shortest_edge"
        )
    side = square(given)
    if processor.startswith("ConvNext") or "crop_pct" in config:
        # Below 384 pixels the picture is cropped; from there on it is resized to a square.
        edge = int(side / _fraction(config, "crop_pct", 224 / 256)) if side < 384 else 0
        return Preprocessing(side, edge, interpolation), notes
    crops = config.get("do_center_crop", processor.startswith(("Bit", "CLIP", "DeiT")))
    if crops:
        size = square(config["crop_size"]) if config.get("crop_size") is not None else 224
        return Preprocessing(size, side, interpolation, squash=not keeps_ratio), notes
    if keeps_ratio:
        notes += ("the config of preprocessing crops no square; the central one is taken",)
    return Preprocessing(side, side if keeps_ratio else 0, interpolation), notes


def _by_timm(config: Mapping[str, Any], default: Preprocessing) -> Preprocessing:
    interpolation = config.get("interpolation") or default.interpolation
    given = config.get("input_size")
    if given is None:
        return default._replace(interpolation=interpolation)
    size = square(given[1:] if isinstance(given, list) else given)
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise InvalidValue(
            f"the config of preprocessing has crop_mode {shown(mode)}, which is not followed; known are center, squash"
        )
    edge = math.floor(size / _fraction(config, "crop_pct", 0.875))
    return Preprocessing(size, edge, interpolation, squash=mode == "squash")


def _by_open_clip(config: Mapping[str, Any], image_size: int, default: Preprocessing) -> Preprocessing:
    size = image_size if config.get("size") is None else square(config["size"])
    mode = config.get("resize_mode") or ("shortest" if default.shortest_edge else "squash")
    if mode not in ("shortest", "squash"):
        raise InvalidValue(
            f"the config of preprocessing has resize_mode {shown(mode)}, which is not followed; known are shortest, "
            "squash"
        )
    return Preprocessing(size, size if mode == "shortest" else 0, config.get("interpolation") or "bicubic")


def _fraction(config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name)
    value = default if value is None else value
    if not fits(value, float) or not 0 < value <= 1:
        raise InvalidValue(f"the config of preprocessing has {name} {shown(value)}; it must be above 0 and at most 1")
    return float(value)


def square(value: Any) -> int:
    """Side in pixels, from a number, a list of equal numbers, or a mapping with equal numbers.

    Raises:
      InvalidValue: the sides are not equal, or are no whole numbers from 1 to `MAX_SIDE`.
    """
    sides = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
    if not sides or not all(fits(side, int) and side == sides[0] for side in sides) or not 1 <= sides[0] <= MAX_SIDE:
        raise InvalidValue(
            f"a config has the size {shown(value)}; only squares are read, of sides from 1 to {MAX_SIDE} pixels"
        )
    return int(sides[0])
