"""Results of a study as text and tables, shared by the Markdown file and the HTML page."""

from collections.abc import Mapping, Sequence
from typing import Any

from tll_jax.data.archive import printable
from tll_jax.report import numbers
from tll_jax.statistics import detectable_difference

KIND_ORDER = ("chance", "baseline", "frozen", "fitted", "file", "model")
KIND_WORDS = {
    "chance": "chance",
    "baseline": "no training",
    "frozen": "frozen backbone",
    "fitted": "fitted",
    "file": "model file",
    "model": "fine-tuned",
}
ESTIMATES = ("top1", "top5", "top10", "top25", "top_paper", "mrr")
CUTS = {"top1": 1, "top5": 5, "top10": 10, "top25": 25}
MUNTEANU_TOP, MUNTEANU_CANDIDATES = 25, 1200
MOST_NAMED = 4
"""Maximum number of comparisons listed in one finding; the others are counted."""

Results = Mapping[str, Any]


def metric_words(results: Results) -> dict[str, str]:
    """Display names of the metrics; `top_paper` is the protocol of [Munteanu 2022] with its k."""
    paper_k = results["protocol"]["paper_k"]
    return {
        "top1": "top-1",
        "top5": "top-5",
        "top10": "top-10",
        "top25": "top-25",
        "top_paper": f"top-{paper_k} (Munteanu)",
        "mrr": "MRR",
        "median_rank": "median rank",
    }


def shown_metrics(results: Results, names: Sequence[str] = ESTIMATES) -> list[str]:
    """Informative metrics among `names`.

    Top-k for at most k candidates is always 1 and left out, and so is the scaled metric of [Munteanu 2022] if its k
    equals that of another top-k.
    """
    candidates, paper_k = results["protocol"]["candidates"], results["protocol"]["paper_k"]
    cuts = CUTS | {"top_paper": paper_k}
    return [
        name
        for name in names
        if cuts.get(name, 0) < candidates and not (name == "top_paper" and paper_k in CUTS.values())
    ]


def is_crossed(results: Results) -> bool:
    """Whether a system has several runs; results of version 0.1.0 have no interval over runs."""
    return any(row.get("crossed") for row in results["rows"])


def ordered_rows(results: Results) -> list[Mapping[str, Any]]:
    """Rows in the order chance, without training, frozen backbones, fitted systems, model files, fine-tuned models."""
    return sorted(results["rows"], key=lambda row: KIND_ORDER.index(row["kind"]))


def planned(results: Results) -> list[Mapping[str, Any]]:
    """Planned comparisons in the metrics of `shown_metrics`."""
    return [one for one in _comparisons(results) if one["planned"]]


def exploratory(results: Results) -> list[Mapping[str, Any]]:
    """The other comparisons in the metrics of `shown_metrics`."""
    return [one for one in _comparisons(results) if not one["planned"]]


def _comparisons(results: Results) -> list[Mapping[str, Any]]:
    shown = shown_metrics(results)
    return [one for one in results["comparisons"] if one["metric"] in shown]


def shows_difference(comparison: Mapping[str, Any]) -> bool:
    """Whether the paired interval excludes 0 and, if given, Holm's p-value is below .05."""
    corrected = comparison.get("p_holm")
    return not _contains_zero(comparison) and (corrected is None or corrected < 0.05)


def _contains_zero(interval: Mapping[str, Any]) -> bool:
    return interval["low"] <= 0 <= interval["high"]


def verdict(comparison: Mapping[str, Any]) -> str:
    """Conclusion of a comparison in words.

    A system is called better only where `shows_difference`; "in these runs" is added if the interval over pairs and
    runs contains 0.
    """
    if _contains_zero(comparison):
        return f"no difference shown (the interval contains 0; {power_words(comparison)})"
    better = comparison["a"] if comparison["low"] > 0 else comparison["b"]
    if not shows_difference(comparison):
        return f"{better} is ahead, but not after Holm's correction"
    crossed = comparison.get("crossed")
    if crossed and _contains_zero(crossed):
        return f"{better} is better in these runs; other runs may differ"
    return f"{better} is better"


