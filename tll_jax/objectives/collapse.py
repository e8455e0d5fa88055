"""Numbers that show an embedding collapsing before the loss does."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def embedding_std(embeddings: Float[Array, "batch dim"]) -> Float[Array, ""]:
    """Standard deviation over the batch, averaged over dimensions; at most `dim ** -0.5` for unit vectors."""
    return jax.lax.stop_gradient(jnp.mean(jnp.std(embeddings, axis=0)))


def participation_ratio(embeddings: Float[Array, "batch dim"]) -> Float[Array, ""]:
    """Participation ratio `(tr C)^2 / tr(C^2)` of the covariance C over the batch.

    `dim` when all directions vary alike, 1 when only one varies, 0 when none does.
    """
    centered = jax.lax.stop_gradient(embeddings - jnp.mean(embeddings, axis=0))
    batch, dim = centered.shape
    # Both products have the same traces; the smaller is cheaper.
    covariance = centered @ centered.T if batch < dim else centered.T @ centered
    tiny = jnp.finfo(covariance.dtype).tiny
    return jnp.trace(covariance) ** 2 / jnp.maximum(jnp.sum(covariance**2), tiny)


def collapse_metrics(embeddings: Float[Array, "batch dim"]) -> dict[str, Float[Array, ""]]:
    """Both numbers, by the names that are logged."""
    return {"embedding_std": embedding_std(embeddings), "participation_ratio": participation_ratio(embeddings)}
