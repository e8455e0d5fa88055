"""kNN probe against a slow loop, and the linear probe by its optimality conditions."""

import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.evaluation.probes import fit_logistic, linear_accuracy, neighbors_accuracy


def clusters(seed, *, count, spread):
    """Rows around three centers, with their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    centers = 3 * np.eye(3, 5) + 1
    return (centers[labels] + spread * rng.normal(size=(count, 5))).astype(np.float32), labels


def test_knn_accuracy_agrees_with_a_slow_loop():
    (train, labels), (test, expected) = clusters(0, count=60, spread=2.0), clusters(1, count=40, spread=2.0)
    hits = 0
    for row, label in zip(test, expected, strict=True):
        cosines = [row @ other / np.linalg.norm(row) / np.linalg.norm(other) for other in train]
        votes = [sum(labels[i] == one for i in np.argsort(cosines)[-7:]) for one in range(3)]
        hits += votes.index(max(votes)) == label
    assert 0.4 < hits / 40 < 1
    assert neighbors_accuracy(train, labels, test, expected, num_neighbors=7) == pytest.approx(hits / 40)


def test_neighbors_are_all_rows_where_there_are_fewer():
    train, labels = np.eye(3, dtype=np.float32), np.array([2, 1, 1])
    assert neighbors_accuracy(train, labels, train, labels, num_neighbors=20) == pytest.approx(2 / 3)
    assert neighbors_accuracy(train, labels, train, labels, num_neighbors=1) == 1


def test_the_linear_classifier_satisfies_its_optimality_conditions():
    features, labels = clusters(2, count=80, spread=2.0)
    weights, biases = fit_logistic(jnp.asarray(features), jnp.asarray(labels), 3, weight_decay=0.1)
    logits = features @ weights + biases
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    errors = (chances - np.eye(3)[labels]) / len(labels)
    np.testing.assert_allclose(features.T @ errors + 0.1 * weights, 0, atol=1e-4)
    np.testing.assert_allclose(errors.sum(axis=0), 0, atol=1e-4)


def test_separable_classes_are_classified_correctly():
    (train, labels), (test, expected) = clusters(3, count=90, spread=0.3), clusters(4, count=50, spread=0.3)
    # A constant feature has no deviation to divide by.
    train, test = (np.concatenate([one, np.ones((len(one), 1), np.float32)], axis=1) for one in (train, test))
    assert linear_accuracy(train, labels, test, expected, weight_decay=1e-3) == 1
    assert linear_accuracy(train, labels, test, (expected + 1) % 3, weight_decay=1e-3) == 0
