"""InfoNCE: cross-entropy over the similarities of all pairs in a batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def info_nce_losses(
    similarities: Float[Array, "rows rows"], is_candidate: Bool[Array, "rows rows"]
) -> Float[Array, " rows"]:
    """Cross-entropy of each row, in nats, with the diagonal, its positive, as target; 0 for a row without negatives.

    `similarities` are logits, already divided by the temperature. `is_candidate` marks the columns of the softmax; the
    diagonal, the positive, is always one of them. n equal logits give log n.
    Source: van den Oord et al. 2018 (arXiv 1807.03748), equation 4.
    """
    rows = jnp.arange(similarities.shape[0])
    logits = jnp.where(is_candidate | (rows[:, None] == rows[None, :]), similarities, -jnp.inf)
    return -jax.nn.log_softmax(logits, axis=1)[rows, rows]


def info_nce(
    z_a: Float[Array, "batch dim"], z_b: Float[Array, "batch dim"], *, temperature: float = 0.07
) -> Float[Array, ""]:
    """Symmetric InfoNCE loss of two views in nats: the mean of the two directions.

    `z_a` and `z_b` are unit vectors; row i of one is the positive of row i of the other, all other rows are negatives.
    Inner products are divided by `temperature`. If all vectors are equal, the loss is log(batch).
    Source: van den Oord et al. 2018 (arXiv 1807.03748), equation 4; the symmetric form and the default temperature (the
    initial value there) as in CLIP (Radford et al. 2021, arXiv 2103.00020).
    """
    similarities = jnp.matmul(z_a, z_b.T, precision="highest") / temperature
    everything = jnp.ones(similarities.shape, bool)
    return jnp.mean(info_nce_losses(similarities, everything) + info_nce_losses(similarities.T, everything)) / 2
