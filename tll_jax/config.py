"""The former place of a study's settings classes, for config files written for 0.1.0."""

import logging

from tll_jax.settings import validate
from tll_jax.study.settings import Arm, Evaluate, Explain, Finetune, Loop, Pretrain, Probe, Study

__all__ = ["Arm", "Evaluate", "Explain", "Finetune", "Loop", "Pretrain", "Probe", "Study", "validate"]

logging.getLogger(__name__).warning(
    "tll_jax.config is now called tll_jax.study.settings; the old name works in this release and not in the next"
)
