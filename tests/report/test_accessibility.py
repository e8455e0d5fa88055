"""Colors, focus and structure of the pages can be seen, heard and reached."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

from tests.gallery.find_results import result
from tests.report.accessibility import ENOUGH_CONTRAST, contrast, faults
from tests.report.test_explanation import explained
from tests.report.test_find_page import read
from tll_jax.report import markup
from tll_jax.report.explanation import write_explanation, write_index
from tll_jax.report.find_page import write_find_page

CSS = files("tll_jax.report").joinpath("page.css").read_text()
SITE = (Path(__file__).parents[2] / "docs" / "site.css").read_text()


def test_contrast_is_that_of_the_guidelines():
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_has_enough_contrast_in_both_schemes(scheme):
    colors = dict(re.findall(r"--(\w+): (#\w+)", re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)[scheme]))
    for ink in ("ink", "muted", "accent", "match"):
        for paper in ("surface", "card"):
            assert contrast(colors[ink], colors[paper]) >= ENOUGH_CONTRAST, (ink, paper)
    # The number of a card; a strongest place's is in the paper's color on that of the match.
    assert contrast(colors["ink"], colors["faint"]) >= ENOUGH_CONTRAST


def test_the_site_has_enough_contrast_where_it_sets_colors():
    schemes = dict(re.findall(r"\[data-md-color-scheme=(\w+)\] \{(.*?)\}", SITE, re.DOTALL))
    # The paper of the theme's code.
    papers = {"default": ("#f5f5f5",), "slate": ("#272a35",)}
    for name, rules in schemes.items():
        inks = re.findall(r": (#\w+);", rules)
        assert inks
        assert all(contrast(ink, paper) >= ENOUGH_CONTRAST for ink in inks for paper in papers[name])


def test_focus_is_outlined():
    ((outline,),) = [
        re.findall(r"outline: (\d)px solid", rule) for rule in re.findall(r"\n:focus-visible \{(.*?)\}", CSS)
    ]
    assert int(outline) >= 2
    assert "outline: none" not in CSS


def test_explanations_and_finds_have_names_order_and_keyboard_access(tmp_path):
    page = write_explanation(explained(), tmp_path / "why")
    assert faults(page.read_text()) == []
    assert faults(write_index("query", {page: explained()}, tmp_path).read_text()) == []
    assert faults(write_find_page(result(), tmp_path / "find", read=read).read_text()) == []


def test_a_page_of_one_section_has_no_list_of_sections():
    pages = [markup.document("title", "lead", sections, script="") for sections in ({"a": ["x"]}, {"a": "x", "b": "y"})]
    assert ["<nav" in page for page in pages] == [False, True]


def test_what_is_wrong_with_a_page_is_found():
    page = (
        '<html lang="en"><head><title>t</title></head><body><main><h1>t</h1><h3>skips</h3><img src="x"><pre>wide</pre>'
        '<button></button><div role="group"></div><p id="a"></p><p id="a"></p></main></body></html>'
    )
    assert len(faults(page)) == 6
