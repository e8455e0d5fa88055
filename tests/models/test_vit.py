"""Vision transformers by slow loops and axioms; test_backbone_parity has what transformers computes."""

import contextlib
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import references
from tll_jax import devices
from tll_jax.errors import InvalidValue
from tll_jax.models.heads import Identity
from tll_jax.models.network import Network, trainable_mask
from tll_jax.models.stages import stage_of
from tll_jax.models.vit import (
    VisionTransformer,
    attend,
    attend_in_even_numbers,
    attention_weights,
    interpolation_weights,
    require_divisible,
    rotary_angles,
    rotated,
)
from tll_jax.saliency.networks import NetworkEmbedding

TINY = {"width": 16, "depth": 2, "num_heads": 2, "mlp_width": 24, "patch_size": 8, "image_size": 32}


@cache
def initial(backbone, size=32):
    module = backbone.build(dtype=jnp.float32)
    images = jnp.zeros((1, size, size, 3))
    return module, jax.jit(partial(module.init, train=False))(jax.random.key(0), images)


def test_maps_are_grids_of_patches_and_names_number_the_stages():
    backbone = VisionTransformer(**TINY, num_registers=3)
    module, variables = initial(backbone)
    features = module.apply(variables, references.images(24, 40), train=False)
    assert [maps.shape for maps in features.stages] == [(2, 3, 5, 16)] * 4
    assert features.pooled.shape == (2, 16)
    assert sorted(map(stage_of, variables["params"])) == list(range(backbone.num_stages))


