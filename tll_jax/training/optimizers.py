"""Settings of the optimizers: LARS as in Barlow Twins, and AdamW for fine-tuning."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tll_jax.errors import InvalidValue
from tll_jax.renamed import with_first_names
from tll_jax.serialize import renamed


def warmup_cosine(peak: float, *, num_steps: int, warmup_fraction: float, final_fraction: float) -> optax.Schedule:
    """Linear warm-up from 0 to `peak` over `warmup_fraction` of the steps, then cosine to `peak * final_fraction`."""
    warmup = round(warmup_fraction * num_steps)
    cosine = optax.cosine_decay_schedule(peak, max(num_steps - warmup, 1), alpha=final_fraction)
    if not warmup:
        return cosine
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), cosine], [warmup])


def is_weight(params: Any) -> Any:
    """True for kernels, False for one-dimensional parameters: biases, and BatchNorm's scale and bias."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _check_fractions(settings: Any) -> None:
    for name in ("warmup_fraction", "final_fraction"):
        value = getattr(settings, name)
        if not 0 <= value <= 1:
            raise InvalidValue(f"{name} is {value}; it must be between 0 and 1")
    if settings.learning_rate <= 0:
        raise InvalidValue(f"learning_rate is {settings.learning_rate}; it must be above 0")


@with_first_names
@dataclass(kw_only=True)
class Lars:
    """Layer-wise adaptive rate scaling with the learning rate applied after the momentum trace.

    `optax.lars` applies the rate before the trace; the authors' code of Barlow Twins applies it after, so that the
    momentum does not depend on earlier rates. One-dimensional parameters have no weight decay, no trust ratio, and
    their own learning rate. Both learning rates are for a batch of 256 and scale linearly with the batch.

    Source: You et al. 2017 (arXiv 1708.03888); defaults of Zbontar et al. 2021 (arXiv 2103.03230).
    """

    learning_rate: float = 0.2
    bias_learning_rate: float = 0.0048
    weight_decay: float = 1e-6
    momentum: float = 0.9
    trust_coefficient: float = 0.001
    warmup_fraction: float = field(default=0.01, metadata=renamed("warmup_share"))
    final_fraction: float = field(default=0.001, metadata=renamed("final_share"))

    def check(self) -> None:
        _check_fractions(self)
        if self.bias_learning_rate < 0:
            raise InvalidValue(f"bias_learning_rate is {self.bias_learning_rate}; it must be 0 or more")

    def build(self, *, num_steps: int, batch_size: int) -> optax.GradientTransformation:
        def rate(base: float) -> optax.GradientTransformation:
            schedule = warmup_cosine(
                base * batch_size / 256,
                num_steps=num_steps,
                warmup_fraction=self.warmup_fraction,
                final_fraction=self.final_fraction,
            )
            return optax.scale_by_learning_rate(schedule)

        return optax.chain(
            optax.masked(optax.add_decayed_weights(self.weight_decay), is_weight),
            optax.masked(_scale_by_trust_ratio(self.trust_coefficient), is_weight),
            optax.trace(self.momentum),
            optax.partition(
                {"weight": rate(self.learning_rate), "bias": rate(self.bias_learning_rate)},
                lambda params: jax.tree.map(lambda weight: "weight" if weight else "bias", is_weight(params)),
            ),
        )


def _scale_by_trust_ratio(trust_coefficient: float) -> optax.GradientTransformation:
    """Scale each update by `trust_coefficient` * |parameter| / |update|; by 1 where either norm is 0.

    `optax.scale_by_trust_ratio` computes the same, but reads parameters and updates twice for their norms.
    """

    def scale(update: jax.Array, param: jax.Array) -> jax.Array:
        param_norm, update_norm = (jnp.sqrt(jnp.sum(values**2)) for values in (param, update))
        has_direction = (param_norm > 0) & (update_norm > 0)
        ratio = trust_coefficient * param_norm / jnp.where(has_direction, update_norm, 1)
        return update * jnp.where(has_direction, ratio, 1)

    return optax.stateless_with_tree_map(scale)


@with_first_names
@dataclass(kw_only=True)
class AdamW:
    """Adam with decoupled weight decay on kernels, and a smaller learning rate for the backbone if wanted.

    Source: Loshchilov and Hutter 2019 (arXiv 1711.05101).
    """

    learning_rate: float = 1e-3
    backbone_lr_multiplier: float = field(default=1.0, metadata=renamed("backbone_share"))
    """Learning rate of the backbone divided by that of the head."""
    weight_decay: float = 1e-4
    warmup_fraction: float = field(default=0.05, metadata=renamed("warmup_share"))
    final_fraction: float = field(default=0.01, metadata=renamed("final_share"))

    def check(self) -> None:
        _check_fractions(self)
        if self.backbone_lr_multiplier < 0:
            raise InvalidValue(f"backbone_lr_multiplier is {self.backbone_lr_multiplier}; it must be 0 or more")

    def build(self, *, num_steps: int, batch_size: int) -> optax.GradientTransformation:
        del batch_size
        schedule = warmup_cosine(
            self.learning_rate,
            num_steps=num_steps,
            warmup_fraction=self.warmup_fraction,
            final_fraction=self.final_fraction,
        )
        return optax.chain(
            optax.scale_by_adam(),
            optax.masked(optax.add_decayed_weights(self.weight_decay), is_weight),
            optax.masked(optax.scale(self.backbone_lr_multiplier), _is_backbone),
            optax.scale_by_learning_rate(schedule),
        )


def _is_backbone(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == "backbone", params)


def freeze(optimizer: optax.GradientTransformation, trainable: Any) -> optax.GradientTransformation:
    """`optimizer` without updates and weight decay where the boolean tree `trainable` is False."""
    frozen = jax.tree.map(lambda leaf: not leaf, trainable)
    return optax.chain(optimizer, optax.masked(optax.set_to_zero(), frozen))
