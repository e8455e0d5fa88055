"""Batch normalization and unit-length normalization, with the settings of all models here."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


def batch_norm(*, train: bool, dtype: Any, name: str, zero_scale: bool = False, epsilon: float = 1e-5) -> nn.BatchNorm:
    """Batch normalization with PyTorch's defaults: momentum 0.9 (0.1 in PyTorch's terms), epsilon 1e-5.

    Statistics are fp32 and, under a jit over a mesh, those of the global batch. Unlike in PyTorch, the running variance
    is the biased one, the mean of squared deviations; PyTorch's is n / (n - 1) times that, where n is the number of a
    channel's values in a batch. Import from and export to PyTorch leave the variance as it is, because n is not saved
    in weight files; with 128 maps of 2x2 the difference is .2 %. Further training replaces it by the biased one within
    about fifty steps.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=epsilon,
        dtype=dtype,
        scale_init=nn.initializers.zeros_init() if zero_scale else nn.initializers.ones_init(),
        name=name,
    )


def unit_length(vectors: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """Vectors divided by their L2 norm. The zero vector is unchanged, with a finite gradient."""
    squared = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors * jnp.where(squared > 0, jnp.maximum(squared, 1e-24), 1.0) ** -0.5
