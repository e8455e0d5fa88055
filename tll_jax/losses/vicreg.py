"""VICReg's three terms: views agree, every dimension varies, and no two dimensions vary together."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tll_jax.losses.reduction import on_diagonal


def invariance(z_a: Float[Array, "batch dim"], z_b: Float[Array, "batch dim"]) -> Float[Array, ""]:
    """Mean squared difference of the two views, over batch and dimensions."""
    return jnp.mean((z_a - z_b) ** 2)


def variance_hinge(z: Float[Array, "batch dim"]) -> Float[Array, ""]:
    """How far the standard deviation over the batch falls short of 1, averaged over dimensions; in [0, 0.99].

    1e-4 is added to each unbiased variance, which keeps the gradient finite where nothing varies.
    """
    return jnp.mean(jax.nn.relu(1 - jnp.sqrt(jnp.var(z, axis=0, ddof=1) + 1e-4)))


def covariance_of_dimensions(z: Float[Array, "batch dim"]) -> Float[Array, ""]:
    """Sum over i != j of the squared unbiased covariance of dimensions i and j, divided by the number of dimensions."""
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
    """The weighted sum of the views' `invariance`, their mean `variance_hinge` and the sum of their
    `covariance_of_dimensions`. The batch needs at least two images.

    Two views that agree, with uncorrelated dimensions of variance 1 or more, cost nothing; two constant equal views
    cost 0.99 `variance_weight`.
    Source: Bardes et al. 2022 (arXiv 2105.04906), equations 1 to 6, and its code, which averages the squared
    difference over dimensions and the variance hinge over views where the equations sum them.
    """
    return (
        invariance_weight * invariance(z_a, z_b)
        + variance_weight * (variance_hinge(z_a) + variance_hinge(z_b)) / 2
        + covariance_weight * (covariance_of_dimensions(z_a) + covariance_of_dimensions(z_b))
    )
