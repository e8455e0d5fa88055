"""The triplet loss, the distances it compares, and how negatives are found in a batch."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tll_jax.errors import InvalidValue

Distance = Literal["squared_l2", "l2", "cosine"]
Mining = Literal["random", "semi_hard", "batch_hard"]


def triplet(
    anchor: Float[Array, "batch dim"],
    positive: Float[Array, "batch dim"],
    negative: Float[Array, "batch dim"],
    *,
    margin: float = 0.2,
    distance: Distance = "squared_l2",
    soft_margin: bool = False,
) -> Float[Array, ""]:
    """Mean over all rows of `max(0, d+ - d- + margin)`, or of `log(1 + exp(d+ - d-))`, which has no margin.

    `margin` is in the unit of the distance. With d+ = 1, d- = 0.25 and margin 1 a row loses 1.75.
    Source: Schroff et al. 2015 (arXiv 1503.03832), equation 2; soft margin: Hermans et al. 2017
    (arXiv 1703.07737).
    """
    losses = triplet_losses(
        row_distances(anchor, positive, distance=distance),
        row_distances(anchor, negative, distance=distance),
        margin=margin,
        soft_margin=soft_margin,
    )
    return jnp.mean(losses)


def triplet_losses(
    positive_distances: Float[Array, " batch"],
    negative_distances: Float[Array, " batch"],
    *,
    margin: float = 0.2,
    soft_margin: bool = False,
) -> Float[Array, " batch"]:
    """Every row's part in `triplet`, from the distances to its positive and to its negative."""
    excess = positive_distances - negative_distances
    return jax.nn.softplus(excess) if soft_margin else jax.nn.relu(excess + margin)


def row_distances(
    a: Float[Array, "*batch dim"], b: Float[Array, "*batch dim"], *, distance: Distance
) -> Float[Array, "*batch"]:
    """Distance of every row of `a` to the same row of `b`."""
    if distance == "cosine":
        return 1 - jnp.sum(a * b, axis=-1) * _inverse_norm(a) * _inverse_norm(b)
    squared = jnp.sum((a - b) ** 2, axis=-1)
    return _safe_sqrt(squared) if distance == "l2" else squared


def pairwise_distances(
    a: Float[Array, "rows dim"], b: Float[Array, "columns dim"], *, distance: Distance
) -> Float[Array, "rows columns"]:
    """Distance of every row of `a` to every row of `b`, at least 0.

    "squared_l2", "l2", or "cosine" (1 - cosine similarity, in [0, 2]; 1 to the zero vector). The gradient is
    finite everywhere and 0 where an L2 distance is 0.
    """
    if distance == "cosine":
        products = jnp.matmul(a, b.T, precision="highest")
        return jnp.maximum(1 - products * _inverse_norm(a)[:, None] * _inverse_norm(b)[None, :], 0)
    # Far from the origin, squares and products would cancel; moving it changes neither distances nor gradients.
    middle = jax.lax.stop_gradient(jnp.mean(a, axis=0))
    a, b = a - middle, b - middle
    products = jnp.matmul(a, b.T, precision="highest")
    squared = jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1)[None, :] - 2 * products
    squared = jnp.maximum(squared, 0)
    return _safe_sqrt(squared) if distance == "l2" else squared


def mine_negatives(
    distances: Float[Array, "anchors candidates"],
    positive_distances: Float[Array, " anchors"],
    is_negative: Bool[Array, "anchors candidates"],
    *,
    mining: Mining,
    key: jax.Array | None = None,
) -> Int[Array, " anchors"]:
    """The candidate that every anchor takes as its negative, among those where `is_negative` is True.

    - "random": any, with equal chances; needs `key`.
    - "batch_hard": the nearest.
    - "semi_hard": the nearest of those farther away than the positive; if none is, the farthest of all.
      FaceNet also asks that it lie within the margin; without a soft margin one beyond it costs nothing anyway.

    An anchor without negatives gets 0: leave it out with `is_negative.any(axis=1)`. The choice passes no gradient.
    Source: Schroff et al. 2015 (arXiv 1503.03832), section 3.2; Hermans et al. 2017 (arXiv 1703.07737).
    """
    if mining == "random":
        if key is None:
            raise InvalidValue('mining "random" needs a key')
        return jnp.argmax(jnp.where(is_negative, jax.random.uniform(key, distances.shape), -1), axis=1)
    nearest = jnp.argmin(jnp.where(is_negative, distances, jnp.inf), axis=1)
    if mining == "batch_hard":
        return nearest
    is_farther = is_negative & (distances > positive_distances[:, None])
    nearest_farther = jnp.argmin(jnp.where(is_farther, distances, jnp.inf), axis=1)
    farthest = jnp.argmax(jnp.where(is_negative, distances, -jnp.inf), axis=1)
    return jnp.where(is_farther.any(axis=1), nearest_farther, farthest)


def _safe_sqrt(squared: jax.Array) -> jax.Array:
    is_positive = squared > 0
    return jnp.where(is_positive, jnp.sqrt(jnp.where(is_positive, squared, 1)), 0)


def _inverse_norm(rows: jax.Array) -> jax.Array:
    squared = jnp.sum(rows**2, axis=-1)
    return jax.lax.rsqrt(jnp.where(squared > 0, squared, 1))
