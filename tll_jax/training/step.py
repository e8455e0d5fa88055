"""One optimizer step as a pure function: augment, loss over the global batch, update."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from tll_jax.devices import batch_sharded, platform_of, replicated, tracing_for
from tll_jax.errors import InvalidValue
from tll_jax.training.state import TrainState
from tll_jax.typing import Augment, Objective, Separable

Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
"""What `make_step` returns with its key bound: `partial(step, jax.random.key(seed))`."""


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
    mesh: Mesh,
    microbatches: int = 1,
    state_shardings: Any = None,
    complete: Callable[[Any, Any], Any] | None = None,
) -> Any:
    """`(key, state, batch, *base) -> (state, metrics)`, jitted over the mesh and traced for its platform; the given
    state's memory is reused.

    The loss sees the global batch: batch statistics, cross-correlations and in-batch negatives span all devices
    without an axis name. Randomness is a function of `(key, state.step)` alone; the key is data, so that one program
    serves all seeds.

    Args:
      microbatches: parts of the batch whose gradients are averaged; `check_microbatches` says where that is exact.
      state_shardings: a tree like the state, from `devices.split_from`; by default every device has all of it.
      complete: `(variables of the state, base) -> variables of the network`, where some are not trained and come as the
        step's last argument, placed as they should be; by default the state has all, and there is no such argument.
    """

    def step(key: jax.Array, state: TrainState, batch: Any, *base: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        with tracing_for(platform_of(mesh)):
            return take_step(key, state, batch, *base)

    def take_step(key: jax.Array, state: TrainState, batch: Any, *base: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        augment_key, sample_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = augment_batch(augment_key, batch, augments)
        batch = jax.lax.with_sharding_constraint(batch, batch_sharded(mesh))
        run = nn.apply(objective, network, mutable=["batch_stats"])

        def loss_of(params: Any, batch: Any) -> tuple[jax.Array, Any]:
            variables: Any = {"params": params, "batch_stats": state.batch_stats}
            if complete is not None:
                variables = complete(variables, *base)
            (loss, metrics), updated = run(variables, batch, rngs={"sample": sample_key})
            return loss, (metrics, {name: updated["batch_stats"][name] for name in state.batch_stats})

        differentiate = jax.value_and_grad(loss_of, has_aux=True)
        if microbatches == 1:
            (loss, (metrics, batch_stats)), gradients = differentiate(state.params, batch)
        else:
            parts = jax.tree.map(lambda rows: _interleaved(rows, microbatches), batch)
            assert isinstance(objective, Separable)
            counts = jax.vmap(objective.num_counted)(parts).astype(jnp.float32)
            shares = counts / jnp.maximum(jnp.sum(counts), 1)
            found = jax.lax.map(lambda part: differentiate(state.params, part), parts)
            (loss, (metrics, batch_stats)), gradients = jax.tree.map(lambda of: jnp.tensordot(shares, of, 1), found)
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

    state_shardings = replicated(mesh) if state_shardings is None else state_shardings
    return jax.jit(
        step,
        in_shardings=(replicated(mesh), state_shardings, batch_sharded(mesh), *([] if complete is None else [None])),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=1,
    )


def check_microbatches(objective: Objective, batch_stats: Any) -> None:
    """Raises ValueError where the loss of a batch is not the mean of the losses of its parts."""
    reasons = []
    if not isinstance(objective, Separable):
        reasons.append(f"{type(objective).__name__} compares the images of a batch with each other")
    if jax.tree.leaves(batch_stats):
        reasons.append("the network normalizes by the statistics of a batch")
    if reasons:
        raise InvalidValue(
            f"microbatches would change the loss: {' and '.join(reasons)}. Leave it at 1 and set "
            "rematerialize=True, which saves memory and changes nothing"
        )


def _interleaved(rows: jax.Array, num_parts: int) -> jax.Array:
    """`[parts, rows / parts, ...]`; every part takes rows from all devices."""
    return jnp.swapaxes(rows.reshape(-1, num_parts, *rows.shape[1:]), 0, 1)
