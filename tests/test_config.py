"""The settings tree: JSON there and back, fingerprints, and refusals that name the field."""

import dataclasses

import pytest

from tll_jax import config
from tll_jax.config import Explain, Loop


def test_settings_come_back_equal_from_json():
    settings = {"loop": Loop(num_steps=3, batch_size=2), "sizes": (1, 2), "name": None}
    assert config.from_json(config.to_json(settings)) == settings


def test_a_fingerprint_changes_with_any_field_and_only_then():
    one = Loop(num_steps=3, batch_size=2)
    assert config.fingerprint(one) == config.fingerprint(dataclasses.replace(one))
    for entry in dataclasses.fields(Loop):
        value = "bfloat16" if entry.name == "dtype" else getattr(one, entry.name) + 1
        assert config.fingerprint(dataclasses.replace(one, **{entry.name: value})) != config.fingerprint(one)


def test_a_settings_file_cannot_construct_foreign_classes():
    with pytest.raises(ValueError, match="only dataclasses of tll_jax"):
        config.from_json({"class": "subprocess.Popen", "args": ["true"]})


def test_an_unknown_field_of_a_settings_file_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="Explain has no field num_middle; it has num_best, num_worst"):
        config.from_json({"class": "tll_jax.config.Explain", "num_middle": 3})


def test_impossible_values_are_refused_with_their_path():
    with pytest.raises(ValueError, match=r"config\.a\.1: batch_size is 0; it must be at least 1"):
        config.validate({"a": (Explain(), Loop(num_steps=1, batch_size=0))})
    with pytest.raises(ValueError, match="dtype is 'float16'; it must be one of float32, bfloat16"):
        config.validate(Loop(num_steps=1, batch_size=1, dtype="float16"))
