"""Former module of a study's settings classes, for config files written for 0.1.0."""

import logging

from tll_jax.renamed import first_class_names
from tll_jax.settings import validate
from tll_jax.study.settings import Evaluate, Explain, Finetune, Loop, Model, Pretrain, Probe, Study

__all__ = ["Evaluate", "Explain", "Finetune", "Loop", "Model", "Pretrain", "Probe", "Study", "validate"]

__getattr__ = first_class_names(__name__, Arm="Model")

logging.getLogger(__name__).warning(
    "tll_jax.config is now called tll_jax.study.settings; the old name works in this release and not in the next"
)
