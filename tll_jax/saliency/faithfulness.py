"""Measures of the faithfulness of heat maps; deletion and insertion curves are in `curves`."""

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
"""image -> heat map: a method with its score."""
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
    """1 - R^2 of the score's falls as the map predicts them, when random squares are replaced by the baseline; in [0,
    1].

    The map's prediction for a square is the sum of its values there, so a signed map of shares in the score can reach
    0. Larger squares take more away, which every map of one sign tells: compare with what a `noise_map` gets.

    Source: Yeh et al. 2019 (arXiv 1901.09392), definition 2.1 with square removal, for maps that are shares in a score.
    Departures: squares of all sizes up to half the image; and maps are brought to their best scale, see
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
    """1 - R^2 (about zero) of `scale * predicted` for `observed`, at the best scale; in [0, 1].

    The best scale is mean(predicted observed) / mean(predicted^2), of either sign: one number a map, so that maps
    without units, and those that are smaller for more alike, can be compared. 1 is what a map of zeros gets.

    Source: Yeh et al. 2019, section 5, for the scale; the share is ours, so that images can be averaged.

    >>> float(one_minus_r2(jnp.array([1.0, 0.0]), jnp.array([3.0, 3.0])))
    0.5
    """
    predicted, observed = _to_one(predicted), _to_one(observed)
    product = jnp.sum(predicted**2) * jnp.sum(observed**2)
    explained = jnp.sum(predicted * observed) ** 2 / jnp.where(product > 0, product, 1)
    # Rounding must not make it negative; where nothing happens nothing is left unexplained.
    return jnp.where(jnp.any(observed != 0), jnp.maximum(1 - explained, 0), 0)


def random_squares(key: PRNGKeyArray, height: int, width: int, *, samples: int) -> Bool[Array, "samples height width"]:
    """Squares wholly inside the image, of every side from 1 to half its shorter side with equal chance."""

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
    """The largest change of the map under noise that no one sees, as a share of the map's length; 0 is steady.

    Source: Yeh et al. 2019 (arXiv 1901.09392), definition 4.1 by Monte Carlo, over the norm of the map as in their
    experiments.
    """
    return largest_change(
        explain(image), jax.lax.map(explain, noisy_copies(key, image, radius=radius, samples=samples))
    )


def noisy_copies(
    key: PRNGKeyArray, image: Float[Array, "height width 3"], *, radius: float = RADIUS, samples: int
) -> Float[Array, "samples height width 3"]:
    """The image with uniform noise in [-radius, radius) on every value, in units of the image range; not clipped."""
    return image + jax.random.uniform(key, (samples, *image.shape), image.dtype, -radius, radius)


def largest_change(
    heatmap: Float[Array, "height width"], changed: Float[Array, "samples height width"]
) -> Float[Array, ""]:
    """The largest Euclidean distance of a changed map to the map, as a share of the map's length.

    An empty map has no length: it counts as 0 if it stays empty and as 1 if it does not.
    """
    largest = jnp.max(jnp.abs(heatmap))
    scale = jnp.where(largest > 0, largest, 1)
    length = jnp.linalg.norm(heatmap / scale)
    change = jnp.max(jnp.linalg.norm(((changed - heatmap) / scale).reshape(len(changed), -1), axis=1))
    return jnp.where(largest > 0, change / jnp.maximum(length, 1), change > 0)


def sparseness(heatmap: Float[Array, "height width"]) -> Float[Array, ""]:
    """The Gini index of absolute values: 0 where all pixels are equally hot, 1 - 1 / pixels where one alone is.

    Neither is better by itself: it says how few pixels a map blames.

    Source: Chalasani et al. 2020 (arXiv 1810.06583), section 5.
    """
    values = jnp.sort(jnp.abs(_to_one(heatmap)).ravel())
    count = values.size
    shares = values / jnp.maximum(jnp.sum(values), 1e-12)
    gini = 1 - 2 * jnp.sum(shares * (count - jnp.arange(1, count + 1) + 0.5)) / count
    return jnp.where(jnp.any(values > 0), gini, 0)


def agreement(a: Float[Array, "height width"], b: Float[Array, "height width"]) -> Float[Array, ""]:
    """Spearman's rank correlation of two maps' absolute values, in [-1, 1]; 0 where a map is flat.

    Equal values share their mean rank.
    """
    a, b = (_centered_ranks(jnp.abs(one).ravel()) for one in (a, b))
    lengths = jnp.linalg.norm(a) * jnp.linalg.norm(b)
    return jnp.sum(a * b) / jnp.maximum(lengths, 1e-12)


def top_down(variables: Any) -> list[str]:
    """The names of a `Network`'s parts that have parameters, in the order of the cascade: "head", the last stage, ...,
    "stem"."""
    params = variables["params"]
    return ["head"] * ("head" in params) + sorted(params["backbone"], key=stage_of, reverse=True)


def randomized(key: PRNGKeyArray, variables: Any, names: Collection[str]) -> Any:
    """The variables with the parameters of the named parts (see `top_down`) made random.

    Each array has its own entries in random order, which needs no initializer and keeps its scale; the same key gives
    a part the same order whatever else is named. Batch statistics stay. A method that looks at the network changes its
    map: its `agreement` with the map from before should be near 0.

    Raises:
      KeyError: there is no such part.

    Source: Adebayo et al. 2018 (arXiv 1810.03292), section 3.1, who draw new weights.
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
    """The control: uniform noise in [0, 1), new for every score and image. What does not beat it says nothing."""
    bits = jax.lax.bitcast_convert_type(jnp.asarray(score(image), jnp.float32), jnp.uint32)
    return jax.random.uniform(jax.random.fold_in(key, bits), image.shape[:2])


def _to_one(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Over their largest absolute value: squares of tiny values would vanish."""
    largest = jnp.max(jnp.abs(values))
    return values / jnp.where(largest > 0, largest, 1)


def _centered_ranks(values: Float[Array, " count"]) -> Float[Array, " count"]:
    """Mean ranks less their mean, over the count."""
    ordered = jnp.sort(values)
    first, last = (jnp.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return (first + last - len(values)) / (2 * len(values))
