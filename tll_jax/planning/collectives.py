"""Lower bound on bytes communicated per data-parallel step."""

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
    """Calls of a network within a step, recorded while it is traced."""

    normalizations: list[tuple[tuple[str, ...], int]] = field(default_factory=list)
    """Path and channels of each batch normalization that computes batch statistics, one entry per call."""
    outputs: list[tuple[int, ...]] = field(default_factory=list)
    """Shape `[rows, dim]` of the head's output, one entry per call."""


def watch_calls(trace: Callable[[], Any]) -> Calls:
    """Run `trace`, which traces a step for the first time, and record the calls of its network."""
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
    """Lower bound on the fp32 bytes that a data-parallel step sums over the devices, by purpose.

    - gradients: every parameter once, except scales and biases of batch normalizations, whose gradients are among the
      sums of the next entry.
    - batch statistics: each call of each batch normalization sums two values per channel in the forward pass (mean and
      mean square) and two in the backward pass (the gradient, and the gradient times the normalized value).
    - loss: the objective's own count (`Reducing`), else all outputs, in the forward and in the backward pass, since
    each
      is compared with all others.
    - metrics: one value each.
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
