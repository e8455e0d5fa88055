"""A config's Barlow Twins pretraining, ready to be timed; for the benchmarks beside it."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from tll_jax.config_files import load_study
from tll_jax.data.pipeline import open_readers, training_batches, view_dataset
from tll_jax.devices import make_mesh
from tll_jax.study.networks import make_program, pretraining_network, recipe_of
from tll_jax.study.settings import Model, Pretrain
from tll_jax.training.state import TrainState, init_variables
from tll_jax.training.step import Step

CONFIGS = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """The compiled step, the state before it, and the data, as a study has them."""

    settings: Pretrain
    mesh: Mesh
    step: Step
    start: TrainState
    dataset: Any

    def batches(self, *, num_threads: int, num_workers: int = 0) -> Iterator[Any]:
        """Host batches from the first step on; `close` ends who reads them."""
        size = self.settings.loop.batch_size
        with (
            open_readers(self.mesh, num_threads=num_threads, num_workers=num_workers) as readers,
            closing(training_batches(self.dataset, batch_size=size, start_step=0, readers=readers)) as batches,
        ):
            yield from batches


def open_pretraining(config_name: str) -> Pretraining:
    """Pretraining settings of configs/<config_name>.py."""
    return prepare(load_study(str(CONFIGS / f"{config_name}.py")).models["barlow"])


def prepare(model: Model, lap: Callable[[str], None] = lambda part: None) -> Pretraining:
    """On all devices; `lap` is called with the name of each part that is done."""
    settings, mesh = model.pretrain, make_mesh()
    assert settings is not None
    lap("devices")
    images = settings.images.open(held_out=frozenset(), shortest_side=settings.geometry.shortest_side)
    lap("images")
    network = pretraining_network(model, num_classes=images.num_classes)
    variables = jax.block_until_ready(init_variables(network, size=settings.geometry.size, seed=0))
    lap("initial variables")
    program = make_program(network, recipe_of(settings), size=settings.geometry.size, mesh=mesh)
    return Pretraining(
        settings=settings,
        mesh=mesh,
        step=partial(program.step, jax.random.key(0)),
        start=program.start(variables),
        dataset=view_dataset(images, settings.geometry, seed=0),
    )
