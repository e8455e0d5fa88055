"""Networks small enough to compile in a moment, with weights that no ReLU can silence altogether."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tll_jax.models.network import Network
from tll_jax.models.resnet import ResNetModule
from tll_jax.typing import Features


class TinyBackbone(nn.Module):
    """Two convolutions, as stages "stem" and "stage1"."""

    activation: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(self, images, *, train, frozen_stages=0, remat=False):
        stem = self.activation(nn.Conv(4, (3, 3), 2, name="stem")(images - 0.5))
        last = self.activation(nn.Conv(6, (3, 3), name="stage1")(stem))
        return Features(stages=(stem, last), pooled=jnp.mean(last, axis=(1, 2)))


def tiny_network(head, *, activation=nn.relu):
    return Network(TinyBackbone(activation), head.build(dtype=jnp.float32))


def resnet(*, num_stages=4, activation=nn.relu):
    """Of so many residual stages with one block each."""
    return ResNetModule(
        (1,) * num_stages,
        bottleneck=False,
        width=2,
        small_stem=False,
        pooled_shortcuts=False,
        dtype=jnp.float32,
        activation=activation,
    )


def small_resnet(head, *, num_stages=4):
    return Network(resnet(num_stages=num_stages), head.build(dtype=jnp.float32))


def filled_variables(module: nn.Module, *arguments: Any, seed: int = 0) -> Any:
    """Random numbers in the module's shapes, sized by the inputs of each weight."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *arguments, train=False))
    random = np.random.default_rng(seed)

    def fill(path: Any, leaf: Any) -> jax.Array:
        if path[-1].key in ("scale", "var", "weights"):
            values = random.uniform(0.5, 1.5, leaf.shape)
        else:
            inputs = max(1, leaf.size // leaf.shape[-1]) if path[-1].key == "kernel" else 16
            values = random.normal(size=leaf.shape) * (2 / inputs) ** 0.5
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def images(count: int, size: int, *, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(count, size, size, 3)), jnp.float32)
