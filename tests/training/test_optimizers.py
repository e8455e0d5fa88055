"""LARS against the reference's update rule written out by hand, and the schedules at their corners."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tll_jax.settings import validate
from tll_jax.training.optimizers import AdamW, Lars, freeze, warmup_cosine


def test_warmup_rises_linearly_and_cosine_ends_at_the_final_fraction():
    schedule = warmup_cosine(2.0, num_steps=100, warmup_fraction=0.1, final_fraction=0.001)
    assert schedule(0) == 0
    assert schedule(5) == pytest.approx(1.0)
    assert schedule(10) == pytest.approx(2.0)
    # Half-way through the cosine: the mean of peak and final.
    assert schedule(55) == pytest.approx((2.0 + 0.002) / 2)
    assert schedule(100) == pytest.approx(0.002)


def test_without_warmup_the_first_step_has_the_full_rate():
    assert warmup_cosine(0.5, num_steps=10, warmup_fraction=0.0, final_fraction=0.0)(0) == pytest.approx(0.5)


def test_lars_repeats_the_reference_update_with_the_rate_after_the_momentum():
    settings = Lars(
        learning_rate=0.2,
        bias_learning_rate=0.0048,
        weight_decay=0.1,
        momentum=0.9,
        trust_coefficient=0.001,
        warmup_fraction=0.5,
        final_fraction=0.1,
    )
    num_steps, batch_size = 6, 512
    optimizer = settings.build(num_steps=num_steps, batch_size=batch_size)
    rng = np.random.default_rng(0)
    params = {
        "kernel": rng.normal(size=(3, 4)).astype(np.float32),
        "bias": rng.normal(size=4).astype(np.float32),
    }
    gradients = [
        {name: rng.normal(size=value.shape).astype(np.float32) for name, value in params.items()}
        for _ in range(num_steps)
    ]

    state, current = optimizer.init(params), params
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, current)
        current = optax.apply_updates(current, updates)

    # facebookresearch/barlowtwins, main.py: decay and adaptation skip 1-D parameters; mu = .9 mu + dp; p -= lr mu.
    expected = {name: value.astype(np.float64) for name, value in params.items()}
    momentum = {name: np.zeros_like(value) for name, value in expected.items()}
    for step, gradient in enumerate(gradients):
        for name, value in expected.items():
            base = (0.2 if name == "kernel" else 0.0048) * batch_size / 256
            if step < 3:
                rate = base * step / 3
            else:
                share = (step - 3) / 3
                rate = base * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * share)))
            update = gradient[name].astype(np.float64)
            if value.ndim > 1:
                update = update + 0.1 * value
                update = update * 0.001 * np.linalg.norm(value) / np.linalg.norm(update)
            momentum[name] = 0.9 * momentum[name] + update
            expected[name] = value - rate * momentum[name]
    for name, value in expected.items():
        np.testing.assert_allclose(current[name], value, rtol=1e-5)


def test_adamw_scales_updates_of_the_backbone_by_its_lr_multiplier():
    optimizer = AdamW(learning_rate=0.1, backbone_lr_multiplier=0.25, weight_decay=0.0, warmup_fraction=0.0).build(
        num_steps=10, batch_size=8
    )
    params = {"backbone": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.ones((2, 2))}}
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    # The first step of Adam on a constant gradient is the learning rate itself.
    np.testing.assert_allclose(updates["head"]["kernel"], -0.1, rtol=1e-4)
    np.testing.assert_allclose(updates["backbone"]["kernel"], -0.025, rtol=1e-4)


def test_frozen_parameters_do_not_even_decay():
    params = {"backbone": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.ones((2, 2))}}
    trainable = {"backbone": {"kernel": False}, "head": {"kernel": True}}
    optimizer = freeze(AdamW(weight_decay=0.5, warmup_fraction=0.0).build(num_steps=10, batch_size=8), trainable)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert jnp.all(updates["backbone"]["kernel"] == 0)
    assert jnp.all(updates["head"]["kernel"] < 0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (Lars(learning_rate=0.0), "learning_rate is 0.0"),
        (Lars(warmup_fraction=1.5), "warmup_fraction is 1.5"),
        (AdamW(backbone_lr_multiplier=-1.0), "backbone_lr_multiplier is -1.0"),
    ],
)
def test_impossible_optimizer_settings_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=f"config: {named}"):
        validate(settings)


def test_zero_layers_and_zero_updates_have_trust_ratio_one():
    optimizer = Lars(learning_rate=1.0, weight_decay=0.0, momentum=0.0, warmup_fraction=0.0).build(
        num_steps=1, batch_size=256
    )
    params = {"new": jnp.zeros((2, 2)), "idle": jnp.ones((2, 2)), "usual": jnp.ones((2, 2))}
    gradients = {"new": jnp.ones((2, 2)), "idle": jnp.zeros((2, 2)), "usual": jnp.full((2, 2), 4.0)}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_array_equal(updates["new"], -1)
    np.testing.assert_array_equal(updates["idle"], 0)
    # 0.001 times the norms 2 over 8, times 4.
    np.testing.assert_allclose(updates["usual"], -0.001, rtol=1e-6)
