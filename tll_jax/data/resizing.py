"""Antialiased resizing of the parts that training draws, in half the time that Pillow takes or less."""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float

from tll_jax.typing import Image

Interpolation = Literal["bilinear", "bicubic"]

FITTED_SIZE = 64
"""Filters depend on how much a row shrinks, hardly on its length: they are made for this many new pixels."""

FLAGS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def averaged_together(length: int, size: int) -> int:
    """How many pixels of a row are averaged to one before it is filtered and interpolated from `length` to `size`.

    What is left to filter shrinks by less than 3, for which short filters do.
    """
    return max(1, 2 * length // (3 * size))


def resize_antialiased(image: Image, size: int, *, interpolation: Interpolation = "bilinear") -> Image:
    """The image as `[size, size, 3]`, near to what Pillow's `resize` computes, and so torchvision's of its pictures.

    Of an axis that shrinks to a third or less, what is no whole multiple of `averaged_together` is left out at its end.

    Pillow stretches its kernel by the factor by which an axis shrinks, so that patterns finer than the new pixels go
    gray. Here pixels are averaged, filtered, and interpolated by OpenCV, which together come as near to that as so
    few operations can. What remains, as the mean over photos in gray levels of 255: .2 (bilinear) and .7 (bicubic, of
    which OpenCV's is sharper) to enlarge, .2 to .9 to shrink to no less than a third, up to 1.1 at a sixth. Without
    antialiasing it would be 2.7 at a half and 4.6 at a third. Pillow's bilinear and bicubic are 1 to 1.8 apart.
    """
    height, width = image.shape[:2]
    if height == width == size:
        return image
    if height > size or width > size:
        of_rows, of_columns = averaged_together(height, size), averaged_together(width, size)
        height, width = height // of_rows, width // of_columns
        if of_rows > 1 or of_columns > 1:
            image = image[: height * of_rows, : width * of_columns]
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        along_columns = _filter(interpolation, FITTED_SIZE * height // size, of_rows)
        along_rows = _filter(interpolation, FITTED_SIZE * width // size, of_columns)
        image = cv2.sepFilter2D(image, -1, along_rows, along_columns, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(image, (size, size), interpolation=FLAGS[interpolation])


@lru_cache(maxsize=4096)
def _filter(interpolation: Interpolation, length: int, step: int) -> Float[np.ndarray, " taps"]:
    """The symmetric filter, of sum 1, for rows of `length` averages of `step` pixels that shrink to `FITTED_SIZE`.

    With it, averaging, filtering and interpolating are nearest to Pillow's weights, by least squares in pictures whose
    rows are random walks, as photos nearly are: weights that sum to 0 leave of those their cumulative sums times the
    walk's steps.
    """
    if length <= FITTED_SIZE:
        return np.ones(1)
    reach = math.ceil(length / FITTED_SIZE)
    pillow, opencv = (_linear, _linear) if interpolation == "bilinear" else (_cubic, partial(_cubic, a=-0.75))
    wanted = _weights(pillow, length * step, stretch=length * step / FITTED_SIZE)
    interpolated = _weights(opencv, length, stretch=1)

    def tap(offset: int) -> Float[np.ndarray, "size pixels"]:
        shifted = np.zeros((length, FITTED_SIZE))
        np.add.at(shifted, np.clip(np.arange(length) + offset, 0, length - 1), interpolated.T)
        return np.repeat(shifted.T, step, axis=1) / step

    middle = tap(0)
    sides = [np.cumsum(tap(offset) + tap(-offset) - 2 * middle, axis=1).ravel() for offset in range(1, reach + 1)]
    side = np.linalg.lstsq(np.stack(sides, axis=1), np.cumsum(wanted - middle, axis=1).ravel(), rcond=None)[0]
    return np.concatenate([side[::-1], [1 - 2 * side.sum()], side])


def _weights(
    kernel: Callable[[np.ndarray], np.ndarray], length: int, *, stretch: float
) -> Float[np.ndarray, "size length"]:
    """What every old pixel of a row weighs in every new one, with a kernel of their distance over `stretch`."""
    centers = (np.arange(FITTED_SIZE)[:, None] + 0.5) * length / FITTED_SIZE - 0.5
    weights = kernel(np.abs(np.arange(length) - centers) / stretch)
    return weights / weights.sum(axis=1, keepdims=True)


def _linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - x, 0)


def _cubic(x: np.ndarray, *, a: float = -0.5) -> np.ndarray:
    """Source: Keys 1981, section 4: with `a` = -1/2, as Pillow has it; OpenCV has -3/4."""
    near, far = ((a + 2) * x - (a + 3)) * x**2 + 1, a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))
