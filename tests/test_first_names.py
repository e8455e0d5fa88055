"""Names that classes, fields, flags and folders had before work for one release and name the present ones; what lies in
folders is read for good, without a word."""

import argparse
import dataclasses
import importlib
import shutil
from pathlib import Path

import pytest

import tll_jax
from tests.configs import smallest, tiny
from tll_jax import config_files
from tll_jax.cli import plan
from tll_jax.config_files import load_study, set_fields
from tll_jax.serialize import first_names, from_json, to_json
from tll_jax.study.folder import RunFolder, StudyFolder, model_place
from tll_jax.study.settings import Model, Study

STUDIES = Path(__file__).parent / "data" / "studies"
END = "; the old name works in this release and not in the next"


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("tll_jax.study.settings", "Arm", "Model"),
        ("tll_jax.config", "Arm", "Model"),
    ],
)
def test_a_class_is_found_by_its_first_name(module, old, new, caplog):
    place = importlib.import_module(module)
    vars(place).pop(old, None)
    caplog.clear()
    assert getattr(place, old) is getattr(place, new)
    assert warnings_of(caplog) == [f"{module}.{old} is now called {new}{END}"]
    with pytest.raises(AttributeError, match="has no attribute 'Another'"):
        place.Another  # noqa: B018


FIELDS = [(Study, "arms", "models", {"barlow": tiny.get_config().models["barlow"]})]


@pytest.mark.parametrize(("kind", "old", "new", "value"), FIELDS)
def test_a_field_is_constructed_read_and_set_by_its_first_name(kind, old, new, value, caplog):
    others = {}
    if kind is Study:
        others = {entry.name: getattr(tiny.get_config(), entry.name) for entry in dataclasses.fields(Study)}
        del others[new]
    told = f"{kind.__name__}.{old} is now called {new}{END}"
    built = kind(**others, **{old: value})
    assert getattr(built, new) == value
    assert built == kind(**others, **{new: value})
    assert warnings_of(caplog) == [told]
    assert getattr(built, old) == value
    setattr(built, old, value)
    assert warnings_of(caplog) == [told] * 3
    # What folders hold is read without a word.
    caplog.clear()
    saved = to_json(built)
    saved[old] = saved.pop(new)
    assert from_json(saved) == built
    assert not warnings_of(caplog)


def test_every_field_that_was_renamed_is_tried():
    tried = {(kind, old) for kind, old, _, _ in FIELDS}
    assert (Study, "arms") in tried
    assert set(first_names(Study)) == {"arms", "num_processes"}


def test_a_field_below_one_that_was_renamed_is_set_from_the_command_line(caplog):
    study = tiny.get_config()
    set_fields(study, [("arms.barlow.pretrain.loop.num_steps", "9"), ("arms['random'].finetune.frozen_stages", "1")])
    assert study.models["barlow"].pretrain.loop.num_steps == 9
    assert study.models["random"].finetune.frozen_stages == 1
    assert warnings_of(caplog) == [f"config.arms is now called models{END}"] * 2


def test_a_config_file_of_before_builds_the_study_of_now(tmp_path, caplog):
    text = Path(smallest.__file__).read_text()
    for new, old in ((r"Model", "Arm"), ("models={", "arms={")):
        text = text.replace(new, old)
    (tmp_path / "former.py").write_text(text)
    vars(importlib.import_module("tll_jax.study.settings")).pop("Arm", None)
    assert load_study(str(tmp_path / "former.py")) == smallest.get_config()
    assert warnings_of(caplog) == [
        f"tll_jax.study.settings.Arm is now called Model{END}",
        f"Study.arms is now called models{END}",
    ]
    assert config_files.load_study(str(tmp_path / "former.py")).models["barlow"].check() is None


def test_the_package_itself_has_the_first_name_of_a_model():
    assert tll_jax.Arm is Model


@pytest.mark.parametrize(("command", "flag", "present"), [(plan, "--arm=barlow", {"model": "barlow"})])
def test_a_flag_works_by_its_first_name(command, flag, present, caplog):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    needed = ["--config=a.py", "--target=cpu:1"]
    assert parser.parse_args([*needed, flag]).__dict__.items() >= present.items()
    name = next(iter(present)).replace("_", "-")
    assert warnings_of(caplog) == [f"{flag.partition('=')[0]} is now called --{name}{END}"]
    assert flag.partition("=")[0] not in parser.format_help()


def test_a_trained_model_of_before_stays_where_it_is_and_a_new_one_has_the_present_place(tmp_path):
    assert model_place(tmp_path, "barlow", 0) == "models/barlow/seed-0"
    (tmp_path / "arms" / "barlow" / "seed-0").mkdir(parents=True)
    assert model_place(tmp_path, "barlow", 0) == "arms/barlow/seed-0"
    assert model_place(tmp_path, "barlow", 1) == "models/barlow/seed-1"


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0.dev0"])
def test_results_and_settings_of_before_name_models(version, tmp_path):
    study = StudyFolder(shutil.copytree(STUDIES / version, tmp_path / "study"))
    assert study.models == ["barlow"]
    assert {row["system"]: row["kind"] for row in study.results["rows"]}["barlow"] == "model"
    assert RunFolder(study.runs("barlow")[0]).settings()["model"] == "barlow"
