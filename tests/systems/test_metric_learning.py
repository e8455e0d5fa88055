"""Learned linear maps against slow loops, brute force and closed forms."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax import serialize
from tll_jax.ranking import ranks
from tll_jax.settings import validate
from tll_jax.systems.baselines import Hog, Pixels
from tll_jax.systems.metric_learning import (
    MaximumMargin,
    PrincipalComponents,
    RelevantComponents,
    margin_directions,
    principal_axes,
    scatter_matrices,
)
from tll_jax.typing import PairImages, System


@dataclass(kw_only=True)
class Vectors(System):
    """The images themselves, for those that are vectors already."""

    def fit(self, train, validation):
        pass

    def describe_all(self, images):
        return np.stack(images)

    def score(self, queries, candidates):
        raise NotImplementedError


def as_pairs(left, right):
    return PairImages([str(index) for index in range(len(left))], list(left), list(right), np.arange(len(left)))


def correlated_pairs(seed, *, num_pairs, dim, noise, shared=1.0):
    """Pairs whose shared component has deviation `shared` along each dimension, and whose difference has `noise`."""
    random = np.random.default_rng(seed)
    common = random.normal(size=(num_pairs, dim)) * shared
    return [(common + random.normal(size=(num_pairs, dim)) * noise).astype(np.float32) for _ in range(2)]


def slow_scatter(left, right):
    """Between and within, class by class and image by image."""
    dim = left.shape[1]
    everything = np.concatenate([left, right]).mean(axis=0)
    between, within = np.zeros((dim, dim)), np.zeros((dim, dim))
    for pair in zip(left, right, strict=True):
        mean = (pair[0] + pair[1]) / 2
        between += np.outer(mean - everything, mean - everything) / len(left)
        for image in pair:
            within += np.outer(image - mean, image - mean) / 2 / len(left)
    return between, within


def test_scatter_matrices_agree_with_slow_loops_and_add_up_to_the_covariance():
    left, right = correlated_pairs(0, num_pairs=12, dim=5, noise=0.7)
    between, within = scatter_matrices(jnp.asarray(left), jnp.asarray(right))
    slow_between, slow_within = slow_scatter(left, right)
    np.testing.assert_allclose(between, slow_between, atol=1e-5)
    np.testing.assert_allclose(within, slow_within, atol=1e-5)
    np.testing.assert_allclose(between + within, np.cov(np.concatenate([left, right]).T, bias=True), atol=1e-5)


def test_the_margin_of_two_pairs_by_hand():
    # Pairs at (+-2, 0), whose sides differ by +-1 along the second axis alone: S_b = diag(4, 0), S_w = diag(0, 1).
    left, right = jnp.array([[2.0, 1], [-2, 1]]), jnp.array([[2.0, -1], [-2, -1]])
    values, vectors = margin_directions(left, right)
    assert values == pytest.approx([4, -1])
    assert jnp.abs(vectors) == pytest.approx(np.eye(2), abs=1e-6)


def test_no_orthonormal_projection_has_a_larger_margin():
    random = np.random.default_rng(1)
    left, right = correlated_pairs(2, num_pairs=30, dim=6, noise=np.linspace(0.1, 2, 6))
    between, within = slow_scatter(left, right)
    values, vectors = margin_directions(jnp.asarray(left), jnp.asarray(right))
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(6), atol=1e-5)
    for width in (1, 2, 4):
        best = np.trace(vectors[:, :width].T @ (between - within) @ vectors[:, :width])
        assert best == pytest.approx(float(values[:width].sum()), rel=1e-4)
        for _ in range(500):
            other, _ = np.linalg.qr(random.normal(size=(6, width)))
            assert np.trace(other.T @ (between - within) @ other) <= best + 1e-5
    # Nearby projections are no better.
    for _ in range(500):
        near, _ = np.linalg.qr(np.asarray(vectors[:, :2]) + 0.05 * random.normal(size=(6, 2)))
        assert np.trace(near.T @ (between - within) @ near) <= float(values[:2].sum()) + 1e-5


def test_relevant_components_whiten_the_differences_of_the_sides():
    left, right = correlated_pairs(3, num_pairs=40, dim=4, noise=np.array([0.1, 0.5, 1, 3]))
    (matrix,) = (
        RelevantComponents(features=Vectors(), shrinkages=(1e-7,)).learn(jnp.asarray(left), jnp.asarray(right)).values()
    )
    _, within = slow_scatter(left @ np.asarray(matrix), right @ np.asarray(matrix))
    mean_variance = np.trace(slow_scatter(left, right)[1]) / 4
    np.testing.assert_allclose(within, mean_variance * np.eye(4), atol=1e-3 * mean_variance)


def test_much_shrinkage_leaves_the_distances_as_they_are():
    left, right = correlated_pairs(4, num_pairs=40, dim=4, noise=np.array([0.1, 0.5, 1, 3]))
    (matrix,) = (
        RelevantComponents(features=Vectors(), shrinkages=(1e6,)).learn(jnp.asarray(left), jnp.asarray(right)).values()
    )
    np.testing.assert_allclose(1e6 * matrix @ matrix.T, np.eye(4), atol=1e-3)


def test_pairs_of_equal_sides_have_a_finite_metric():
    same = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    for matrix in RelevantComponents(features=Vectors()).learn(same, same).values():
        assert np.isfinite(matrix).all()


@pytest.mark.parametrize(
    "system",
    [MaximumMargin(features=Vectors(), widths=(2,)), RelevantComponents(features=Vectors(), shrinkages=(1e-3,))],
    ids=lambda system: type(system).__name__,
)
def test_directions_in_which_the_sides_of_a_pair_differ_count_less(system):
    # Two dimensions distinguish pairs, two are nearly pure noise.
    strengths = {"shared": np.array([1, 1, 0.1, 0.1]), "noise": np.array([0.02, 0.02, 1, 1])}
    sizes = {5: 2000, 6: 60, 7: 60}
    parts = [correlated_pairs(seed, num_pairs=size, dim=4, **strengths) for seed, size in sizes.items()]
    train, validation, (left, right) = as_pairs(*parts[0]), as_pairs(*parts[1]), parts[2]
    system.fit(train, validation)
    scores = system.score(list(left), list(right))
    assert scores.dtype == np.float32
    distances = np.linalg.norm(left[:, None] - right[None], axis=2)
    assert np.mean(ranks(-distances, np.arange(60)) == 1) < 0.3
    assert np.mean(ranks(scores, np.arange(60)) == 1) > 0.7


def test_maps_are_learned_on_training_pairs_and_selected_on_validation_pairs_alone():
    train = as_pairs(*correlated_pairs(8, num_pairs=20, dim=6, noise=0.5))
    fitted = []
    for seed in (9, 10):
        system = MaximumMargin(features=Vectors(), widths=(1, 3, 5))
        validation = as_pairs(*correlated_pairs(seed, num_pairs=15, dim=6, noise=0.5))
        system.fit(train, validation)
        assert len(system.validation_mrr) == 6
        assert system.validation_mrr[system.chosen] == max(system.validation_mrr.values())
        scores = system.score(validation.left, validation.right)
        both = [np.mean(1 / ranks(way, np.arange(15))) for way in (scores, scores.T)]
        assert system.validation_mrr[system.chosen] == pytest.approx(float(np.mean(both)))
        fitted.append(system)
    for name, matrix in fitted[0].maps.items():
        assert np.array_equal(matrix, fitted[1].maps[name])


def test_both_comparisons_by_hand():
    # One direction, the first axis; the mean of the training pairs is 0.
    train = as_pairs(*np.array([[[2.0, 1], [-2, 1]], [[2.0, -1], [-2, -1]]], np.float32))
    system = MaximumMargin(features=Vectors(), widths=(1,))
    system.fit(train, train)
    queries = [np.array([3.0, 5.0], np.float32)]
    candidates = [np.array([x, 0.0], np.float32) for x in (1.0, 4.0, -2.0)]
    system.chosen = "1 directions euclidean"
    assert system.score(queries, candidates)[0] == pytest.approx([-4, -1, -25], abs=1e-4)
    system.chosen = "1 directions cosine"
    assert system.score(queries, candidates)[0] == pytest.approx([1, 1, -1], abs=1e-5)


@pytest.mark.parametrize("make", [MaximumMargin, RelevantComponents])
def test_maps_need_fitting_score_images_and_survive_json(make):
    images = list(np.random.default_rng(0).integers(0, 256, (8, 20, 24, 3), dtype=np.uint8))
    pairs = as_pairs(images[:4], images[4:])
    system = make(features=Pixels(size=3))
    assert isinstance(system, System)
    with pytest.raises(ValueError, match="call fit first"):
        system.score(images, images)
    with pytest.raises(ValueError, match="needs training pairs"):
        system.fit(as_pairs([], []), pairs)
    system.fit(pairs, pairs)
    assert np.isfinite(system.score(images, images[:3])).all()
    assert serialize.from_json(serialize.to_json(system)) == make(features=Pixels(size=3))


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"widths is \(0,\)"):
        MaximumMargin(features=Hog(), widths=(0,)).check()
    with pytest.raises(ValueError, match=r"shrinkages is \(0\.0,\)"):
        RelevantComponents(features=Hog(), shrinkages=(0.0,)).check()


@pytest.mark.parametrize(
    ("whitening", "deviations"),
    [(0.0, (3.0, 2.0)), (1.0, (1.0, 1.0)), (0.5, (3**0.5, 2**0.5)), (-0.5, (3**1.5, 2**1.5))],
)
def test_principal_components_keep_the_largest_variances_to_a_power(whitening, deviations):
    # Six images on three axes at distances whose mean squares over all six are 9, 4 and 1.
    axes = np.diag(np.sqrt([27.0, 12.0, 3.0])).astype(np.float32) + np.zeros((3, 3), np.float32)
    center = np.asarray([5.0, -1.0, 2.0], np.float32)
    train = as_pairs(center + axes, center - axes)
    system = PrincipalComponents(features=Vectors(), widths=(2,), whitenings=(whitening,))
    system.fit(train, train)
    mapped = system.describe_all([*train.left, *train.right])
    np.testing.assert_allclose(np.sqrt((mapped**2).mean(axis=0)), deviations, rtol=1e-5)
    np.testing.assert_allclose(mapped.mean(axis=0), 0, atol=1e-5)
    assert system.chosen.startswith(f"2 components, whitening {whitening:g}")


@pytest.mark.parametrize("shape", [(7, 30), (30, 7), (9, 9)])
def test_principal_axes_are_those_of_the_singular_values(shape):
    rows = np.random.default_rng(0).normal(size=shape) * np.linspace(0.01, 3, shape[1])
    rows -= rows.mean(axis=0)
    _, lengths, directions = np.linalg.svd(rows, full_matrices=False)
    rank = min(shape[0] - 1, shape[1])
    deviations, axes = principal_axes(rows)
    np.testing.assert_allclose(deviations, lengths[:rank] / np.sqrt(shape[0]), rtol=1e-6)
    np.testing.assert_allclose(np.abs(axes.T @ directions[:rank].T), np.eye(rank), atol=1e-5)


def test_components_without_variance_are_dropped():
    flat = np.random.default_rng(0).normal(size=(2, 9, 1)).astype(np.float32) * np.ones(5, np.float32)
    system = PrincipalComponents(features=Vectors(), widths=(4,), whitenings=(1.0,))
    train = as_pairs(*flat)
    system.fit(train, train)
    assert system.describe_all(train.left).shape == (9, 1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"widths": ()}, "widths"),
        ({"whitenings": (1.5,)}, "whitenings"),
        ({"comparisons": ("manhattan",)}, "comparisons"),
    ],
)
def test_impossible_components_are_refused(fields, words):
    with pytest.raises(ValueError, match=f"PrincipalComponents.{words} is"):
        validate(PrincipalComponents(features=Vectors(), **fields))


def test_stacked_maps_equal_the_product_of_their_matrices():
    left, right = correlated_pairs(11, num_pairs=60, dim=5, noise=np.array([0.1, 0.3, 1, 2, 3]))
    train = as_pairs(left, right)
    first = PrincipalComponents(features=Vectors(), widths=(4,), whitenings=(0.5,), comparisons=("cosine",))
    second = RelevantComponents(features=first, shrinkages=(0.4,), comparisons=("cosine",))
    third = PrincipalComponents(features=second, widths=(4,), whitenings=(-0.5,), comparisons=("cosine",))
    third.fit(train, train)
    assert third.chosen.endswith("cosine")

    # By hand: each component by its variance to the -1/4; the whitening of the differences; and, turned to their own
    # principal axes, each by its variance to the 1/4.
    center = np.concatenate([left, right]).mean(axis=0)
    stacked = np.concatenate([left, right]) - center
    values, vectors = np.linalg.eigh(stacked.T @ stacked / len(stacked))
    scaled = stacked @ (vectors[:, 1:] * values[1:] ** -0.25)
    a, b = np.split(scaled, 2)
    within = (a - b).T @ (a - b) / len(a)
    within = within / (np.trace(within) / 4) + 0.4 * np.eye(4)
    values, vectors = np.linalg.eigh(within)
    whitened = scaled @ (vectors * values**-0.5) @ vectors.T
    values, vectors = np.linalg.eigh(whitened.T @ whitened / len(whitened))
    expected = whitened @ (vectors * values**0.25)
    found = third.describe_all([*train.left, *train.right])
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4 * np.abs(expected @ expected.T).max())
