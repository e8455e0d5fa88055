"""Former names of classes, fields, flags and folders work for one release with a warning; in study folders they are
read without one."""

import argparse
import dataclasses
import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import tll_jax
from tests.configs import smallest, tiny
from tll_jax import config_files, serialize
from tll_jax.cli import explain, plan
from tll_jax.config_files import load_study, set_fields
from tll_jax.data.folder import ClassFolder, ImageFolder
from tll_jax.data.pair_folders import MatchingFolders, PairsFromTable
from tll_jax.data.pipeline import Readers
from tll_jax.data.totally_looks_like import TotallyLooksLike
from tll_jax.files import write_json
from tll_jax.objectives.info_nce import InfoNCE
from tll_jax.renamed import FORMER_SYSTEMS, run_folder
from tll_jax.serialize import first_names, from_json, to_json
from tll_jax.study.evaluate import system_evaluations
from tll_jax.study.folder import RunFolder, StudyFolder, place_in
from tll_jax.study.load import load_system
from tll_jax.study.settings import Loop, Model, Study
from tll_jax.study.train import Context
from tll_jax.systems.baselines import Pixels
from tll_jax.training.optimizers import AdamW, Lars

STUDIES = Path(__file__).parent / "data" / "studies"
END = "; the old name works in this release and not in the next"


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("tll_jax.study.settings", "Arm", "Model"),
        ("tll_jax.config", "Arm", "Model"),
        ("tll_jax.systems.csls", "LocalScaling", "CSLS"),
        ("tll_jax.objectives.classification", "Classify", "Classification"),
        ("tll_jax.objectives.info_nce", "InfoNce", "InfoNCE"),
        ("tll_jax.objectives.simclr", "SimClr", "SimCLR"),
        ("tll_jax.objectives.vicreg", "VicReg", "VICReg"),
        ("tll_jax.ranking", "hits", "recall_at_k"),
    ],
)
def test_a_class_or_function_is_found_by_its_first_name(module, old, new, caplog):
    place = importlib.import_module(module)
    vars(place).pop(old, None)
    caplog.clear()
    assert getattr(place, old) is getattr(place, new)
    assert warnings_of(caplog) == [f"{module}.{old} is now called {new}{END}"]
    with pytest.raises(AttributeError, match="has no attribute 'Another'"):
        place.Another  # noqa: B018


FIELDS = [
    (Study, "arms", "models", {"barlow": tiny.get_config().models["barlow"]}),
    (Study, "num_processes", "num_workers", 3),
    (Loop, "rematerialize", "remat", True),
    (Loop, "microbatches", "grad_accum_steps", 4),
    (Loop, "split_from", "fsdp_min_size", 99),
    (Lars, "warmup_share", "warmup_fraction", 0.3),
    (Lars, "final_share", "final_fraction", 0.3),
    (AdamW, "warmup_share", "warmup_fraction", 0.3),
    (AdamW, "final_share", "final_fraction", 0.3),
    (AdamW, "backbone_share", "backbone_lr_multiplier", 0.3),
    *((kind, "max_broken_share", "max_broken_fraction", 0.3) for kind in (ClassFolder, ImageFolder)),
    *((kind, "max_broken_share", "max_broken_fraction", 0.3) for kind in (MatchingFolders, PairsFromTable)),
    (TotallyLooksLike, "max_broken_share", "max_broken_fraction", 0.3),
    (InfoNCE, "temperature", "logit_scale", 4.0),
]


