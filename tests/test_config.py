"""The settings tree: JSON round trips, fingerprints, and errors that name the field."""

import dataclasses
from pathlib import Path

import pytest

from tests.configs import one_stage
from tll_jax import serialize
from tll_jax.data.geometry import RandomResizedCrop
from tll_jax.errors import UserError
from tll_jax.models.resnet import ResNet
from tll_jax.settings import validate
from tll_jax.study.settings import Explain, Loop


def test_settings_come_back_equal_from_json():
    settings = {"loop": Loop(num_steps=3, batch_size=2), "sizes": (1, 2), "name": None}
    assert serialize.from_json(serialize.to_json(settings)) == settings


def test_a_fingerprint_changes_with_any_field_that_changes_results_and_only_then():
    one = Loop(num_steps=3, batch_size=2)
    assert serialize.fingerprint(one) == serialize.fingerprint(dataclasses.replace(one))
    for entry in dataclasses.fields(Loop):
        value = "bfloat16" if entry.name == "dtype" else getattr(one, entry.name) + 1
        other = dataclasses.replace(one, **{entry.name: value})
        is_part = entry.name not in ("log_every", "save_every", "remat", "fsdp_min_size")
        assert (serialize.fingerprint(other) != serialize.fingerprint(one)) == is_part


def test_a_settings_file_cannot_construct_foreign_classes():
    with pytest.raises(ValueError, match="only settings classes of tll_jax"):
        serialize.from_json({"class": "subprocess.Popen", "args": ["true"]})


def test_an_unknown_field_of_a_settings_file_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="Explain has no field num_middle; it has num_best, num_worst"):
        serialize.from_json({"class": "tll_jax.config.Explain", "num_middle": 3})


def test_impossible_values_are_refused_with_their_path():
    with pytest.raises(ValueError, match=r"config\.a\.1: batch_size is 0; it must be at least 1"):
        validate({"a": (Explain(), Loop(num_steps=1, batch_size=0))})
    with pytest.raises(ValueError, match="dtype is 'float16'; it must be one of float32, bfloat16"):
        validate(Loop(num_steps=1, batch_size=1, dtype="float16"))


def with_changes(path, value):
    """The study of one stage with one value changed."""
    study = one_stage.get_config()
    *parents, name = path.split(".")
    holder = study
    for part in parents:
        holder = holder[part] if isinstance(holder, dict) else getattr(holder, part)
    setattr(holder, name, value)
    return study


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("seeds", 3, r"config\.seeds is 3; it must be a tuple of whole numbers, such as \(1, 2\)"),
        ("seeds", (-1,), r"seeds is \(-1,\); it must be at least one whole number, from 0 to 4294967295"),
        # JAX truncates it to seed 0.
        ("seeds", (2**32,), "from 0 to 4294967295"),
        ("seeds", (), "at least one whole number"),
        ("models.barlow.pretrain.seed", -1, "config.models.barlow.pretrain: seed is -1"),
        ("split.seed", -1, "config.split: seed is -1"),
        ("split", 0.2, r"config\.split is 0\.2; it must be a SplitSettings"),
        ("split.num_test", 2.5, r"config\.split\.num_test is 2\.5; it must be a whole number or None"),
        (
            "evaluate.geometry",
            RandomResizedCrop(size=16, scale=0.5),
            r"config\.evaluate\.geometry\.scale is 0\.5; .* two",
        ),
        ("evaluate.geometry.size", True, "config.evaluate.geometry.size is True; it must be a whole number"),
        ("evaluate.geometry.size", "16", "config.evaluate.geometry.size is '16'"),
        ("models.barlow.backbone", "resnet", "config.models.barlow.backbone is 'resnet'; it must be a Backbone"),
        (
            "models.barlow.backbone",
            ResNet,
            r"config\.models\.barlow\.backbone is the class ResNet; write ResNet\(\.\.\.\)",
        ),
        (
            "models.barlow.finetune.optimizer.learning_rate",
            float("nan"),
            "learning_rate is nan; it must be a finite number",
        ),
        (
            "models.barlow.finetune.objective.mining",
            "semihard",
            "mining is 'semihard'; it must be one of random, semi_hard",
        ),
        ("models.barlow.head.widths", (16, "8"), r"widths is \(16, '8'\)"),
        ("planned", (("barlow",),), r"config\.planned is \(\('barlow',\),\); it must be a tuple of two strings"),
        ("models", {"barlow": None}, "config.models.barlow is None; it must be a Model"),
        ("systems", {1: None}, "a name in config.systems is 1; it must be a string"),
        ("name", Path("one"), r"config\.name is PosixPath\('one'\); it must be a string"),
    ],
)
def test_a_value_that_does_not_fit_its_field_is_refused_by_its_path(path, value, named):
    with pytest.raises(UserError, match=named):
        validate(with_changes(path, value))


def test_values_that_settings_cannot_hold_are_refused_even_without_an_annotation():
    @dataclasses.dataclass
    class Mine:
        made_by: "Unknown"  # noqa: F821
        numbers: list[float]

    validate(Mine(made_by="me", numbers=[1.0]))
    with pytest.raises(UserError, match=r"config\.made_by is <built-in function print>; settings hold numbers"):
        validate(Mine(made_by=print, numbers=[]))


@pytest.mark.parametrize(
    ("saved", "named"),
    [
        ({"class": "tll_jax.no_room.Loop"}, "which is not a settings class of this version"),
        ({"class": "tll_jax.config.validate"}, "which is not a settings class"),
        ({"class": 3}, "only settings classes of tll_jax"),
        ({"class": "tll_jax.config.Loop", "num_steps": 3}, "settings of a Loop are not whole: .*batch_size"),
    ],
)
def test_a_settings_file_of_another_version_or_cut_short_is_refused_in_words(saved, named):
    with pytest.raises(UserError, match=named):
        serialize.from_json(saved)
