"""Embeddings batch by batch, and negative squared distances, by which systems score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.data.geometry import Resize
from tll_jax.devices import make_mesh, num_devices, tracing_for
from tll_jax.evaluation.embed import Embedder, head_embedding, negative_squared_distance
from tll_jax.models.efficientnet_lite import EfficientNetLite0
from tll_jax.models.heads import Identity
from tll_jax.models.network import Network
from tll_jax.models.resnet import ResNet
from tll_jax.training.state import init_variables


def test_variables_are_copied_to_the_devices_once_for_all_batches(monkeypatch):
    def embed(variables, images):
        return images.mean((1, 2)) * variables["scale"]

    mesh = make_mesh(jax.devices()[:1])
    embedder = Embedder(embed=embed, geometry=Resize(size=4), batch_size=2, mesh=mesh)
    given, compiled = [], embedder._compiled

    def recorded(variables, images):
        given.append(variables["scale"])
        return compiled(variables, images)

    monkeypatch.setattr(embedder, "_compiled", recorded)
    images = [np.full((4, 4, 3), value, np.uint8) for value in (0, 51, 102, 153, 204)]
    found = embedder({"scale": np.float32(2)}, images)
    np.testing.assert_allclose(found, np.repeat([[0], [0.4], [0.8], [1.2], [1.6]], 3, axis=1), rtol=1e-6)
    assert len(given) == 3
    assert isinstance(given[0], jax.Array)
    assert given[0] is given[1] is given[2]


@pytest.mark.parametrize("offset", [0, 3000])
def test_negative_squared_distance_is_minus_the_squared_distance_however_far_from_the_origin(offset):
    rng = np.random.default_rng(0)
    queries, candidates = (rng.normal(size=(n, 8)).astype(np.float32) + np.float32(offset) for n in (40, 50))
    expected = -((queries[:, None].astype(np.float64) - candidates[None]) ** 2).sum(-1)
    queries[3] = np.nan
    found = negative_squared_distance(queries, candidates)
    assert found.dtype == np.float32
    assert np.isnan(found[3]).all()
    np.testing.assert_allclose(np.delete(found, 3, axis=0), np.delete(expected, 3, axis=0), rtol=1e-4, atol=1e-4)


def network_of(backbone):
    return Network(backbone.build(dtype=jnp.float32), Identity().build(dtype=jnp.float32))


def loops(network, images, platform):
    """Number of passes of each loop over all of the network in the program that embeds `images`."""
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros(images.shape), train=False))

    def embed(variables, images):
        with tracing_for(platform):
            return head_embedding(network)(variables, images)

    steps = jax.make_jaxpr(embed)(variables, images).eqns
    return [step.params["length"] for step in steps if step.primitive.name == "scan"]


def test_on_cpus_networks_without_large_3x3_convolutions_embed_a_few_images_at_a_time():
    images = jax.ShapeDtypeStruct((32 * num_devices(), 224, 224, 3), jnp.float32)
    efficientnet = network_of(EfficientNetLite0())
    # 4 MiB hold 6 images and 32 are not a multiple of 6, so that 4 are embedded at once.
    assert loops(efficientnet, images, "cpu") == [8]
    assert loops(efficientnet, images, "cuda") == []
    assert loops(network_of(ResNet(depth=18)), images, "cpu") == []
    assert loops(efficientnet, jax.ShapeDtypeStruct((6 * num_devices(), 224, 224, 3), jnp.float32), "cpu") == []


@pytest.mark.parametrize("devices", [1, 2])
def test_embeddings_in_parts_are_those_of_single_images_in_order(devices, monkeypatch):
    monkeypatch.setattr("tll_jax.models.ops.chunks.CHUNK_BYTES", 2 * 4 * 32 * 32 * 3)
    network = network_of(EfficientNetLite0())
    variables = init_variables(network, size=32, seed=0)
    batch = jax.ShapeDtypeStruct((8 * num_devices(), 32, 32, 3), jnp.float32)
    assert loops(network, batch, "cpu") == [4]
    images = list(np.random.default_rng(0).integers(0, 256, (15, 32, 32, 3), dtype=np.uint8))
    mesh = make_mesh(jax.devices()[:devices])
    embed = head_embedding(network)
    embedder = Embedder(embed=embed, geometry=Resize(size=32), batch_size=batch.shape[0], mesh=mesh)
    found = embedder(variables, images)
    alone = jax.jit(lambda image: embed(variables, image[None] / 255)[0])
    for row, image in zip(found, images, strict=True):
        np.testing.assert_allclose(row, alone(image.astype(np.float32)), rtol=1e-4, atol=1e-5)
