"""SimCLR's loss: every view must find the other view of its image among all views of the batch."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from tll_jax.losses.info_nce import info_nce_losses


def nt_xent(
    z_a: Float[Array, "batch dim"], z_b: Float[Array, "batch dim"], *, temperature: float = 0.1
) -> Float[Array, ""]:
    """Mean over all `2 batch` views of the cross-entropy, in nats, of finding the partner among the other views.

    `z_a` and `z_b` are unit vectors; their products are divided by `temperature`. Views that are all equal cost
    log(2 batch - 1); a batch of one costs 0.
    Source: Chen et al. 2020 (arXiv 2002.05709), equation 1.
    """
    views, partners = jnp.concatenate([z_a, z_b]), jnp.concatenate([z_b, z_a])
    similarities = jnp.matmul(views, partners.T, precision="highest") / temperature
    # A view meets its partner on the diagonal, and itself in the column of its partner.
    num_views = len(views)
    is_itself = jnp.roll(jnp.eye(num_views, dtype=bool), num_views // 2, axis=1)
    return jnp.mean(info_nce_losses(similarities, ~is_itself))
