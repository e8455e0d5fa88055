"""A network entered behind any of its stages says what it says from the start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.saliency import networks
from tll_jax.models.alexnet_vgg import AlexNet
from tll_jax.models.heads import Identity, SpatialProjection
from tll_jax.models.network import Network
from tll_jax.saliency import cam
from tll_jax.saliency.networks import NetworkEmbedding
from tll_jax.saliency.targets import cosine, explain_pair

(IMAGE,) = networks.images(1, 32)


def embedding_of(network):
    return NetworkEmbedding(network=network, variables=networks.filled_variables(network, IMAGE[None]))


@pytest.mark.parametrize(
    "network",
    [
        networks.small_resnet(SpatialProjection(stages=(2, 3, 4), width=4)),
        Network(AlexNet().build(dtype=jnp.float32), Identity().build(dtype=jnp.float32)),
    ],
    ids=["resnet", "alexnet"],
)
def test_the_embedding_is_a_function_of_each_stages_map(network):
    embed = embedding_of(network)

    @jax.jit
    def enter(image):
        def at(stage):
            maps, rest = embed.split(image, stage)
            return maps, rest(maps), rest(maps.at[..., 0].add(1.0))

        return embed.features(image).stages, embed(image), [at(stage) for stage in range(5)]

    stages, whole, entered = enter(IMAGE)
    for stage, (maps, same, moved) in zip(stages, entered, strict=True):
        np.testing.assert_array_equal(maps, stage[0])
        np.testing.assert_allclose(same, whole, rtol=1e-4, atol=1e-6)
        assert np.abs(moved - whole).max() > 1e-3


def test_other_inputs_of_the_head_are_held_constant():
    embed = embedding_of(networks.small_resnet(SpatialProjection(stages=(2, 4), width=4)))

    @jax.jit
    def without_last_stage(image):
        maps, rest = embed.split(image, 4)
        return embed.features(image).stages[2], rest(jnp.zeros_like(maps))

    second, found = without_last_stage(IMAGE)
    layer = embed.variables["params"]["head"]["linear1"]
    expected = second.ravel() @ layer["kernel"][: second.size] + layer["bias"]
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stage", [-1, 2])
def test_a_stage_that_is_not_there_is_refused_with_those_that_are(stage):
    embed = embedding_of(networks.tiny_network(Identity()))
    with pytest.raises(ValueError, match=rf"no stage {stage}; this network has stages 0 \(the stem\) to 1"):
        embed.split(IMAGE, stage)


def test_the_error_for_a_function_without_stages_names_an_alternative():
    def explain(score, image):
        return cam.grad_cam(score, image, stage=1)

    with pytest.raises(ValueError, match="NetworkEmbedding"):
        explain_pair(lambda image: image.ravel(), IMAGE, IMAGE, explain, target=cosine)
