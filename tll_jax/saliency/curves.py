"""Deletion and insertion curves: a function of the image while pixels are replaced in the order of a heat map.

If the heat map is faithful, the similarity falls early in deletion and rises early in insertion.
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
"""Number of equal parts in which pixels are replaced, each 5 % of the image."""
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
    """Deletion curve: `function` of the image with 0, 1, ..., `steps` parts replaced by the baseline, hottest first.

    It has `steps` + 1 points. If the function is a score, a smaller area under the curve is better.

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
    """Insertion curve: `function` of the baseline with 0, 1, ..., `steps` parts replaced by the image, hottest first.

    It has `steps` + 1 points. If the function is a score, a larger area under the curve is better.

    Source: as `deletion_curve`.
    """
    return _curve(function, baseline(image), image, heatmap, steps)


def shares_in_order(heatmap: Float[Array, "height width"], *, steps: int) -> Int[Array, "height width"]:
    """Number of each pixel's part, from 0 (hottest) to `steps` - 1; parts have equal sizes up to rounding.

    Ties are broken in one fixed random order. An order by position would make the curves of maps with large flat
    regions depend on where those regions are.
    """
    ties = jnp.asarray(np.random.default_rng(0).permutation(heatmap.size))
    order = jnp.lexsort((ties, -heatmap.ravel()))
    places = jnp.zeros_like(order).at[order].set(jnp.arange(heatmap.size))
    return (places * steps // heatmap.size).reshape(heatmap.shape)


def similarities(embeddings: Float[Array, "points dim"], other: Float[Array, " dim"]) -> Float[Array, " points"]:
    """Cosine of each embedding on a curve to the other image's embedding, in [-1, 1]."""
    return jax.vmap(lambda one: cosine(one, other))(embeddings)


def reciprocal_ranks(
    embeddings: Float[Array, "points dim"],
    candidates: Float[Array, "candidates dim"],
    match: Int[Array, ""],
) -> Float[Array, " points"]:
    """Reciprocal rank of the positive, row `match` of `candidates`, for each embedding on a curve; in (0, 1].

    Ranks are by Euclidean distance, as in a study; ties and NaN rank last.
    """
    scores = jax.vmap(lambda one: -jnp.sum((candidates - one) ** 2, axis=-1))(embeddings)
    found = reciprocal_rank(ranks(scores, jnp.full(len(embeddings), match)))
    return jnp.asarray(found, jnp.float32)


def area(values: Float[Array, " points"]) -> Float[Array, ""]:
    """Area under a curve over the fraction of replaced pixels, from 0 to 1, by the trapezoid rule.

    Examples:
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