@pytest.mark.parametrize(("kind", "old", "new", "value"), FIELDS)
def test_a_field_is_constructed_read_and_set_by_its_first_name(kind, old, new, value, caplog):
    study = {entry.name: getattr(tiny.get_config(), entry.name) for entry in dataclasses.fields(Study)}
    needed = {Study: study, Loop: {"num_steps": 3, "batch_size": 8}, Lars: {}, AdamW: {}, InfoNCE: {}}
    others = {name: given for name, given in needed.get(kind, {"path": "a"}).items() if name != new}
    told = f"{kind.__name__}.{old} is now called {new}{END}"
    built = kind(**others, **{old: value})
    assert getattr(built, new) == value
    assert built == kind(**others, **{new: value})
    assert warnings_of(caplog) == [told]
    assert getattr(built, old) == value
    setattr(built, old, value)
    assert warnings_of(caplog) == [told] * 3
    # Folders are read without a warning.
    caplog.clear()
    saved = to_json(built)
    saved[old] = saved.pop(new)
    assert from_json(saved) == built
    assert not warnings_of(caplog)


def test_every_field_that_was_renamed_is_tried():
    kinds = [
        getattr(importlib.import_module(module), serialize.CLASS_NAMES.get(name, name))
        for name, module in serialize.MODULES.items()
    ]
    there = {(kind, old, new) for kind in kinds for old, new in first_names(kind).items()}
    assert there == {(kind, old, new) for kind, old, new, _ in FIELDS}


def test_a_field_below_one_that_was_renamed_is_set_from_the_command_line(caplog):
    study = tiny.get_config()
    set_fields(study, [("arms.barlow.pretrain.loop.num_steps", "9"), ("arms['random'].finetune.frozen_stages", "1")])
    assert study.models["barlow"].pretrain.loop.num_steps == 9
    assert study.models["random"].finetune.frozen_stages == 1
    assert warnings_of(caplog) == [f"config.arms is now called models{END}"] * 2


def test_a_config_file_of_0_1_0_builds_todays_study(tmp_path, caplog):
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


@pytest.mark.parametrize(
    ("command", "flag", "present"),
    [(plan, "--arm=barlow", {"model": "barlow"}), (explain, "--candidates=2", {"neighbors": 2})],
)
def test_a_flag_works_by_its_first_name(command, flag, present, caplog):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    needed = ["--config=a.py", "--target=cpu:1"] if command is plan else ["RUN"]
    assert parser.parse_args([*needed, flag]).__dict__.items() >= present.items()
    name = next(iter(present)).replace("_", "-")
    assert warnings_of(caplog) == [f"{flag.partition('=')[0]} is now called --{name}{END}"]
    assert flag.partition("=")[0] not in parser.format_help()


def test_a_trained_model_of_before_stays_where_it_is_and_a_new_one_has_the_present_place(tmp_path):
    assert place_in(tmp_path, "models/barlow/seed-0") == tmp_path / "models/barlow/seed-0"
    (tmp_path / "arms" / "barlow" / "seed-0").mkdir(parents=True)
    assert place_in(tmp_path, "models/barlow/seed-0") == tmp_path / "arms/barlow/seed-0"
    assert place_in(tmp_path, "models/barlow/seed-1") == tmp_path / "arms/barlow/seed-1"
    assert place_in(tmp_path, "models/random/seed-0") == tmp_path / "models/random/seed-0"
    (tmp_path / "systems" / "lite0-match").mkdir(parents=True)
    assert place_in(tmp_path, "systems/lite0-rca/faces-included") == tmp_path / "systems/lite0-match/faces-included"
    assert place_in(tmp_path, "systems/hog") == tmp_path / "systems/hog"


def test_a_run_given_by_the_place_that_it_would_have_had_before_is_found(tmp_path, caplog):
    for place in ("models/barlow/seed-0", "systems/lite0-rca"):
        (tmp_path / place).mkdir(parents=True)
    assert run_folder(tmp_path / "arms/barlow/seed-0") == tmp_path / "models/barlow/seed-0"
    assert warnings_of(caplog) == [
        f"{tmp_path / 'arms/barlow/seed-0'} is now called {tmp_path / 'models/barlow/seed-0'}{END}"
    ]
    assert run_folder(tmp_path / "systems/lite0-match") == tmp_path / "systems/lite0-rca"
    caplog.clear()
    for place in ("models/barlow/seed-0", "systems/lite0-rca", "arms/other/seed-0", "systems/hog", "elsewhere"):
        assert run_folder(tmp_path / place) == tmp_path / place
    assert not warnings_of(caplog)


