"""The network joins a backbone and a head, and tells which parameters train."""

import jax
import jax.numpy as jnp
import numpy as np

from tll_jax.models.heads import Projection
from tll_jax.models.network import Network, trainable_mask
from tll_jax.models.resnet import ResNetModule

IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 24, 24, 3)), jnp.float32)


def make_network(frozen_stages=0, remat=False):
    backbone = ResNetModule(
        (1, 1, 1), bottleneck=False, width=4, small_stem=False, pooled_shortcuts=False, dtype=jnp.float32
    )
    head = Projection(widths=(6,)).build(dtype=jnp.float32)
    return Network(backbone, head, frozen_stages=frozen_stages, remat=remat)


def filled_variables(network):
    """Small positive numbers in the network's shapes: quicker than compiling its initialization."""
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), IMAGES, train=False))
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(random.uniform(0.05, 0.3, leaf.shape), leaf.dtype), shapes)


def test_the_head_sees_the_pooled_features():
    network = make_network()
    variables = filled_variables(network)
    assert set(variables["params"]) == {"backbone", "head"}
    features, embeddings = jax.jit(lambda images: network.apply(variables, images, train=False))(IMAGES)
    linear = variables["params"]["head"]["linear1"]
    expected = features.pooled @ linear["kernel"] + linear["bias"]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings, expected, rtol=1e-5)


def test_the_mask_is_false_exactly_where_the_gradient_is_cut():
    network = make_network(frozen_stages=2)
    variables = filled_variables(network)

    @jax.jit
    def gradient(params):
        def loss(params):
            _, embeddings = network.apply({**variables, "params": params}, IMAGES, train=False)
            return jnp.sum(embeddings[:, 0])

        return jax.grad(loss)(params)

    moves = jax.tree.map(lambda leaf: bool(jnp.any(leaf != 0)), gradient(variables["params"]))
    assert trainable_mask(variables["params"], 2) == moves
    assert all(jax.tree.leaves(trainable_mask(variables["params"], 0)))


def test_remat_gives_the_same_gradients_and_statistics_with_fewer_stored_activations():
    variables = filled_variables(make_network())
    images = jnp.concatenate([IMAGES] * 4)

    def kept_and_found(remat):
        network = make_network(frozen_stages=1, remat=remat)

        def loss(params):
            applied = {**variables, "params": params}
            (_, embeddings), updated = network.apply(applied, images, train=True, mutable=["batch_stats"])
            return jnp.sum(embeddings[:, 0]), updated

        # The leaves of the backward function are the values that it keeps from the forward pass.
        way_back = jax.eval_shape(lambda params: jax.vjp(loss, params, has_aux=True)[1], variables["params"])
        kept_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(way_back))
        return kept_bytes, jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    kept_bytes, kept = kept_and_found(False)
    less_bytes, again = kept_and_found(True)
    assert less_bytes < kept_bytes / 2
    for expected, found in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
