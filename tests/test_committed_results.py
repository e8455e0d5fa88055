"""Tables and intervals in README and the docs are those of the committed results."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import demo_reruns
from tll_jax.report import numbers

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "figures" / "results"
PAGES = ("README.md", "docs/find.md", "docs/results.md", "docs/results_tll.md", "docs/reproduce.md")
METRICS = {"top-1": "top1", "top-5": "top5", "top-10": "top10", "top-25": "top25", "MRR": "mrr"}
TABLES = {
    "README.md: What was found": ("tll_table/compare.json",),
    "docs/results.md: The demo": ("emoji/results.json",),
    "docs/results.md: A wider network, trained longer": ("emoji_full/results.json",),
    "docs/results.md: A small vision transformer": ("emoji_vit/results.json",),
    "docs/results_tll.md: All systems": ("tll_table/compare.json",),
    "docs/results_tll.md: Low-rank adapters": ("tll_lora/results.json",),
    "docs/results_tll.md: A small vision transformer": ("tll_vit/results.json",),
    "docs/results_tll.md: Five folds": ("tll_folds/compare.json",),
    "benchmarks/README.md: Look-alikes and copies beside other programs": (
        "../../benchmarks/results/find_quality.json",
    ),
}
"""Results that the table of systems under a heading shows."""
NOT_KEPT = {
    # Validation pairs: fewer steps of the demo less those before, for its three models, and still fewer.
    ("-.003", "-.023", ".017"),
    ("-.026", "-.058", ".006"),
    ("-.011", "-.044", ".022"),
    (".025", ".006", ".043"),
}
"""Intervals of runs whose results are not in the repository, which the page says."""


def tables(name):
    """Headings and rows of the tables of a page that have a column MRR."""
    found, heading, rows = [], "", None
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.strip("# ")
        if not line.startswith("|"):
            rows = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if rows is None and cells[0] == "system" and "MRR" in cells:
            rows = []
            found.append((f"{name}: {heading}", cells, rows))
        elif rows is not None and set(line) - set("|- "):
            rows.append(cells)
    return found


def walk(value):
    """All dicts in a JSON value."""
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(one)


def intervals(value, of):
    """A value and an interval as a page may print them, with two or three digits and with either sign."""
    for sign in (1, -1):
        ends = sorted((sign * of["low"], sign * of["high"]))
        for digits in (2, 3):
            yield tuple(
                numbers.fraction(number, digits=digits).replace(numbers.MINUS, "-") for number in (sign * value, *ends)
            )


@pytest.fixture(scope="module")
def committed():
    """Every interval of the committed results and benchmarks."""
    found = set()
    for path in [*RESULTS.glob("*/*.json"), *(ROOT / "benchmarks" / "results").glob("*.json")]:
        for one in walk(json.loads(path.read_text(encoding="utf-8"))):
            value = one.get("value", one.get("difference"))
            if value is not None and "low" in one:
                found.update(intervals(value, one))
            crossed = one.get("crossed") or {}
            if "low" in crossed:
                found.update(intervals(value, crossed))
            for metric in set(METRICS.values()) & set(crossed):
                found.update(intervals(one[metric]["value"], crossed[metric]))
    return found


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_systems_shows_the_committed_results(name):
    (table,) = (one for one in tables(name.partition(":")[0]) if one[0] == name)
    by_system = {
        row["system"]: row
        for path in TABLES[name]
        for row in json.loads((RESULTS / path).read_text(encoding="utf-8"))["rows"]
    }
    _, header, rows = table
    assert rows
    for cells in rows:
        shown = {title: cell for title, cell in zip(header, cells, strict=True) if title in METRICS}
        assert shown == {title: numbers.estimate(by_system[cells[0]][METRICS[title]]) for title in shown}, cells[0]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/*.md")), ids=lambda path: path.parent.name)
def test_a_committed_table_is_that_of_its_json(path):
    by_system = {
        row["system"]: row for row in json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["rows"]
    }
    _, header, rows = tables(path.relative_to(ROOT).as_posix())[0]
    assert {cells[0] for cells in rows} == by_system.keys()
    for cells in rows:
        shown = {title: cell for title, cell in zip(header, cells, strict=True) if title in METRICS}
        assert shown == {title: numbers.estimate(by_system[cells[0]][METRICS[title]]) for title in shown}, cells[0]


@pytest.mark.parametrize("name", PAGES)
def test_every_interval_of_a_page_is_one_of_the_committed_results(name, committed):
    text = (ROOT / name).read_text(encoding="utf-8")
    number = r"-?\.\d+"
    found = re.findall(rf"\+?({number})\s+\[({number}), ({number})\]", text)
    assert found
    assert sorted(set(found) - committed - NOT_KEPT) == []


def test_the_spread_of_the_demo_is_that_of_its_reruns():
    kept = json.loads((ROOT / "benchmarks" / "results" / "demo_reruns.json").read_text(encoding="utf-8"))["runs"]
    assert demo_reruns.markdown(kept) in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    committed_run = json.loads((RESULTS / "emoji" / "results.json").read_text(encoding="utf-8"))
    assert kept[0] == demo_reruns.record(committed_run)
    demo_reruns.check_code(kept)
    assert len(kept) >= 5
    assert len({run["jax"] for run in kept}) >= 2
    assert len({run["cores_a_training"] for run in kept}) >= 2
    assert len({run["processor"] for run in kept}) >= 2
    # README says that no difference from HOG is seen.
    differences = [one for run in kept for one in run["differences"] if one["b"] == "hog"]
    assert len(differences) == 2 * len(kept)
    assert not any(map(demo_reruns.is_shown, differences))
