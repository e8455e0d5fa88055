"""One optimizer step as a pure function: augment, loss over the global batch, update."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from tll_jax.devices import batch_sharded, platform_of, replicated, tracing_for
from tll_jax.errors import InvalidValue
from tll_jax.training.lora import Lora, adapting, beside
from tll_jax.training.state import TrainState
from tll_jax.typing import Augment, Objective, Separable

Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
"""`make_step`'s function with its key bound: `partial(step, jax.random.key(seed))`."""


def augment_batch(key: jax.Array, batch: Any, augments: tuple[Augment, Augment]) -> Any:
    """Augmented views: the first two fields of a batch, uint8 `[batch, h, w, 3]`, become float32 images in [0, 1]."""

    def apply(key: jax.Array, images: jax.Array, augment: Augment) -> jax.Array:
        keys = jax.random.split(key, images.shape[0])
        return jax.vmap(augment)(keys, images.astype(jnp.float32) / 255)

    keys = jax.random.split(key)
    views = (apply(*part) for part in zip(keys, batch[:2], augments, strict=True))
    return type(batch)(*views, *batch[2:])


@dataclass(frozen=True)
class NetworkLoss:
    """Loss and metrics of a network on a batch, by an objective."""

    network: nn.Module
    objective: Objective
    lora: Lora | None = None
    """Adapters, if they are trained in place of the backbone, whose own variables are the base; see `lora.split`."""

    def __call__(self, variables: Any, batch: Any, key: jax.Array, *base: Any) -> tuple[jax.Array, Any]:
        """The loss, and (metrics, updated batch statistics)."""
        whole = variables if self.lora is None else beside(variables, *base)
        run = nn.apply(self.objective, self.network, mutable=["batch_stats"])
        with nullcontext() if self.lora is None else adapting(self.lora):
            (loss, metrics), updated = run(whole, batch, rngs={"sample": key})
        return loss, (metrics, {name: updated["batch_stats"][name] for name in variables["batch_stats"]})


def make_step(
    loss: NetworkLoss,
    augments: tuple[Augment, Augment],
    optimizer: optax.GradientTransformation,
    *,
    state_shardings: Any,
    grad_accum_steps: int = 1,
) -> Any:
    """Make the jitted optimizer step `(key, state, batch, *base) -> (state, metrics)`; it donates the state's memory.

    The loss is that of the global batch: batch statistics, cross-correlations and in-batch negatives span all devices
    without an axis name. Randomness is a function of `(key, state.step)` only; the key is an argument, so that all
    seeds share one program.

    Args:
      loss: if it has adapters, the base is the step's last argument, already sharded.
      state_shardings: a tree like the state, from `devices.fsdp_shardings`, or `devices.replicated(mesh)` to replicate
        all of it; their mesh is that of the step.
      grad_accum_steps: number of parts of the batch whose gradients are averaged; see `check_grad_accum_steps` for when
        that is exact.
    """
    mesh = jax.tree.leaves(state_shardings)[0].mesh

    def step(key: jax.Array, state: TrainState, batch: Any, *base: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        with tracing_for(platform_of(mesh)):
            return take_step(key, state, batch, *base)

    def take_step(key: jax.Array, state: TrainState, batch: Any, *base: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        augment_key, sample_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = augment_batch(augment_key, batch, augments)
        batch = jax.lax.with_sharding_constraint(batch, batch_sharded(mesh))

        def loss_of(params: Any, batch: Any) -> tuple[jax.Array, Any]:
            return loss({"params": params, "batch_stats": state.batch_stats}, batch, sample_key, *base)

        differentiate = jax.value_and_grad(loss_of, has_aux=True)
        if grad_accum_steps == 1:
            (value, (metrics, batch_stats)), gradients = differentiate(state.params, batch)
        else:
            parts = jax.tree.map(lambda rows: _interleaved(rows, grad_accum_steps), batch)
            assert isinstance(loss.objective, Separable)
            counts = jax.vmap(loss.objective.num_counted)(parts).astype(jnp.float32)
            shares = counts / jnp.maximum(jnp.sum(counts), 1)
            found = jax.lax.map(lambda part: differentiate(state.params, part), parts)
            (value, (metrics, batch_stats)), gradients = jax.tree.map(lambda of: jnp.tensordot(shares, of, 1), found)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
        is_first = (state.first_nonfinite < 0) & ~jnp.isfinite(value)
        new_state = TrainState(
            step=state.step + 1,
            first_nonfinite=jnp.where(is_first, state.step, state.first_nonfinite),
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            optimizer_state=optimizer_state,
        )
        return new_state, {"loss": value, **metrics, "gradient_norm": optax.tree.norm(gradients)}

    return jax.jit(
        step,
        in_shardings=(
            replicated(mesh),
            state_shardings,
            batch_sharded(mesh),
            *([] if loss.lora is None else [None]),
        ),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=1,
    )


def check_grad_accum_steps(objective: Objective, batch_stats: Any) -> None:
    """Raise ValueError unless the loss of a batch is the mean of the losses of its parts."""
    reasons = []
    if not isinstance(objective, Separable):
        reasons.append(f"{type(objective).__name__} compares the images of a batch with each other")
    if jax.tree.leaves(batch_stats):
        reasons.append("the network normalizes by the statistics of a batch")
    if reasons:
        raise InvalidValue(
            f"grad_accum_steps would change the loss: {' and '.join(reasons)}. Leave it at 1 and set "
            "remat=True, which saves memory and changes nothing"
        )


def _interleaved(rows: jax.Array, num_parts: int) -> jax.Array:
    """The batch as parts, `[parts, rows / parts, ...]`; each part has rows of all devices."""
    return jnp.swapaxes(rows.reshape(-1, num_parts, *rows.shape[1:]), 0, 1)