def test_a_system_is_found_by_its_former_name(caplog):
    study = tiny.get_config()
    study.systems["lite0-rca"] = Pixels()
    set_fields(study, [("systems.lite0-match.size", "3")])
    assert study.systems["lite0-rca"].size == 3
    systems = load_study("configs/tll_systems.py:hog,lite0-match,ensemble-scaled").systems
    assert list(systems) == ["hog", "lite0-rca", "ensemble-csls"]
    assert warnings_of(caplog) == [
        f"config.systems.lite0-match is now called lite0-rca{END}",
        f"lite0-match is now called lite0-rca{END}",
        f"ensemble-scaled is now called ensemble-csls{END}",
    ]
    assert set(FORMER_SYSTEMS) <= set(load_study("configs/tll_systems.py").systems)


def test_ranks_under_a_systems_former_name_are_up_to_date_and_the_system_can_be_fitted_again(tmp_path):
    """A study of 0.1.0 in which the histogram has the former name of `lite0-rca`."""
    workdir = shutil.copytree(STUDIES / "0.2.0.dev0", tmp_path / "study")
    (workdir / "systems" / "histogram").rename(workdir / "systems" / "lite0-match")
    for name in ("config.json", "results.json"):
        text = (workdir / name).read_text()
        write_json(workdir / name, json.loads(text.replace("histogram", "lite0-match")))
    study = StudyFolder(workdir)
    assert "lite0-rca" in study.systems
    assert study.ranks("lite0-rca")[0].ids == study.ids
    (workdir / "systems" / "lite0-match" / "ranks.npz").rename(workdir / "ranks-of-it.npz")
    # From the rank file beside the results.
    with np.load(workdir / "ranks.npz") as saved:
        kept = {name.replace("ranks of histogram", "ranks of lite0-match"): saved[name] for name in saved}
    np.savez(workdir / "ranks.npz", **kept)
    again = StudyFolder(workdir)
    assert again.ranks("lite0-rca")[0].ids == study.ids
    (workdir / "ranks-of-it.npz").rename(workdir / "systems" / "lite0-match" / "ranks.npz")
    assert load_system(workdir / "systems" / "lite0-match")[0] == "lite0-match"
    # A run of the present version renames it in the settings, and leaves its folder.
    text = (workdir / "config.json").read_text()
    write_json(workdir / "config.json", json.loads(text.replace('"lite0-match"', '"lite0-rca"')))
    assert load_system(workdir / "systems" / "lite0-match")[0] == "lite0-rca"

    settings = smallest.get_config()
    settings.systems["lite0-rca"] = settings.systems.pop("histogram")
    pairs = settings.pairs.open()
    context = Context(workdir=workdir, pairs=pairs, mesh=None, readers=Readers())
    (evaluation,) = system_evaluations("lite0-rca", settings, context, [settings.split.make(pairs, fold=0)])
    assert evaluation.folder == workdir / "systems" / "lite0-match"
    assert "config.systems.lite0-match" in evaluation.inputs
    evaluation.folder.joinpath("evaluate.done.json").write_text(
        '{"key": "1", "inputs": {"first of config.seeds": "2"}}'
    )
    with pytest.raises(ValueError, match=r"made with other .*config\.systems\.lite0-rca and"):
        evaluation.check()


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0.dev0"])
def test_results_and_settings_of_0_1_0_are_read_with_models(version, tmp_path):
    study = StudyFolder(shutil.copytree(STUDIES / version, tmp_path / "study"))
    assert study.models == ["barlow"]
    assert {row["system"]: row["kind"] for row in study.results["rows"]}["barlow"] == "model"
    assert RunFolder(study.runs("barlow")[0]).settings()["model"] == "barlow"
