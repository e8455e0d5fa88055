"""Page of an explained pair, used in a real browser, and its files."""

import dataclasses
import html
import json
import re
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
import pytest

from tests.report.browser import dump_dom
from tests.report.synthetic_study import build
from tll_jax.data.archive import printable
from tll_jax.files import file_name
from tll_jax.report import figures
from tll_jax.report.explanation import write_explanation, write_index
from tll_jax.report.pictures import overlay
from tll_jax.report.queries import explained as explained_model
from tll_jax.saliency.decomposition import Decomposition, coarsened
from tll_jax.saliency.grades import GRADES, ordered
from tll_jax.saliency.pair_attributions import PairAttributions
from tll_jax.saliency.side_by_side import ExplainedPair
from tll_jax.study.explain import random_cosines
from tll_jax.study.folder import StudyFolder

HOSTILE = 'a</script><b>&"'
RNG = np.random.default_rng(0)
# Contributions of 2 x 3 places: the left picture's first place has a positive one with the right one's last and a
# negative one with its second.
PAIRS = np.zeros((2, 3, 2, 3), np.float32)
PAIRS[0, 0, 1, 2], PAIRS[0, 0, 0, 1], PAIRS[1, 1, 0, 0] = 0.5, -0.2, 0.1
DECOMPOSITION = Decomposition(PAIRS, np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), np.float32(0.02))


def explained(decomposition=DECOMPOSITION):
    left, right = RNG.integers(0, 256, (2, 24, 36, 3), dtype=np.uint8)
    maps = {name: tuple(RNG.normal(size=(2, 24, 36)).astype(np.float32)) for name in ("gradient", "grad-cam")}
    return ExplainedPair(
        names=(HOSTILE, "right"),
        left=left,
        right=right,
        cosine=0.42,
        target="cosine",
        layer="stage2",
        descriptions={"gradient": "description of one", "grad-cam": "description of the other"},
        maps=maps,
        decomposition=decomposition,
    )


USE = """<script>addEventListener('load', () => {
  const seen = {};
  const region = () => document.querySelector("#region").textContent;
  const board = side => [...document.querySelectorAll(".board")[side].querySelectorAll("button")];
  const look = name => { seen[name] = {
    words: region(),
    query: [0, 1].map(side => board(side).findIndex(one => one.classList.contains("query"))),
    best: [0, 1].map(side => board(side).findIndex(one => one.classList.contains("best"))),
    against: board(1).map(
      one => one.classList.contains("against") && Number(one.style.getPropertyValue("--cover")) > 0),
  }; };
  const press = key => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  look("start");
  board(0)[0].dispatchEvent(new PointerEvent("pointerenter"));
  look("pointed");
  board(0)[0].click();
  board(0)[4].dispatchEvent(new PointerEvent("pointerenter"));
  look("held");
  press("Escape");
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
  look("let go");
  board(0)[0].focus();
  ["ArrowRight", "ArrowDown", "ArrowLeft", "ArrowLeft", "ArrowRight"].forEach(press);
  look("keys");
  seen.reachable = board(0).filter(one => one.tabIndex === 0).length;
  document.title = JSON.stringify(seen);
});</script>"""


def test_places_answer_to_pointer_and_keys_in_a_real_browser(tmp_path):
    path = write_explanation(explained(), tmp_path)
    path.write_text(path.read_text().replace("</body>", f"{USE}</body>"))
    outcome = dump_dom(path, tmp_path / "profile")
    assert "CONSOLE" not in outcome.stderr
    seen = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", outcome.stdout, re.DOTALL)[1]))
    assert seen["start"]["words"].startswith("All places together: +0.400 of the cosine 0.420")
    pointed = seen["pointed"]
    assert pointed["words"].startswith(
        "row 1, column 1 of the left picture adds +0.300 to the cosine 0.420; "
        "most with row 2, column 3 of the right picture: +0.500"
    )
    assert (pointed["query"], pointed["best"]) == ([0, -1], [-1, 5])
    assert pointed["against"] == [False, True, False, False, False, False]
    # A click keeps the place selected while the pointer moves; Escape releases it.
    assert seen["held"]["query"] == [0, -1]
    assert seen["let go"]["words"] == seen["start"]["words"]
    # Right, down, left, left (the edge), right: the place in the middle of the second row.
    assert seen["keys"]["query"] == [4, -1]
    assert seen["keys"]["words"].startswith("row 2, column 2 of the left picture adds +0.100")
    assert seen["reachable"] == 1


def test_names_cannot_break_the_page_and_a_head_without_places_gets_no_board(tmp_path):
    page = write_explanation(explained(), tmp_path / "one").read_text()
    assert HOSTILE not in page
    assert html.escape(HOSTILE) in page
    assert 'class="board"' in page
    page = write_explanation(explained(decomposition=None), tmp_path / "other").read_text()
    assert 'class="board"' not in page
    assert "description of the other" in page


