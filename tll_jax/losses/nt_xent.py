"""NT-Xent, the loss of SimCLR: cross-entropy of each view's other view among all views of the batch."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from tll_jax.losses.info_nce import info_nce_losses


def nt_xent(
    z_a: Float[Array, "batch dim"], z_b: Float[Array, "batch dim"], *, temperature: float = 0.1
) -> Float[Array, ""]:
    """NT-Xent loss of two views, in nats: the mean over all `2 * batch` views.

    The positive of a view is the other view of its image; the negatives are the `2 * batch - 2` views of other images.
    `z_a` and `z_b` are unit vectors; their inner products are divided by `temperature`. If all vectors are equal, the
    loss is log(2 * batch - 1); for a batch of one it is 0.
    Source: Chen et al. 2020 (arXiv 2002.05709), equation 1.
    """
    views, partners = jnp.concatenate([z_a, z_b]), jnp.concatenate([z_b, z_a])
    similarities = jnp.matmul(views, partners.T, precision="highest") / temperature
    # The diagonal holds the positives; a view's similarity to itself is in its partner's column.
    num_views = len(views)
    is_itself = jnp.roll(jnp.eye(num_views, dtype=bool), num_views // 2, axis=1)
    return jnp.mean(info_nce_losses(similarities, ~is_itself))
