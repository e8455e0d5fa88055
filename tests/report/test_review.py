"""Page for checking the face filter: sections, and boxes that write what `read_overrides` reads."""

import csv
import html
import io
import json
import re

import numpy as np
import pytest

from tests.report.browser import dump_dom
from tll_jax import cli
from tll_jax.data.archive import Archive
from tll_jax.data.emoji import ARCHIVE
from tll_jax.data.faces import read_overrides
from tll_jax.data.pairs import Crop, Entry, Pairs
from tll_jax.files import text_of_cell
from tll_jax.report.review import page, write_review

HOSTILE = '<b>"a", \n&b'
FACES = [[0, 0], [2, 0], [1, 1], [0, 0], [0, 0]]
IDS = ["apple", "bear", "crow", HOSTILE, "echo"]
ODD = ["=1+1", "-rf", "'=quoted", " space ", "return\r", "tab\t", "caf\udce9", "é", "\u202egnp"]
"""Ids that spreadsheets, browsers or UTF-8 would change."""


@pytest.fixture(scope="module")
def pairs():
    """Five pairs; the hostile one shares a picture with `crow`, which shows faces; `echo` was corrected."""
    names = [name.removeprefix("left/") for name in Archive(ARCHIVE).names if name.startswith("left/")][:5]
    lefts = [*names[:3], names[2], names[4]]
    entries = [
        Entry(identity, Crop(f"left/{left}"), Crop(f"right/{right}"))
        for identity, left, right in zip(IDS, lefts, names, strict=True)
    ]
    return Pairs(
        Archive(ARCHIVE),
        entries,
        find_faces=lambda images, hashes: np.ravel(FACES),
        face_overrides={"echo": [None, 0]},
    )


def ids_by_section(text):
    sections = re.findall(r'<section id="([\w-]+)">(.*?)</section>', text, re.DOTALL)
    return {name: [html.unescape(i) for i in re.findall(r'data-id="([^"]*)"', body)][::2] for name, body in sections}


def test_every_pair_is_in_the_section_of_its_rule(pairs):
    found = ids_by_section(page(pairs, rule="none"))
    assert found["kept"] == ["apple", "echo"]
    assert found["dropped"] == ["bear", "crow"]
    assert found["dropped-for-a-shared-picture"] == [HOSTILE]
    found = ids_by_section(page(pairs, rule="not-single"))
    assert found["kept"] == ["apple", "bear", "echo"]


def test_the_page_has_the_counts_of_every_rule(pairs):
    text = page(pairs, rule="both")
    rows = re.findall(r'<th scope="row">(none|not-single|both)</th>(.*?)</tr>', text)
    counts = {rule: [int(n) for n in re.findall(r"<td>(\d+)</td>", cells)] for rule, cells in rows}
    # Dropped, for a shared picture, kept.
    assert counts == {"none": [2, 1, 2], "not-single": [1, 1, 3], "both": [1, 1, 3]}
    assert '<b>"' not in text
    assert "no face, set" in text
    assert "2 faces" in text


TICK = """<script>
for (const box of document.querySelectorAll("input[data-side=left]"))
  if (["apple", "bear", "<b>"].some(start => box.dataset.id.startsWith(start))) box.click();
document.title = JSON.stringify(document.querySelector("#overrides").value);
</script>"""


def test_ticked_boxes_write_overrides_that_are_read_again(pairs, tmp_path):
    path = write_review(pairs, tmp_path / "faces.html", rule="none")
    path.write_text(path.read_text().replace("</body>", f"{TICK}</body>"))
    outcome = dump_dom(path, tmp_path / "profile")
    title = html.unescape(re.search(r"<title>(.*?)</title>", outcome.stdout, re.DOTALL)[1])
    (tmp_path / "faces.csv").write_text(json.loads(title))
    assert read_overrides(tmp_path / "faces.csv") == {
        "apple": [1, None],
        "bear": [0, None],
        "echo": [None, 0],
        HOSTILE: [1, None],
    }


SAY = """<script>
document.querySelectorAll("input[data-side=left]").forEach(box => box.click());
document.title = decodeURIComponent(document.querySelector("#download").href.split(",").slice(1).join(","))
  .replaceAll("\\r", "&cr;");
</script>"""


def test_ids_that_programs_would_change_survive_a_round_trip_and_no_cell_is_a_formula(tmp_path):
    names = [name.removeprefix("left/") for name in Archive(ARCHIVE).names if name.startswith("left/")]
    entries = [Entry(id, Crop(f"left/{name}"), Crop(f"right/{name}")) for id, name in zip(ODD, names, strict=False)]
    pairs = Pairs(Archive(ARCHIVE), entries, find_faces=lambda images, hashes: np.zeros(2 * len(ODD), int))
    path = write_review(pairs, tmp_path / "faces.html", rule="none")
    path.write_text(path.read_text().replace("</body>", f"{SAY}</body>"))
    outcome = dump_dom(path, tmp_path / "profile")
    title = html.unescape(re.search(r"<title>(.*?)</title>", outcome.stdout, re.DOTALL)[1]).replace("&cr;", "\r")
    rows = list(csv.DictReader(io.StringIO(title, newline="")))
    assert {text_of_cell(row["id"]) for row in rows} == set(ODD)
    assert not any(row["id"].startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows)
    assert all((row["side"], row["faces"]) == ("left", "1") for row in rows)


def test_the_command_writes_the_page_and_refuses_invalid_overrides(tmp_path, capsys):
    out = tmp_path / "faces.html"
    cli.main(["review", "emoji", "--out", str(out)])
    assert capsys.readouterr().out == f"{out}\n"
    assert "Of 1,610 pairs 1,081 may be tested" in out.read_text()
    with pytest.raises(SystemExit, match="the emoji pairs take none"):
        cli.main(["review", "emoji", "--face-overrides", "faces.csv", "--out", str(out)])