def power_words(comparison: Mapping[str, Any]) -> str:
    """Detectable difference in words, from the interval over pairs and runs if there is one."""
    interval = comparison.get("crossed") or comparison
    found = detectable_difference((interval["low"], interval["high"]))
    return f"one of {numbers.fraction(found, digits=3)} would be found in 8 of 10 such studies"


def protocol_words(results: Results) -> str:
    """Description of the evaluation protocol in a few sentences."""
    pairs, candidates = results["protocol"]["queries"], results["protocol"]["candidates"]
    k, queried = results["protocol"]["paper_k"], results["protocol"].get("queried", "test pair")
    folds = results["protocol"].get("folds", ())
    among = numbers.plural(candidates, "candidate")
    if folds:
        among = f"the pairs of its own fold, one of {len(folds)} (at most {among})"
    seeds = max(row["num_seeds"] for row in results["rows"])
    over = "both directions" if seeds == 1 else f"both directions and {seeds} seeds"
    return (
        f"{numbers.plural(pairs, queried)}, each ranked in both directions among {among}. "
        f"Values are fractions of queries, averaged over {over}; brackets are 95 % intervals over pairs, "
        "for fixed candidates. "
        f"Ties count against a system. Top-{k} of {candidates:,} is the "
        f"top-{MUNTEANU_TOP} of {MUNTEANU_CANDIDATES:,} of [Munteanu 2022]."
    )


def estimand_words(results: Results, *, of: str = "Values") -> str:
    """Description of the quantities that the numbers of a table estimate."""
    words = f"{of} estimate a mean over pairs drawn like these, for the runs and candidates at hand."
    if is_crossed(results):
        pretrained = any(row.get("num_starts") for row in results["rows"])
        again = "seeds and pretrainings" if pretrained else "seeds"
        words += (
            f" The interval over pairs and runs is that of the method: it draws {again} anew as well, of systems that "
            "ran several times."
        )
    if any(row["num_seeds"] == 1 and row["kind"] == "model" for row in results["rows"]):
        words += " Of a model that was trained with a single seed, the variation between seeds is unknown."
    return words


def summary(results: Results) -> list[str]:
    """Main findings: the best system, the planned comparisons with a difference, and those without."""
    return [_best_system(results), *_planned_findings(results)]


def _best_system(results: Results) -> str:
    rows = ordered_rows(results)
    chance = next((row for row in rows if row["kind"] == "chance"), None)
    systems = sorted((row for row in rows if row["kind"] != "chance"), key=lambda row: -row["mrr"]["value"])
    if not systems:
        return "No system was evaluated."
    best = systems[0]
    recalls = [
        f"{_percent(best[name]['value'])} of queries {words}"
        + (f" (chance: {_percent(chance[name]['value'])})" if chance else "")
        for name, words in (("top1", "have their match first"), ("top5", "among the first five"))
        if name in shown_metrics(results)
    ]
    sentence = (
        f"{best['system']} ({KIND_WORDS[best['kind']]}) has the highest mean reciprocal rank, "
        f"{numbers.estimate(best['mrr'])}: {', '.join(recalls)}"
    )
    simple = next((row for row in systems if row["kind"] == "baseline"), None)
    if simple is not None and simple is not best:
        sentence += f"; the best system without training is {simple['system']}, {numbers.estimate(simple['mrr'])}"
    return f"{sentence}."


def _planned_findings(results: Results) -> list[str]:
    named = planned(results)
    if not named:
        return [
            "No comparison was planned.",
            f"{numbers.plural(len(exploratory(results)), 'exploratory comparison')}, not corrected for their number.",
        ]
    in_mrr = [one for one in named if one["metric"] == "mrr"]
    findings = []
    for title, is_shown in (("show a difference", True), ("show none", False)):
        found = [comparison_words(one) for one in in_mrr if shows_difference(one) is is_shown]
        more = [f"and {len(found) - MOST_NAMED:,} more"] if len(found) > MOST_NAMED else []
        listed = f": {'; '.join([*found[:MOST_NAMED], *more])}" if found else ""
        findings.append(f"Planned comparisons in MRR that {title}, {len(found):,} of {len(in_mrr):,}{listed}.")
    return findings


