"""Training in bfloat16: only what lies inside the network is; whatever is summed, compared or kept is fp32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.configs.one_stage import SIZE
from tests.training.trajectories import OBJECTIVES, make_network, train
from tll_jax.devices import make_mesh
from tll_jax.training.state import init_variables


@pytest.mark.parametrize("name", OBJECTIVES)
def test_inputs_of_objectives_and_train_states_are_fp32(name):
    network = make_network(name, jnp.bfloat16)
    variables = init_variables(network, size=SIZE, seed=0)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    (features, outputs), updated = jax.eval_shape(
        lambda: network.apply(variables, jnp.zeros((4, SIZE, SIZE, 3)), train=True, mutable=["batch_stats"])
    )
    assert features.stages[0].dtype == jnp.bfloat16
    assert features.pooled.dtype == outputs.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["barlow_twins", "triplet"])
def test_a_bfloat16_step_is_close_to_the_fp32_step(name):
    mesh = make_mesh(jax.devices()[:2])
    half, full = (train(name, mesh, num_steps=2, dtype=dtype) for dtype in (jnp.bfloat16, jnp.float32))
    # bfloat16 has 8 bits: what a network of one stage computes is off by about a hundredth.
    np.testing.assert_allclose(half.losses, full.losses, rtol=0.03)
    assert not np.array_equal(half.losses, full.losses)
    cosine = half.gradients @ full.gradients / np.linalg.norm(half.gradients) / np.linalg.norm(full.gradients)
    assert cosine > 0.97
