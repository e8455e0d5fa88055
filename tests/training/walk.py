"""A training of one number, which every step adds one to: the loop and its checkpoints without a network to compile."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tll_jax.devices import make_mesh
from tll_jax.study.settings import Loop
from tll_jax.training import loop
from tll_jax.training.state import TrainState

SCORES = {2: 0.1, 4: 0.3, 6: 0.2, 8: 0.1, 10: 0.5, 12: 0.4}
"""What a walk's states are worth at the steps where it evaluates: the best at 4, then at 10."""


def first_state() -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        first_nonfinite=jnp.full((), -1, jnp.int32),
        params={"walked": jnp.zeros(3)},
        batch_stats={},
        optimizer_state=(jnp.zeros(2),),
    )


def step(state: TrainState, _batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
    """One further, in every array."""
    moved = jax.tree.map(lambda leaf: leaf + 1, (state.step, state.params, state.optimizer_state))
    return state.replace(step=moved[0], params=moved[1], optimizer_state=moved[2]), {"loss": 1.0 / moved[0]}


@dataclass(kw_only=True)
class Walk:
    """Twelve steps; saved every third, evaluated every second, logged at each."""

    folder: Any
    num_steps: int = 12
    monitor: str = "score"

    def run(self) -> TrainState:
        """To the end, from whatever lies in the folder; the best state."""
        training = loop.Training(
            step=step,
            make_batches=lambda start: iter(lambda: np.zeros(1, np.float32), None),
            settings=Loop(num_steps=self.num_steps, batch_size=1, log_every=1, save_every=3, evaluate_every=2),
            folder=self.folder,
            mesh=make_mesh(jax.devices()[:1]),
            label="walk",
            evaluator=lambda variables: {"score": SCORES[int(variables["params"]["walked"][0])]},
            monitor=self.monitor,
        )
        return training.run(first_state())
