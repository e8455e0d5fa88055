"""The CPU lowerings compute what the plain convolution computes, and only CPUs get them."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tll_jax.devices import batch_sharded, make_mesh, replicated
from tll_jax.models.ops.chunks import CHUNK_BYTES, num_chunks
from tll_jax.models.ops.convolution import (
    Convolution,
    by_tiles,
    convolve,
    convolve_depthwise,
    convolve_depthwise_plainly,
    convolve_depthwise_shifted,
    convolve_folded,
    convolve_pixels,
    convolve_plainly,
    convolve_unfolded,
    kernel_gradient_unfolded,
    lowering_for,
    max_pool,
    max_pool_plainly,
    plain,
    plain_on_cpus,
)
from tll_jax.models.ops.winograd import convolve_by_tiles, kernel_gradient_by_tiles
from tll_jax.saliency.gradients import gradient as saliency_gradient
from tll_jax.saliency.guided import deconvnet_relu, guided_relu

DRAWN = settings(max_examples=8)


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def values_and_gradients(function, images, kernel):
    @jax.jit
    def compiled(images, kernel):
        outputs, transpose = jax.vjp(function, images, kernel)
        return [outputs, *transpose(jnp.cos(jnp.arange(outputs.size)).reshape(outputs.shape).astype(outputs.dtype))]

    return compiled(images, kernel)


def assert_alike(ours, theirs, tolerance):
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        mine, other = np.asarray(mine, np.float32), np.asarray(other, np.float32)
        np.testing.assert_allclose(mine, other, atol=tolerance * max(1.0, np.abs(other).max()))


def test_a_convolution_is_the_sum_over_its_window():
    images, kernel = draw(0, 2, 5, 4, 2), draw(1, 3, 3, 2, 3)
    padded = np.zeros((2, 7, 6, 2))
    padded[:, 1:-1, 1:-1] = images
    expected = np.zeros((2, 3, 2, 3))
    for image, row, column, feature in np.ndindex(*expected.shape):
        window = padded[image, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        expected[image, row, column, feature] = np.sum(window * np.asarray(kernel)[..., feature])
    np.testing.assert_allclose(convolve(images, kernel, strides=2), expected, atol=1e-5)


@DRAWN
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    size=st.sampled_from([1, 3, 5]),
    strides=st.sampled_from([1, 2]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
)
def test_unfolding_equals_the_plain_convolution_in_values_and_gradients(height, width, size, strides, dtype):
    images, kernel = draw(0, 2, height, width, 3).astype(dtype), draw(1, size, size, 3, 4).astype(dtype)
    ours = values_and_gradients(partial(convolve_unfolded, strides=strides), images, kernel)
    theirs = values_and_gradients(partial(convolve_plainly, strides=strides), images, kernel)
    assert_alike(ours, theirs, 1e-5 if dtype == jnp.float32 else 3e-2)


@DRAWN
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    size=st.sampled_from([3, 5, 7]),
    strides=st.sampled_from([1, 2, 3]),
    chunk_bytes=st.sampled_from([1, 10_000, CHUNK_BYTES]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
)
def test_the_kernel_gradient_by_windows_is_the_one_that_jax_derives(height, width, size, strides, chunk_bytes, dtype):
    images, kernel = draw(0, 6, height, width, 3).astype(dtype), draw(1, size, size, 3, 1).astype(dtype)
    gradient = jnp.sin(convolve_plainly(images, kernel, strides=strides))
    theirs = jax.jit(plain(strides).kernel_gradient)(images, kernel, gradient)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tll_jax.models.ops.chunks.CHUNK_BYTES", chunk_bytes)
        ours = jax.jit(partial(kernel_gradient_unfolded, strides=strides))(images, kernel, gradient)
    assert_alike([ours], [theirs], 1e-5 if dtype == jnp.float32 else 3e-2)


@pytest.mark.parametrize("padding", ["SAME", 1])
@pytest.mark.parametrize(("height", "width"), [(8, 6), (9, 7), (8, 5), (1, 2)])
def test_a_stem_of_stride_two_equals_the_plain_layer_in_values_and_gradients(padding, height, width):
    images, kernel = draw(0, 2, height, width, 3), draw(1, 3, 3, 3, 4)

    def layer(convolution):
        module = nn.Conv(4, (3, 3), 2, padding=padding, use_bias=False, conv_general_dilated=convolution)
        return lambda images, kernel: module.apply({"params": {"kernel": kernel}}, images)

    ours, theirs = (values_and_gradients(layer(way), images, kernel) for way in (convolve_pixels, None))
    assert_alike(ours, theirs, 1e-5)


def test_a_batch_is_cut_into_chunks_of_about_the_bytes_aimed_at():
    mib = 2**20
    assert num_chunks(batch=64, image_bytes=mib, shared_bytes=0) == 16
    assert num_chunks(batch=64, image_bytes=mib, shared_bytes=32 * mib) == 2
    # 16 chunks of 4.125 MiB would be too large; 22 is the next divisor of 66.
    assert num_chunks(batch=66, image_bytes=mib, shared_bytes=0) == 22
    assert num_chunks(batch=67, image_bytes=mib, shared_bytes=0) == 1
    assert num_chunks(batch=3, image_bytes=20 * mib, shared_bytes=0) == 3
    assert num_chunks(batch=8, image_bytes=1, shared_bytes=0) == 1


def test_the_devices_of_a_mesh_keep_their_images_in_chunks(monkeypatch):
    mesh = make_mesh()
    images, kernel = draw(0, 64, 8, 8, 4), draw(1, 3, 3, 4, 4)
    monkeypatch.setattr("tll_jax.models.ops.chunks.CHUNK_BYTES", 16 * 36 * 4 * 4 * 4)
    jitted = jax.jit(partial(convolve_by_tiles, size=4), in_shardings=(batch_sharded(mesh), replicated(mesh)))
    program = jitted.lower(images, kernel).compile()
    assert " while(" in program.as_text()
    assert "all-gather" not in program.as_text()
    np.testing.assert_allclose(
        program(*jax.device_put((images, kernel), program.input_shardings[0])),
        convolve_plainly(images, kernel),
        atol=1e-4,
    )


def test_sums_over_chunks_hold_fp32_accuracy(monkeypatch):
    images, kernel, gradient = draw(0, 32, 8, 8, 4), draw(1, 3, 3, 4, 4), draw(2, 32, 8, 8, 4)
    with jax.enable_x64(True):
        doubles = (array.astype(jnp.float64) for array in (images, kernel, gradient))
        exact = np.asarray(plain(1).kernel_gradient(*doubles))
    monkeypatch.setattr("tll_jax.models.ops.chunks.CHUNK_BYTES", 1)
    for found in (
        kernel_gradient_unfolded(images, kernel, gradient),
        kernel_gradient_by_tiles(images, gradient, size=4),
    ):
        np.testing.assert_allclose(found, exact, atol=1e-5 * np.abs(exact).max())


@DRAWN
@given(
    height=st.integers(4, 12).map(lambda half: 2 * half),
    width=st.integers(4, 12).map(lambda half: 2 * half),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
)
def test_folding_equals_the_plain_stem_in_values_and_gradients(height, width, dtype):
    images, kernel = draw(0, 2, height, width, 3).astype(dtype), draw(1, 7, 7, 3, 4).astype(dtype)
    ours = values_and_gradients(convolve_folded, images, kernel)
    theirs = values_and_gradients(partial(convolve_plainly, strides=2), images, kernel)
    assert_alike(ours, theirs, 1e-5 if dtype == jnp.float32 else 3e-2)


@DRAWN
@given(
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    size=st.sampled_from([2, 4]),
    chunk_bytes=st.sampled_from([1, CHUNK_BYTES]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
)
def test_tiles_equal_the_plain_convolution_in_values_and_gradients(height, width, size, chunk_bytes, dtype):
    images, kernel = draw(0, 2, height, width, 3).astype(dtype), draw(1, 3, 3, 3, 4).astype(dtype)
    gradient = draw(2, 2, height, width, 4).astype(dtype)
    ours, theirs = by_tiles(size), plain(1)
    for part, arguments in [
        ("forward", (images, kernel)),
        ("image_gradient", (images, kernel, gradient)),
        ("kernel_gradient", (images, kernel, gradient)),
    ]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tll_jax.models.ops.chunks.CHUNK_BYTES", chunk_bytes)
            results = [[jax.jit(getattr(way, part))(*arguments)] for way in (ours, theirs)]
        assert_alike(*results, 1e-5 if dtype == jnp.float32 else 3e-2)


@pytest.mark.parametrize("channels", [64, 512])
def test_tiles_hold_fp32_accuracy_over_many_channels(channels):
    images, kernel = draw(0, 1, 8, 8, channels), draw(1, 3, 3, channels, 8) / np.sqrt(9 * channels)
    with jax.enable_x64(True):
        exact = np.asarray(convolve_plainly(images.astype(jnp.float64), kernel.astype(jnp.float64)))
    # Values are about 1 in size; the plain fp32 convolution errs by 2e-7 to 4e-7.
    assert np.sqrt(np.mean((np.asarray(convolve_by_tiles(images, kernel, size=4)) - exact) ** 2)) < 5e-6


@DRAWN
@given(
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    window=st.sampled_from([(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)]),
    channels=st.sampled_from([3, 6]),
    features=st.sampled_from([4, 64]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
)
def test_convolve_equals_the_plain_convolution_in_values_and_gradients(
    height, width, window, channels, features, dtype
):
    size, strides = window
    images, kernel = draw(0, 8, height, width, channels), draw(1, size, size, channels, features)
    images, kernel = images.astype(dtype), kernel.astype(dtype)
    ours, theirs = (
        values_and_gradients(partial(function, strides=strides), images, kernel)
        for function in (convolve, convolve_plainly)
    )
    assert_alike(ours, theirs, 1e-5 if dtype == jnp.float32 else 3e-2)


def test_convolve_works_under_vmap_and_twice_differentiated():
    images, kernel = draw(0, 3, 2, 4, 4, 2), draw(1, 3, 3, 2, 2)

    def curvature(function):
        def loss(image):
            return jnp.sum(function(image, kernel) ** 3)

        def gradient_norm(image):
            return jnp.sum(jax.grad(loss)(image) ** 2)

        return jax.jit(jax.vmap(jax.grad(gradient_norm)))(images)

    assert_alike([curvature(convolve)], [curvature(convolve_plainly)], 1e-5)


@pytest.mark.parametrize(("size", "strides"), [(4, 1), (20, 1), (20, 2)])
def test_single_images_under_vmap_get_the_lowering_of_their_batch(size, strides, monkeypatch):
    images, kernel = draw(0, 3, 5, 1, size, size, 4), draw(1, 3, 3, 4, 4)
    seen = []

    def watched(image_shape, *others):
        seen.append(image_shape)
        return lowering_for(image_shape, *others)

    monkeypatch.setattr("tll_jax.models.ops.convolution.lowering_for", watched)

    def gradient(function):
        def score(image):
            return jnp.sum(function(image, kernel, strides=strides) ** 3)

        return jax.jit(jax.vmap(jax.vmap(jax.value_and_grad(score))))(images)

    ours = gradient(convolve)
    assert seen.count((15, size, size, 4)) == 2
    assert_alike(ours, gradient(convolve_plainly), 1e-5)


def test_a_vmap_over_kernels_stays_one():
    images, kernels = draw(0, 2, 6, 6, 4), draw(1, 3, 3, 3, 4, 2)
    ours, theirs = (
        jax.jit(jax.vmap(jax.grad(lambda kernel, function=function: jnp.sum(function(images, kernel) ** 3))))(kernels)
        for function in (convolve, convolve_plainly)
    )
    assert_alike([ours], [theirs], 1e-5)


@DRAWN
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    size=st.sampled_from([1, 2, 3, 5, 7]),
    strides=st.sampled_from([1, 2, 3]),
)
def test_convolution_with_the_rotated_kernel_is_the_gradient_that_jax_derives(height, width, size, strides):
    if min(height, width) + 2 * ((size - 1) // 2) < size:
        return
    images, kernel = draw(0, 2, height, width, 3), draw(1, size, size, 3, 4)
    gradient = jnp.sin(convolve_plainly(images, kernel, strides=strides))
    ours, theirs = (
        jax.jit(lowering(strides).image_gradient)(images, kernel, gradient) for lowering in (plain_on_cpus, plain)
    )
    assert_alike([ours], [theirs], 1e-5)


@pytest.mark.parametrize(("size", "window", "strides"), [(4, 3, 1), (8, 1, 1), (16, 3, 1), (8, 3, 2)])
def test_only_a_cpu_program_holds_dots(size, window, strides):
    def gradients(images, kernel):
        return jax.grad(lambda i, k: jnp.sum(convolve(i, k, strides=strides) ** 2), (0, 1))(images, kernel)

    traced = jax.jit(gradients).trace(jnp.ones((2, size, size, 3)), jnp.ones((window, window, 3, 4)))
    for platform, wanted, unwanted in [
        ("cpu", "dot_general", "stablehlo.convolution"),
        ("cuda", "stablehlo.convolution", "dot_general"),
        ("tpu", "stablehlo.convolution", "dot_general"),
    ]:
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert wanted in program
        assert unwanted not in program


@DRAWN
@given(height=st.integers(1, 12), width=st.integers(1, 12))
def test_max_pool_equals_the_windowed_maximum_in_values_and_gradients(height, width):
    images = draw(height, 2, height, width, 3)

    def squares(pool, images):
        pooled = pool(images)
        return jnp.sum(pooled**2), pooled

    (ours, my_pooled), (theirs, pooled) = (
        jax.jit(jax.grad(partial(squares, pool), has_aux=True))(images) for pool in (max_pool, max_pool_plainly)
    )
    np.testing.assert_array_equal(my_pooled, pooled)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_max_pool_takes_the_largest_of_each_window():
    # Windows of rows and columns 0-1, 1-3 and 3-4, whose largest are their last.
    images = jnp.arange(25.0).reshape(1, 5, 5, 1)
    expected = [[6, 8, 9], [16, 18, 19], [21, 23, 24]]
    for pool in (max_pool, max_pool_plainly):
        np.testing.assert_array_equal(pool(images)[0, :, :, 0], expected)


def first_largest_takes_all(images, gradient):
    """The gradient of max pooling by loops: of each window, the first largest value in row-major order takes it."""
    taken = np.zeros(images.shape)
    for image, row, column, channel in np.ndindex(*gradient.shape):
        places = [
            (place_row, place_column)
            for place_row in range(max(0, 2 * row - 1), min(images.shape[1], 2 * row + 2))
            for place_column in range(max(0, 2 * column - 1), min(images.shape[2], 2 * column + 2))
        ]
        # Python's max keeps the first of equals.
        winner = max(places, key=lambda place: images[image, *place, channel])
        taken[image, *winner, channel] += gradient[image, row, column, channel]
    return taken


@pytest.mark.parametrize("shape", [(2, 6, 7, 2), (1, 1, 4, 1)])
def test_the_first_of_tied_maxima_gets_the_whole_gradient_on_every_platform(shape):
    @jax.jit
    def gradients(images, gradient):
        return [jax.vjp(pool, images)[1](gradient)[0] for pool in (max_pool, max_pool_plainly)]

    pooled = (shape[0], (shape[1] + 1) // 2, (shape[2] + 1) // 2, shape[3])
    gradient = np.arange(1, np.prod(pooled) + 1, dtype=np.float32).reshape(pooled)
    # One level: a flat map. Two, of zeros and ones below them: no padding may win.
    for levels in (1, 2, 4):
        images = -np.random.default_rng(levels).integers(levels, size=shape).astype(np.float32)
        for found in gradients(images, gradient):
            np.testing.assert_array_equal(found, first_largest_takes_all(images, gradient))


@pytest.mark.parametrize("activation", [nn.relu, guided_relu, deconvnet_relu])
def test_heat_maps_of_flat_pictures_are_the_same_on_every_platform(activation):
    # A square on a flat background, as emoji are: nearly every window of the stem is a tie.
    image = jnp.zeros((9, 8, 3)).at[3:6, 2:5].set(1.0)
    kernel = draw(0, 3, 3, 3, 4)

    def heatmap(pool):
        def score(image):
            maps = pool(activation(convolve_plainly(image[None], kernel)))
            return jnp.sum(jnp.cos(maps) * jnp.arange(maps.size).reshape(maps.shape))

        return saliency_gradient(score, image)

    ours, theirs = jax.jit(lambda: (heatmap(max_pool), heatmap(max_pool_plainly)))()
    assert jnp.any(ours != 0)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_max_pool_works_under_vmap_and_twice_differentiated_at_ties():
    images = jnp.asarray(np.random.default_rng(0).integers(2, size=(3, 1, 5, 6, 2)), jnp.float32)

    def curvature(pool):
        def gradient_norm(image):
            return jnp.sum(jax.grad(lambda image: jnp.sum(pool(image) ** 3))(image) ** 2)

        return jax.vmap(jax.grad(gradient_norm))(images)

    ours, theirs = jax.jit(lambda: (curvature(max_pool), curvature(max_pool_plainly)))()
    assert jnp.any(ours != 0)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_max_pool_propagates_nan():
    images = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan)
    # Rows and columns 0-1 and 1-3: all four windows hold the pixel.
    assert jnp.all(jnp.isnan(max_pool(images)))


def test_only_a_cpu_program_pools_shifted_images():
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    gradient = jax.jit(jax.grad(lambda images: jnp.sum(max_pool(images))))
    cpu, tpu = (gradient.trace(images).lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "tpu"))
    assert "select_and_scatter" not in cpu
    assert "select_and_scatter" in tpu


def test_the_layer_keeps_fp32_parameters_and_computes_in_its_dtype():
    layer = Convolution(features=5, kernel_size=3, strides=2, dtype=jnp.bfloat16)
    outputs, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 8, 8, 3)))
    assert variables["params"]["kernel"].shape == (3, 3, 3, 5)
    assert variables["params"]["kernel"].dtype == jnp.float32
    assert outputs.dtype == jnp.bfloat16
    assert outputs.shape == (2, 4, 4, 5)


def test_kernels_are_initialized_with_the_fan_out_variance():
    variables = Convolution(features=64, kernel_size=3).init(jax.random.key(0), jnp.ones((1, 8, 8, 32)))
    assert np.var(variables["params"]["kernel"]) == pytest.approx(2 / (9 * 64), rel=0.05)


def test_a_depthwise_convolution_is_the_sum_over_each_channels_window():
    images, kernel = draw(0, 2, 6, 5, 3), draw(1, 3, 3, 1, 3)
    # SAME: 6 rows in steps of 2 need one row of zeros, after the last; 5 columns need one on either side.
    padded = np.zeros((2, 7, 7, 3))
    padded[:, :6, 1:6] = images
    expected = np.zeros((2, 3, 3, 3))
    for image, row, column, channel in np.ndindex(*expected.shape):
        window = padded[image, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3, channel]
        expected[image, row, column, channel] = np.sum(window * np.asarray(kernel)[..., 0, channel])
    np.testing.assert_allclose(convolve_depthwise(images, kernel, strides=2), expected, atol=1e-5)


def test_a_symmetric_depthwise_convolution_is_the_convolution_of_every_channel():
    images, kernel = draw(0, 2, 6, 5, 3), draw(1, 3, 3, 1, 3)
    found = convolve_depthwise(images, kernel, strides=2, symmetric=True)
    for channel in range(3):
        alone = convolve_plainly(images[..., channel : channel + 1], kernel[..., channel : channel + 1], strides=2)
        np.testing.assert_allclose(found[..., channel], alone[..., 0], atol=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("size", "strides"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_shifted_images_sum_to_the_depthwise_convolution(size, strides, symmetric):
    images, kernel = draw(0, 2, 9, 8, 4), draw(1, size, size, 1, 4)
    ours, theirs = (
        values_and_gradients(partial(function, strides=strides, symmetric=symmetric), images, kernel)
        for function in (convolve_depthwise_shifted, convolve_depthwise_plainly)
    )
    assert_alike(ours, theirs, 1e-5)


def test_only_cpus_shift_images():
    lower = jax.jit(convolve_depthwise).trace(draw(0, 2, 9, 8, 4), draw(1, 3, 3, 1, 4)).lower
    assert "stablehlo.convolution" not in lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.convolution" in lower(lowering_platforms=("tpu",)).as_text()
