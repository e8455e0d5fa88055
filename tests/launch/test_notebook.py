"""The Colab notebook, executed from top to bottom with the parameters of its first code cell set for this machine."""

import ast
import base64
import json
import runpy
import subprocess
import sys
import tomllib

import pytest
import yaml

from tests.configs import one_stage
from tests.launch.stand_ins import LAUNCH, ROOT

NOTEBOOK = json.loads((LAUNCH / "colab.ipynb").read_text())
STEPS = {"barlow.pretrain": one_stage.NUM_STEPS, "barlow.finetune": one_stage.NUM_STEPS}


@pytest.fixture
def execute(environment, tmp_path):
    """Runs a copy whose first code cell ends with other values; the outcome and the cells with their outputs."""

    def run(**parameters):
        title, first, *others = NOTEBOOK["cells"]
        source = "".join(first["source"])
        assert set(parameters) <= {node.targets[0].id for node in ast.parse(source).body}
        source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
        path = tmp_path / "executed.ipynb"
        path.write_text(json.dumps(NOTEBOOK | {"cells": [title, first | {"source": source}, *others]}))
        outcome = subprocess.run(
            [sys.executable, "-c", "from nbclient.cli import main; main()", "--inplace", str(path)],
            env=environment
            | {"JAX_NUM_CPU_DEVICES": "2", "IPYTHONDIR": str(tmp_path / "ipython"), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        return outcome, json.loads(path.read_text())["cells"]

    return run


def test_the_notebook_is_kept_without_outputs():
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.mark.release
def test_the_notebook_runs_the_study_and_shows_its_table_and_figures(execute, one_stage_alone, tmp_path):
    workdir = tmp_path / "study"
    outcome, cells = execute(
        PLATFORM="cpu",
        CONFIG="tests/configs/one_stage.py",
        WORKDIR=str(workdir),
        STEPS=STEPS,
        INSTALL=False,
        REPOSITORY=str(ROOT),
    )
    assert outcome.returncode == 0, outcome.stderr
    ours, theirs = (json.loads((folder / "results.json").read_text()) for folder in (workdir, one_stage_alone))
    assert ours["rows"] == theirs["rows"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    shown = [output["data"] for output in outputs if output["output_type"] == "display_data"]
    assert "".join(shown[0]["text/markdown"]) == (workdir / "results.md").read_text()
    pictures = [base64.b64decode("".join(data["image/png"])) for data in shown if "image/png" in data]
    names = ("task", "rank_histograms", "recall_at_k", "saliency_barlow")
    assert pictures == [(workdir / "figures" / f"{name}.png").read_bytes() for name in names]


@pytest.mark.release
def test_the_notebook_stops_at_another_platform_than_expected(execute, tmp_path):
    outcome, _ = execute(WORKDIR=str(tmp_path / "study"), INSTALL=False, REPOSITORY=str(ROOT))
    assert outcome.returncode != 0
    assert "expected the platform tpu and JAX found cpu" in outcome.stderr
    assert not (tmp_path / "study").exists()


@pytest.mark.release
def test_the_notebook_asks_for_the_repositorys_address(execute):
    outcome, _ = execute()
    assert outcome.returncode != 0
    assert "set REPOSITORY, in the first cell" in outcome.stderr


def test_the_repositorys_address_is_that_of_the_package_or_nowhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    address = project["urls"].get("Repository")
    first = ast.parse("".join(NOTEBOOK["cells"][1]["source"]))
    (given,) = (node.value.value for node in first.body if node.targets[0].id == "REPOSITORY")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    # Without an address the notebook asks for one, by the word that its installing cell looks for.
    assert given == (address or "https://github.com/OWNER/tll_jax")
    assert citation.get("repository-code") == address


def test_the_notebook_names_the_trainings_of_its_config_with_their_steps():
    first = ast.parse("".join(NOTEBOOK["cells"][1]["source"]))
    given = {node.targets[0].id: ast.literal_eval(node.value) for node in first.body}
    study = runpy.run_path(str(ROOT / given["CONFIG"]))["get_config"]()
    trainings = {
        f"{model}.{stage}": getattr(settings, stage).loop.num_steps
        for model, settings in study.models.items()
        for stage in ("pretrain", "finetune")
        if getattr(settings, stage) is not None
    }
    assert given["STEPS"] == trainings
