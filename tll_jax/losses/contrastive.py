"""The contrastive loss: positives are pulled together, negatives are pushed apart up to a margin."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def contrastive_losses(
    distances: Float[Array, "*shape"], is_match: Bool[Array, "*shape"], *, margin: float = 1.0
) -> Float[Array, "*shape"]:
    """Contrastive loss of each pair: `d^2 / 2` for a positive, `max(0, margin - d)^2 / 2` for a negative; at least 0.

    `margin` is in the unit of the distances. At distance 0.6 and margin 1 the loss of a positive is 0.18 and
    that of a negative 0.08.
    Source: Hadsell et al. 2006, "Dimensionality Reduction by Learning an Invariant Mapping", equation 4.
    """
    return jnp.where(is_match, distances, jax.nn.relu(margin - distances)) ** 2 / 2
