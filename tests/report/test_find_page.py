"""The pages of `tll find`, read and used in a real browser."""

import dataclasses
import html
import json
import re
from urllib.parse import unquote_to_bytes

import cv2
import numpy as np
import pytest

from tests.gallery.find_results import HOSTILE, NOT_UTF8, pair, picture, reasons, result
from tests.report.browser import dump_dom
from tll_jax.gallery.result import Duplicates, Folder, Group
from tll_jax.report.find_cards import rounded, strength_words
from tll_jax.report.find_page import CARDS, INDEX, Site, write_find_page


def read(asked, shortest_side):
    if asked.path == "gone.jpg":
        raise FileNotFoundError("gone")
    rng = np.random.default_rng(len(asked.path))
    return rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)


def titled(outcome):
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", outcome.stdout, re.DOTALL)[1]))


def used(path, script, profile):
    """What `script` leaves in `seen` after the page has loaded."""
    text = path.read_text()
    page = path.with_name("used.html")
    code = (
        "<script>addEventListener('load', async () => { const seen = {}; const $ = s => document.querySelector(s);"
        f"{script}; document.title = JSON.stringify(seen); }});</script>"
    )
    page.write_text(text.replace("</body>", f"{code}</body>"))
    outcome = dump_dom(page, profile, milliseconds=2000)
    assert "CONSOLE" not in outcome.stderr
    return titled(outcome)


USE = """
  const card = $("#pair-1"), details = card.querySelector("details.table");
  const frames = () => [...card.querySelectorAll(".frame")];
  const cells = side => [...frames()[side].querySelectorAll("button")];
  const words = () => card.querySelector(".region").textContent;
  const pause = () => new Promise(done => setTimeout(done, 50));
  seen.before = cells(0).length;
  details.open = true;
  await pause();
  seen.cells = [cells(0).length, cells(1).length];
  seen.orders = [0, 1].map(side => cells(side).map(cell => cell.dataset.order ?? ""));
  seen.words = words();
  seen.covered = frames().map(frame => {
    const [part, whole] = [frame.querySelector(".places"), frame.querySelector("img")].map(
      one => one.getBoundingClientRect());
    return [(part.left - whole.left) / whole.width, part.width / whole.width, part.height / whole.height];
  });
  cells(0)[0].focus();
  seen.focused = words();
  seen.best = cells(1).findIndex(cell => cell.classList.contains("best"));
  seen.labels = cells(1).map(cell => cell.getAttribute("aria-label"));
  const press = (element, key) => element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  press(document.activeElement, "ArrowRight");
  seen.moved = cells(0).indexOf(document.activeElement);
  document.activeElement.click();
  press(document.activeElement, "Escape");
  seen.letGo = [cells(0).indexOf(document.activeElement), cells(0)[1].getAttribute("aria-pressed")];
  press(document.activeElement, "Escape");
  seen.left = document.activeElement === details.querySelector("summary");
  seen.wordsAfter = words();
  details.open = false;
  await pause();
  seen.hidden = getComputedStyle(card.querySelector(".places")).display;
  seen.loaded = [...card.querySelectorAll("img")].map(image => image.naturalWidth);
  seen.lazy = [...document.images].every(image => image.loading === "lazy");
  const button = card.querySelector(".not-alike");
  seen.barBefore = $("#dismissed").hidden;
  button.click();
  seen.bar = $("#dismissed [role=status]").textContent;
  seen.pressed = button.getAttribute("aria-pressed");
  seen.ignore = decodeURIComponent($("#ignore").href.split(",").slice(1).join(","));
  seen.command = $("#dismissed").dataset.command;
  seen.kept = Object.keys(localStorage).length;
  seen.toList = [...card.querySelectorAll(".to-list")].map(link => link.getAttribute("href"));
  $("#undo").focus();
  $("#undo").click();
  seen.afterUndo = [document.activeElement === button, card.querySelector(".to-list") === null];
  seen.undone = [$("#dismissed").hidden, button.getAttribute("aria-pressed")];
  seen.outside = performance.getEntriesByType("resource").map(one => one.name).filter(
    name => !name.startsWith("file:") && !name.startsWith("data:"));
  seen.scrolls = document.documentElement.scrollWidth > innerWidth;
"""


