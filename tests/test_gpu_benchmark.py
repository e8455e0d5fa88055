"""benchmarks/gpu.py without a GPU and without PyTorch: its measurements of our code, and the merging of results."""

import json
import math
import sys
from pathlib import Path

import pytest


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    # It takes this from the environment before JAX starts; the suite is not to keep it.
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import gpu

    yield gpu
    for name in ("gpu", "steps", "beside_torch", "loop_overhead", "pretraining"):
        sys.modules.pop(name, None)


def options(gpu, rows="", deadline=math.inf):
    return gpu.Options(rows=rows, tiny=True, rounds=2, seconds=0, peers=False, deadline=deadline)


def test_ours_is_measured_without_a_peer(gpu):
    (row,) = gpu.search(options(gpu, rows="ranking"))
    assert row["row"] == "ranking, 20 queries, 5000 x 256"
    assert len(row["all_runs"]["ours"]) == 2
    assert row["ours"] > 0
    assert row["peer"] is row["ratio"] is None
    assert 0 < row["float32_error"]["ours"] < 1e-5
    assert row["row"] in gpu.table({"search": {"rows": [row]}})


def test_rows_for_which_no_time_is_left_are_reported_as_left_out(gpu, capsys):
    assert not list(gpu.search(options(gpu, deadline=-math.inf)))
    assert "left out, for the time of the group is over: ranking" in capsys.readouterr().err


def test_a_group_leaves_other_groups_and_other_rows_as_they_were(gpu, tmp_path):
    out = tmp_path / "gpu.json"
    kept = {"row": "kept", "ours": 1.0, "unit": "s"}
    content = {"study": {"rows": [kept]}, "steps": {"rows": [kept, {"row": "again", "ours": 1.0, "unit": "s"}]}}
    out.write_text(json.dumps(content))
    merged = gpu.merged(out, "steps", [{"row": "again", "ours": 2.0, "unit": "s"}])
    assert merged["study"] == content["study"]
    assert [(row["row"], row["ours"]) for row in merged["steps"]["rows"]] == [("kept", 1.0), ("again", 2.0)]