def test_attention_is_the_mean_of_values_weighted_by_the_softmax():
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(1, 5, 2, 4)).astype(np.float32) for _ in range(3))
    found, weights = attend(query, key, value), attention_weights(query, key)
    for head in range(2):
        for at in range(5):
            scores = np.array([query[0, at, head] @ key[0, other, head] / 2 for other in range(5)])
            expected = np.exp(scores) / np.exp(scores).sum()
            np.testing.assert_allclose(weights[0, head, at], expected, rtol=1e-5)
            np.testing.assert_allclose(found[0, at, head], expected @ value[0, :, head], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "dtype", "platform", "capability", "is_fused"),
    [
        ((1, 257, 6, 64), jnp.bfloat16, "gpu", "9.0", True),
        ((1, 50, 12, 64), jnp.bfloat16, "cuda", "8.0", True),
        ((1, 5, 2, 64), jnp.float32, "gpu", "9.0", False),
        ((1, 1, 2, 64), jnp.bfloat16, "gpu", "9.0", False),
        ((1, 5, 2, 20), jnp.bfloat16, "gpu", "9.0", False),
        ((1, 5, 2, 136), jnp.bfloat16, "gpu", "9.0", False),
        ((1, 5, 2, 64), jnp.bfloat16, "gpu", "7.5", False),
        ((1, 5, 2, 64), jnp.bfloat16, "gpu", "rocm", False),
        ((1, 5, 2, 64), jnp.bfloat16, "gpu", None, False),
        ((1, 5, 2, 64), jnp.bfloat16, "cpu", "9.0", False),
        ((1, 5, 2, 64), jnp.bfloat16, None, "9.0", False),
    ],
)
def test_attention_is_cudnns_only_where_cudnn_has_it(shape, dtype, platform, capability, is_fused, monkeypatch):
    class Device:
        class client:
            platform_version = "rocm 6.2" if capability == "rocm" else "PJRT C API\ncuda 13000"

        compute_capability = "9.4" if capability == "rocm" else capability

    def attached(backend):
        if capability is None:
            raise RuntimeError(f"Unknown backend {backend}")
        return [Device()]

    asked = []

    def attending(query, key, value, *, implementation, **lengths):
        assert query.shape[1] % 2 == key.shape[1] % 2 == 0, "JAX refuses the gradient of odd numbers"
        assert all(number.tolist() == [shape[1]] for number in lengths.values())
        asked.append(implementation)
        return query

    monkeypatch.setattr(jax, "local_devices", attached)
    monkeypatch.setattr(jax.nn, "dot_product_attention", attending)
    devices.has_fused_attention.cache_clear()
    with contextlib.ExitStack() as stack:
        stack.callback(devices.has_fused_attention.cache_clear)
        if platform:
            stack.enter_context(devices.tracing_for(platform))
        assert attend(*[jnp.zeros(shape, dtype)] * 3).shape == shape
    assert asked == ["cudnn"] * is_fused


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (4, 4), (2, 5), (3, 4)])
def test_a_masked_token_more_changes_neither_attention_nor_its_gradients(queries, keys):
    rng = np.random.default_rng(0)
    query, key, value, back = (
        rng.normal(size=(2, number, 2, 8)).astype(np.float32) for number in (queries, keys, keys, queries)
    )
    padded = partial(attend_in_even_numbers, implementation="xla")
    (plain, plain_pullback), (found, pullback) = (jax.vjp(function, query, key, value) for function in (attend, padded))
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)
    for one, other in zip(pullback(back), plain_pullback(back), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_last_block_computes_of_the_patches_no_more_than_the_class_token_needs():
    module, variables = initial(VisionTransformer(**TINY | {"depth": 1}))
    images = references.images(32, 32)

    def operations(choose):
        compiled = jax.jit(lambda images: choose(module.apply(variables, images, train=False))).lower(images).compile()
        return compiled.cost_analysis()["flops"]

    both = operations(lambda features: (features.pooled, features.stages[-1]))
    # Of 17 tokens, 16 need no query, no output and no MLP: 2 * 16 * 16 * (16 + 16 + 2 * 24) operations in each image.
    assert operations(lambda features: features.pooled) < both - 2 * 16 * 16 * 80 * len(images) * 0.9


def test_attention_weights_are_sown_into_mutable_intermediates_and_change_no_output():
    module, variables = initial(VisionTransformer(**TINY))
    images = references.images(32, 32)
    plain = module.apply(variables, images, train=False)
    features, sown = module.apply(variables, images, train=False, mutable=["intermediates"])
    (weights,) = sown["intermediates"]["stage2"]["attention"]["weights"]
    assert weights.shape == (2, 2, 17, 17)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(features.pooled, plain.pooled, rtol=1e-4, atol=1e-5)


def test_rotary_products_depend_on_relative_positions_only():
    angles = rotary_angles(1, 4, 8, 100.0)
    rng = np.random.default_rng(0)
    query, key = (np.tile(rng.normal(size=(1, 1, 1, 8)), (1, 4, 1, 1)).astype(np.float32) for _ in range(2))
    products = np.einsum("qd,kd->qk", rotated(query, angles)[0, :, 0], rotated(key, angles)[0, :, 0])
    for step in range(-3, 4):
        np.testing.assert_allclose(np.diagonal(products, step), np.diagonal(products, step)[0], rtol=1e-4)
    assert np.ptp(products) > 0.1
    # One class token before the patches has no place.
    np.testing.assert_array_equal(rotated(query, angles[1:])[0, 0], query[0, 0])


@pytest.mark.parametrize("interpolation", ["bicubic", "bicubic-antialiased", "bilinear-antialiased"])
def test_interpolation_keeps_constants_lines_and_grids_of_the_same_size(interpolation):
    for new in (3, 7, 12):
        weights = interpolation_weights(7, new, interpolation)
        np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
        # Away from the ends a line nearly stays one; exactly it would with Keys' a = -1/2.
        middle = slice(new // 3, new - new // 3)
        lines = (np.arange(new) + 0.5) * 7 / new - 0.5
        np.testing.assert_allclose((weights @ np.arange(7.0))[middle], lines[middle], atol=0.05)
    np.testing.assert_array_equal(interpolation_weights(7, 7, interpolation), np.eye(7))


def test_sizes_that_the_patch_does_not_divide_are_refused_with_ones_that_it_does():
    with pytest.raises(InvalidValue, match=r"50 x 64, which the patch of 14 pixels does not divide; .* 42 or 56 or 70"):
        require_divisible((50, 64), 14)
    require_divisible((42, 56), 14)
    module, variables = initial(VisionTransformer(**TINY))
    with pytest.raises(InvalidValue, match="multiples of 8: 16 or 24"):
        module.apply(variables, references.images(20, 20), train=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "num_heads is 3; it must be a divisor of width, 16"),
        ({"depth": 0}, "depth is 0"),
        ({"class_token": False}, "pooling is class; it must be mean or attention without a class token"),
        ({"biases": ("output",)}, "of query, key and value"),
        ({"positions": "rotary", "num_heads": 8}, "multiple of 4"),
        ({"image_size": 4}, "image_size is 4; it must be at least 8"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(InvalidValue, match=message):
        VisionTransformer(**(TINY | change)).check()


def test_frozen_stages_get_no_gradient_and_rematerializing_changes_none():
    backbone = VisionTransformer(**TINY, layer_scale=True)
    module, variables = initial(backbone)
    images = references.images(32, 32)

    def loss(params, frozen_stages, remat):
        features = module.apply({"params": params}, images, train=True, frozen_stages=frozen_stages, remat=remat)
        return jnp.sum(jnp.sin(features.pooled))

    gradients = {
        settings: jax.jit(jax.grad(loss), static_argnums=(1, 2))(variables["params"], *settings)
        for settings in ((0, False), (2, True), (4, False))
    }
    for name, gradient in gradients[0, False].items():
        assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient)), name
        is_frozen = stage_of(name) < 2
        for leaf, expected in zip(jax.tree.leaves(gradients[2, True][name]), jax.tree.leaves(gradient), strict=True):
            np.testing.assert_allclose(leaf, np.zeros_like(leaf) if is_frozen else expected, rtol=1e-3, atol=1e-6)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients[4, False]))
    mask = trainable_mask({"backbone": variables["params"]}, 2)["backbone"]
    assert {name: all(jax.tree.leaves(part)) for name, part in mask.items()} == {
        "stem": False,
        "stage1": False,
        "stage2": True,
        "stage3": True,
    }


