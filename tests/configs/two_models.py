"""The study of `one_stage` with a second model, which starts from random weights and trains for longer."""

import dataclasses

from tests.configs import one_stage
from tll_jax.study.settings import Study

NUM_STEPS = 500
"""Of the longer training."""


def get_config() -> Study:
    """Three trainings, of which two can run at once; that of the second model takes seconds."""
    study = one_stage.get_config()
    model = study.models["barlow"]
    every = {"log_every": 20, "save_every": NUM_STEPS // 4, "evaluate_every": NUM_STEPS // 2}
    loop = dataclasses.replace(model.finetune.loop, num_steps=NUM_STEPS, **every)
    finetune = dataclasses.replace(model.finetune, loop=loop)
    study.models["random"] = dataclasses.replace(model, pretrain=None, finetune=finetune)
    return study
