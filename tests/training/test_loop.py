"""The loop on a network of one layer and real pictures: exact resumption, the best state, loud failure."""

import gc
import itertools
import json
import os
import signal
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.training.trajectories import dimmed
from tll_jax.augment.recipes import pair_photometric
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.geometry import Resize
from tll_jax.data.pipeline import Readers, pair_dataset, training_batches
from tll_jax.devices import check_batch_size, fsdp_shardings, make_mesh, replicated
from tll_jax.errors import Interrupted
from tll_jax.study.settings import Loop
from tll_jax.training import checkpoint, loop, records
from tll_jax.training.collapse import collapse_warning
from tll_jax.training.optimizers import AdamW
from tll_jax.training.signals import Stopped
from tll_jax.training.state import init_variables, make_state
from tll_jax.training.step import NetworkLoss, Step, augment_batch, make_step
from tll_jax.typing import Features, PairBatch

SIZE = 8


class OneLayer(nn.Module):
    """Pixels through one dense layer and BatchNorm."""

    features: int = 4

    @nn.compact
    def __call__(self, images, *, train):
        flat = images.reshape(len(images), -1)
        output = nn.BatchNorm(use_running_average=not train)(nn.Dense(self.features, use_bias=False)(flat))
        return Features((), flat), output


@dataclass(kw_only=True)
class Agree:
    """Both sides of a pair get the same output; from `bad_group` on the loss is not finite."""

    bad_group: int = -1

    def head(self, *, num_classes):
        return None

    def __call__(self, network, batch):
        _, left = network(batch.left, train=True)
        _, right = network(batch.right, train=True)
        loss = jnp.mean((left - right) ** 2)
        loss = jnp.where(jnp.any(batch.group == self.bad_group), jnp.nan, loss)
        return loss, {"loss": loss}


@dataclass(kw_only=True)
class Setup:
    """One training run in a folder."""

    folder: Any
    objective: Agree = field(default_factory=Agree)
    features: int = 4
    num_steps: int = 12
    num_devices: int = 8
    log_every: int = 1
    fsdp_min_size: int = 0
    wrap: Callable[[Step], Step] = lambda step: step

    def run(self, **options):
        mesh = make_mesh(jax.devices()[: self.num_devices])
        network = OneLayer(features=self.features)
        optimizer = AdamW(learning_rate=0.01).build(num_steps=12, batch_size=8)
        state = make_state(init_variables(network, size=SIZE, seed=0), optimizer)
        self.step = make_step(
            NetworkLoss(network, self.objective),
            (dimmed, dimmed),
            optimizer,
            state_shardings=fsdp_shardings(state, self.fsdp_min_size, mesh),
        )
        settings = Loop(
            num_steps=self.num_steps,
            batch_size=8,
            log_every=self.log_every,
            save_every=3,
            evaluate_every=2,
            fsdp_min_size=self.fsdp_min_size,
        )
        training = loop.Training(
            step=self.wrap(partial(self.step, jax.random.key(5))),
            make_batches=self.batches,
            settings=settings,
            folder=self.folder,
            mesh=mesh,
            label="test",
            **options,
        )
        return training.run(state)

    def batches(self, start):
        dataset = pair_dataset(EmojiPairs().open(), range(40), Resize(size=SIZE), seed=1)
        return training_batches(dataset, batch_size=8, start_step=start, readers=Readers(num_threads=1))


def logged(folder):
    kept = records.read(folder / "metrics.jsonl")
    return [{name: value for name, value in r.items() if name not in records.TIMING_FIELDS} for r in kept]


def test_on_a_cpu_a_step_is_dispatched_when_the_one_before_is_done(tmp_path):
    were_done, losses = [], []
    slowly = jax.jit(lambda loss: lax.fori_loop(0, 10**6, lambda _, value: value * 1.0000001, loss))

    def wrap(step):
        def slow_step(state, batch):
            were_done.extend(loss.is_ready() for loss in losses[-1:])
            state, metrics = step(state, batch)
            losses.append(slowly(metrics["loss"]))
            return state, metrics | {"loss": losses[-1]}

        return slow_step

    Setup(folder=tmp_path, num_steps=6, log_every=6, wrap=wrap).run()
    assert were_done == [True] * 5