def comparison_words(comparison: Mapping[str, Any]) -> str:
    """One comparison in words: `barlow against hog +.031 [.004, .058], barlow is better`."""
    interval = numbers.bounds(comparison["low"], comparison["high"], digits=3)
    return (
        f"{comparison['a']} against {comparison['b']} {numbers.difference(comparison['difference'])} {interval}, "
        f"{verdict(comparison)}"
    )


def hardware_words(results: Results) -> list[tuple[str, str]]:
    """Names and values of the hardware of the study."""
    words = {"memory_gib": "memory", "cpu": "CPU"}
    units = {"memory_gib": " GiB"}
    return [
        (words.get(name, name), f"{_listed(value)}{units.get(name, '')}")
        for name, value in results["hardware"].items()
        if value is not None
    ]


def time_words(results: Results) -> list[tuple[str, str]]:
    """Names and durations of the last run, and of all training stages, which an earlier run may have finished."""
    stages = {name: seconds for name, seconds in results["seconds"].items() if name != "total"}
    longest_first = sorted(stages, key=lambda name: -stages[name])
    last_run = ("last run", numbers.duration(results["seconds"]["total"]))
    return [last_run, *((name, numbers.duration(stages[name])) for name in longest_first)]


CROSSED_HEADER = "MRR, pairs and runs"


def crossed_cell(crossed: Mapping[str, Any] | None, *, digits: int = 2) -> str:
    """An interval over pairs and runs; a dash for a single run."""
    return numbers.bounds(crossed["low"], crossed["high"], digits=digits) if crossed else numbers.UNKNOWN


def rows_markdown(results: Results) -> str:
    """Results table with its protocol and estimands."""
    words, shown, crossed = metric_words(results), shown_metrics(results), is_crossed(results)
    header = [
        "system",
        "kind",
        *(words[name] for name in shown),
        *([CROSSED_HEADER] if crossed else []),
        words["median_rank"],
    ]
    rows = [
        [
            row["system"],
            KIND_WORDS[row["kind"]],
            *(numbers.estimate(row[name]) for name in shown),
            *([crossed_cell((row.get("crossed") or {}).get("mrr"))] if crossed else []),
            numbers.rank(row["median_rank"]),
        ]
        for row in ordered_rows(results)
    ]
    left_out = left_out_words(results)
    under = [estimand_words(results), "", *([*left_out, ""] if left_out else [])]
    return "\n".join([protocol_words(results), "", *markdown_table(header, rows), "", *under])


def left_out_words(results: Results) -> list[str]:
    """Notes on pairs excluded because a system was trained on their images; empty if this was not checked."""
    return list(results.get("learned_from", {}).get("words", ()))


def faces_included(results: Results) -> Results | None:
    """Results on all pairs, including those with faces; None if there are none."""
    rows = results.get("faces_included")
    if not rows:
        return None
    count = results["data"]["pairs"]
    protocol = {"queries": count, "candidates": count, "paper_k": rows[0]["top_paper"]["k"], "queried": "pair"}
    return {"protocol": protocol, "rows": rows}


def planned_markdown(results: Results) -> list[str]:
    """Markdown lines of the planned comparisons; empty if there are none."""
    if not planned(results):
        return []
    header, *cells = comparison_table(planned(results), results)
    under = estimand_words(results, of="Differences")
    return ["## Planned comparisons", "", PAIRED_WORDS, "", *markdown_table(header, cells), "", under, ""]


def results_markdown(results: Results) -> str:
    """Results as a Markdown file: table, planned comparisons, data and provenance."""
    findings = [f"{number}. {printable(one)}" for number, one in enumerate(summary(results), 1)]
    lines = [f"# {printable(results['study'])}", "", *findings, "", rows_markdown(results), *planned_markdown(results)]
    if among_all := faces_included(results):
        lines += ["## Faces included", "", FACES_WORDS, "", rows_markdown(among_all)]
    if results.get("probes"):
        lines += ["## Probes", "", PROBE_WORDS, "", *probes_markdown(results), ""]
    if exploratory(results):
        number = numbers.plural(len(exploratory(results)), "exploratory comparison")
        lines += [f"{number}, uncorrected: see `results.json` and `report.html`.", ""]
    lines += ["## Data", "", *(f"- {name}: {value}" for name, value in data_words(results)), ""]
    hardware = "; ".join(f"{name} {value}" for name, value in hardware_words(results))
    times = [f"{name} {value}" for name, value in time_words(results)]
    lines += ["## How it was made", "", "```", results["command"], "```", ""]
    lines += [f"- Made: {results['created']}", f"- Hardware: {hardware}", f"- Time: {', '.join(times)}", ""]
    return "\n".join(lines)


