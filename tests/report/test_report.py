"""The report of a synthetic study: numbers as worked by hand, figures with what they should hold, a page that opens."""

import importlib.util
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tll_jax.report import StudyFolder, figures, numbers, results_markdown, write_report
from tll_jax.report.charts import rank_counts
from tll_jax.report.pictures import clipped
from tll_jax.report.study_folder import Ranks

ROOT = Path(__file__).parents[2]


def load_synthetic():
    spec = importlib.util.spec_from_file_location("synthetic_study", Path(__file__).parent / "synthetic_study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


synthetic = load_synthetic()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic.build(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def page(folder):
    return write_report(folder).read_text()


class Reader(HTMLParser):
    """Collects what a test asks of a page."""

    def __init__(self):
        super().__init__()
        self.open, self.images, self.sources, self.scripts, self.header_scopes = [], [], [], 0, []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(given)
        if tag == "th":
            self.header_scopes.append(given.get("scope"))
        self.scripts += tag == "script"
        self.sources += [given[name] for name in ("src", "href") if name in given]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_numbers_are_written_without_leading_zeros_and_small_shares_keep_a_digit():
    assert [numbers.fraction(v) for v in (0.5234, 1.0, 0.0, 0.0031, -0.25, None)] == [
        ".52",
        "1.00",
        ".00",
        ".003",
        "\N{MINUS SIGN}.25",
        "\N{EN DASH}",
    ]
    assert numbers.estimate({"value": 0.52, "low": 0.47, "high": 0.57}) == ".52 [.47, .57]"
    assert numbers.p_value(0.0002) == "< .001"
    assert numbers.duration(7503) == "2 h 5 min"


def test_the_markdown_table_holds_the_rows_in_order_and_the_verdicts(folder):
    results = json.loads((folder / "results.json").read_text())
    text = results_markdown(results)
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    systems = names[1:11] if names[1] != "---" else names[2:12]
    assert systems[0] == "chance"
    assert systems[1:4] == ["pixels", "histogram", "hog"]
    assert systems[-3:] == ["barlow", "classification", "random"]
    assert "| barlow | hog | MRR | +.031 | [.004, .058] | .012 | .024 | barlow is better |" in text
    assert "no difference shown: the interval contains 0" in text
    assert "40 test pairs" in text
    assert "top-1 (paper)" in text


def test_rank_counts_average_directions_and_seeds_by_hand():
    one = Ranks(["a", "b"], np.array([1, 3]), np.array([1, 1]))
    other = Ranks(["a", "b"], np.array([2, 3]), np.array([1, 2]))
    # Rank 1 four times in eight answers, rank 2 twice, rank 3 twice; two pairs in all.
    assert rank_counts([one, other], num_candidates=3).tolist() == [1.0, 0.5, 0.5]


def test_a_heatmap_is_clipped_at_its_percentile_and_nothing_stays_nothing():
    heatmap = np.arange(100.0).reshape(10, 10)
    assert clipped(heatmap).max() == 1
    assert clipped(heatmap)[0, 0] == 0
    assert not clipped(np.zeros((4, 4))).any()


def test_the_histogram_figure_has_a_panel_an_arm_with_all_its_bars(folder):
    figure = figures.rank_histograms(StudyFolder(folder))
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels if axes.get_title(loc="left")][:3] == [
        "barlow",
        "classification",
        "random",
    ]
    assert sum(bar.get_height() for bar in panels[0].containers[0]) == pytest.approx(40)


def test_the_page_is_well_formed_self_contained_and_escapes_what_it_shows(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.scripts == 1
    assert reader.sources
    assert all(source.startswith("data:") for source in reader.sources)
    assert "http://" not in page
    assert "https://" not in page
    assert all(image.get("alt") for image in reader.images)
    assert all(scope in ("row", "col") for scope in reader.header_scopes)
    assert "<script>alert" not in page
    assert "1f600&lt;b&gt;&amp;x" in page


def test_the_page_names_ranks_data_and_the_command(page):
    assert "python -m tll_jax.main --config=configs/emoji.py" in page
    assert "520" in page
    assert "images of the training pairs and of the excluded pairs" in page
    assert "rank 1" in page


def test_every_figure_script_draws_from_the_folder_alone(folder, tmp_path):
    scripts = sorted((ROOT / "figures").glob("*.py"))
    assert len(scripts) >= 5
    for script in scripts:
        out = tmp_path / f"{script.stem}.png"
        command = [sys.executable, str(script), str(folder), f"--out={out}"]
        subprocess.run(command, check=True, capture_output=True)
        assert out.read_bytes()[:4] == b"\x89PNG"


def test_a_folder_that_is_no_finished_study_is_refused_with_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a finished study.*--workdir="):
        StudyFolder(tmp_path)
    script = ROOT / "figures" / "fig1_task.py"
    outcome = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert outcome.returncode == 1
    assert "is not a finished study" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_the_page_renders_in_a_real_browser_from_disk(page, folder, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on PATH")
    outcome = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            (folder / "report.html").resolve().as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "emoji: which images look alike, and why" in outcome.stdout
    assert outcome.stdout.count("<img") == page.count("<img")
    assert "CONSOLE" not in outcome.stderr
