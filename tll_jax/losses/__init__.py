"""Loss functions on arrays; the only dependencies are JAX and jaxtyping.

Losses of two views take `(z_a, z_b)`; the others take triplets, distances or logits with labels. The defaults are those
of each method's paper.

Examples:
  >>> import jax.numpy as jnp
  >>> from tll_jax import losses
  >>> z_a = jnp.eye(4, 3)
  >>> print(f"{losses.vicreg(z_a, z_a):.2f}")
  12.53
"""

from tll_jax.losses.barlow_twins import barlow_twins, correlation_loss, cross_correlation
from tll_jax.losses.classification import cross_entropy
from tll_jax.losses.contrastive import contrastive_losses
from tll_jax.losses.info_nce import info_nce, info_nce_losses
from tll_jax.losses.multi_similarity import multi_similarity_losses
from tll_jax.losses.nt_xent import nt_xent
from tll_jax.losses.triplet import mine_negatives, pairwise_distances, triplet, triplet_losses
from tll_jax.losses.vicreg import vicreg

__all__ = [
    "barlow_twins",
    "contrastive_losses",
    "correlation_loss",
    "cross_correlation",
    "cross_entropy",
    "info_nce",
    "info_nce_losses",
    "mine_negatives",
    "multi_similarity_losses",
    "nt_xent",
    "pairwise_distances",
    "triplet",
    "triplet_losses",
    "vicreg",
]