def test_six_steps_and_six_more_equal_twelve_bit_for_bit(tmp_path):
    whole = Setup(folder=tmp_path / "whole").run()
    Setup(folder=tmp_path / "parts", num_steps=6).run()
    parts = Setup(folder=tmp_path / "parts").run()
    assert int(parts.step) == int(whole.step) == 12
    assert jax.tree.all(jax.tree.map(np.array_equal, parts, whole))
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_last_step_stops_the_run_which_goes_on_to_the_same_state(number, tmp_path):
    whole = Setup(folder=tmp_path / "whole").run()

    def wrap(step):
        def step_with_signal(state, batch):
            state, metrics = step(state, batch)
            if int(state.step) == 12:
                os.kill(os.getpid(), number)
            return state, metrics

        return step_with_signal

    parts = Setup(folder=tmp_path / "parts", wrap=wrap)
    with pytest.raises(Interrupted, match=f"test stopped by {number.name} at step 12 of 12; the state is saved"):
        parts.run()
    found = Setup(folder=tmp_path / "parts").run()
    assert jax.tree.all(jax.tree.map(np.array_equal, found, whole))
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_last_evaluation_stops_the_run_which_goes_on_to_the_same_state(number, tmp_path):
    def evaluate(_):
        if len(scored) == 5:
            os.kill(os.getpid(), number)
        scored.append(len(scored))
        return {"score": 0.1}

    scored = list(range(6))
    whole = Setup(folder=tmp_path / "whole").run(evaluator=evaluate, monitor="score")
    scored = []
    with pytest.raises(Stopped, match=number.name):
        Setup(folder=tmp_path / "parts").run(evaluator=evaluate, monitor="score")
    assert len(scored) == 6
    found = Setup(folder=tmp_path / "parts").run(evaluator=evaluate, monitor="score")
    assert jax.tree.all(jax.tree.map(np.array_equal, found, whole))
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    assert len(scored) == 6, "the last evaluation is kept"


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (2, 100)])
def test_a_run_resumes_at_its_step_with_another_log_every(before, after):
    found = [{"step": step, "loss": 1.0, "log_every": before} for step in range(before, 10, before)]
    settings = Loop(num_steps=12, batch_size=8, log_every=after)
    assert loop._has_records(found, 9, settings, "")
    # One that is missing was due before.
    lost = [record for record in found if record["step"] <= 9 - 2 * before]
    assert not loop._has_records(lost, 9, settings, "")
    assert not loop._has_records(found, 12, settings, "")


def test_the_same_training_on_one_and_on_eight_devices_agrees(tmp_path):
    one = Setup(folder=tmp_path / "one", num_devices=1).run()
    eight = Setup(folder=tmp_path / "eight", num_devices=8).run()
    for left, right in zip(jax.tree.leaves(one.variables), jax.tree.leaves(eight.variables), strict=True):
        np.testing.assert_allclose(left, right, rtol=2e-3, atol=2e-5)


def test_initial_variables_are_valid_after_training(tmp_path):
    mesh = make_mesh(jax.devices()[:1])
    network = OneLayer()
    variables = jax.device_put(init_variables(network, size=SIZE, seed=0), jax.devices()[0])
    optimizer = AdamW().build(num_steps=2, batch_size=8)
    augments = (dimmed, dimmed)
    setup = Setup(folder=tmp_path)
    before = jax.tree.map(np.array, variables)
    for seed in range(2):
        step = make_step(NetworkLoss(network, Agree()), augments, optimizer, state_shardings=replicated(mesh))
        training = loop.Training(
            step=partial(step, jax.random.key(seed)),
            make_batches=setup.batches,
            settings=Loop(num_steps=2, batch_size=8),
            folder=tmp_path / str(seed),
            mesh=mesh,
            label="test",
        )
        training.run(make_state(variables, optimizer))
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, before))


def test_the_step_compiles_once(tmp_path):
    setup = Setup(folder=tmp_path)
    setup.run()
    assert setup.step._cache_size() == 1


class Sealed:
    """An array on the device that can be waited for and given to the next step; reading it on the host fails."""

    def __init__(self, array):
        self.array = array

    def block_until_ready(self):
        self.array.block_until_ready()

    def is_ready(self):
        return self.array.is_ready()


def test_between_logging_and_saving_steps_nothing_is_read_from_the_device(tmp_path):
    # jax.transfer_guard_device_to_host would detect the same, but on CPUs, whose memory is the host's, it never fires.
    steps = itertools.count(1)
    sealed = []

    def wrap(step):
        def sealing(state, batch):
            opened = jax.tree.map(lambda leaf: leaf.array if isinstance(leaf, Sealed) else leaf, state)
            results = step(opened, batch)
            number = next(steps)
            if number % 5 == 0 or number % 3 == 0:
                return results
            sealed.append(number)
            return jax.tree.map(Sealed, results)

        return sealing

    Setup(folder=tmp_path, log_every=5, wrap=wrap).run()
    assert sealed == [1, 2, 4, 7, 8, 11]
    assert [record["step"] for record in logged(tmp_path)] == [5, 10, 12]


