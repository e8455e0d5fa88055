"""Faithfulness measures of heat maps; deletion and insertion curves are in `curves`."""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from tll_jax.errors import UnknownName
from tll_jax.models.stages import stage_of
from tll_jax.saliency.baselines import Baseline
from tll_jax.saliency.perturbation import CHUNK
from tll_jax.typing import Score

Explain = Callable[[Float[Array, "height width 3"]], Float[Array, "height width"]]
"""image -> heat map: a saliency method with its score bound."""
RADIUS = 0.02


def unexplained_variance(
    key: PRNGKeyArray,
    score: Score,
    image: Float[Array, "height width 3"],
    heatmap: Float[Array, "height width"],
    *,
    baseline: Baseline,
    samples: int = 96,
) -> Float[Array, ""]:
    """Unexplained variance of the score's drops when random squares are replaced by the baseline: 1 - R^2, in [0, 1].

    The predicted drop of a square is the sum of the heat map inside it, so an exact signed attribution reaches 0.
    Larger squares cause larger drops, which any map of one sign predicts: compare with the value of a `noise_map`.

    Source: infidelity of Yeh et al. 2019 (arXiv 1901.09392), definition 2.1 with square removal, for attributions that
    sum to the score. Departures: squares of all sizes up to half the image, and the optimal scale and normalization of
    `one_minus_r2`.
    """
    nothing, whole = baseline(image), score(image)
    squares = random_squares(key, *heatmap.shape, samples=samples)
    predicted = jnp.tensordot(squares.astype(heatmap.dtype), _to_one(heatmap), 2, precision="highest")
    falls = jax.lax.map(
        lambda square: whole - score(jnp.where(square[..., None], nothing, image)), squares, batch_size=CHUNK
    )
    return one_minus_r2(predicted, falls)


def one_minus_r2(predicted: Float[Array, " samples"], observed: Float[Array, " samples"]) -> Float[Array, ""]:
    """1 - R^2 (uncentered) of the regression of `observed` on `predicted` without intercept; in [0, 1].

    The optimal scale is mean(predicted * observed) / mean(predicted^2), of either sign and one for each map, so that
    maps in any unit, and maps of scores that are smaller for more similar images, can be compared. A map of zeros
    gets 1.

    Source: Yeh et al. 2019, section 5, for the scale; the division by mean(observed^2) is ours, so that images can be
    averaged.

    Examples:
      >>> float(one_minus_r2(jnp.array([1.0, 0.0]), jnp.array([3.0, 3.0])))
      0.5
    """
    predicted, observed = _to_one(predicted), _to_one(observed)
    product = jnp.sum(predicted**2) * jnp.sum(observed**2)
    explained = jnp.sum(predicted * observed) ** 2 / jnp.where(product > 0, product, 1)
    # Rounding must not make it negative; if nothing was observed, nothing is unexplained.
    return jnp.where(jnp.any(observed != 0), jnp.maximum(1 - explained, 0), 0)


