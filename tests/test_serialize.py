"""Tags and fingerprints, which do not change when a class moves or is renamed."""

import copy
import dataclasses
import importlib
import pickle
import sys
import types

import pytest

from tests.configs import smallest, tiny
from tll_jax import config_files, serialize
from tll_jax.errors import UserError
from tll_jax.planning import chips
from tll_jax.serialize import ADDED, NO_IDENTITY, fingerprint, from_json, renamed, tag, to_json, with_tags
from tll_jax.study.settings import Explain, Loop

FIRST_NAMES = {
    **{"Model": "Arm", "remat": "rematerialize", "grad_accum_steps": "microbatches", "fsdp_min_size": "split_from"},
    **{"warmup_fraction": "warmup_share", "final_fraction": "final_share", "backbone_lr_multiplier": "backbone_share"},
}
"""First names of renamed classes and fields, listed by hand."""


@dataclasses.dataclass(kw_only=True)
class Recipe:
    """Settings of a user's own package."""

    sugar: float = 0.5
    eggs: tuple[int, ...] = (1, 2)


def test_tags_name_existing_classes_and_every_former_path_has_a_tag():
    for name, module in serialize.MODULES.items():
        kind = getattr(importlib.import_module(module), serialize.CLASS_NAMES.get(name, name))
        assert dataclasses.is_dataclass(kind)
        assert tag(kind) == name
    assert set(serialize.TAGS_OF_PATHS.values()) <= set(serialize.MODULES)


@pytest.mark.parametrize("path", ["emoji", "tll_systems", "tll_pretraining", "tll_unfrozen", "imagenet_tll"])
def test_studies_of_the_configs_are_written_by_tags_alone_and_come_back_equal(path):
    study = config_files.load_study(f"configs/{path}.py")
    saved = to_json(study)
    assert "tll_jax." not in str(saved)
    assert from_json(saved) == study


def test_a_class_of_the_package_without_a_tag_is_refused():
    # Its import path would become part of the fingerprints of finished stages.
    with pytest.raises(TypeError, match=r"tll_jax\.planning\.chips\.Chip has no tag: add it to MODULES"):
        fingerprint(next(iter(chips.CHIPS.values())))


def test_a_class_that_moves_or_is_renamed_has_the_same_fingerprint_and_is_read_back(monkeypatch):
    before, saved = fingerprint(Explain()), to_json(Explain())
    moved = type("Reasons", (Explain,), {})
    module = types.ModuleType("tll_jax.elsewhere")
    moved.__module__, module.Reasons = "tll_jax.elsewhere", moved
    monkeypatch.setitem(sys.modules, "tll_jax.elsewhere", module)
    monkeypatch.setitem(serialize.MODULES, "Explain", "tll_jax.elsewhere")
    monkeypatch.setitem(serialize.CLASS_NAMES, "Explain", "Reasons")
    monkeypatch.setitem(serialize._TAGS, "tll_jax.elsewhere.Reasons", "Explain")
    assert fingerprint(moved()) == before
    assert fingerprint(moved()).former == before.former
    assert type(from_json(saved)) is moved
    assert type(from_json({"class": "tll_jax.config.Explain", "num_best": 1})) is moved


def test_fields_without_effect_on_results_are_in_former_fingerprints_only():
    one, other = Loop(num_steps=3, batch_size=2), Loop(num_steps=3, batch_size=2, save_every=7)
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one).former != fingerprint(other).former
    assert to_json(other)["save_every"] == 7


def test_a_field_that_was_renamed_or_added_leaves_the_fingerprint_as_it_was():
    first = dataclasses.make_dataclass("Loss", [("temperature", float, 0.5)])
    scale = dataclasses.field(default=0.5, metadata=renamed("temperature"))
    rank = dataclasses.field(default=0, metadata=ADDED)
    threads = dataclasses.field(default=2, metadata=NO_IDENTITY)
    second = dataclasses.make_dataclass(
        "Loss", [("scale", float, scale), ("rank", int, rank), ("threads", int, threads)]
    )
    assert fingerprint(second()) == fingerprint(first())
    assert fingerprint(second(scale=0.7)) == fingerprint(first(temperature=0.7))
    assert fingerprint(second(rank=1)) != fingerprint(first())


def test_a_fingerprint_within_settings_is_hashed_by_the_same_rule():
    inner = fingerprint(Loop(num_steps=3, batch_size=2))
    outer = fingerprint({"start": inner})
    assert outer == fingerprint({"start": str(inner)})
    assert outer.former == fingerprint({"start": inner.former}).former
    assert outer.former != fingerprint({"start": str(inner)}).former


def test_settings_of_a_users_own_package_are_read_where_the_user_trusts_it_and_no_others():
    saved = to_json({"mine": Recipe(sugar=0.25)})
    assert saved["mine"]["class"] == "tests.test_serialize.Recipe"
    assert from_json(saved, trusted=("tests",)) == {"mine": Recipe(sugar=0.25)}
    with pytest.raises(
        UserError, match=r"only settings classes of tll_jax are read; .*load\(RUN, trusted=\('tests',\)\)"
    ):
        from_json(saved)
    with pytest.raises(UserError, match=r"subprocess\.Popen.* is not a dataclass"):
        from_json({"class": "subprocess.Popen"}, trusted=("subprocess",))


def test_former_settings_are_written_with_present_tags():
    saved = {"class": "tll_jax.config.Loop", "parts": [{"class": "tll_jax.models.resnet.ResNet", "depth": 18}], "n": 1}
    assert with_tags(saved) == {"class": "Loop", "parts": [{"class": "ResNet", "depth": 18}], "n": 1}


@pytest.mark.parametrize("make", [tiny.get_config, smallest.get_config])
def test_the_former_fingerprint_is_that_of_import_paths_and_all_fields(make):
    # The former rule, as it was written then.
    import hashlib
    import json

    def paths(settings):
        if dataclasses.is_dataclass(settings):
            kind = type(settings)
            # These classes were all in one file then.
            module = "tll_jax.config" if kind.__module__.endswith(".settings") else kind.__module__
            return {"class": f"{module}.{FIRST_NAMES.get(kind.__qualname__, kind.__qualname__)}"} | {
                FIRST_NAMES.get(entry.name, entry.name): paths(getattr(settings, entry.name))
                for entry in dataclasses.fields(kind)
                if entry.init and entry.name != "lora"
            }
        if isinstance(settings, dict):
            return {name: paths(child) for name, child in settings.items()}
        return [paths(child) for child in settings] if isinstance(settings, tuple) else settings

    # Some fields of the whole study were renamed or have other defaults.
    settings = make().models
    by_hand = hashlib.sha256(json.dumps(paths(settings), sort_keys=True).encode()).hexdigest()[:12]
    assert fingerprint(settings).former == by_hand


def test_a_fingerprint_is_copied_and_pickled_with_its_former_digits():
    found = fingerprint({"seed": 1})
    for copied in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert (copied, copied.former) == (found, found.former)