@pytest.mark.parametrize("pooling", ["class", "attention"])
def test_a_network_can_be_entered_behind_every_stage(pooling):
    backbone = VisionTransformer(**TINY, pooling=pooling)
    network = Network(backbone=backbone.build(dtype=jnp.float32), head=Identity().build(dtype=jnp.float32))
    image = jnp.asarray(references.images(32, 32)[0])
    variables = jax.jit(partial(network.init, train=False))(jax.random.key(0), image[None])
    embed = NetworkEmbedding(network=network, variables=variables)
    expected = embed(image)
    for stage in range(backbone.num_stages):
        maps, rest = embed.split(image, stage)
        np.testing.assert_allclose(rest(maps), expected, rtol=1e-5, atol=1e-6)
        reaches = np.abs(rest(maps + jnp.cos(jnp.arange(16))) - expected).max() > 1e-5
        # The class token is read before the last stage's patches could change it.
        assert reaches == (pooling != "class" or stage < backbone.depth)


def test_half_precision_stays_near_and_pools_in_fp32():
    backbone = VisionTransformer(**TINY)
    module, variables = initial(backbone)
    images = references.images(32, 32)
    half = backbone.build(dtype=jnp.bfloat16).apply(variables, images, train=False)
    full = module.apply(variables, images, train=False)
    assert half.stages[1].dtype == jnp.bfloat16
    assert half.pooled.dtype == jnp.float32
    assert np.linalg.norm(half.pooled - full.pooled) < 2e-2 * np.linalg.norm(full.pooled)


def test_equal_settings_build_equal_modules_unaffected_by_later_changes():
    backbone = VisionTransformer(**TINY)
    module = backbone.build(dtype=jnp.float32)
    assert hash(module) == hash(VisionTransformer(**TINY).build(dtype=jnp.float32))
    backbone.depth = 5
    assert module.settings.depth == 2