def test_cards_answer_in_a_real_browser(tmp_path):
    path = write_find_page(result(), tmp_path, read=read)
    assert path == tmp_path / INDEX
    seen = used(path, USE, tmp_path / "profile")
    assert seen["before"] == 0
    assert seen["cells"] == [4, 4]
    # The strongest pair of places is the first of the left picture with the second of the right one.
    assert seen["orders"] == [["1", "", "", ""], ["", "1", "", ""]]
    assert seen["words"].startswith("All places together: +0.800 of the cosine 0.800. Equal numbers mark")
    assert seen["focused"].startswith("row 1, column 1 of the left picture adds +0.500 to the cosine 0.800; most with")
    assert seen["best"] == 1
    assert (seen["moved"], seen["letGo"], seen["left"]) == (1, [1, "false"], True)
    assert seen["wordsAfter"] == seen["words"]
    assert seen["words"].endswith("go to one with Shift+Tab and the arrow keys.")
    assert (seen["toList"], seen["afterUndo"]) == (["#dismissed"], [True, True])
    np.testing.assert_allclose(seen["covered"], [[0, 1, 1], [0.125, 0.75, 1]], atol=0.02)
    assert seen["labels"][3] == "row 2, column 2"
    assert seen["hidden"] == "none"
    assert seen["loaded"] == [64, 64]
    assert seen["lazy"]
    assert (seen["barBefore"], seen["bar"], seen["pressed"]) == (True, "1 pair is not alike.", "true")
    assert seen["ignore"].splitlines()[1].startswith(f"{'a' * 32} {'b' * 32} # a.jpg and <img src=x")
    assert len(seen["ignore"].splitlines()) == 2
    assert seen["command"] == "tll find 'my pictures' --ignore not-alike.txt"
    assert seen["kept"] == 1
    assert seen["undone"] == [True, "false"]
    assert seen["outside"] == []
    assert not seen["scrolls"]


def test_names_cannot_break_the_page(tmp_path):
    path = write_find_page(result(), tmp_path, read=read)
    text = path.read_text()
    assert "<img src=x" not in text
    assert html.escape(HOSTILE.replace("\n", "\\n")) in text
    assert "caf\\udce9.jpg" in text
    assert re.search(r"(src|href)=\"https?:", text) is None


def test_originals_are_linked_whatever_their_names_are(tmp_path):
    folder, out = tmp_path / "my pictures", tmp_path / "out"
    folder.mkdir()
    for name in ("a.jpg", HOSTILE, NOT_UTF8):
        (folder / name).write_bytes(b"")
    path = write_find_page(result(folders=(Folder(path=str(folder)),)), out, read=read)
    links = re.findall(r'href="(\.\.[^"]*)"', path.read_text())
    found = {
        (out / unquote_to_bytes(html.unescape(link)).decode("utf-8", "surrogateescape")).resolve() for link in links
    }
    assert found == {folder / "a.jpg", folder / HOSTILE, folder / NOT_UTF8}


@pytest.mark.parametrize(
    ("paths", "expected"),
    [(["/x/a"], "1.jpg"), (["/x/a", "/x/b"], "a/1.jpg"), (["/x/a", "/y/a"], "/x/a/1.jpg"), (["/x/a", "/x/a"], "1.jpg")],
)
def test_names_say_which_of_several_folders(tmp_path, paths, expected):
    site = Site(result(folders=[Folder(path=path) for path in paths]), tmp_path, {})
    assert site.name(picture("1.jpg")) == expected


