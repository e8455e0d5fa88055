"""TFDS builders that need no TensorFlow, and their limit on broken images."""

from collections.abc import Sequence

from tll_jax.errors import InvalidValue
from tll_jax.typing import Skipped

MAX_BROKEN_FRACTION = 0.05


def check_fraction_of_broken(broken: Sequence[Skipped], total: int, where: str) -> None:
    """Raises ValueError with names and reasons if more than `MAX_BROKEN_FRACTION` of `total` images are broken."""
    if len(broken) > MAX_BROKEN_FRACTION * total:
        named = "\n".join(f"  {name}: {reason}" for name, reason in broken)
        raise InvalidValue(
            f"{len(broken)} broken of {total:,} in {where}, more than the {MAX_BROKEN_FRACTION:.0%} allowed:\n{named}\n"
            "Is the data whole? Download or extract it again"
        )
