"""Geometric augmentation, run on the host after decoding."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from PIL import Image as PillowImage
from PIL.Image import Resampling

from tll_jax.data.imaging import resize
from tll_jax.data.resizing import Interpolation, resize_antialiased
from tll_jax.errors import InvalidValue
from tll_jax.typing import Image

NUM_TRIES = 10


def _check_size(size: int) -> None:
    if size < 8:
        raise InvalidValue(f"size is {size}; it must be at least 8 pixels")


@dataclass(kw_only=True)
class Resize:
    """Resizes every image to `size` x `size` without preserving the aspect ratio; deterministic."""

    size: int

    def check(self) -> None:
        _check_size(self.size)

    @property
    def shortest_side(self) -> int:
        return self.size

    def __call__(self, rng: np.random.Generator, image: Image) -> Image:
        del rng
        return resize(image, self.size)


@dataclass(kw_only=True)
class Pad:
    """Resizes the longer side to `size` and pads the shorter one symmetrically with the gray `level` (0 to 255).

    Preserves the aspect ratio; deterministic.
    """

    size: int
    level: int = 255

    def check(self) -> None:
        _check_size(self.size)
        if not 0 <= self.level <= 255:
            raise InvalidValue(f"level is {self.level}; it must be from 0 to 255")

    @property
    def shortest_side(self) -> int:
        return self.size

    def __call__(self, rng: np.random.Generator, image: Image) -> Image:
        del rng
        longest = max(image.shape[:2])
        height, width = (max(1, round(side * self.size / longest)) for side in image.shape[:2])
        top, left = (self.size - height) // 2, (self.size - width) // 2
        padded = np.full((self.size, self.size, 3), self.level, np.uint8)
        padded[top : top + height, left : left + width] = resize(image, height, width)
        return padded


@dataclass(kw_only=True)
class CenterCrop:
    """Crops the central square whose side is `share` of the image's shorter side and resizes it to `size` x `size`.

    Deterministic. The default share matches a 224-pixel crop after resizing the shorter side to 256.
    """

    size: int
    share: float = 0.875

    def check(self) -> None:
        _check_size(self.size)
        if not 0 < self.share <= 1:
            raise InvalidValue(f"share is {self.share}; it must be above 0 and at most 1")

    @property
    def shortest_side(self) -> int:
        return math.ceil(self.size / self.share)

    def __call__(self, rng: np.random.Generator, image: Image) -> Image:
        del rng
        height, width = image.shape[:2]
        side = max(1, round(self.share * min(height, width)))
        top, left = (height - side) // 2, (width - side) // 2
        return resize(image[top : top + side, left : left + side], self.size)


PILLOW = {"bilinear": Resampling.BILINEAR, "bicubic": Resampling.BICUBIC, "lanczos": Resampling.LANCZOS}


@dataclass(kw_only=True)
class PillowResize:
    """Resizing by Pillow, pixel-identical to the image processors of transformers for pretrained weights.

    Resizes the shorter side to `shortest_edge` and crops the central square of `size` pixels; with a `shortest_edge` of
    0 it resizes to `size` x `size` without preserving the aspect ratio, and with `squash` to `shortest_edge` on both
    sides before the crop. Deterministic. `Resize` is many times faster.
    """

    size: int
    shortest_edge: int = 0
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    squash: bool = False

    def check(self) -> None:
        _check_size(self.size)
        if self.shortest_edge and self.shortest_edge < self.size:
            raise InvalidValue(f"shortest_edge is {self.shortest_edge}; it must be 0 or at least size, {self.size}")
        if self.interpolation not in PILLOW:
            raise InvalidValue(f"interpolation is {self.interpolation!r}; it must be {' or '.join(PILLOW)}")

    @property
    def shortest_side(self) -> int:
        """Larger than any image, because decoding a JPEG at a reduced size would change the result."""
        return 2**30

    def __call__(self, rng: np.random.Generator, image: Image) -> Image:
        del rng
        height = width = self.shortest_edge or self.size
        if self.shortest_edge and not self.squash:
            shortest = min(image.shape[:2])
            height, width = (int(self.shortest_edge * side / shortest) for side in image.shape[:2])
        resized = np.asarray(PillowImage.fromarray(image).resize((width, height), PILLOW[self.interpolation]))
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return np.ascontiguousarray(resized[top : top + self.size, left : left + self.size])


@dataclass(kw_only=True)
class RandomResizedCrop:
    """Crops a random box, resizes it to `size` x `size` and flips it left to right at random.

    `scale` is the range of the box's area as a fraction of the image's; `ratio` is the range of its width over its
    height, drawn log-uniformly. If ten draws do not fit into the image, the largest centered box with an allowed ratio
    is used. Resizing is antialiased as in torchvision (`resize_antialiased` documents the remaining difference):
    bilinear is torchvision's default; Barlow Twins, VICReg and SimCLR use bicubic.

    Source: Szegedy et al. 2014 (arXiv 1409.4842), as implemented by torchvision's RandomResizedCrop.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    interpolation: Interpolation = "bilinear"

    def check(self) -> None:
        _check_size(self.size)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InvalidValue(f"scale is {self.scale}; it must be (low, high) with 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise InvalidValue(f"ratio is {self.ratio}; it must be (low, high) with 0 < low <= high")
        if not 0 <= self.flip_probability <= 1:
            raise InvalidValue(f"flip_probability is {self.flip_probability}; it must be between 0 and 1")
        if self.interpolation not in get_args(Interpolation):
            allowed = " or ".join(get_args(Interpolation))
            raise InvalidValue(f"interpolation is {self.interpolation!r}; it must be {allowed}")

    @property
    def shortest_side(self) -> int:
        # The shorter side needed for the narrowest box of the smallest area.
        narrowing = max(self.ratio[1], 1 / self.ratio[0])
        return math.ceil(self.size * math.sqrt(narrowing / self.scale[0]))

    def __call__(self, rng: np.random.Generator, image: Image) -> Image:
        top, left, height, width = self.draw_box(rng, *image.shape[:2])
        part = image[top : top + height, left : left + width]
        part = resize_antialiased(part, self.size, interpolation=self.interpolation)
        return cv2.flip(part, 1) if rng.random() < self.flip_probability else part

    def draw_box(self, rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
        """Random box as (top, left, height, width), in pixels."""
        low, high = (math.log(value) for value in self.ratio)
        least, most = self.scale
        for _ in range(NUM_TRIES):
            # One call for four numbers, because a call costs more than the numbers.
            area, ratio, top, left = rng.random(4).tolist()
            area = height * width * (least + area * (most - least))
            ratio = math.exp(low + ratio * (high - low))
            box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < box_width <= width and 0 < box_height <= height:
                top, left = int(top * (height - box_height + 1)), int(left * (width - box_width + 1))
                return top, left, box_height, box_width
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        box_width = min(width, max(1, round(height * ratio)))
        box_height = min(height, max(1, round(width / ratio)))
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width