def test_the_root_of_a_file_system_is_a_folder_like_others(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    one = picture(str(tmp_path / "a.jpg").removeprefix("/"), "a" * 32)
    path = write_find_page(
        result(pairs=(pair(one, picture("b.jpg", "b" * 32)),), folders=(Folder(path="/"),)), tmp_path / "out", read=read
    )
    assert "<h1>Look-alikes in /</h1>" in path.read_text()
    assert 'href="../a.jpg"' in path.read_text()


def test_a_page_of_a_hundred_cards_stays_small(tmp_path):
    def noisy(asked, shortest_side):
        rng = np.random.default_rng(int(asked.content, 16))
        coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        return cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC)

    pictures = [picture(f"{at}.jpg", f"{at:032x}") for at in range(8)]
    pairs = [pair(pictures[at % 8], pictures[(at + 1) % 8], reasons=reasons(4, 4)) for at in range(CARDS)]
    path = write_find_page(result(pairs=pairs), tmp_path, read=noisy)
    largest = max(one.stat().st_size for one in (tmp_path / "thumbnails").iterdir())
    assert path.stat().st_size + 2 * CARDS * largest < 8_000_000
    assert path.stat().st_size < 1_000_000


def test_a_picture_that_is_gone_is_named(tmp_path):
    gone = pair(picture("a.jpg"), picture("gone.jpg", "e" * 32))
    text = write_find_page(result(pairs=(gone,)), tmp_path, read=read).read_text()
    assert 'aria-label="gone.jpg, which can no longer be read"' in text


def test_many_results_take_several_pages_whose_old_files_go(tmp_path):
    a, b = picture("a.jpg", "a" * 32), picture("b.jpg", "b" * 32)
    many = result(
        pairs=(pair(a, b, reasons=reasons()),) * (2 * CARDS + 5),
        duplicates=(Duplicates(kind="same-file", kept=a, others=(b,) * 300),) * 40,
        groups=(Group(medoid=a, members=(b,) * 20, cosines=(0.5,) * 20, least_cosine=0.4),) * 31,
    )
    path = write_find_page(many, tmp_path, read=read)
    assert {one.name for one in tmp_path.glob("*.html")} == {
        INDEX,
        "look-alikes-2.html",
        "look-alikes-3.html",
        "duplicates-2.html",
        "groups-2.html",
    }
    texts = {one.name: one.read_text() for one in tmp_path.glob("*.html")}
    assert [texts[name].count("<article") for name in (INDEX, "look-alikes-2.html", "look-alikes-3.html")] == [
        100,
        100,
        5,
    ]
    assert 'id="pair-205"' in texts["look-alikes-3.html"]
    assert 'rel="next" href="look-alikes-2.html"' in texts[INDEX]
    assert 'rel="prev" href="look-alikes-2.html"' in texts["look-alikes-3.html"]
    assert "and 101 more, in find.json" in texts[INDEX]
    assert "Group 31: 21 pictures, least cosine .40" in texts["groups-2.html"]
    (tmp_path / "mine.html").write_text("mine")
    write_find_page(result(pairs=()), tmp_path, read=read)
    assert {one.name for one in tmp_path.glob("*.html")} == {INDEX, "mine.html"}
    assert "No two pictures are look-alikes" in path.read_text()
    assert all("-320.webp" not in one.name for one in (tmp_path / "thumbnails").iterdir())


def test_the_answers_of_each_query_stand_below_its_name(tmp_path):
    a, b, c = (picture(f"{name}.jpg", name * 32) for name in "abc")
    text = write_find_page(
        result(mode="query", pairs=(pair(a, b), pair(a, c), pair(b, c))), tmp_path, read=read
    ).read_text()
    order = re.findall(r"<h3>(Most like [^<]*)</h3>|id=\"(pair-\d)\"", text)
    assert ["".join(one) for one in order] == ["Most like a.jpg", "pair-1", "pair-2", "Most like b.jpg", "pair-3"]


def test_strength_is_told_in_words():
    one = pair(picture("a"), picture("b"), one_in=51_734.2)
    assert strength_words(one) == "As alike as 1 in 52,000 random pairs."
    assert strength_words(dataclasses.replace(one, one_in=100_000.0, one_in_is_bound=True)) == (
        "More alike than any of 100,000 random pairs."
    )
    assert strength_words(dataclasses.replace(one, one_in=1.4)) == "No more alike than random pairs."
    assert "too few pictures" in strength_words(dataclasses.replace(one, one_in=None))


@pytest.mark.parametrize(("number", "expected"), [(7.4, 7), (99.6, 100), (123, 120), (51_734, 52_000), (999, 1000)])
def test_numbers_are_rounded_to_two_digits(number, expected):
    assert rounded(number) == expected