def random_squares(key: PRNGKeyArray, height: int, width: int, *, samples: int) -> Bool[Array, "samples height width"]:
    """Random square masks inside the image; sides are uniform from 1 to half the shorter side of the image."""

    def once(key: PRNGKeyArray) -> Bool[Array, "height width"]:
        side_key, row_key, column_key = jax.random.split(key, 3)
        side = jax.random.randint(side_key, (), 1, min(height, width) // 2 + 1)

        def inside(key: PRNGKeyArray, length: int) -> Bool[Array, " length"]:
            offsets = jnp.arange(length) - jax.random.randint(key, (), 0, length - side + 1)
            return (offsets >= 0) & (offsets < side)

        return inside(row_key, height)[:, None] & inside(column_key, width)

    return jax.vmap(once)(jax.random.split(key, samples))


def max_sensitivity(
    key: PRNGKeyArray,
    explain: Explain,
    image: Float[Array, "height width 3"],
    *,
    radius: float = RADIUS,
    samples: int = 8,
) -> Float[Array, ""]:
    """Max-sensitivity: the largest change of a heat map under imperceptible noise, divided by the map's norm.

    Source: Yeh et al. 2019 (arXiv 1901.09392), definition 4.1 by Monte Carlo, divided by the norm of the map as in
    their experiments.
    """
    return largest_change(
        explain(image), jax.lax.map(explain, noisy_copies(key, image, radius=radius, samples=samples))
    )


def noisy_copies(
    key: PRNGKeyArray, image: Float[Array, "height width 3"], *, radius: float = RADIUS, samples: int
) -> Float[Array, "samples height width 3"]:
    """The image plus uniform noise in [-radius, radius) on every value, in units of the image range; not clipped."""
    return image + jax.random.uniform(key, (samples, *image.shape), image.dtype, -radius, radius)


def largest_change(
    heatmap: Float[Array, "height width"], changed: Float[Array, "samples height width"]
) -> Float[Array, ""]:
    """Largest Euclidean distance of a changed map to the original one, divided by the norm of the original.

    For a map of zeros it is 0 if all changed maps are zeros too, else 1.
    """
    largest = jnp.max(jnp.abs(heatmap))
    scale = jnp.where(largest > 0, largest, 1)
    length = jnp.linalg.norm(heatmap / scale)
    change = jnp.max(jnp.linalg.norm(((changed - heatmap) / scale).reshape(len(changed), -1), axis=1))
    return jnp.where(largest > 0, change / jnp.maximum(length, 1), change > 0)


def sparseness(heatmap: Float[Array, "height width"]) -> Float[Array, ""]:
    """Gini index of the absolute values: 0 for a uniform map, 1 - 1 / pixels for a single nonzero pixel.

    Neither end is better: the index describes the concentration of a map, not its faithfulness.

    Source: Chalasani et al. 2020 (arXiv 1810.06583), section 5.
    """
    values = jnp.sort(jnp.abs(_to_one(heatmap)).ravel())
    count = values.size
    shares = values / jnp.maximum(jnp.sum(values), 1e-12)
    gini = 1 - 2 * jnp.sum(shares * (count - jnp.arange(1, count + 1) + 0.5)) / count
    return jnp.where(jnp.any(values > 0), gini, 0)


def agreement(a: Float[Array, "height width"], b: Float[Array, "height width"]) -> Float[Array, ""]:
    """Spearman's rank correlation of the absolute values of two maps, in [-1, 1]; 0 if a map is constant.

    Ties get their mean rank.
    """
    a, b = (_centered_ranks(jnp.abs(one).ravel()) for one in (a, b))
    lengths = jnp.linalg.norm(a) * jnp.linalg.norm(b)
    return jnp.sum(a * b) / jnp.maximum(lengths, 1e-12)


def top_down(variables: Any) -> list[str]:
    """Names of a `Network`'s parts with parameters, from the top: "head", the last stage, ..., "stem"."""
    params = variables["params"]
    return ["head"] * ("head" in params) + sorted(params["backbone"], key=stage_of, reverse=True)


def randomized(key: PRNGKeyArray, variables: Any, names: Collection[str]) -> Any:
    """Variables with the parameters of the named parts (see `top_down`) randomized, for the sanity check of saliency.

    The entries of each array are permuted, which needs no initializer and keeps their scale; a key gives a part the
    same permutation whatever other parts are named. Batch statistics are unchanged. A method that depends on the
    network changes its heat map: its `agreement` with the original map should be near 0.

    Raises:
      KeyError: there is no such part.

    Source: Adebayo et al. 2018 (arXiv 1810.03292), section 3.1, who draw new weights instead.
    """
    if unknown := set(names) - set(top_down(variables)):
        raise UnknownName(f"the network has no parts {sorted(unknown)}; it has {', '.join(top_down(variables))}")
    leaves, structure = jax.tree_util.tree_flatten_with_path(variables["params"])
    shuffled = [
        jax.random.permutation(jax.random.fold_in(key, number), leaf.ravel()).reshape(leaf.shape)
        if (path[0].key if path[0].key != "backbone" else path[1].key) in names
        else leaf
        for number, (path, leaf) in enumerate(leaves)
    ]
    return {**variables, "params": jax.tree.unflatten(structure, shuffled)}


def noise_map(key: PRNGKeyArray, score: Score, image: Float[Array, "height width 3"]) -> Float[Array, "height width"]:
    """Control: uniform noise in [0, 1), new for every score and image. A method should be more faithful than this."""
    bits = jax.lax.bitcast_convert_type(jnp.asarray(score(image), jnp.float32), jnp.uint32)
    return jax.random.uniform(jax.random.fold_in(key, bits), image.shape[:2])


def _to_one(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Values divided by their largest absolute value, because squares of tiny values would underflow."""
    largest = jnp.max(jnp.abs(values))
    return values / jnp.where(largest > 0, largest, 1)


def _centered_ranks(values: Float[Array, " count"]) -> Float[Array, " count"]:
    """Mean ranks minus their mean, divided by the count."""
    ordered = jnp.sort(values)
    first, last = (jnp.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return (first + last - len(values)) / (2 * len(values))
