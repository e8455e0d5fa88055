"""The settings of a training loop."""

from dataclasses import dataclass, field
from typing import Literal

from tll_jax.renamed import with_first_names
from tll_jax.serialize import NO_IDENTITY, renamed
from tll_jax.settings import require


@with_first_names
@dataclass(kw_only=True)
class Loop:
    """Length, batch, precision and output intervals of a training stage; all counts are optimizer steps."""

    num_steps: int
    batch_size: int
    log_every: int = field(default=20, metadata=NO_IDENTITY)
    save_every: int = field(default=200, metadata=NO_IDENTITY)
    evaluate_every: int = 0
    """0 for an evaluation at the end only."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute precision; parameters, statistics and losses stay float32."""
    remat: bool = field(default=False, metadata=renamed("rematerialize", identity=False))
    """Whether the backward pass recomputes activations inside the backbone's stages instead of storing them: the same
    results with less memory and about a third more work."""
    grad_accum_steps: int = field(default=1, metadata=renamed("microbatches"))
    """Number of parts of a batch, whose gradients are averaged one after the other. It must not change the loss: each
    image needs a loss of its own, and no layer may use batch statistics."""
    fsdp_min_size: int = field(default=0, metadata=renamed("split_from", identity=False))
    """Parameters with at least this number of values are sharded over the devices, with their optimizer state; 0 to
    replicate all."""

    def check(self) -> None:
        for name in ("num_steps", "batch_size", "log_every", "save_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.fsdp_min_size >= 0, "fsdp_min_size", self.fsdp_min_size, "0 (nothing is split) or more")
        require(
            self.grad_accum_steps >= 1 and self.batch_size % self.grad_accum_steps == 0,
            "grad_accum_steps",
            self.grad_accum_steps,
            f"a divisor of batch_size, {self.batch_size}",
        )
        require(self.evaluate_every >= 0, "evaluate_every", self.evaluate_every, "0 (end only) or more")