PROBE_WORDS = (
    "Classification accuracy with frozen backbones: of nearest neighbors (majority vote of the nearest training "
    "images) and of a linear classifier on the pooled features. Means over pretraining runs, with the lowest and the "
    "highest in brackets."
)


def probes_markdown(results: Results) -> list[str]:
    """Markdown lines of the table of probes."""
    rows = []
    for name, found in results["probes"].items():
        cells = [[one[kind] for one in found] for kind in ("neighbors", "linear")]
        rows.append([name, *(_with_range(values) for values in cells)])
    return markdown_table(["backbone", "nearest neighbors", "linear classifier"], rows)


def _with_range(values: Sequence[float]) -> str:
    mean = numbers.fraction(sum(values) / len(values), digits=3)
    if len(values) == 1:
        return mean
    return f"{mean} [{', '.join(numbers.fraction(one, digits=3) for one in (min(values), max(values)))}]"


def data_words(results: Results) -> list[tuple[str, str]]:
    """Names and values of the data used for training, validation and testing."""
    data = results["data"]
    duplicates = data["duplicates"]
    return [
        ("pairs", f"{data['pairs']:,}"),
        ("training", f"{data['train']:,}"),
        ("validation", f"{data['validation']:,}"),
        ("test", f"{data['test']:,}"),
        # Results of version 0.1.0 lack it.
        *([("left out", _left_out(data))] if "left_out" in data else []),
        ("rule", data["rule"]),
        *((f"taken out: {reason}", f"{count:,}") for reason, count in data["excluded"].items()),
        (
            "pairs that share a picture with another",
            f"{duplicates['pairs']:,} in {numbers.plural(duplicates['groups'], 'group')}, none split over the parts",
        ),
        *((f"pretraining of {model} saw", saw) for model, saw in data["pretraining_saw"].items()),
        ("skipped", f"{len(data['skipped']):,}"),
    ]


def _left_out(data: Mapping[str, Any]) -> str:
    why = "for sharing a picture with a test pair, or by the rule on faces in training"
    return f"{data['left_out']:,}, {why}" if data["left_out"] else "0"


PAIRED_WORDS = (
    "Differences are a \N{MINUS SIGN} b on the same pairs with paired 95 % intervals. "
    "A system is called better only if the interval excludes 0 and p stays under .05 after Holm's correction. "
    "Where no difference is shown, the reading gives the size of a difference that would be found with 80 % power."
)
FACES_WORDS = (
    "Systems without fitted parameters, ranked among all pairs, including those with faces and those of the training "
    "set. Not comparable with the table of the test pairs."
)


def comparison_table(comparisons: Sequence[Mapping[str, Any]], results: Results) -> list[list[str]]:
    """Comparisons as rows of a table; the first is the header."""
    crossed = any(one.get("crossed") for one in comparisons)
    minus = f"a {numbers.MINUS} b"
    interval = ["95 % interval", *(["over pairs and runs"] if crossed else [])]
    header = ["a", "b", "metric", minus, *interval, "p", "p (Holm)", "reading"]
    cells = [
        [
            one["a"],
            one["b"],
            metric_words(results).get(one["metric"], one["metric"]),
            numbers.difference(one["difference"]),
            numbers.bounds(one["low"], one["high"], digits=3),
            *([crossed_cell(one.get("crossed"), digits=3)] if crossed else []),
            numbers.p_value(one["p_value"]),
            numbers.p_value(one["p_holm"]),
            verdict(one),
        ]
        for one in comparisons
    ]
    return [header, *cells]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown lines of a table; cells are escaped."""
    cells = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(map(_markdown_cell, row)) + " |" for row in cells]


def _markdown_cell(text: str) -> str:
    return printable(text).replace("\\", "\\\\").replace("|", "\\|")


def _percent(value: float) -> str:
    percent = 100 * value
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.1f} %"


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
