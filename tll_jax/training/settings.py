"""The settings of a training loop."""

from dataclasses import dataclass, field
from typing import Literal

from tll_jax.renamed import with_first_names
from tll_jax.serialize import NO_IDENTITY, renamed
from tll_jax.settings import require


@with_first_names
@dataclass(kw_only=True)
class Loop:
    """How long a training stage runs and what it leaves behind; all counts are optimizer steps."""

    num_steps: int
    batch_size: int
    log_every: int = field(default=20, metadata=NO_IDENTITY)
    save_every: int = field(default=200, metadata=NO_IDENTITY)
    evaluate_every: int = 0
    """0: evaluate at the end only."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute precision; parameters, statistics and losses stay float32."""
    remat: bool = field(default=False, metadata=renamed("rematerialize", identity=False))
    """Whether the backward pass computes what lies between the backbone's stages again instead of keeping it: equal
    results, less memory, about a third more work."""
    grad_accum_steps: int = field(default=1, metadata=renamed("microbatches"))
    """Into how many parts a batch is cut, one after the other; only where that changes nothing but memory, which is
    where each image has a loss of its own and no layer looks at the batch."""
    fsdp_min_size: int = field(default=0, metadata=renamed("split_from", identity=False))
    """Parameters of at least so many values, and what the optimizer keeps of them, are split over the devices; 0 for
    none: every device has all."""

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
