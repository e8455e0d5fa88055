"""Low-rank adapters of a trained backbone (LoRA), as pure functions on trees of parameters."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from tll_jax.errors import InvalidValue
from tll_jax.models.stages import stage_of
from tll_jax.settings import require

__all__ = ["Lora", "adapting", "beside", "merge", "split", "targeted_layers"]

DOWN, UP = "lora_a", "lora_b"
"""Parameters of an adapter: `[in, rank]` and `[rank, out]`."""
_ADAPTER_STREAM = 2**32 - 1
"""Number of the adapters' random stream; smaller numbers are those of the training steps."""

Path = tuple[str, ...]
"""Path of a module in a backbone's parameters, such as ("stage1", "block1", "mlp")."""


@dataclass(kw_only=True)
class Lora:
    """Settings of low-rank adaptation.

    The backbone keeps its trained parameters and batch statistics. Each targeted kernel W `[in, out]`, of a dense layer
    or a 1x1 convolution, is replaced by W + alpha / rank * A B, where A `[in, rank]` is initialized uniformly in
    ±1 / sqrt(in) and B `[rank, out]` to zero. Only A, B and the head are trained, checkpointed and in the optimizer's
    state.

    Source: Hu et al. 2021 (arXiv 2106.09685), equation 3; the initialization of A as in the authors' `loralib`.
    """

    rank: int = 8
    """0 for no adapters, so that only the head is trained."""
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attention", "mlp")
    """Modules of the backbone, by name or by consecutive names of a path, such as "attention" or "stage3/block1". Every
    dense layer and 1x1 convolution in them gets an adapter, except in frozen stages."""

    def check(self) -> None:
        require(self.rank >= 0, "rank", self.rank, "0 (no adapters) or more")
        require(self.alpha > 0, "alpha", self.alpha, "above 0")
        require(bool(self.targets) and all(self.targets), "targets", self.targets, "at least one name of a module")


def targeted_layers(lora: Lora, params: Any, *, frozen_stages: int = 0) -> list[Path]:
    """Paths of the layers that get an adapter, in order; none at rank 0.

    Args:
      params: parameters of a backbone, as arrays or shapes.

    Raises:
      InvalidValue: a target matches no layer that can have an adapter; lists the modules with such layers.
    """
    can_have = [path for path in _adaptable(params) if stage_of(path[0]) >= frozen_stages]
    for target in lora.targets:
        if not any(_is_in(path, target) for path in can_have):
            names = sorted({name for path in can_have for name in path})
            found = f"modules with such layers are {', '.join(names)}" if names else "there are none"
            frozen = f" behind its {frozen_stages} frozen stages" if frozen_stages else ""
            raise InvalidValue(
                f"targets names {target!r}, which matches no dense layer and no 1x1 convolution of this "
                f"backbone{frozen}; {found}"
            )
    return [path for path in can_have if lora.rank and any(_is_in(path, target) for target in lora.targets)]


def split(lora: Lora, variables: Any, key: jax.Array, *, frozen_stages: int = 0) -> tuple[Any, Any]:
    """Split the variables of a network into trained and fixed ones.

    Returns:
      The trained `params` and `batch_stats`, with new adapters in place of the backbone's parameters; and the
      backbone's own variables, for `beside` and `merge`.

    Raises:
      InvalidValue: a target matches nothing.
    """
    kernels = flatten_dict(variables["params"]["backbone"])
    paths = targeted_layers(lora, variables["params"]["backbone"], frozen_stages=frozen_stages)
    adapters = {}
    keys = jax.random.split(jax.random.fold_in(key, _ADAPTER_STREAM), max(len(paths), 1))
    for path, layer_key in zip(paths, keys, strict=False):
        *_, inputs, outputs = kernels[*path, "kernel"].shape
        limit = inputs**-0.5
        adapters[*path, DOWN] = jax.random.uniform(layer_key, (inputs, lora.rank), minval=-limit, maxval=limit)
        adapters[*path, UP] = jnp.zeros((lora.rank, outputs))
    others = {
        collection: {name: value for name, value in values.items() if name != "backbone"}
        for collection, values in variables.items()
    }
    base = {
        collection: {"backbone": values["backbone"]} for collection, values in variables.items() if "backbone" in values
    }
    return {**others, "params": {"backbone": unflatten_dict(adapters), **others["params"]}}, base


def beside(trained: Any, base: Any) -> Any:
    """Variables of the network with the adapters beside the kernels, for a call of the network under `adapting`."""
    whole = {collection: {**values, **base.get(collection, {})} for collection, values in trained.items()}
    parts = (flatten_dict(variables["params"]["backbone"]) for variables in (base, trained))
    whole["params"]["backbone"] = unflatten_dict({path: leaf for part in parts for path, leaf in part.items()})
    return whole


def adapting(lora: Lora) -> AbstractContextManager[None]:
    """Context in which layers with an adapter beside their kernel return x W + alpha / rank * (x A) B.

    The gradient of an adapter then needs no gradient of the kernel, which costs as much as the layer itself.
    """

    def add(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        outputs, layer = call(*args, **kwargs), context.module
        if context.method_name != "__call__" or not layer.has_variable("params", DOWN):
            return outputs
        down, up = (layer.get_variable("params", name).astype(outputs.dtype) for name in (DOWN, UP))
        inputs = args[0].astype(outputs.dtype)
        strides = getattr(layer, "strides", None) or 1
        if strides != 1:
            # A 1x1 convolution sees these positions only.
            rows, columns = (strides, strides) if isinstance(strides, int) else strides
            inputs = inputs[:, ::rows, ::columns]
        # As one matrix, whose products XLA:CPU differentiates without copies of all outputs.
        rows = inputs.reshape(-1, inputs.shape[-1])
        return outputs + (lora.alpha / lora.rank * (rows @ down) @ up).reshape(outputs.shape)

    return nn.intercept_methods(add)


def merge(lora: Lora, trained: Any, base: Any) -> Any:
    """Variables of the equivalent network without adapters, whose products are added to kernels: inverse of `split`."""
    whole = beside(trained, base)
    flat = flatten_dict(whole["params"]["backbone"])
    for *path, part in list(flat):
        if part == DOWN:
            kernel = flat[*path, "kernel"]
            change = jnp.matmul(flat.pop((*path, DOWN)), flat.pop((*path, UP)), precision="highest")
            flat[*path, "kernel"] = kernel + (lora.alpha / lora.rank) * change.reshape(kernel.shape)
    whole["params"]["backbone"] = unflatten_dict(flat)
    return whole


def _adaptable(params: Any) -> list[Path]:
    """Paths of the layers whose kernel is a matrix or a 1x1 convolution."""
    return [
        path[:-1]
        for path, leaf in flatten_dict(params).items()
        if path[-1] == "kernel" and (len(leaf.shape) == 2 or (len(leaf.shape) == 4 and leaf.shape[:2] == (1, 1)))
    ]


def _is_in(path: Path, target: str) -> bool:
    return f"/{target}/" in f"/{'/'.join(path)}/"
