"""The triplet loss, its distances, and the mining of negatives in a batch."""

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
    """Triplet loss: the mean over rows of `max(0, d+ - d- + margin)`, or of `log(1 + exp(d+ - d-))` if `soft_margin`.

    `margin` is in the unit of the distance; the soft margin ignores it. At d+ = 1, d- = 0.25 and margin 1 the loss of a
    row is 1.75.
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
    """Triplet loss of each row, from the distances to its positive and to its negative; see `triplet`."""
    excess = positive_distances - negative_distances
    return jax.nn.softplus(excess) if soft_margin else jax.nn.relu(excess + margin)


def row_distances(
    a: Float[Array, "*batch dim"], b: Float[Array, "*batch dim"], *, distance: Distance
) -> Float[Array, "*batch"]:
    """Distance between corresponding rows of `a` and `b`; see `pairwise_distances` for the kinds."""
    if distance == "cosine":
        return 1 - jnp.sum(a * b, axis=-1) * _inverse_norm(a) * _inverse_norm(b)
    squared = jnp.sum((a - b) ** 2, axis=-1)
    return _safe_sqrt(squared) if distance == "l2" else squared


def pairwise_distances(
    a: Float[Array, "rows dim"], b: Float[Array, "columns dim"], *, distance: Distance
) -> Float[Array, "rows columns"]:
    """Distances between all rows of `a` and all rows of `b`, at least 0.

    `distance` is "squared_l2", "l2", or "cosine" (1 - cosine similarity, in [0, 2]; 1 to the zero vector). The gradient
    is finite everywhere, and 0 where an L2 distance is 0.
    """
    if distance == "cosine":
        products = jnp.matmul(a, b.T, precision="highest")
        return jnp.maximum(1 - products * _inverse_norm(a)[:, None] * _inverse_norm(b)[None, :], 0)
    # Far from the origin, squares and products cancel; centering changes neither distances nor gradients.
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
    """Column index of each anchor's negative, chosen among the columns where `is_negative` is True.

    - "random": uniformly at random; needs `key`.
    - "batch_hard": the nearest negative.
    - "semi_hard": the nearest negative that is farther away than the positive; if there is none, the farthest negative.
      FaceNet also requires it to be within the margin; without a soft margin one beyond it has loss 0 anyway.

    Anchors without negatives get index 0: mask them with `is_negative.any(axis=1)`. No gradient flows through the
    choice.
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