ENLARGE = """<script>addEventListener('load', () => {
  const large = document.querySelector("#large"), seen = [large.open];
  document.querySelectorAll(".enlarge")[1].click();
  const sources = side => [...side.querySelectorAll("img")].map(one => one.src);
  seen.push(large.open, large.getAttribute("aria-label"),
    String(sources(large)) === String(sources(document.querySelectorAll(".enlarge")[1])));
  large.click();
  document.title = JSON.stringify([...seen, large.open]);
});</script>"""


def test_a_click_enlarges_a_map_and_another_closes_it(tmp_path):
    path = write_explanation(explained(decomposition=None), tmp_path)
    path.write_text(path.read_text().replace("</body>", f"{ENLARGE}</body>"))
    outcome = dump_dom(path, tmp_path / "profile")
    assert "CONSOLE" not in outcome.stderr
    seen = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", outcome.stdout, re.DOTALL)[1]))
    assert seen == [False, True, "gradient", True, False]


def test_one_page_links_every_candidate_of_a_query(tmp_path):
    pairs = {write_explanation(explained(), tmp_path / name): explained() for name in ("001-a b", "002-c")}
    page = write_index(HOSTILE, pairs, tmp_path).read_text()
    links = re.findall(r'class="candidate" href="(.*?)"', page)
    assert [(tmp_path / unquote(link)).is_file() for link in links] == [True, True]
    assert HOSTILE not in page


def test_recommended_methods_come_first_with_their_grades_and_the_gradient_is_labelled(tmp_path):
    page = write_explanation(explained(), tmp_path).read_text()
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', page)
    assert [name for name, _ in rows] == ["decomposition", "gradient", "grad-cam", "noise"]
    assert re.findall(r"<td>([-.\d]+)</td>", rows[0][1]) == ["0.07", "0.06", "0.07", "0.11"]
    assert "[Munteanu 2022]: description of one" in rows[1][1]
    names = ["rise", "gradient", "decomposition", "occlusion", "integrated-gradients"]
    assert ordered(names) == ["integrated-gradients", "decomposition", "gradient", "rise", "occlusion"]


def test_grades_of_the_package_are_those_of_the_logs_and_of_the_docs():
    root = Path(__file__).parents[2]
    rows = {}
    for name, log in (("demo's network", "emoji"), ("small network on", "tll")):
        saved = json.loads((root / f"benchmarks/results/saliency_grades_{log}.json").read_text())["rows"]
        # Signed SmoothGrad was added after the grading, which calls the absolute one so.
        rows[name] = {row["method"].replace("smoothgrad", "smoothgrad-absolute"): row["grades"] for row in saved}
        measured = rows[name]
        place = "emoji" if log == "emoji" else "photographs"
        for method, grade in GRADES.items():
            assert getattr(grade, f"gain_{place}") == round(measured[method]["similarity_gain"]["value"], 3)
            assert getattr(grade, f"cascade_{place}") == round(measured[method]["cascade_mean"]["value"], 3)
    tables = (root / "docs" / "faithfulness.md").read_text().split("\n## ")
    for column, heading in enumerate(rows):
        (table,) = (part for part in tables if heading in part.splitlines()[0])
        shown = dict(re.findall(r"^\| (\S+) \| (-?[.\d]+) \[", table, re.MULTILINE))
        assert {name: float(shown[name]) for name in GRADES} == {name: one[column] for name, one in GRADES.items()}


def test_the_cosine_has_its_place_among_random_pairs_and_is_never_rounded_up_to_all(tmp_path):
    # Left 1 and right 2 have one direction, left 2 and right 1 are 45 degrees apart.
    found = random_cosines(np.float32([[2, 0], [0, 3]]), np.float32([[1, 1], [5, 0]]))
    np.testing.assert_allclose(found, [np.sqrt(0.5), 1], rtol=1e-6)
    assert "random" not in write_explanation(explained(), tmp_path).read_text().split("</header>")[0]
    for fraction, words in ((0.9926, "99.2 %"), (0.9999, "99.9 %"), (1.0, "100 %"), (0.5, "50 %")):
        pair = dataclasses.replace(explained(), more_alike_than=fraction)
        assert f"0.420: more alike than {words} of random test pairs" in write_explanation(pair, tmp_path).read_text()
    assert ExplainedPair.load(tmp_path / "explained.npz").more_alike_than == 0.5


def test_pair_attributions_are_shown_without_an_exact_decomposition(tmp_path):
    pair = dataclasses.replace(
        explained(decomposition=None), attributions=PairAttributions(DECOMPOSITION, np.float32(0.425))
    )
    page = write_explanation(pair, tmp_path).read_text()
    # 0.4 by pairs and 0.02 by the bias are 0.005 less than the similarity.
    assert "As the maps of stage2 go" in page
    assert "miss the cosine by -0.0050" in page
    again = ExplainedPair.load(tmp_path / "explained.npz")
    assert again.decomposition is None
    np.testing.assert_array_equal(again.attributions.parts.pairs, PAIRS)
    assert float(again.attributions.error()) == pytest.approx(-0.005, abs=1e-6)
    both = dataclasses.replace(pair, decomposition=DECOMPOSITION)
    assert "Before they are brought to unit length" in write_explanation(both, tmp_path / "both").read_text()


