"""What an embedding makes of an image as the pixels that a heat map calls important go, or come, first.

A map that is right about a network takes the similarity away soon (deletion) and brings it back soon (insertion).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tll_jax.ranking import ranks, reciprocal_rank
from tll_jax.saliency.baselines import Baseline
from tll_jax.saliency.targets import cosine

STEPS = 20
"""In how many equal shares the pixels go: each is 5 % of an image."""
Function = Callable[[Float[Array, "height width 3"]], Float[Array, "..."]]
"""image `[h, w, 3]` -> scalar or vector."""


def deletion_curve(
    function: Function,
    image: Float[Array, "height width 3"],
    heatmap: Float[Array, "height width"],
    *,
    baseline: Baseline,
    steps: int = STEPS,
) -> Float[Array, "points ..."]:
    """`function` of the image, and of it with 1 to all of `steps` shares replaced by the baseline, hottest first.

    `steps` + 1 points; with a score as the function, less area below is better.

    Source: Petsiuk, Das and Saenko 2018 (arXiv 1806.07421), section 4.1.
    """
    return _curve(function, image, baseline(image), heatmap, steps)


def insertion_curve(
    function: Function,
    image: Float[Array, "height width 3"],
    heatmap: Float[Array, "height width"],
    *,
    baseline: Baseline,
    steps: int = STEPS,
) -> Float[Array, "points ..."]:
    """`function` of the baseline, and of it with 1 to all of `steps` shares replaced by the image, hottest first.

    `steps` + 1 points; with a score as the function, more area below is better.

    Source: as `deletion_curve`.
    """
    return _curve(function, baseline(image), image, heatmap, steps)


def shares_in_order(heatmap: Float[Array, "height width"], *, steps: int) -> Int[Array, "height width"]:
    """In which of `steps` shares, as equal as can be, each pixel goes: 0 is the hottest.

    Equally hot pixels go in one fixed random order: by position, maps with large flat parts would be measured by where
    these lie.
    """
    ties = jnp.asarray(np.random.default_rng(0).permutation(heatmap.size))
    order = jnp.lexsort((ties, -heatmap.ravel()))
    places = jnp.zeros_like(order).at[order].set(jnp.arange(heatmap.size))
    return (places * steps // heatmap.size).reshape(heatmap.shape)


def similarities(embeddings: Float[Array, "points dim"], other: Float[Array, " dim"]) -> Float[Array, " points"]:
    """The cosines to the other image's embedding along a curve, in [-1, 1]."""
    return jax.vmap(lambda one: cosine(one, other))(embeddings)


def reciprocal_ranks(
    embeddings: Float[Array, "points dim"],
    candidates: Float[Array, "candidates dim"],
    match: Int[Array, ""],
) -> Float[Array, " points"]:
    """1 / the rank of candidate `match` along a curve, in (0, 1]: candidates by Euclidean distance, as a study ranks.

    Whatever is not strictly farther counts against the match; one that is no number comes last.
    """
    scores = jax.vmap(lambda one: -jnp.sum((candidates - one) ** 2, axis=-1))(embeddings)
    found = reciprocal_rank(ranks(scores, jnp.full(len(embeddings), match)))
    return jnp.asarray(found, jnp.float32)


def area(values: Float[Array, " points"]) -> Float[Array, ""]:
    """The area under a curve over shares from 0 to 1, by the trapezoid rule: about its mean.

    >>> float(area(jnp.array([1.0, 0.5, 0.0])))
    0.5
    """
    return jnp.trapezoid(values, dx=1 / (len(values) - 1))


def _curve(
    function: Function,
    start: Float[Array, "height width 3"],
    end: Float[Array, "height width 3"],
    heatmap: Float[Array, "height width"],
    steps: int,
) -> Float[Array, "points ..."]:
    shares = shares_in_order(heatmap, steps=steps)
    return jax.vmap(lambda step: function(jnp.where((shares < step)[..., None], end, start)))(jnp.arange(steps + 1))
