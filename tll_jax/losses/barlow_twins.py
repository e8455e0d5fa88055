"""The Barlow Twins loss: views of an image agree in every dimension, and no two dimensions say the same."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tll_jax.losses.reduction import on_diagonal

REDUNDANCY_WEIGHT = 0.0051
"""Lambda of the published code; Zbontar et al. 2021 round it to 5e-3."""


def cross_correlation(z_a: Float[Array, "batch dim"], z_b: Float[Array, "batch dim"]) -> Float[Array, "dim dim"]:
    """Correlation over the batch of every dimension of `z_a` with every dimension of `z_b`, in [-1, 1].

    A dimension that does not vary correlates 0 with everything: 1e-5 is added to each (biased) variance.
    """
    return _standardized(z_a).T @ _standardized(z_b) / z_a.shape[0]


def _standardized(z: jax.Array) -> jax.Array:
    """What batch normalization without scale and bias does while it trains."""
    return (z - jnp.mean(z, axis=0)) * jax.lax.rsqrt(jnp.var(z, axis=0) + 1e-5)


def barlow_twins(
    z_a: Float[Array, "batch dim"],
    z_b: Float[Array, "batch dim"],
    *,
    redundancy_weight: float = REDUNDANCY_WEIGHT,
    scale: float = 1.0,
) -> Float[Array, ""]:
    """Barlow Twins loss of the projections of two views: `correlation_loss` of their `cross_correlation`."""
    return correlation_loss(cross_correlation(z_a, z_b), redundancy_weight=redundancy_weight, scale=scale)


def correlation_loss(
    correlation: Float[Array, "dim dim"], *, redundancy_weight: float = REDUNDANCY_WEIGHT, scale: float = 1.0
) -> Float[Array, ""]:
    """`scale` times the sum of (c_ii - 1)^2 plus `redundancy_weight` times the sum over i != j of c_ij^2.

    Summed over the dimensions, not averaged: 0 for equal views without correlated dimensions, `scale * dim`
    for views that have nothing in common.
    Source: Zbontar et al. 2021 (arXiv 2103.03230), equation 1; batch normalization's epsilon and `scale` as
    in its code.
    """
    terms = jnp.where(on_diagonal(correlation), (1 - correlation) ** 2, redundancy_weight * correlation**2)
    return scale * jnp.sum(terms)
