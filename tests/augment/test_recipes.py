"""Recipes do each change as often as they say, and nothing that they leave out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.augment.recipes import Photometric, barlow_view_a, barlow_view_b, pair_photometric

IMAGE = jnp.asarray(np.random.default_rng(0).uniform(0.2, 0.7, size=(8, 8, 3)), jnp.float32)
NOTHING = {"jitter_probability": 0.0, "gray_probability": 0.0, "blur_probability": 0.0}


def apply_many(recipe, count=600, image=IMAGE):
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.jit(jax.vmap(recipe, in_axes=(0, None)))(keys, image))


def share(events):
    """Of 600 draws: standard deviation at most .02."""
    return pytest.approx(np.mean(events), abs=0.07)


@pytest.mark.parametrize("recipe", [barlow_view_a(), barlow_view_b(), pair_photometric()])
def test_augmented_images_differ_by_key_and_stay_in_range(recipe):
    recipe.check()
    images = apply_many(recipe, 50)
    assert images.shape == (50, 8, 8, 3)
    assert images.min() >= 0
    assert images.max() <= 1
    assert len(np.unique(images.reshape(50, -1), axis=0)) > 25
    np.testing.assert_array_equal(apply_many(recipe, 50), images)


def test_a_recipe_without_changes_returns_the_image():
    np.testing.assert_array_equal(apply_many(Photometric(**NOTHING), 3), np.stack([IMAGE] * 3))


def test_gray_comes_with_its_probability():
    images = apply_many(Photometric(**{**NOTHING, "gray_probability": 0.3}))
    is_gray = np.ptp(images, axis=-1).max((1, 2)) < 1e-5
    is_kept = np.abs(images - IMAGE).max((1, 2, 3)) < 1e-5
    assert share(is_gray) == 0.3
    assert (is_gray ^ is_kept).all()


def test_solarization_comes_with_its_probability():
    images = apply_many(Photometric(**NOTHING, solarize_probability=0.2))
    is_solarized = np.abs(images - np.where(IMAGE >= 0.5, 1 - IMAGE, IMAGE)).max((1, 2, 3)) < 1e-6
    is_kept = (images == np.asarray(IMAGE)).all((1, 2, 3))
    assert share(is_solarized) == 0.2
    assert (is_solarized ^ is_kept).all()


def test_blur_comes_with_its_probability_and_lowers_the_variance():
    recipe = Photometric(**{**NOTHING, "blur_probability": 0.5, "blur_sigma": (1.0, 2.0)})
    variances = apply_many(recipe).var((1, 2, 3))
    is_kept = np.isclose(variances, np.var(IMAGE))
    assert share(is_kept) == 0.5
    assert (variances[~is_kept] < 0.5 * np.var(IMAGE)).all()


def test_brightness_factors_are_uniform_and_come_with_the_jitter():
    gray = jnp.full((4, 4, 3), 0.5)
    recipe = Photometric(
        brightness=0.4,
        contrast=0.0,
        saturation=0.0,
        hue=0.0,
        jitter_probability=0.8,
        gray_probability=0.0,
        blur_probability=0.0,
    )
    factors = apply_many(recipe, image=gray)[:, 0, 0, 0] / 0.5
    is_kept = factors == 1
    assert share(is_kept) == 0.2
    moved = factors[~is_kept]
    assert 0.6 <= moved.min() < 0.65
    assert 1.35 < moved.max() <= 1.4
    assert share(moved < 1.2) == 0.75


def test_operations_of_probability_zero_are_not_compiled():
    def program(recipe):
        return jax.jit(lambda key: recipe(key, IMAGE)).lower(jax.random.key(0)).as_text()

    assert "stablehlo.exponential" in program(barlow_view_a())
    assert "stablehlo.exponential" not in program(pair_photometric())
    assert "stablehlo.floor" in program(barlow_view_a())
    assert "stablehlo.floor" not in program(Photometric(hue=0.0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"brightness": 1.5},
        {"hue": 0.6},
        {"gray_probability": -0.1},
        {"blur_sigma": (0.0, 2.0)},
        {"blur_sigma": (2.0, 1.0)},
    ],
)
def test_impossible_recipes_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is "):
        Photometric(**wrong).check()


def test_an_accelerator_blurs_as_a_cpu_does_but_without_a_loop():
    recipe = Photometric(**{**NOTHING, "blur_probability": 0.5, "blur_sigma": (1.0, 2.0)})
    keys = jax.random.split(jax.random.key(0), 8)
    blur_all = jax.jit(jax.vmap(recipe, in_axes=(0, None)))
    assert "while" in blur_all.trace(keys, IMAGE).lower(lowering_platforms=("cpu",)).as_text()
    assert "while" not in blur_all.trace(keys, IMAGE).lower(lowering_platforms=("tpu",)).as_text()
