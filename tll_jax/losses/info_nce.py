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