def test_the_reader_is_closed_and_its_last_batch_given_back_when_training_fails(tmp_path):
    closed, given = [], []

    class Failing(Setup):
        def batches(self, start):
            try:
                for batch in super().batches(start):
                    # Another object, of which nobody else holds any part.
                    batch = batch._replace(left=batch.left.copy())
                    given.append(weakref.ref(batch.left))
                    yield batch
                    del batch
            finally:
                closed.append(start)

    def fail(variables):
        raise RuntimeError("an evaluation that fails")

    with pytest.raises(RuntimeError, match="an evaluation that fails") as caught:
        Failing(folder=tmp_path, wrap=with_copies).run(evaluator=fail)
    # The traceback still holds the loop's variables.
    assert caught.tb is not None
    assert closed == [0]
    gc.collect()
    assert [reference() for reference in given] == [None] * len(given)


def with_copies(step):
    """On CPUs arrays of JAX may share memory with those of numpy; here they do not."""
    return lambda state, batch: step(state, jax.tree.map(jnp.copy, batch))


def test_the_loss_falls(tmp_path):
    Setup(folder=tmp_path).run()
    losses = [record["loss"] for record in logged(tmp_path)]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_the_state_with_the_best_monitored_metric_is_returned(tmp_path):
    scores = iter([0.1, 0.5, 0.3, 0.5, 0.2, 0.1])
    state = Setup(folder=tmp_path).run(evaluator=lambda _: {"score": next(scores)}, monitor="score")
    # Evaluated at 2, 4, ..., 12; the first of equal scores stays.
    assert int(state.step) == 4
    assert [record["score"] for record in logged(tmp_path) if "score" in record] == [0.1, 0.5, 0.3, 0.5, 0.2, 0.1]


def test_a_loss_that_is_not_finite_stops_the_run_names_the_step_and_keeps_its_batch(tmp_path):
    setup = Setup(folder=tmp_path)
    third = next(next(batches) for batches in [setup.batches(2)])
    earlier = [next(setup.batches(k)) for k in range(2)]
    group = next(int(g) for g in third.group if all(g not in batch.group for batch in earlier))
    setup.objective = Agree(bad_group=group)
    with pytest.raises(FloatingPointError, match="step 3 is not finite"):
        setup.run()
    with np.load(tmp_path / "nonfinite-step-3.npz") as kept:
        assert np.array_equal(kept["left"], third.left)
    kept = json.loads((tmp_path / "nonfinite.json").read_text())
    assert kept == {"step": 3, "batch": "nonfinite-step-3.npz"}
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.steps("last") == checkpoints.steps("best") == []
    assert checkpoints.restore("last", None) is None


def test_a_checkpoint_of_another_architecture_is_refused_by_parameter(tmp_path):
    Setup(folder=tmp_path, num_steps=3).run()
    with pytest.raises(ValueError, match=r"another architecture: params/BatchNorm_0/bias is \(4,\) there and \(6,\)"):
        Setup(folder=tmp_path, features=6).run()


def test_augmentation_is_a_function_of_the_key_and_leaves_values_in_range():
    batch = next(Setup(folder=None).batches(0))
    augments = (pair_photometric(), pair_photometric())
    one, same, other = (augment_batch(jax.random.key(seed), batch, augments) for seed in (0, 0, 1))
    assert isinstance(one, PairBatch)
    assert jnp.array_equal(one.left, same.left)
    assert not jnp.array_equal(one.left, other.left)
    assert 0 <= float(one.left.min()) <= float(one.left.max()) <= 1


def test_the_collapse_warning_separates_collapsed_from_healthy_embeddings():
    assert collapse_warning({"participation_ratio": 40.0, "embedding_std": 0.08}) is None
    assert "participation ratio 1.10" in collapse_warning({"participation_ratio": 1.1, "embedding_std": 0.08})
    assert "standard deviation 1e-05" in collapse_warning({"participation_ratio": 9.0, "embedding_std": 1e-5})


def test_a_batch_size_that_devices_do_not_divide_is_refused_with_one_that_they_do():
    with pytest.raises(ValueError, match="batch_size is 12, which 8 devices cannot share evenly; use a multiple of 8"):
        check_batch_size(12, make_mesh())
