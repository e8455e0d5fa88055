"""Features of a frozen network: pooling against slow loops, and the cache by content, settings and weights."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.geometry import Resize
from tll_jax.data.imaging import content_hash
from tll_jax.models.resnet import ResNet
from tll_jax.models.weights import WeightFile, to_torch
from tll_jax.settings import validate
from tll_jax.systems.frozen_features import Embedder, FrozenFeatures, adaptive_avg_pool, channel_statistics
from tll_jax.typing import PairImages, System

BACKBONE = ResNet(depth=10, width=4)
SIZE = 16


@jax.jit
def initial(seed):
    images = jnp.zeros((1, SIZE, SIZE, 3))
    return BACKBONE.build(dtype=jnp.float32).init(jax.random.key(seed), images, train=False)


@jax.jit
def stages_of(variables, image):
    return BACKBONE.build(dtype=jnp.float32).apply(variables, image[None] / 255.0, train=False).stages


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("TLL_CACHE", str(tmp_path / "cache"))

    def make(seed=0, **fields):
        path = tmp_path / f"weights-{seed}.safetensors"
        if not path.exists():
            save_file(to_torch(initial(seed), BACKBONE.torch_name), path)
        fields = {"stages": (1, 3), "grid": 2, "geometry": Resize(size=SIZE), "batch_size": 8} | fields
        return FrozenFeatures(backbone=BACKBONE, weights=WeightFile(path=str(path)), **fields)

    return make


def some_images(number, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, size=(number, SIZE, SIZE, 3), dtype=np.uint8))


def as_pairs(left, right):
    return PairImages([str(number) for number in range(len(left))], left, right, np.arange(len(left)))


def kept(tmp_path):
    return sorted((tmp_path / "cache").rglob("*.npy"))


@pytest.mark.parametrize(("side", "grid"), [(4, 2), (7, 3), (5, 1), (3, 3), (2, 3)])
def test_adaptive_pooling_takes_means_over_equal_parts_of_the_area(side, grid):
    maps = np.random.default_rng(0).normal(size=(1, side, side, 2)).astype(np.float32)
    # Every position cut into grid x grid pieces: bins then hold whole pieces.
    pieces = maps.repeat(grid, axis=1).repeat(grid, axis=2)
    expected = pieces.reshape(1, grid, side, grid, side, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(adaptive_avg_pool(jnp.asarray(maps), grid), expected, atol=1e-6)


def test_features_are_the_stages_means_each_at_unit_length(settings):
    system = settings(grid=1)
    image = some_images(1)[0]
    features = system.describe_all([image])[0]
    stages = stages_of(initial(0), image)
    means = [np.asarray(stages[number]).mean(axis=(0, 1, 2)) for number in (1, 3)]
    expected = np.concatenate([mean / np.linalg.norm(mean) for mean in means])
    np.testing.assert_allclose(features, expected, atol=1e-5)
    assert isinstance(system, System)


def test_standardized_features_by_a_slow_loop(settings):
    train = as_pairs(some_images(6), some_images(6, seed=1))
    system = settings(standardize=True)
    with pytest.raises(ValueError, match="call fit first"):
        system.describe_all(train.left)
    system.fit(train, train)
    pictures = [*train.left, *train.right]
    found = system.describe_all(pictures)
    expected = []
    for number in (1, 3):
        maps = np.concatenate([np.asarray(stages_of(initial(0), image)[number]) for image in pictures])
        pooled = np.asarray(adaptive_avg_pool(jnp.asarray(maps), 2))
        deviations = pooled.std(axis=(0, 1, 2))
        # Behind a ReLU some channels are 0 everywhere.
        pooled = (pooled - pooled.mean(axis=(0, 1, 2))) / np.where(deviations > 0, deviations, 1)
        for image in np.ndindex(pooled.shape[:3]):
            pooled[image] /= np.linalg.norm(pooled[image])
        # Four positions of unit length each.
        expected.append(pooled.reshape(len(pictures), -1) / 2)
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), atol=1e-3)


def test_a_constant_channel_has_a_deviation_of_one():
    pooled = np.full((3, 4, 2), 0.1, np.float32)
    pooled[:, :, 1] = np.arange(12).reshape(3, 4)
    mean, deviation = channel_statistics([pooled[:2], pooled[2:]])
    np.testing.assert_allclose(mean, [0.1, 5.5], rtol=1e-6)
    np.testing.assert_allclose(deviation, [1, np.arange(12).std()], rtol=1e-6)


def test_the_features_of_an_image_are_computed_once(settings, tmp_path, monkeypatch):
    first, second = some_images(5), some_images(3, seed=1)
    features = settings().describe_all(first)
    assert len(kept(tmp_path)) == 5
    passed = []
    embedder = Embedder.__call__

    def watch(self, variables, images):
        passed.extend(content_hash(image) for image in images)
        return embedder(self, variables, images)

    monkeypatch.setattr(Embedder, "__call__", watch)
    again = settings().describe_all([*first[::-1], *second, second[0]])
    assert sorted(passed) == sorted(content_hash(image) for image in second)
    np.testing.assert_array_equal(again[:5][::-1], features)
    np.testing.assert_array_equal(again[5], again[8])


def as_npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


DAMAGES = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "cut in its header": lambda whole: whole[:20],
    "a byte short": lambda whole: whole[:-1],
    "empty": lambda whole: b"",
    "zeros": lambda whole: bytes(len(whole)),
    "words": lambda whole: b"no array",
    "a pickle": lambda whole: b"\x80\x04\x95\x1f\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    "a header that is no Python": lambda whole: whole.replace(b"'fortran_order'", b"(fortran_order)"),
    "a terabyte": lambda whole: whole.replace(b"(4, 20), }          ", b"(4, 20000000000), }"),
    "other shape": lambda whole: as_npy(np.zeros((4, 3), np.float32)),
    "other numbers": lambda whole: as_npy(np.zeros((4, 20), np.int64)),
    "a zip": lambda whole: b"PK\x03\x04" + whole,
}


@pytest.fixture
def one_kept(settings, tmp_path):
    """A system with one cached image, the image's features, and the cache file."""
    system, images = settings(), some_images(1)
    (good,) = system.describe_all(images)
    (path,) = kept(tmp_path)
    return system, images, good, path


