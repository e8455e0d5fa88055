"""The train state: everything that is carried from step to step."""

from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from tll_jax.devices import ANY_PLATFORM, on_host, tracing_for


class TrainState(flax.struct.PyTreeNode):
    """Parameters, batch statistics and optimizer state after `step` steps.

    `first_nonfinite` is the first step whose loss was not finite, or -1. It is kept on the device, so that no step has
    to wait for the host to check the loss.
    """

    step: jax.Array
    first_nonfinite: jax.Array
    params: Any
    batch_stats: Any
    optimizer_state: optax.OptState

    @property
    def variables(self) -> dict[str, Any]:
        """Variables for `flax.linen`: `params` and `batch_stats`."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_variables(network: nn.Module, *, size: int, seed: int) -> dict[str, Any]:
    """Initial `params` and `batch_stats` of the network for square images of `size` pixels.

    They are computed on the CPU, for which the program compiles in a fraction of the time that a GPU's takes.
    """
    with on_host():
        return _initial(network, size, jax.random.key(seed))


def initial_shapes(network: nn.Module, *, size: int) -> dict[str, Any]:
    """Shapes and dtypes of `init_variables`, without computing it."""
    return _initial.eval_shape(network, size, jax.random.key(0))


# Random bits take long to compile and milliseconds to run: a lower LLVM optimization level gives the same numbers with
# a third of the compilation time.
@partial(jax.jit, static_argnums=(0, 1), compiler_options={"xla_backend_optimization_level": 1})
def _initial(network: nn.Module, size: int, key: jax.Array) -> dict[str, Any]:
    # The outputs of the network are not used, so any implementation of convolutions will do.
    with tracing_for(ANY_PLATFORM):
        variables = network.init(key, jnp.zeros((1, size, size, 3), jnp.float32), train=False)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def make_state(variables: dict[str, Any], optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        first_nonfinite=jnp.full((), -1, jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        optimizer_state=optimizer.init(variables["params"]),
    )
