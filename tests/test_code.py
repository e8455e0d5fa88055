"""The hash of the training code changes only with code, and stale results are reported."""

import ast
import json

import pytest

from benchmarks import stale
from tll_jax.code import LEFT_OUT, TRAINING_CODE, training_code, tree_hash

SOURCE = """
\"\"\"A module.\"\"\"

RATE = 0.5
\"\"\"Of what is kept.\"\"\"


def half(x, *, rate=RATE):
    \"\"\"Half of it.\"\"\"
    # Why.
    return f"{x * rate:.2f}"
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Half of it.", "The half."),
        ('    """Half of it."""\n', ""),
        ('"""Of what is kept."""\n', ""),
        ("    # Why.\n", ""),
        ("x, *, rate=RATE", "x,\n    *,\n    rate=RATE,\n"),
        ("0.5", "0.50"),
    ],
)
def test_comments_docstrings_and_layout_do_not_change_the_hash(old, new):
    assert old in SOURCE
    assert tree_hash(SOURCE.replace(old, new)) == tree_hash(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [("0.5", "0.25"), ("x * rate", "x + rate"), ("rate=RATE", "rate=None"), (":.2f", ":.3f"), ("*, ", "")],
)
def test_every_change_of_code_changes_the_hash(old, new):
    assert old in SOURCE
    assert tree_hash(SOURCE.replace(old, new)) != tree_hash(SOURCE)


def test_different_trees_have_different_texts():
    # An argument that is None and none at all; a string of code and a name.
    for one, other in (("f(None)", "f()"), ("f('x')", "f(x)"), ("x = [], 1", "x = [1]"), ("x: int", "x: int = None")):
        assert ast.dump(ast.parse(one)) != ast.dump(ast.parse(other))
        assert tree_hash(one) != tree_hash(other)


def test_all_listed_files_exist_and_are_hashed():
    root = stale.RESULTS.parents[1] / "tll_jax"
    assert all((root / place).exists() for place in (*TRAINING_CODE, *LEFT_OUT))
    assert len(training_code()) == 12


@pytest.fixture
def results(tmp_path):
    for name, file, content in (
        ("emoji", "results.json", {"code": ["0123456789ab"]}),
        ("table", "compare.json", {}),
        ("fresh", "results.json", {"code": [training_code()]}),
        ("mixed", "results.json", {"code": [training_code(), "unknown"]}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps(content))
    return tmp_path


def test_the_demos_results_of_other_code_fail_and_others_are_warned_of(results, capsys):
    assert stale.main(["--results", str(results)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" was")[0] for line in said] == [
        "error: figures/results/emoji",
        "warning: figures/results/mixed",
        "warning: figures/results/table",
    ]
    assert f"made by code 0123456789ab, this is {training_code()}" in said[0]
    assert f"made by code {training_code()} and before results named their code, this is" in said[1]
    assert "made before results named their code" in said[2]
    (results / "emoji" / "results.json").write_text(json.dumps({"code": [training_code()]}))
    assert stale.main(["--results", str(results)]) == 0


def test_a_warning_says_whether_the_code_gave_equal_results_in_the_demo(results, tmp_path, monkeypatch, capsys):
    runs = [
        {"code": code, "processor": "a", "jax": "b", "cores_a_training": 1}
        for code in ([training_code()], ["0123456789ab"])
    ]
    (tmp_path / "reruns.json").write_text(json.dumps({"runs": runs}))
    monkeypatch.setattr(stale, "RERUNS", tmp_path / "reruns.json")
    stale.equal_codes.cache_clear()
    stale.main(["--results", str(results)])
    stale.equal_codes.cache_clear()
    said = capsys.readouterr().err.splitlines()
    assert ["equal results in the demo" in line for line in said] == [True, False, False]