def test_damaged_features_are_named_and_computed_again(one_kept, caplog):
    system, images, good, path = one_kept
    whole = path.read_bytes()
    for name, damage in DAMAGES.items():
        caplog.clear()
        path.write_bytes(damage(whole))
        assert path.read_bytes() != whole, name
        np.testing.assert_array_equal(system.describe_all(images)[0], good, err_msg=name)
        assert caplog.messages == [f"the kept features in {path} are damaged: they are computed again"], name
        assert path.read_bytes() == whole, name


def test_features_that_cannot_be_cached_are_still_computed(one_kept, monkeypatch, caplog):
    system, images, good, path = one_kept
    monkeypatch.setenv("TLL_CACHE", str(path / "cache"))
    elsewhere = FrozenFeatures(
        backbone=system.backbone,
        weights=system.weights,
        stages=system.stages,
        grid=system.grid,
        geometry=system.geometry,
        batch_size=system.batch_size,
    )
    np.testing.assert_array_equal(elsewhere.describe_all([*images, *images])[1], good)
    (warning,) = caplog.messages
    assert f"{path / 'cache'} cannot be used" in warning


def test_pictures_of_pairs_give_the_same_features_as_their_pixels(settings):
    pairs = EmojiPairs().open().images(range(6))
    found = settings().describe_all(pairs.left)
    np.testing.assert_array_equal(found, settings().describe_all(list(pairs.left)))


def test_weights_stages_grids_and_sizes_have_separate_caches(settings, tmp_path):
    images = some_images(1)
    variants = [
        settings(),
        settings(seed=1),
        settings(stages=(2,)),
        settings(grid=1),
        settings(geometry=Resize(size=24)),
    ]
    folders = set()
    for number, variant in enumerate(variants, start=1):
        variant.describe_all(images)
        folders |= {path.parent for path in kept(tmp_path)}
        assert len(folders) == number
    variants[0].batch_size = 4
    variants[0].describe_all(images)
    assert {path.parent for path in kept(tmp_path)} == folders


@pytest.mark.parametrize("stages", [(), (5,), (-1, 2)])
def test_stages_that_the_backbone_lacks_are_refused(settings, stages):
    with pytest.raises(ValueError, match=r"FrozenFeatures\.stages is .* from 0 to 4"):
        validate(settings(stages=stages))
    with pytest.raises(ValueError, match=r"FrozenFeatures\.grid is 0; it must be at least 1"):
        validate(settings(grid=0))
