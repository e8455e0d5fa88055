"""The notebooks of `examples/`, executed from top to bottom."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_new_config import TINY

ROOT = Path(__file__).parents[1]


@pytest.fixture
def execute(environment, tmp_path):
    """Runs a copy of a notebook with other parameters; returns the output of its cells."""

    def run(name, **parameters):
        notebook = json.loads((ROOT / "examples" / name).read_text())
        if parameters:
            first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
            source = "".join(first["source"])
            assert set(parameters) <= {node.targets[0].id for node in ast.parse(source).body}
            first["source"] = source + "".join(f"\n{key} = {value!r}" for key, value in parameters.items())
        path = tmp_path / name
        path.write_text(json.dumps(notebook))
        folders = {"IPYTHONDIR": str(tmp_path / "ipython"), "PYTHONPATH": str(ROOT)}
        commands = Path(sys.executable).parent
        outcome = subprocess.run(
            [sys.executable, "-c", "from nbclient.cli import main; main()", "--inplace", str(path)],
            env=environment | folders | {"PATH": f"{commands}:{environment['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert outcome.returncode == 0, outcome.stderr
        cells = json.loads(path.read_text())["cells"]
        return "".join(text for cell in cells for output in cell.get("outputs", ()) for text in output.get("text", ()))

    return run


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.mark.release
def test_the_parts_work_in_the_code_of_linen_nnx_and_equinox(execute):
    printed = execute("parts.ipynb")
    assert printed.count("(16, 16)") == 2
    assert "MRR" in printed


@pytest.mark.release
def test_the_notebook_of_own_pairs_trains_ranks_and_explains(execute, tmp_path):
    printed = execute("own_pairs.ipynb", WORKDIR=str(tmp_path / "own"), FIELDS=TINY)
    assert "is most like" in printed
    assert (tmp_path / "own" / "why" / "index.html").exists()