def test_a_study_links_the_pages_that_it_has(tmp_path):
    study = StudyFolder(build(tmp_path, num_pairs=10, num_excluded=2))
    model = study.models[0]
    id = study.explanations(model)[0].id
    folder = study.runs(model)[0] / "explanations" / file_name(id)
    assert study.explained_pairs(model) == {}
    held = {text.get_text() for text in figures.all_methods(study, model, id).texts}
    assert {"integrated-gradients", "decomposition", "gradient"} <= held
    assert "grad-cam" not in held
    assert "side by side" not in "".join(explained_model(study, model))
    write_explanation(explained(), folder)
    assert study.explained_pairs(model) == {id: folder}
    section = "".join(explained_model(study, model))
    ((link, words),) = re.findall('<a href="([^"]*index.html)">(.*?)</a>', section)
    assert (study.path / unquote(link)).is_file()
    assert html.unescape(words) == printable(id)
    panel = figures.all_methods(study, model)
    assert {"gradient", "grad-cam", "decomposition"} <= {text.get_text() for text in panel.texts}
    with pytest.raises(ValueError, match=r"explains of barlow .*; `tll explain` draws any pair by any method"):
        figures.all_methods(study, model, "another")
    with pytest.raises(KeyError, match="has no model 'hog'"):
        figures.all_methods(study, "hog")


def test_a_report_shows_every_pair_by_the_recommended_methods_before_the_gradient(tmp_path):
    study = StudyFolder(build(tmp_path, num_pairs=10, num_excluded=2))
    model = study.models[0]
    explanations = study.explanations(model)
    section = "".join(explained_model(study, model))
    shown = re.findall(r"<figcaption><b>(.*?)</b> (.*?)</figcaption>", section)
    assert len(shown) == 4 * len(explanations)
    assert html.unescape(shown[0][0]) == f"{printable(explanations[0].id)}: rank {explanations[0].rank} (best)"
    assert shown[1:4] == [
        ("integrated-gradients", "recommended; gain 0.26, 0.41"),
        ("decomposition", "recommended; gain 0.07, 0.06"),
        ("gradient", "[Munteanu 2022]; gain 0.04, 0.02"),
    ]
    # Of a run that was explained by an earlier version there is the gradient alone.
    (study.runs(model)[0] / "recommended.npz").unlink()
    earlier = re.findall(r"<figcaption><b>(.*?)</b>", "".join(explained_model(study, model)))
    assert earlier[1::2] == ["gradient"] * len(explanations)


def test_explained_pairs_survive_a_round_trip(tmp_path):
    pair = explained()
    write_explanation(pair, tmp_path)
    again = ExplainedPair.load(tmp_path / "explained.npz")
    assert (again.names, again.cosine, again.descriptions) == (pair.names, pair.cosine, pair.descriptions)
    np.testing.assert_array_equal(again.maps["grad-cam"][1], pair.maps["grad-cam"][1])
    np.testing.assert_array_equal(again.decomposition.pairs, PAIRS)
    assert cv2.imread(str(tmp_path / "panel.png")).std() > 10
    assert (tmp_path / "panel.svg").read_text().count("<image") >= 8


def test_signed_overlays_distinguish_positive_and_negative():
    image = np.full((2, 2, 3), 128, np.uint8)
    shown = overlay(image, np.array([[1.0, -1.0], [0.0, 0.0]]), signed=True)
    (red, _, blue), (red_against, _, blue_against) = shown[0, 0], shown[0, 1]
    assert red > blue
    assert red_against < blue_against
    np.testing.assert_allclose(shown[1, 0], 128 / 255, atol=1e-6)


def test_coarsening_preserves_the_sum():
    pairs = RNG.normal(size=(5, 4, 5, 4)).astype(np.float32)
    sides = RNG.normal(size=(2, 5, 4)).astype(np.float32)
    whole = Decomposition(pairs, *sides, np.float32(0.3))
    fewer = coarsened(whole, 3)
    assert fewer.pairs.shape == (3, 3, 3, 3)
    assert float(fewer.total()) == pytest.approx(float(whole.total()), abs=1e-5)
    # 4 columns in 2 exact halves, by hand.
    halves = coarsened(Decomposition(np.ones((2, 4, 2, 4)), np.ones((2, 4)), np.ones((2, 4)), np.float32(0)), 2)
    np.testing.assert_allclose(halves.pairs, np.full((2, 2, 2, 2), 4.0), rtol=1e-6)
