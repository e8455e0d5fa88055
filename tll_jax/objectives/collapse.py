"""Metrics that show the collapse of an embedding before the loss does."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def embedding_std(embeddings: Float[Array, "batch dim"]) -> Float[Array, ""]:
    """Standard deviation over the batch, averaged over dimensions; at most `dim ** -0.5` for unit vectors."""
    return jax.lax.stop_gradient(jnp.mean(jnp.std(embeddings, axis=0)))


def participation_ratio(embeddings: Float[Array, "batch dim"]) -> Float[Array, ""]:
    """Participation ratio `(tr C)^2 / tr(C^2)` of the covariance matrix C over the batch, in [0, dim].

    `dim` for equal variance in all directions, 1 for variance in one direction only, 0 for a constant embedding.
    """
    centered = jax.lax.stop_gradient(embeddings - jnp.mean(embeddings, axis=0))
    batch, dim = centered.shape
    # Both Gram matrices have the same traces; the smaller one is cheaper.
    covariance = centered @ centered.T if batch < dim else centered.T @ centered
    tiny = jnp.finfo(covariance.dtype).tiny
    return jnp.trace(covariance) ** 2 / jnp.maximum(jnp.sum(covariance**2), tiny)


def collapse_metrics(embeddings: Float[Array, "batch dim"]) -> dict[str, Float[Array, ""]]:
    """Both metrics, under the names in the log."""
    return {"embedding_std": embedding_std(embeddings), "participation_ratio": participation_ratio(embeddings)}
