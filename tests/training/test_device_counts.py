"""One program, any devices: losses, gradients, batch statistics and optimizer steps are those of a single one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.pairs_of_processes import run_pair
from tests.training import trajectories
from tests.training.trajectories import IN_TWO_PROCESSES, OBJECTIVES, Trajectory, train
from tll_jax.devices import fsdp_shardings, make_mesh
from tll_jax.training.state import make_state

RELATIVE = 1e-4
"""Of the largest value of each kind: sums over the batch are added in another order."""


@pytest.fixture(scope="module")
def alone():
    return {name: train(name, make_mesh(jax.devices()[:1])) for name in OBJECTIVES}


def assert_same(found, expected):
    for field, value in vars(expected).items():
        largest = np.max(np.abs(value))
        assert largest > 0, field
        np.testing.assert_allclose(getattr(found, field), value, rtol=0, atol=RELATIVE * largest, err_msg=field)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_alike_on_several_devices(alone, name):
    assert_same(train(name, make_mesh()), alone[name])


def test_training_is_alike_in_two_processes_of_two_devices(alone, tmp_path):
    for output in run_pair(trajectories, tmp_path, devices=2):
        found = np.load(output)
        assert found["devices"] == 4
        for name in IN_TWO_PROCESSES:
            expected = alone[name]
            assert_same(Trajectory(**{field: found[f"{name}/{field}"] for field in vars(expected)}), expected)


def test_parameters_split_over_the_devices_train_alike(alone):
    assert_same(train("barlow_twins", make_mesh(), min_size=64), alone["barlow_twins"])


def test_a_large_parameter_and_its_momentum_are_sharded_over_devices():
    params = {"large": jnp.zeros((24, 16)), "odd": jnp.zeros((15, 31)), "small": jnp.zeros(16)}
    state = make_state({"params": params, "batch_stats": {}}, optax.sgd(0.1, momentum=0.9))
    shardings = fsdp_shardings(state, 100, make_mesh())
    shares = jax.tree.map(lambda leaf, sharding: sharding.shard_shape(leaf.shape), state, shardings)
    for part in (shares.params, shares.optimizer_state[0].trace):
        # 24 is the longest axis that 8 devices can share; neither 15 nor 31 can be.
        assert part == {"large": (3, 16), "odd": (15, 31), "small": (16,)}
