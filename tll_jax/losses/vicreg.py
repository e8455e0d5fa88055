"""VICReg: invariance between views, variance of each dimension, and covariance between dimensions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tll_jax.losses.reduction import on_diagonal


def invariance(z_a: Float[Array, "batch dim"], z_b: Float[Array, "batch dim"]) -> Float[Array, ""]:
    """Invariance term: mean squared difference of the two views, over batch and dimensions."""
    return jnp.mean((z_a - z_b) ** 2)


def variance_hinge(z: Float[Array, "batch dim"]) -> Float[Array, ""]:
    """Variance term: mean over dimensions of `max(0, 1 - standard deviation)` over the batch; in [0, 0.99].

    1e-4 is added to each unbiased variance, which keeps the gradient finite for constant dimensions.
    """
    return jnp.mean(jax.nn.relu(1 - jnp.sqrt(jnp.var(z, axis=0, ddof=1) + 1e-4)))


def covariance_of_dimensions(z: Float[Array, "batch dim"]) -> Float[Array, ""]:
    """Covariance term: the sum over i != j of squared unbiased covariances of dimensions i and j, divided by `dim`."""
    centered = z - jnp.mean(z, axis=0)
    covariance = centered.T @ centered / (z.shape[0] - 1)
    return jnp.sum(jnp.where(on_diagonal(covariance), 0, covariance**2)) / z.shape[1]


def vicreg(
    z_a: Float[Array, "batch dim"],
    z_b: Float[Array, "batch dim"],
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> Float[Array, ""]:
    """VICReg loss of two views' projections; the batch needs at least two images.

    It is the weighted sum of `invariance`, the views' mean `variance_hinge` and the sum of their
    `covariance_of_dimensions`: 0 for equal views with uncorrelated dimensions of variance 1 or more, 0.99
    `variance_weight` for two constant equal views.
    Source: Bardes et al. 2022 (arXiv 2105.04906), equations 1 to 6, and the authors' code, which averages the squared
    difference over dimensions and the variance hinge over views where the equations sum them.
    """
    return (
        invariance_weight * invariance(z_a, z_b)
        + variance_weight * (variance_hinge(z_a) + variance_hinge(z_b)) / 2
        + covariance_weight * (covariance_of_dimensions(z_a) + covariance_of_dimensions(z_b))
    )
