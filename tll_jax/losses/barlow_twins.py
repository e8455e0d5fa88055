"""The Barlow Twins loss: invariance between two views and redundancy reduction between dimensions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tll_jax.losses.reduction import on_diagonal

REDUNDANCY_WEIGHT = 0.0051
"""Lambda of the authors' code; Zbontar et al. 2021 round it to 5e-3."""


def cross_correlation(z_a: Float[Array, "batch dim"], z_b: Float[Array, "batch dim"]) -> Float[Array, "dim dim"]:
    """Cross-correlation matrix over the batch between the dimensions of `z_a` and of `z_b`, in [-1, 1].

    1e-5 is added to each (biased) variance, so that a constant dimension has correlation 0 with every other.
    """
    return _standardized(z_a).T @ _standardized(z_b) / z_a.shape[0]


def _standardized(z: jax.Array) -> jax.Array:
    """Batch normalization in training mode, without scale and bias."""
    return (z - jnp.mean(z, axis=0)) * jax.lax.rsqrt(jnp.var(z, axis=0) + 1e-5)


def barlow_twins(
    z_a: Float[Array, "batch dim"],
    z_b: Float[Array, "batch dim"],
    *,
    redundancy_weight: float = REDUNDANCY_WEIGHT,
    scale: float = 1.0,
) -> Float[Array, ""]:
    """Barlow Twins loss of two views' projections: `correlation_loss` of their `cross_correlation`.

    `redundancy_weight` is lambda, the weight of the off-diagonal terms. See `correlation_loss` for range and source.
    """
    return correlation_loss(cross_correlation(z_a, z_b), redundancy_weight=redundancy_weight, scale=scale)


def correlation_loss(
    correlation: Float[Array, "dim dim"], *, redundancy_weight: float = REDUNDANCY_WEIGHT, scale: float = 1.0
) -> Float[Array, ""]:
    """`scale` times the sum of (c_ii - 1)^2 plus `redundancy_weight` times the sum over i != j of c_ij^2.

    It is a sum over dimensions, not a mean: 0 for equal views with uncorrelated dimensions, about `scale * dim` for
    independent views.
    Source: Zbontar et al. 2021 (arXiv 2103.03230), equation 1; the epsilon of the normalization and `scale` follow the
    authors' code.
    """
    terms = jnp.where(on_diagonal(correlation), (1 - correlation) ** 2, redundancy_weight * correlation**2)
    return scale * jnp.sum(terms)
