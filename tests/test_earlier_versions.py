"""Study folders of earlier versions are read, evaluated and compared, and are up to date if nothing has changed."""

import dataclasses
import logging
import shutil
from pathlib import Path

import pytest

import tll_jax
from tests.configs import smallest
from tll_jax.files import read_json
from tll_jax.serialize import from_json
from tll_jax.study.folder import read_mark
from tll_jax.study.load import load_system
from tll_jax.study.settings import Study

STUDIES = Path(__file__).parent / "data" / "studies"
VERSIONS = ["0.1.0", "0.2.0.dev0"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_settings_of_an_earlier_version_are_read(version):
    saved = from_json(read_json(STUDIES / version / "config.json")["settings"])
    assert isinstance(saved, Study)
    # Their defaults then.
    assert saved == dataclasses.replace(smallest.get_config(), num_threads=2, num_workers=0)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_of_an_earlier_version_is_evaluated_on_other_pairs(version):
    folder = STUDIES / version / "arms" / "barlow" / "seed-0"
    name, kind, system = load_system(folder)
    assert (name, kind) == ("barlow", "model")
    pairs = smallest.get_config().pairs.open().images([0, 1, 2])
    assert system.score(pairs.left, pairs.right).shape == (3, 3)


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    """A study that was finished by a version before tags, run again with the same settings."""
    workdir = tmp_path_factory.mktemp("again") / "study"
    shutil.copytree(STUDIES / "0.2.0.dev0", workdir)
    before = {path: path.read_bytes() for path in workdir.rglob("*.npz")}
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("tll_jax")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        tll_jax.run(
            smallest.get_config(), workdir=workdir, stages_to_run=["pretrain", "finetune", "evaluate", "explain"]
        )
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return workdir, before, said


def test_a_study_finished_before_tags_is_up_to_date(again):
    _, _, said = again
    skipped = {line.split(":")[0] for line in said if "up to date" in line}
    assert {"pretrain barlow", "finetune barlow seed 0", "evaluate barlow seed 0", "explain barlow seed 0"} <= skipped
    assert not [line for line in said if ": step" in line]


def test_running_it_again_rewrites_none_of_its_arrays(again):
    workdir, before, _ = again
    assert {path: path.read_bytes() for path in before} == before
    assert {path.name for path in workdir.rglob("*.npz") if path not in before} == {"recommended.npz"}
    assert len(list((workdir / "stages").iterdir())) == 2


def test_other_settings_are_not_up_to_date(again):
    workdir, _, _ = again
    settings = smallest.get_config()
    settings.models["barlow"].finetune.loop.num_steps = 3
    with pytest.raises(ValueError, match="finetune of model barlow has not been done with these settings"):
        tll_jax.run(settings, workdir=workdir, stages_to_run=["evaluate"])
    assert read_mark(workdir / "arms" / "barlow" / "seed-0", "evaluate")
