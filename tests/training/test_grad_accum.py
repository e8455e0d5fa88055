"""A batch in parts: the same step where each image has its own loss, and refused everywhere else."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.configs.one_stage import BATCH, SIZE
from tests.training.trajectories import LEARNING_RATE, NUM_CLASSES, dimmed, flat, pictures
from tll_jax.devices import batch_sharded, make_mesh, place, replicated
from tll_jax.objectives.barlow_twins import BarlowTwins
from tll_jax.objectives.classification import Classification
from tll_jax.training.state import init_variables, make_state
from tll_jax.training.step import NetworkLoss, check_grad_accum_steps, make_step
from tll_jax.typing import Features, ViewBatch


class Plain(nn.Module):
    """A network without batch statistics."""

    @nn.compact
    def __call__(self, images, *, train):
        maps = nn.relu(nn.Conv(4, (3, 3))(images))
        return Features((maps,), maps.mean((1, 2))), nn.Dense(NUM_CLASSES)(maps.reshape(len(maps), -1))


@pytest.mark.parametrize("num_devices", [1, 4])
def test_gradient_accumulation_equals_the_whole_batch_with_unlabeled_images(num_devices):
    mesh = make_mesh(jax.devices()[:num_devices])
    # Unequally many images without a class in the parts: their means must be weighted.
    labels = np.where(np.arange(BATCH) % 4 == 0, -1, np.arange(BATCH) % NUM_CLASSES).astype(np.int32)
    labels[5:8] = -1
    rows = ViewBatch(*pictures(), labels)
    batch = place(rows, jax.tree.map(lambda _: batch_sharded(mesh), rows))
    optimizer = optax.sgd(LEARNING_RATE)
    network = Plain()
    start = jax.device_get(make_state(init_variables(network, size=SIZE, seed=0), optimizer))

    def step(grad_accum_steps):
        run = make_step(
            NetworkLoss(network, Classification()),
            (dimmed, dimmed),
            optimizer,
            state_shardings=replicated(mesh),
            grad_accum_steps=grad_accum_steps,
        )
        return run(jax.random.key(1), place(start, jax.tree.map(lambda _: replicated(mesh), start)), batch)

    (whole, whole_metrics), (parts, parts_metrics) = step(1), step(4)
    np.testing.assert_allclose(flat(parts.params), flat(whole.params), rtol=1e-5, atol=1e-7)
    for name, value in whole_metrics.items():
        np.testing.assert_allclose(parts_metrics[name], value, rtol=1e-5, err_msg=name)


def test_gradient_accumulation_that_changes_the_loss_is_refused_with_an_alternative():
    statistics = {"norm": jnp.zeros(3)}
    check_grad_accum_steps(Classification(), {})
    with pytest.raises(ValueError, match=r"normalizes by the statistics of a batch\. .*remat=True"):
        check_grad_accum_steps(Classification(), statistics)
    with pytest.raises(ValueError, match="BarlowTwins compares the images of a batch"):
        check_grad_accum_steps(BarlowTwins(), {})
