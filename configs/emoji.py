"""The default study: look-alike emoji, three ways to pretrain, on two CPU cores.

python -m tll_jax.main --config=configs/emoji.py --workdir=runs/demo      (or: make demo)

Two CPU cores, 12 minutes with installation. No significant difference from HOG: mean reciprocal ranks of .68 and
.69 against .66; see docs/results.md.
"""

from tll_jax.studies.emoji import get_config

__all__ = ["get_config"]
