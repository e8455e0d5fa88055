"""Random photometric augmentation, and the settings used in training."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tll_jax.augment.photometric import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
    solarize,
)
from tll_jax.devices import by_platform
from tll_jax.errors import InvalidValue

BLUR_REACH = 4
"""Standard deviations at which blurs are truncated, as in SciPy: the weight beyond is less than one gray level."""


@dataclass(kw_only=True)
class Photometric:
    """Color jitter, grayscale, blur and solarization of an image in [0, 1], in this order, each with its probability.

    Factors of `brightness`, `contrast` and `saturation` are uniform in [1 - strength, 1 + strength], the `hue` shift is
    uniform in [-hue, hue] turns (at most 0.5), and the blur's sigma uniform in the range `blur_sigma`, in pixels. The
    jitter has the fixed order brightness, contrast, saturation, hue, which torchvision shuffles: under `jax.vmap` every
    order would be computed for every image. Operations of probability or strength 0 are not computed.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    jitter_probability: float = 0.8
    gray_probability: float = 0.2
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_probability: float = 0.0

    def check(self) -> None:
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            _check_range(name, getattr(self, name), most)
        for name in ("jitter_probability", "gray_probability", "blur_probability", "solarize_probability"):
            _check_range(name, getattr(self, name), 1.0)
        low, high = self.blur_sigma
        if not 0 < low <= high:
            raise InvalidValue(f"blur_sigma is {self.blur_sigma}; it must be (low, high) with 0 < low <= high")

    def __call__(self, key: jax.Array, image: Float[Array, "height width 3"]) -> Float[Array, "height width 3"]:
        # All random numbers of an image come from one call.
        draws = iter(jax.random.uniform(key, (9,)))

        def happens(probability: float) -> jax.Array:
            return next(draws) < probability

        is_jittered = happens(self.jitter_probability)

        def strength(most: float) -> jax.Array:
            return jnp.where(is_jittered, most * (2 * next(draws) - 1), 0)

        brightness, contrast, saturation, hue = (
            strength(most) for most in (self.brightness, self.contrast, self.saturation, self.hue)
        )
        is_gray = happens(self.gray_probability)
        is_blurred = happens(self.blur_probability)
        low, high = self.blur_sigma
        sigma = low + (high - low) * next(draws)
        is_solarized = happens(self.solarize_probability)

        jitters = self.jitter_probability > 0
        if jitters and self.brightness > 0:
            image = adjust_brightness(image, 1 + brightness)
        if jitters and self.contrast > 0:
            image = adjust_contrast(image, 1 + contrast)
        if jitters and self.saturation > 0:
            image = adjust_saturation(image, 1 + saturation)
        if jitters and self.hue > 0:
            image = adjust_hue(image, hue)
        if self.gray_probability > 0:
            image = adjust_saturation(image, jnp.where(is_gray, 0.0, 1.0))
        if self.blur_probability > 0:
            blur = partial(gaussian_blur, sigma=sigma, radius=math.ceil(BLUR_REACH * high))
            image = _change_if(is_blurred, blur, image)
        if self.solarize_probability > 0:
            image = jnp.where(is_solarized, solarize(image), image)
        return image


def _change_if(happens: jax.Array, change: Callable[[jax.Array], jax.Array], image: jax.Array) -> jax.Array:
    """`change(image)` if `happens`, else the image.

    On CPUs it is a loop of one iteration or none: a loop's input is materialized, whereas XLA:CPU would otherwise
    recompute all earlier operations for each use of a pixel in `change`. That quarters the time of a batch.
    """

    def loop(happens: jax.Array, image: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, happens.astype(jnp.int32), lambda _, unchanged: change(unchanged), image)

    def select(happens: jax.Array, image: jax.Array) -> jax.Array:
        return jnp.where(happens, change(image), image)

    return by_platform(happens, image, cpu=loop, default=select)


def _check_range(name: str, value: float, most: float) -> None:
    if not 0 <= value <= most:
        raise InvalidValue(f"{name} is {value}; it must be between 0 and {most:g}")


def barlow_view_a() -> Photometric:
    """Augmentation of the first view of Barlow Twins, with blur at probability 1.

    Source: Zbontar et al. 2021 (arXiv 2103.03230), appendix A.
    """
    return Photometric(blur_probability=1.0)


def barlow_view_b() -> Photometric:
    """Augmentation of the second view of Barlow Twins: blur at probability 0.1, solarization at 0.2.

    Source: as `barlow_view_a`.
    """
    return Photometric(blur_probability=0.1, solarize_probability=0.2)


def pair_photometric() -> Photometric:
    """Mild jitter for look-alike pairs, whose colors often agree: no change of hue, no grayscale and no blur."""
    return Photometric(
        brightness=0.2, contrast=0.2, saturation=0.2, hue=0.0, gray_probability=0.0, blur_probability=0.0
    )
