"""The emoji study with a wider network and longer training.

python -m tll_jax.main --config=configs/emoji_full.py --workdir=runs/emoji_full

Two CPU cores, beside other work: half an hour. Ahead of HOG (mean reciprocal rank .72 to .75 against .66).
"""

from tll_jax.studies.emoji_full import get_config

__all__ = ["get_config"]
