"""Grades and curves: numbers worked by hand, closed forms on scores that are sums of pixels, slow loops and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tll_jax.saliency.baselines import flat
from tll_jax.saliency.curves import (
    area,
    deletion_curve,
    insertion_curve,
    reciprocal_ranks,
    shares_in_order,
    similarities,
)
from tll_jax.saliency.faithfulness import (
    agreement,
    largest_change,
    max_sensitivity,
    noise_map,
    noisy_copies,
    one_minus_r2,
    random_squares,
    randomized,
    sparseness,
    top_down,
    unexplained_variance,
)

BLACK = flat(0.0)
RANDOM = np.random.default_rng(0)
IMAGE = jnp.asarray(RANDOM.uniform(size=(6, 6, 3)), jnp.float32)
WEIGHTS = jnp.asarray(RANDOM.normal(size=(6, 6, 3)), jnp.float32)
NOISE = jnp.asarray(RANDOM.uniform(size=(6, 6)), jnp.float32)


def linear(image):
    return jnp.sum(WEIGHTS * image)


CONTRIBUTIONS = jnp.sum(WEIGHTS * IMAGE, axis=-1)


def gray_image(rows):
    return jnp.repeat(jnp.asarray(rows, jnp.float32)[..., None], 3, axis=-1)


def red_sum(image):
    return jnp.sum(image[..., 0])


def test_pixels_are_replaced_hottest_first_in_equal_parts():
    heatmap = jnp.array([[0.1, 0.9, 0.5], [0.7, 0.3, -2.0]])
    assert shares_in_order(heatmap, steps=3).tolist() == [[2, 0, 1], [0, 1, 2]]


def test_parts_differ_by_at_most_one_pixel_and_ties_are_not_broken_by_position():
    shares = np.asarray(shares_in_order(jnp.zeros((7, 7)), steps=5))
    assert sorted(np.bincount(shares.ravel()).tolist()) == [9, 10, 10, 10, 10]
    assert len(set(shares[0].tolist())) > 1


def test_curves_are_worked_by_hand():
    image, heatmap = gray_image([[4.0, 3.0], [2.0, 1.0]]), jnp.array([[4.0, 3.0], [2.0, 1.0]])
    deleted = deletion_curve(red_sum, image, heatmap, baseline=BLACK, steps=4)
    inserted = insertion_curve(red_sum, image, heatmap, baseline=BLACK, steps=4)
    assert deleted.tolist() == [10.0, 6.0, 3.0, 1.0, 0.0]
    assert inserted.tolist() == [0.0, 4.0, 7.0, 9.0, 10.0]
    # (10 / 2 + 6 + 3 + 1 + 0) / 4 and (0 + 4 + 7 + 9 + 10 / 2) / 4.
    assert area(deleted) == 3.75
    assert area(inserted) == 6.25


def test_curves_of_vector_functions_are_vectors():
    embeddings = deletion_curve(lambda image: image[0, :, 0], IMAGE, NOISE, baseline=BLACK, steps=6)
    assert embeddings.shape == (7, 6)
    assert np.array_equal(embeddings[0], IMAGE[0, :, 0])
    assert not embeddings[-1].any()


def test_deletion_of_the_largest_contributions_first_leaves_the_sum_of_the_smallest():
    curve = deletion_curve(linear, IMAGE, CONTRIBUTIONS, baseline=BLACK, steps=36)
    smallest = np.sort(np.asarray(CONTRIBUTIONS, np.float64).ravel())
    assert np.asarray(curve) == pytest.approx([smallest[: 36 - gone].sum() for gone in range(37)], abs=1e-4)


def test_the_exact_attribution_beats_noise_and_its_own_reverse():
    def areas(curve):
        return [float(area(curve(linear, IMAGE, m, baseline=BLACK))) for m in (CONTRIBUTIONS, NOISE, -CONTRIBUTIONS)]

    deleted, inserted = areas(deletion_curve), areas(insertion_curve)
    assert deleted[0] < deleted[1] < deleted[2]
    assert inserted[0] > inserted[1] > inserted[2]


def test_similarities_along_a_curve_are_cosines():
    embeddings = jnp.array([[2.0, 0.0], [3.0, 4.0], [0.0, -1.0]])
    assert similarities(embeddings, jnp.array([5.0, 0.0])).tolist() == pytest.approx([1.0, 0.6, 0.0])


def test_reciprocal_ranks_are_worked_by_hand_with_ties_last():
    candidates = jnp.array([[0.0, 1.0], [3.0, 1.0], [6.0, 1.0], [0.0, 1.0]])
    embeddings = jnp.array([[3.0, 0.0], [1.0, 1.0], [9.0, 1.0], [jnp.nan, 0.0]])
    # Squared distances of row 2: 1, 4, 25, 1. The match 0 ties with 3; in row 3 all are nearer, and NaN is last.
    found = reciprocal_ranks(embeddings, candidates, jnp.asarray(0))
    assert found.tolist() == pytest.approx([1 / 4, 1 / 2, 1 / 4, 1 / 4])
    found = reciprocal_ranks(embeddings, candidates, jnp.asarray(1))
    assert found.tolist() == pytest.approx([1.0, 1 / 3, 1 / 2, 1 / 4])


def test_a_rank_curve_falls_as_the_positive_is_deleted():
    # The embedding is the image's two pixels; without the first it is nearer to the other candidate.
    candidates = jnp.array([[1.0, 1.0], [0.0, 1.0]])
    image = gray_image([[1.0, 1.0]])
    embeddings = deletion_curve(lambda image: image[0, :, 0], image, jnp.array([[2.0, 1.0]]), baseline=BLACK, steps=2)
    # (1, 1), (0, 1), (0, 0): first, second, second.
    assert reciprocal_ranks(embeddings, candidates, jnp.asarray(0)).tolist() == [1.0, 0.5, 0.5]


def test_unexplained_variance_is_zero_for_scaled_contributions_of_a_linear_score():
    @jax.jit
    def measure(heatmap):
        return unexplained_variance(jax.random.key(0), linear, IMAGE, heatmap, baseline=BLACK, samples=32)

    assert measure(CONTRIBUTIONS) == pytest.approx(0, abs=1e-5)
    assert measure(-1e-12 * CONTRIBUTIONS) == pytest.approx(0, abs=1e-5)
    assert measure(jnp.zeros((6, 6))) == 1.0
    assert 0.05 < measure(NOISE) <= 1.0


def test_unexplained_variance_is_relative_to_the_baseline():
    gray = flat(0.5)
    shares = jnp.sum(WEIGHTS * (IMAGE - 0.5), axis=-1)
    measure = jax.jit(lambda heatmap: unexplained_variance(jax.random.key(1), linear, IMAGE, heatmap, baseline=gray))
    right, wrong = measure(shares), measure(CONTRIBUTIONS)
    assert right == pytest.approx(0, abs=1e-5)
    assert wrong > 0.1


def test_one_minus_r2_is_that_of_the_best_scale():
    predicted, observed = RANDOM.normal(size=(2, 20)).astype(np.float32)
    errors = [np.mean((scale * predicted - observed) ** 2) for scale in np.linspace(-3, 3, 6001)]
    assert one_minus_r2(*map(jnp.asarray, (predicted, observed))) == pytest.approx(
        min(errors) / np.mean(observed**2), abs=1e-4
    )
    assert one_minus_r2(jnp.ones(3), jnp.zeros(3)) == 0.0


def test_random_squares_are_inside_the_image_with_all_sides_to_half():
    squares = np.asarray(random_squares(jax.random.key(0), 8, 10, samples=200))
    sides = np.sqrt(squares.sum(axis=(1, 2)))
    assert set(sides.tolist()) == {1.0, 2.0, 3.0, 4.0}
    for square, side in zip(squares, sides, strict=True):
        rows, columns = np.nonzero(square)
        assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == side
    assert squares.any(axis=0).all()


def test_a_constant_gradient_is_not_sensitive():
    def explain(image):
        return jnp.max(jnp.abs(jax.grad(linear)(image)), axis=-1)

    assert max_sensitivity(jax.random.key(0), explain, IMAGE) == 0.0


def test_sensitivity_is_the_largest_relative_change_by_a_slow_loop():
    def explain(image):
        return 1e-15 * jnp.sum(image**2, axis=-1)

    key = jax.random.key(3)
    copies = noisy_copies(key, IMAGE, radius=0.1, samples=5)
    assert jnp.max(jnp.abs(copies - IMAGE)) == pytest.approx(0.1, rel=0.05)
    before = np.sum(np.asarray(IMAGE, np.float64) ** 2, axis=-1)
    changes = [
        np.linalg.norm(np.sum(np.asarray(copy, np.float64) ** 2, axis=-1) - before) / np.linalg.norm(before)
        for copy in copies
    ]
    assert max_sensitivity(key, explain, IMAGE, radius=0.1, samples=5) == pytest.approx(max(changes), rel=1e-4)


def test_the_sensitivity_of_a_map_of_zeros_is_zero_or_one():
    empty = jnp.zeros((2, 2))
    assert largest_change(empty, jnp.stack([empty, empty + 7])) == 1.0
    assert largest_change(empty, empty[None]) == 0.0


def test_sparseness_is_the_gini_index_worked_by_hand():
    assert sparseness(jnp.array([[0.0, 0.0], [-3.0, 0.0]])) == 0.75
    assert sparseness(jnp.full((3, 3), 2.0)) == pytest.approx(0, abs=1e-6)
    # Shares .1, .2, .3, .4: 1 - 2 (.1 * 3.5 + .2 * 2.5 + .3 * 1.5 + .4 * .5) / 4
    assert sparseness(jnp.array([[1.0, -2.0], [4.0, 3.0]])) == pytest.approx(0.25)
    assert sparseness(jnp.zeros((2, 2))) == 0.0


def test_sparseness_is_half_the_mean_difference_over_the_mean():
    values = np.abs(np.asarray(WEIGHTS[..., 0], np.float64)).ravel()
    gini = np.abs(values[:, None] - values).mean() / (2 * values.mean())
    assert sparseness(WEIGHTS[..., 0]) == pytest.approx(gini, rel=1e-5)


def test_monotone_maps_agree_and_reversed_ones_disagree():
    assert agreement(NOISE, -3 * NOISE**2) == pytest.approx(1, abs=1e-6)
    assert agreement(NOISE, 1 / (1 + NOISE)) == pytest.approx(-1, abs=1e-6)
    assert agreement(NOISE, jnp.full((6, 6), 0.3)) == 0.0


def test_uncorrelated_orders_have_agreement_zero():
    a, b = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[2.0, 4.0], [1.0, 3.0]])
    # Rank differences -1, -2, 2, 1: 1 - 6 * 10 / (4 * 15).
    assert agreement(a, b) == pytest.approx(0, abs=1e-6)


def test_agreement_with_ties_is_scipys():
    a, b = (jnp.asarray(RANDOM.integers(-4, 5, size=(6, 6)), jnp.float32) for _ in range(2))
    expected = stats.spearmanr(np.abs(a).ravel(), np.abs(b).ravel()).statistic
    assert agreement(a, b) == pytest.approx(expected, abs=1e-6)


def tiny_variables():
    arrays = jnp.arange(24.0).reshape(4, 6)
    backbone = {name: {"convolution": {"kernel": arrays}, "norm": {"scale": arrays[0]}} for name in PARTS[1:]}
    return {
        "params": {"backbone": backbone, "head": {"linear1": {"kernel": arrays}}},
        "batch_stats": {"backbone": {"stem": {"norm": {"mean": arrays[1]}}}},
    }


PARTS = ["head", "stage10", "stage2", "stage1", "stem"]


def part(variables, name):
    params = variables["params"]
    return params["head"] if name == "head" else params["backbone"][name]


def is_same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b))


def test_the_cascade_goes_from_the_head_to_the_stem():
    assert top_down(tiny_variables()) == PARTS
    headless = {"params": {"backbone": tiny_variables()["params"]["backbone"]}}
    assert top_down(headless) == PARTS[1:]


def test_randomizing_permutes_the_named_parts_only():
    before = tiny_variables()
    after = jax.jit(lambda key, variables: randomized(key, variables, PARTS[:2]))(jax.random.key(0), before)
    for name in PARTS:
        assert is_same(part(before, name), part(after, name)) == (name not in PARTS[:2])
    assert is_same(before["batch_stats"], after["batch_stats"])
    assert is_same(*(jax.tree.map(lambda x: jnp.sort(x.ravel()), variables["params"]) for variables in (before, after)))


def test_the_randomization_of_a_part_does_not_depend_on_other_parts():
    one, more = (randomized(jax.random.key(0), tiny_variables(), PARTS[:count]) for count in (1, 3))
    assert is_same(part(one, "head"), part(more, "head"))


def test_a_part_that_is_not_there_is_named():
    with pytest.raises(KeyError, match=r"stage7.*head, stage10, stage2, stage1, stem"):
        randomized(jax.random.key(0), tiny_variables(), ["stage7"])


def test_noise_maps_are_new_for_every_score_and_image():
    key = jax.random.key(0)
    maps = [
        noise_map(key, linear, IMAGE),
        noise_map(key, linear, IMAGE + 0.01),
        noise_map(key, lambda image: 2 * linear(image), IMAGE),
    ]
    assert np.array_equal(maps[0], noise_map(key, linear, IMAGE))
    assert all(abs(float(agreement(a, b))) < 0.5 for a, b in zip(maps, [*maps[1:], maps[0]], strict=True))
    assert 0 <= min(float(m.min()) for m in maps) <= max(float(m.max()) for m in maps) < 1


def test_measures_and_curves_can_be_compiled_for_many_images_at_once():
    images, maps = jnp.stack([IMAGE, 1 - IMAGE]), jnp.stack([CONTRIBUTIONS, NOISE])

    def measure(image, heatmap):
        curve = deletion_curve(linear, image, heatmap, baseline=BLACK, steps=4)
        unexplained = unexplained_variance(jax.random.key(0), linear, image, heatmap, baseline=BLACK, samples=16)
        return jnp.stack([area(curve), unexplained, sparseness(heatmap), agreement(heatmap, image[..., 0])])

    of_all = jax.jit(jax.vmap(measure))(images, maps)
    assert np.asarray(of_all[1]) == pytest.approx(np.asarray(jax.jit(measure)(images[1], maps[1])), abs=1e-5)
