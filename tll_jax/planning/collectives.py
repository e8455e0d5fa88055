"""Lower bound on the bytes that the devices of a data-parallel step send each other."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax

from tll_jax.models.network import Network
from tll_jax.typing import Objective, Reducing

FLOAT_BYTES = 4


@dataclass(kw_only=True)
class Calls:
    """What a step asks of its network, seen while it is traced."""

    normalizations: list[tuple[tuple[str, ...], int]] = field(default_factory=list)
    """Path and channels of every batch normalization that computes the batch's statistics, one entry a call."""
    outputs: list[tuple[int, ...]] = field(default_factory=list)
    """The shape `[rows, dim]` of the head's output, one entry a call."""


def watch_calls(trace: Callable[[], Any]) -> Calls:
    """Runs `trace`, which traces a step for the first time, and says which calls it made."""
    calls = Calls()

    def watch(call: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        result = call(*arguments, **keywords)
        if context.method_name == "__call__":
            if isinstance(context.module, nn.BatchNorm) and not context.module.use_running_average:
                calls.normalizations.append((context.module.path, arguments[0].shape[-1]))
            elif isinstance(context.module, Network):
                calls.outputs.append(result[1].shape)
        return result

    with nn.intercept_methods(watch):
        trace()
    return calls


def minimum_bytes(objective: Objective, params: Any, calls: Calls, *, num_metrics: int) -> dict[str, int]:
    """The least that data-parallel training must sum over the devices, in bytes of fp32, by what it is for.

    - gradients: every parameter once, but for scales and biases of batch normalizations, which the next give too.
    - batch statistics: each call of each batch normalization sums two numbers a channel on the way forward (mean and
      mean square) and two on the way back (the gradient, and the gradient times the normalized value).
    - loss: what the objective says (`Reducing`); else every row, which is compared with all others, on the way forward
      and back.
    - metrics: one number each.
    """
    num_values = sum(shape[0] * shape[1] for shape in calls.outputs)
    loss = objective.num_reduced(calls.outputs) if isinstance(objective, Reducing) else 2 * num_values
    counted = {
        "gradients": sum(leaf.size for leaf in jax.tree.leaves(params)) - 2 * sum(dict(calls.normalizations).values()),
        "batch statistics": 4 * sum(channels for _, channels in calls.normalizations),
        "loss": loss,
        "metrics": num_metrics,
    }
    return {name: FLOAT_BYTES * count for name, count in counted.items()}
