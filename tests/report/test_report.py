"""Report of a synthetic study: numbers worked by hand, content of figures, and a page that opens."""

import importlib.util
import itertools
import json
import re
import runpy
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.report.accessibility import faults
from tests.report.browser import dump_dom
from tll_jax.data.workers import Workers
from tll_jax.report import figures, numbers, queries, significance, style
from tll_jax.report.charts import rank_counts, rank_histograms, recall_at_k, training_curves
from tll_jax.report.figure_script import draw_from, make_parser
from tll_jax.report.html import write_report
from tll_jax.report.pictures import Question, clipped, task_figure
from tll_jax.report.table import (
    exploratory,
    markdown_table,
    planned,
    results_markdown,
    shown_metrics,
    summary,
    time_words,
    verdict,
)
from tll_jax.study.folder import Curves, Ranks, StudyFolder

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


def test_worker_processes_draw_the_same_page_and_figures(folder, page, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(copy / "figures")
    workers = Workers(2)
    try:
        assert write_report(copy, workers).read_text() == page
    finally:
        workers.close()
    drawn = {path.name: path.read_bytes() for path in (copy / "figures").iterdir()}
    assert drawn == {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert len(drawn) > 5


class Reader(HTMLParser):
    """Parser that collects the parts of a page that the tests inspect."""

    def __init__(self):
        super().__init__()
        self.open, self.images, self.sources, self.scripts, self.header_scopes, self.ids = [], [], [], 0, [], []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag not in ("meta", "link", "img", "br", "source"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(given)
        if tag == "th":
            self.header_scopes.append(given.get("scope"))
        self.scripts += tag == "script"
        self.sources += [given[name] for name in ("src", "srcset", "href") if name in given]
        self.ids += [given["id"]] if "id" in given else []

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
    # Half an interval of .056, times 1 + .842 / 1.960.
    assert "no difference shown (the interval contains 0; one of .040 would be found in 8 of 10 such studies)" in text
    assert "1. barlow-frozen (frozen backbone) has the highest mean reciprocal rank" in text
    assert "2. Planned comparisons in MRR that show a difference, 1 of 2: barlow against hog +.031 [.004, .058]" in text
    assert "3. Planned comparisons in MRR that show none, 1 of 2: barlow against classification" in text
    assert "Values estimate a mean over pairs drawn like these, for the runs and candidates at hand. Of a" in text
    assert "40 test pairs" in text
    # 25 of 1,200 is 1 of 40, and there is a top-1 already.
    assert "(Munteanu)" not in text
    assert "Top-1 of 40 is the top-25 of 1,200 of [Munteanu 2022]" in text
    assert "## Faces included\n\nSystems without fitted parameters, ranked among all pairs" in text
    assert "1,610 pairs, each ranked" in text
    assert "- pairs that share a picture with another: 5 in 2 groups, none split over the parts" in text


def test_rank_counts_average_directions_and_seeds_by_hand():
    one = Ranks(["a", "b"], np.array([1, 3]), np.array([1, 1]))
    other = Ranks(["a", "b"], np.array([2, 3]), np.array([1, 2]))
    # Rank 1 four times in eight answers, rank 2 twice, rank 3 twice; two pairs in all.
    assert rank_counts([one, other], num_candidates=3).tolist() == [1.0, 0.5, 0.5]


def test_a_heatmap_is_clipped_at_its_percentile_and_zero_stays_zero():
    heatmap = np.arange(100.0).reshape(10, 10)
    assert clipped(heatmap).max() == 1
    assert clipped(heatmap)[0, 0] == 0
    assert not clipped(np.zeros((4, 4))).any()


def test_the_histogram_figure_has_a_panel_a_model_with_all_its_bars(folder):
    figure = figures.rank_histograms(StudyFolder(folder))
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels if axes.get_title(loc="left")][:3] == [
        "barlow",
        "classification",
        "random",
    ]
    shapes = [patch.get_data() for patch in panels[0].patches]
    assert sum(shape.values.sum() for shape in shapes) == pytest.approx(40)
    assert np.concatenate([shape.edges[:-1] + 0.5 for shape in shapes]).tolist() == [*range(1, 41)]


def test_first_ranks_are_enlarged_only_where_no_bar_is_in_the_way():
    ids = [str(number) for number in range(216)]
    good = Ranks(ids, np.ones(216, int), np.arange(1, 217))
    flat = Ranks(ids, np.arange(1, 217), np.arange(1, 217))

    def num_insets(ranks):
        figure = rank_histograms({"barlow": [ranks]}, num_candidates=216)
        return len(figure.axes[0].child_axes)

    assert num_insets(good) == 1
    assert num_insets(flat) == 0


def test_the_saliency_panel_has_six_pictures_a_pair_and_a_color_bar(folder):
    figure = figures.saliency(StudyFolder(folder), "barlow")
    pictures, color_bar = figure.axes
    assert len(pictures.images) == 6 * 6
    assert color_bar.get_xticks().tolist() == [0, 0.5, 1]
    assert sum(text.get_text().startswith("rank ") for text in figure.texts) == 6


def test_the_task_marks_one_match_a_query_and_the_excluded_pairs_are_framed(folder):
    study = StudyFolder(folder)
    task = figures.task(study)
    assert len(task.axes[0].images) == 3 * (1 + 7)
    assert len(task.axes[0].patches) == 3
    assert [text.get_text() for text in task.texts].count("match") == 3
    excluded = figures.excluded(study)
    assert len(excluded.axes[0].images) == 6 * 2
    assert len(excluded.axes[0].patches) == 6


def test_a_picture_keeps_its_proportions_in_the_middle_of_its_square_and_the_outline_is_its_own():
    wide, high = np.zeros((10, 40, 3), np.uint8), np.zeros((40, 10, 3), np.uint8)
    (axes,) = task_figure([Question(wide, [high], 0)]).axes
    size = 0.92
    for image, sides in zip(axes.images, ((size, size / 4), (size / 4, size)), strict=True):
        left, right, bottom, top = image.get_extent()
        assert (right - left, bottom - top) == pytest.approx(sides)
    (outline,) = axes.patches
    left, right, bottom, top = axes.images[1].get_extent()
    assert (*outline.get_xy(), outline.get_width(), outline.get_height()) == pytest.approx(
        (left, top, right - left, bottom - top)
    )
    # Both squares have the same middle line.
    assert np.mean(axes.images[0].get_extent()[2:]) == pytest.approx(np.mean(axes.images[1].get_extent()[2:]))


def test_the_training_curves_have_a_panel_a_pretrained_model_and_every_model_below(folder):
    figure = figures.training_curves(StudyFolder(folder))
    titles = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(titles)[:2] == ["pretraining loss: barlow", "pretraining loss: classification"]
    assert len(titles["fine-tuning loss"].lines) == 3
    quality = titles["mean reciprocal rank, validation pairs"].lines[0]
    assert quality.get_xdata().tolist() == [100, 200, 300, 400]


def test_recall_reaches_one_at_the_last_candidate_and_starts_at_top_1(folder):
    study = StudyFolder(folder)
    axes = figures.recall_at_k(study).axes[0]
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    ranks = study.ranks("hog")[0].of_all_queries()
    assert lines["hog"][0] == pytest.approx(np.mean(ranks == 1))
    assert lines["hog"][-1] == pytest.approx(1)
    assert lines["chance"][-1] == 1


def test_a_systems_color_does_not_depend_on_the_other_systems():
    alone = style.colors(["barlow"], dark=False)
    together = style.colors(["x", "barlow-frozen", "barlow", "hog"], dark=False)
    assert together["barlow"] == together["barlow-frozen"] == alone["barlow"]
    assert len({together["x"], together["barlow"], together["hog"]}) == 3


def test_the_page_is_well_formed_self_contained_and_escapes_what_it_shows(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.scripts == 1
    assert reader.sources
    anchors = {source[1:] for source in reader.sources if source.startswith("#")}
    assert "results" in anchors
    assert anchors <= set(reader.ids)
    assert len(set(reader.ids)) == len(reader.ids)
    assert all(source.startswith(("data:", "#")) for source in reader.sources)
    assert "http://" not in page
    assert "https://" not in page
    assert all(image.get("alt") for image in reader.images)
    assert all(scope in ("row", "col") for scope in reader.header_scopes)
    assert "<script>alert" not in page
    # Only the printable part of an id is shown: `\n` and undecodable bytes are escaped.
    assert r"picture of ../&lt;b&gt;&amp;&quot;|$\frac{\n\udce9" in page


def test_the_page_has_names_order_and_keyboard_access(page):
    assert faults(page) == []


def test_the_page_stays_small_enough_to_send(page):
    assert len(page) < 6_000_000


def test_a_comparison_is_called_only_when_interval_and_correction_agree():
    one = {"a": "x", "b": "y", "low": 0.01, "high": 0.09, "p_holm": 0.02}
    assert verdict(one) == "x is better"
    assert verdict(one | {"low": -0.09, "high": -0.01}) == "y is better"
    assert verdict(one | {"p_holm": None}) == "x is better"
    assert verdict(one | {"p_holm": 0.09}) == "x is ahead, but not after Holm's correction"
    assert verdict(one | {"low": 0.0}).startswith("no difference shown (the interval contains 0; one of .064 would")
    runs = {"crossed": {"low": -0.07, "high": 0.17}}
    assert verdict(one | runs) == "x is better in these runs; other runs may differ"
    assert verdict(one | {"crossed": {"low": 0.001, "high": 0.099}}) == "x is better"
    assert verdict(one | {"low": 0.0} | runs).endswith("one of .172 would be found in 8 of 10 such studies)")


def test_a_difference_that_the_correction_takes_away_is_no_finding(folder):
    results = json.loads((folder / "results.json").read_text())
    results["comparisons"][0]["p_holm"] = 0.3
    _, difference, none = summary(results)
    assert difference == "Planned comparisons in MRR that show a difference, 0 of 2."
    assert "barlow is ahead, but not after Holm's correction" in none


def test_uninformative_cutoffs_have_no_column():
    def shown(candidates, paper_k):
        return shown_metrics({"protocol": {"candidates": candidates, "paper_k": paper_k}})

    assert shown(325, 7) == ["top1", "top5", "top10", "top25", "top_paper", "mrr"]
    assert shown(216, 5) == ["top1", "top5", "top10", "top25", "mrr"]
    assert shown(25, 2) == ["top1", "top5", "top10", "top_paper", "mrr"]
    assert shown(4, 1) == ["top1", "mrr"]


def test_a_comparison_in_a_metric_without_information_is_not_shown():
    comparisons = [
        {"a": "x", "b": "y", "metric": metric, "planned": is_planned}
        for metric in ("top1", "top5", "mrr")
        for is_planned in (True, False)
    ]
    results = {"protocol": {"candidates": 5, "paper_k": 1}, "comparisons": comparisons}
    for found in (planned(results), exploratory(results)):
        assert [one["metric"] for one in found] == ["top1", "mrr"]


def test_the_times_of_earlier_runs_stand_beside_that_of_the_last_one():
    seconds = {"pretrain barlow": 350.2, "finetune barlow seed 0": 400.0, "total": 3.3}
    assert time_words({"seconds": seconds}) == [
        ("last run", "3 s"),
        ("finetune barlow seed 0", "6 min 40 s"),
        ("pretrain barlow", "5 min 50 s"),
    ]


def test_the_report_has_intervals_over_pairs_and_runs(folder):
    results = json.loads((folder / "results.json").read_text())
    assert "pairs and runs" not in results_markdown(results)
    barlow = next(row for row in results["rows"] if row["system"] == "barlow")
    barlow |= {"num_seeds": 5, "num_starts": 3, "crossed": {"mrr": {"low": 0.2, "high": 0.8}}}
    results["comparisons"][0]["crossed"] = {"low": -0.01, "high": 0.07}
    text = results_markdown(results)
    assert "| MRR | MRR, pairs and runs | median rank |" in text
    assert re.search(r"\| barlow \| fine-tuned .*\| \[\.20, \.80\] \|", text)
    assert "| [.004, .058] | [−.010, .070] | .012 | .024 | barlow is better in these runs; other" in text
    assert "draws seeds and pretrainings anew as well" in text


def test_the_sampled_queries_run_from_the_easiest_pair_to_the_hardest(folder):
    study = StudyFolder(folder)
    sampled = queries.sample(study, num_queries=5)
    found = [study.ranks(model)[0] for model in study.models]

    def ease(position):
        one_way = [1 / ranks.left_to_right[position] + 1 / ranks.right_to_left[position] for ranks in found]
        return sum(one_way)

    eases = [ease(position) for position, _ in sampled]
    assert eases == sorted(eases, reverse=True)
    assert eases[0] == max(map(ease, range(40)))
    assert eases[-1] == min(map(ease, range(40)))
    assert [side for _, side in sampled] == ["left", "right", "left", "right", "left"]


def test_a_card_states_each_models_rank_and_outlines_the_match_among_its_answers(folder):
    study = StudyFolder(folder)
    shown = queries.sampled_queries(study)
    sampled = queries.sample(study)
    hits = 0
    for position, side in sampled:
        for model in study.models:
            ranks = study.ranks(model)[0]
            rank = (ranks.left_to_right if side == "left" else ranks.right_to_left)[position]
            assert f"{model}<br><b>rank {rank}</b>" in shown
            hits += rank <= 5
    # One outline per card for the match itself, and one for each model with the match among its five candidates.
    assert shown.count('class="match"') == len(sampled) + hits


def test_every_direction_is_reported_with_counts_where_there_is_one_seed(page):
    assert "4 of 10 [.17, .69]" in page
    assert "<td>9</td><td>3</td><td>.146</td>" in page


def test_the_page_has_the_matrix_of_all_systems_and_the_rows_among_all_pairs(page, folder):
    assert "adjusted for all 72 cells by step-down max-T over the same flips" in page
    assert "Blue: the system of the row is ahead" in page
    assert (folder / "figures" / "significance.png").read_bytes()[:4] == b"\x89PNG"
    assert "Among all pairs, faces included" in page


def test_a_study_without_a_matrix_has_a_page_all_the_same(folder, tmp_path, monkeypatch):
    # Everything but the pixels, which take most of the time.
    monkeypatch.setattr(style, "save", lambda figure, path: None)
    monkeypatch.setattr(style, "pixels", lambda figure, dpi: np.zeros((1, 1, 4), np.uint8))
    older = shutil.copytree(folder, tmp_path / "older")
    results = json.loads((older / "results.json").read_text())
    del results["significance"], results["faces_included"]
    (older / "results.json").write_text(json.dumps(results))
    page = write_report(older).read_text()
    assert "max-T" not in page
    assert "faces included" not in page


def test_the_page_has_ranks_data_and_the_command(page):
    assert "python -m tll_jax.main --config=configs/emoji.py" in page
    assert "520" in page
    assert "images of the training pairs and of the excluded pairs" in page
    assert "rank 1" in page


def test_every_figure_script_draws_from_the_folder_alone(folder, tmp_path, monkeypatch):
    scripts = sorted((ROOT / "figures").glob("*.py"))
    assert len(scripts) >= 5
    for script in scripts:
        out = tmp_path / f"{script.stem}.png"
        monkeypatch.setattr(sys, "argv", [str(script), str(folder), f"--out={out}"])
        runpy.run_path(str(script), run_name="__main__")
        assert out.read_bytes()[:4] == b"\x89PNG"


def test_a_folder_that_is_no_finished_study_is_refused_with_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a finished study.*--workdir="):
        StudyFolder(tmp_path)
    script = ROOT / "figures" / "fig1_task.py"
    outcome = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert outcome.returncode == 1
    assert "is not a finished study" in outcome.stderr
    assert "Traceback" not in outcome.stderr


MEASURE = """<script>addEventListener('load', () => {
  const broken = [...document.images].filter(image => !image.naturalWidth).length;
  const wide = document.documentElement.scrollWidth > innerWidth;
  document.body.dataset.measured = `broken ${broken}, too wide ${wide}`;
});</script>"""


def test_the_page_renders_in_a_real_browser_from_disk(page, tmp_path):
    measured = tmp_path / "report.html"
    measured.write_text(page.replace("</body>", f"{MEASURE}</body>"))
    outcome = dump_dom(measured, tmp_path / "profile")
    assert "emoji: which images look alike, and why" in outcome.stdout
    assert outcome.stdout.count("<img") == page.count("<img")
    assert 'data-measured="broken 0, too wide false"' in outcome.stdout
    assert "CONSOLE" not in outcome.stderr


NAMES = ["$\\frac{$", "_hidden", "a|b\\", "line\nbreak", "caf\udce9", "x" * 200, "<b>&"]


def test_figures_show_names_of_any_kind_unchanged(tmp_path):
    ids = [str(number) for number in range(4)]
    ranks = {name: [Ranks(ids, np.array([1, 2, 3, 4]), np.array([1, 1, 2, 4]))] for name in NAMES}
    estimate = {"value": 0.5}
    rows = [{"system": name, "kind": "model", "mrr": estimate} for name in NAMES]
    cells = [
        {"metric": metric, "a": a, "b": b, "difference": 0.1, "p_holm": 0.5}
        for metric in ("mrr", "top1")
        for a, b in itertools.combinations(NAMES, 2)
    ]
    curves = {
        name: [Curves([{"step": 1, "loss": 1.0}], [{"step": 1, "loss": 1.0, "validation/mrr": 0.5}])]
        for name in NAMES[:2]
    }
    drawn = {
        "histograms": rank_histograms(ranks, num_candidates=4),
        "recall": recall_at_k(ranks, num_candidates=4),
        "curves": training_curves(curves),
        "matrix": significance.matrix_figure({"rows": rows, "significance": cells}),
    }
    for name, figure in drawn.items():
        for suffix in ("png", "svg"):
            style.save(figure, tmp_path / "$new$" / f"{name}.{suffix}")
    labels = [text.get_text() for text in drawn["recall"].axes[0].get_legend().get_texts()]
    shown = ["$\\frac{$", " _hidden", "a|b\\", r"line\nbreak", r"caf\udce9", "…" + "x" * 47, "<b>&"]
    assert sorted(labels) == sorted([*shown, "chance"])
    assert [axes.get_title(loc="left") for axes in drawn["histograms"].axes[:7]] == shown
    assert [label.get_text() for label in drawn["matrix"].axes[0].get_xticklabels()] == shown


def test_markdown_tables_escape_their_cells():
    lines = markdown_table(["system", "value"], [[name, "1"] for name in NAMES])
    assert len(lines) == 2 + len(NAMES)
    assert lines[2:7] == [
        r"| $\\frac{$ | 1 |",
        "| _hidden | 1 |",
        r"| a\|b\\ | 1 |",
        r"| line\\nbreak | 1 |",
        r"| caf\\udce9 | 1 |",
    ]


def test_a_figure_script_that_cannot_write_reports_the_path_and_a_remedy(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fig1_task.py", str(folder), f"--out={tmp_path}"])
    arguments = make_parser(None).parse_args()
    with pytest.raises(
        SystemExit, match=r"cannot be written: Is a directory\. It is a folder: give the name of a file"
    ):
        draw_from(arguments, lambda study: pytest.fail("drawn in vain"), name="task")
