"""Triplet losses, distances and mining against paper and slow loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance

from tll_jax.losses.triplet import mine_negatives, pairwise_distances, row_distances, triplet

ANCHOR = jnp.array([[0.0, 0.0], [1.0, 0.0]])
POSITIVE = jnp.array([[1.0, 0.0], [1.0, 0.0]])
NEGATIVE = jnp.array([[0.0, 2.0], [1.0, 0.5]])

DISTANCES = ["squared_l2", "l2", "cosine"]


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_triplet_loss_counts_only_violated_margins():
    # Row 1: 1 - 4 + 1 < 0, so nothing. Row 2: 0 - 0.25 + 1 = 0.75.
    assert triplet(ANCHOR, POSITIVE, NEGATIVE, margin=1.0) == 0.375


def test_triplet_loss_with_plain_distances():
    # Row 1: 1 - 2 + 1 = 0. Row 2: 0 - 0.5 + 1 = 0.5.
    assert triplet(ANCHOR, POSITIVE, NEGATIVE, margin=1.0, distance="l2") == 0.25


def test_the_soft_margin_of_equal_distances_is_log_two():
    loss = triplet(ANCHOR, POSITIVE, POSITIVE, margin=1.0, soft_margin=True)
    assert loss == pytest.approx(np.log(2))


def test_the_soft_margin_is_the_logarithm_of_one_plus_the_exponential():
    # d+ - d- is -3 and -0.25.
    expected = (np.log1p(np.exp(-3)) + np.log1p(np.exp(-0.25))) / 2
    loss = triplet(ANCHOR, POSITIVE, NEGATIVE, margin=1.0, soft_margin=True)
    assert loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("distance", "metric"), [("squared_l2", "sqeuclidean"), ("l2", "euclidean"), ("cosine", "cosine")]
)
def test_distances_are_those_of_scipy(distance, metric):
    a, b = draw(0, 5, 4), draw(1, 7, 4)
    expected = scipy.spatial.distance.cdist(a, b, metric)
    np.testing.assert_allclose(pairwise_distances(a, b, distance=distance), expected, atol=1e-5)
    np.testing.assert_allclose(row_distances(a, b[:5], distance=distance), np.diagonal(expected), atol=1e-5)


@pytest.mark.parametrize(("distance", "metric"), [("squared_l2", "sqeuclidean"), ("l2", "euclidean")])
def test_distances_far_from_the_origin_lose_no_digits(distance, metric):
    a, b = draw(0, 5, 4) + 3000, draw(1, 7, 4) + 3000
    expected = scipy.spatial.distance.cdist(np.asarray(a, np.float64), np.asarray(b, np.float64), metric)
    np.testing.assert_allclose(pairwise_distances(a, b, distance=distance), expected, rtol=1e-5)

    def total(distances, a, b):
        return jnp.sum(jnp.cos(distances(a, b, distance=distance)))

    # The rows of `row_distances` are differences.
    ours = jax.grad(lambda a: total(pairwise_distances, a, b[:1]))(a)
    theirs = jax.grad(lambda a: total(row_distances, a, jnp.repeat(b[:1], 5, axis=0)))(a)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_are_finite_at_equal_and_at_zero_vectors(distance):
    vectors = jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.3, 0.4]])

    def total(vectors, distances):
        return jnp.sum(distances(vectors, vectors[::-1], distance=distance))

    for distances in (pairwise_distances, row_distances):
        assert np.isfinite(jax.grad(total)(vectors, distances)).all()


@pytest.mark.parametrize("distance", ["squared_l2", "l2"])
def test_equal_vectors_have_zero_gradient(distance):
    vector = jnp.array([[0.6, 0.8]])
    gradient = jax.grad(lambda a: jnp.sum(pairwise_distances(a, vector, distance=distance)))(vector)
    np.testing.assert_array_equal(gradient, 0)


def test_the_plain_distance_has_a_gradient_of_unit_length():
    a, b = jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 0.0]])
    gradient = jax.grad(lambda a: jnp.sum(pairwise_distances(a, b, distance="l2")))(a)
    np.testing.assert_allclose(gradient, [[0.6, 0.8]], rtol=1e-6)


def test_semi_hard_mining_takes_the_nearest_negative_beyond_the_positive_or_else_the_farthest():
    distances = jnp.array([[0.5, 2.0, 1.5, 9.0], [0.1, 0.4, 0.2, 9.0], [0.5, 2.0, 1.5, 9.0]])
    is_negative = jnp.array([[True, True, True, True], [True, True, True, False], [True, True, False, True]])
    positive = jnp.array([1.0, 1.0, 1.0])
    # Row 1: beyond 1.0 lie 2.0, 1.5, 9.0. Row 2: all are nearer, 0.4 is farthest. Row 3: 1.5 is forbidden.
    chosen = mine_negatives(distances, positive, is_negative, mining="semi_hard")
    np.testing.assert_array_equal(chosen, [2, 1, 1])


def test_batch_hard_mining_takes_the_nearest_negative():
    distances = jnp.array([[0.5, 2.0, 1.5], [0.1, 0.4, 0.2]])
    is_negative = jnp.array([[True, True, True], [False, True, True]])
    chosen = mine_negatives(distances, jnp.ones(2), is_negative, mining="batch_hard")
    np.testing.assert_array_equal(chosen, [0, 2])


def test_random_mining_is_uniform_over_negatives():
    is_negative = jnp.broadcast_to(jnp.array([True, False, True, True]), (3000, 4))
    chosen = mine_negatives(jnp.zeros((3000, 4)), jnp.zeros(3000), is_negative, mining="random", key=jax.random.key(0))
    counts = np.bincount(chosen, minlength=4)
    assert counts[1] == 0
    # Standard deviation 26.
    assert abs(counts[[0, 2, 3]] - 1000).max() < 130


def test_random_mining_without_a_key_is_refused():
    with pytest.raises(ValueError, match="needs a key"):
        mine_negatives(jnp.zeros((2, 2)), jnp.zeros(2), jnp.ones((2, 2), bool), mining="random")


@pytest.mark.parametrize("mining", ["semi_hard", "batch_hard"])
def test_mining_agrees_with_a_slow_loop(mining):
    random = np.random.default_rng(0)
    distances, positive = random.uniform(size=(40, 9)), random.uniform(size=40)
    is_negative = random.uniform(size=(40, 9)) < 0.4
    is_negative[:, 0] = True
    expected = []
    for row, own, allowed in zip(distances, positive, is_negative, strict=True):
        candidates = sorted((value, column) for column, value in enumerate(row) if allowed[column])
        if mining == "semi_hard":
            candidates = [pair for pair in candidates if pair[0] > own] or candidates[::-1]
        expected.append(candidates[0][1])
    chosen = mine_negatives(
        jnp.asarray(distances, jnp.float32),
        jnp.asarray(positive, jnp.float32),
        jnp.asarray(is_negative),
        mining=mining,
    )
    np.testing.assert_array_equal(chosen, expected)
