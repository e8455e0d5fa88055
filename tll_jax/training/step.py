"""One optimizer step as a pure function: augment, loss over the global batch, update."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from tll_jax.contracts import Augment, Objective
from tll_jax.devices import batch_sharded, replicated
from tll_jax.training.state import TrainState

Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


def augment_batch(key: jax.Array, batch: Any, augments: tuple[Augment, Augment]) -> Any:
    """The first two fields of a batch, uint8 `[batch, h, w, 3]`, as augmented float32 images in [0, 1]."""

    def apply(key: jax.Array, images: jax.Array, augment: Augment) -> jax.Array:
        keys = jax.random.split(key, images.shape[0])
        return jax.vmap(augment)(keys, images.astype(jnp.float32) / 255)

    keys = jax.random.split(key)
    views = (apply(*part) for part in zip(keys, batch[:2], augments, strict=True))
    return type(batch)(*views, *batch[2:])


def make_step(
    network: nn.Module,
    objective: Objective,
    augments: tuple[Augment, Augment],
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    mesh: Mesh,
) -> Step:
    """`(state, batch) -> (state, metrics)`, compiled once over the mesh; the given state's memory is reused.

    The loss sees the global batch: batch statistics, cross-correlations and in-batch negatives span all devices
    without an axis name. Randomness is a function of `(seed, state.step)` alone.
    """

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        augment_key, sample_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
        batch = augment_batch(augment_key, batch, augments)
        batch = jax.lax.with_sharding_constraint(batch, batch_sharded(mesh))
        run = nn.apply(objective, network, mutable=["batch_stats"])

        def loss_of(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            (loss, metrics), updated = run(variables, batch, rngs={"sample": sample_key})
            return loss, (metrics, updated["batch_stats"])

        (loss, (metrics, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
        is_first = (state.first_nonfinite < 0) & ~jnp.isfinite(loss)
        new_state = TrainState(
            step=state.step + 1,
            first_nonfinite=jnp.where(is_first, state.step, state.first_nonfinite),
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            optimizer_state=optimizer_state,
        )
        return new_state, {"loss": loss, **metrics, "gradient_norm": optax.tree.norm(gradients)}

    return jax.jit(
        step,
        in_shardings=(replicated(mesh), batch_sharded(mesh)),
        out_shardings=(replicated(mesh), replicated(mesh)),
        donate_argnums=0,
    )
