"""Saliency maps from the change of the score when parts of the image are removed; no gradient is needed."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tll_jax.errors import InvalidValue
from tll_jax.saliency.baselines import GRAY, Baseline
from tll_jax.saliency.chunks import map_sum
from tll_jax.typing import Score

CHUNK = 16
"""Perturbed images in one batch."""


def occlusion(
    score: Score,
    image: Float[Array, "height width 3"],
    *,
    window: int,
    stride: int,
    baseline: Baseline = GRAY,
    chunk: int = CHUNK,
) -> Float[Array, "height width"]:
    """Occlusion: the drop of the score when a square is replaced by the baseline, averaged over the squares at a pixel.

    Squares have sides of `window` pixels and start every `stride` <= `window` pixels; the last ones may extend beyond
    the border.

    Raises:
      ValueError: the stride is larger than the window, or below 1.

    Source: Zeiler and Fergus 2014 (arXiv 1311.2901), section 2.2.
    """
    fall = _fall(score, image, baseline)
    return _over_windows(fall, image.shape[:2], window=window, stride=stride, chunk=chunk)


def sbsm(
    score: Score,
    image: Float[Array, "height width 3"],
    *,
    window: int,
    stride: int,
    baseline: Baseline = GRAY,
    chunk: int = CHUNK,
) -> Float[Array, "height width"]:
    """Similarity-based saliency maps (SBSM): `occlusion` with rises of the score set to 0.

    The score must be larger for more similar images. A window of 50 and a stride of 20 pixels at 224 are usual.

    Source: Dong et al. 2019, "Explainability for Content-Based Image Retrieval", equations 1 and 2.
    """
    fall = _fall(score, image, baseline)
    return _over_windows(
        lambda mask: jax.nn.relu(fall(mask)), image.shape[:2], window=window, stride=stride, chunk=chunk
    )


def rise(
    score: Score,
    image: Float[Array, "height width 3"],
    *,
    key: PRNGKeyArray,
    num_masks: int = 1000,
    grid: int = 7,
    keep_probability: float = 0.5,
) -> Float[Array, "height width"]:
    """RISE: random masks averaged with weights, the scores of the masked images minus their mean.

    A mask is `grid` x `grid` random zeros and ones (one with probability `keep_probability`), linearly resized to a
    little more than the image and randomly cropped. All images get the same masks from the same key.

    Source: Petsiuk, Das and Saenko 2018 (arXiv 1806.07421), equation 6. Departure: the mean score is subtracted, since
    it adds the same to all pixels up to sampling noise, which hides small differences of scores.
    """
    height, width = image.shape[:2]

    def once(mask_key: PRNGKeyArray) -> Float[Array, "3 height width"]:
        mask = random_mask(mask_key, height, width, grid=grid, keep_probability=keep_probability)
        found = score(image * mask[..., None])
        return jnp.stack([found * mask, mask, jnp.broadcast_to(found, mask.shape)])

    weights = jnp.full(num_masks, 1 / num_masks)
    weighted, mask, mean = map_sum(once, jax.random.split(key, num_masks), weights, chunk=CHUNK)
    return (weighted - mean * mask) / keep_probability


def random_mask(
    key: PRNGKeyArray, height: int, width: int, *, grid: int, keep_probability: float
) -> Float[Array, "{height} {width}"]:
    """One mask of `rise`, with values in [0, 1]."""
    cell_key, *shift_keys = jax.random.split(key, 3)
    cells = jax.random.bernoulli(cell_key, keep_probability, (grid + 1, grid + 1)).astype(jnp.float32)
    cell_height, cell_width = -(-height // grid), -(-width // grid)
    large = jax.image.resize(cells, ((grid + 1) * cell_height, (grid + 1) * cell_width), "linear")
    shifts = [
        jax.random.randint(one, (), 0, size) for one, size in zip(shift_keys, (cell_height, cell_width), strict=True)
    ]
    return jax.lax.dynamic_slice(large, shifts, (height, width))


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Start positions of windows that cover all of `length`.

    Examples:
      >>> window_starts(10, 4, 3), window_starts(10, 4, 4)
      ([0, 3, 6], [0, 4, 8])
    """
    return [stride * number for number in range(1 + max(0, -(-(length - window) // stride)))]


def _fall(
    score: Score, image: Float[Array, "height width 3"], baseline: Baseline
) -> Callable[[Bool[Array, "height width"]], Float[Array, ""]]:
    """Drop of the score as a function of the mask of pixels that are replaced by the baseline."""
    nothing, whole = baseline(image), score(image)
    return lambda mask: whole - score(jnp.where(mask[..., None], nothing, image))


def _over_windows(
    value_of: Callable[[Bool[Array, "height width"]], Float[Array, ""]],
    shape: tuple[int, ...],
    *,
    window: int,
    stride: int,
    chunk: int,
) -> Float[Array, "height width"]:
    """Mean of `value_of` over the windows that cover each pixel."""
    if not 1 <= stride <= window:
        raise InvalidValue(f"stride is {stride} and window {window}; stride must be 1 to window, or pixels go unseen")
    rows, columns = (jnp.arange(length) for length in shape)

    def inside(start: Int[Array, "2"]) -> Float[Array, "2 height width"]:
        in_rows, in_columns = (
            (places >= first) & (places < first + window) for places, first in zip((rows, columns), start, strict=True)
        )
        mask = in_rows[:, None] & in_columns
        value = value_of(mask)
        return mask * jnp.stack([value, jnp.ones_like(value)])[:, None, None]

    starts = np.array(
        [
            (row, column)
            for row in window_starts(shape[0], window, stride)
            for column in window_starts(shape[1], window, stride)
        ]
    )
    total, times = map_sum(inside, jnp.asarray(starts), jnp.ones(len(starts)), chunk=chunk)
    return total / times
