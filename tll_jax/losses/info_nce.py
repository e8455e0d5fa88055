"""Symmetric cross-entropy over the similarities of all pairs in a batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def info_nce_losses(
    similarities: Float[Array, "rows rows"], is_candidate: Bool[Array, "rows rows"]
) -> Float[Array, " rows"]:
    """Every row's cross-entropy, in nats, of finding its own column among the candidates; 0 where it is the only one.

    `similarities` are logits, so scaled already; the diagonal holds the matches and always counts as a candidate.
    Equal similarities among n candidates give log n.
    Source: van den Oord et al. 2018 (arXiv 1807.03748), equation 4.
    """
    rows = jnp.arange(similarities.shape[0])
    logits = jnp.where(is_candidate | (rows[:, None] == rows[None, :]), similarities, -jnp.inf)
    return -jax.nn.log_softmax(logits, axis=1)[rows, rows]


def info_nce(
    z_a: Float[Array, "batch dim"], z_b: Float[Array, "batch dim"], *, temperature: float = 0.07
) -> Float[Array, ""]:
    """Mean over both directions of the cross-entropy, in nats, of finding every row's partner in the other view.

    `z_a` and `z_b` are unit vectors; their products are divided by `temperature`. Views that are all equal cost
    log(batch).
    Source: van den Oord et al. 2018 (arXiv 1807.03748), equation 4; both directions and the initial temperature as in
    CLIP (Radford et al. 2021, arXiv 2103.00020).
    """
    similarities = jnp.matmul(z_a, z_b.T, precision="highest") / temperature
    everything = jnp.ones(similarities.shape, bool)
    return jnp.mean(info_nce_losses(similarities, everything) + info_nce_losses(similarities.T, everything)) / 2
