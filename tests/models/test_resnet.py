"""The residual networks have the published sizes and freeze stage by stage."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.models.resnet import ResNet, ResNetModule
from tll_jax.models.stages import stage_of

IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 32, 32, 3)), jnp.float32)


def make_small(small_stem=False):
    """One block a stage: quick to compile."""
    return ResNetModule(
        (1, 1, 1, 1), bottleneck=False, width=4, small_stem=small_stem, pooled_shortcuts=False, dtype=jnp.float32
    )


@cache
def initial(small_stem=False):
    module = make_small(small_stem)
    return module, jax.jit(lambda key: module.init(key, IMAGES, train=False))(jax.random.key(0))


@cache
def evaluated(small_stem=False):
    module, variables = initial(small_stem)
    return jax.jit(lambda images: module.apply(variables, images, train=False))


def num_parameters(settings):
    module = settings.build(dtype=jnp.float32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.ones((1, 64, 64, 3)), train=False))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize(("depth", "expected"), [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032)])
def test_the_published_number_of_parameters_without_the_classifier(depth, expected):
    assert num_parameters(ResNet(depth=depth)) == expected


@pytest.mark.parametrize(("small_stem", "sizes"), [(False, (8, 8, 4, 2, 1)), (True, (32, 32, 16, 8, 4))])
def test_every_stage_is_returned_and_the_last_is_pooled(small_stem, sizes):
    features = evaluated(small_stem)(IMAGES)
    shapes = [stage.shape for stage in features.stages]
    widths = (4, 4, 8, 16, 32)
    assert shapes == [(4, size, size, width) for size, width in zip(sizes, widths, strict=True)]
    np.testing.assert_allclose(features.pooled, features.stages[-1].mean((1, 2)), rtol=1e-5)


def test_a_bottleneck_network_ends_with_32_times_its_width():
    settings = ResNet(depth=50, width=4)
    module = settings.build(dtype=jnp.bfloat16)
    features, _ = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), IMAGES, train=False))
    assert features.pooled.shape == (4, 128)
    assert features.pooled.dtype == jnp.float32
    assert features.stages[-1].dtype == jnp.bfloat16


def test_the_parameters_top_level_is_the_stages():
    _, variables = initial()
    names = sorted(variables["params"], key=stage_of)
    assert names == ["stem", "stage1", "stage2", "stage3", "stage4"]
    assert [stage_of(name) for name in names] == list(range(ResNet().num_stages))


def test_every_block_is_initialized_to_its_shortcut():
    features = evaluated()(IMAGES)
    # The first stage has identity shortcuts, and what comes from the stem is not negative.
    np.testing.assert_array_equal(features.stages[1], features.stages[0])


def test_the_imagenet_mean_color_is_zero_to_the_stem():
    mean_color = jnp.broadcast_to(jnp.array([0.485, 0.456, 0.406]), IMAGES.shape)
    np.testing.assert_array_equal(evaluated()(mean_color).stages[0], 0)


@pytest.mark.parametrize("frozen_stages", [0, 3, 5])
def test_frozen_stages_get_no_gradient_and_keep_their_statistics(frozen_stages):
    module, variables = initial()
    # Away from the zero-initialized scales, where inner kernels have no gradient anyway.
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)

    @jax.jit
    def gradient(params):
        def loss(params):
            features, updated = module.apply(
                {**variables, "params": params},
                IMAGES,
                train=True,
                frozen_stages=frozen_stages,
                mutable=["batch_stats"],
            )
            return jnp.sum(features.pooled**2), updated["batch_stats"]

        return jax.grad(loss, has_aux=True)(params)

    gradients, statistics = gradient(variables["params"])
    for name in gradients:
        is_frozen = stage_of(name) < frozen_stages
        for leaf in jax.tree.leaves(gradients[name]):
            assert bool(jnp.any(leaf != 0)) != is_frozen
        for old, new in zip(
            jax.tree.leaves(variables["batch_stats"][name]), jax.tree.leaves(statistics[name]), strict=True
        ):
            assert bool(jnp.any(old != new)) != is_frozen


def test_running_statistics_have_momentum_nine_tenths():
    module, variables = initial()
    train = jax.jit(lambda images: module.apply(variables, images, train=True, mutable=["batch_stats"]))
    _, updated = train(IMAGES)
    kernel = variables["params"]["stem"]["convolution"]["kernel"]
    images = (np.asarray(IMAGES) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    maps = jax.lax.conv_general_dilated(
        images.astype(np.float32),
        kernel,
        (2, 2),
        [(3, 3), (3, 3)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    statistics = updated["batch_stats"]["stem"]["norm"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * np.mean(maps, (0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * np.var(maps, (0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize("wrong", [ResNet(depth=20), ResNet(width=0)])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=r"(depth is 20.*10, 18, 34, 50|width is 0)"):
        wrong.check()


def gradient_reach(pooled_shortcuts):
    """The share of the pixels that the pooled features of a new network depend on."""
    network = ResNet(depth=10, width=4, pooled_shortcuts=pooled_shortcuts).build(dtype=jnp.float32)
    images = jax.random.uniform(jax.random.key(0), (1, 64, 64, 3))
    variables = jax.jit(partial(network.init, train=False))(jax.random.key(1), images)
    gradient = jax.jit(jax.grad(lambda x: network.apply(variables, x, train=False).pooled.sum()))(images)
    return float(jnp.mean(jnp.any(gradient != 0, axis=-1)))


def test_an_untrained_network_depends_on_all_pixels_only_with_pooled_shortcuts():
    # Blocks start as their shortcut. Strided ones keep 2x2 of the 16x16 positions after the stem.
    assert gradient_reach(False) < 0.2
    assert gradient_reach(True) > 0.9


def test_pooled_shortcuts_have_the_same_parameters():
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)

    def shapes(pooled_shortcuts):
        network = ResNet(width=4, pooled_shortcuts=pooled_shortcuts).build(dtype=jnp.float32)
        variables = jax.eval_shape(lambda key, x: network.init(key, x, train=False), jax.random.key(0), images)
        return jax.tree.map(lambda leaf: leaf.shape, variables)

    assert shapes(False) == shapes(True)
