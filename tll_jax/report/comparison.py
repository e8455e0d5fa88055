"""`tll compare`: comparison of several studies in one table."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tll_jax.code import UNKNOWN
from tll_jax.data.archive import first_few, printable
from tll_jax.data.seen import Overlap
from tll_jax.errors import InvalidValue, MissingFile
from tll_jax.evaluation import metrics, protocols
from tll_jax.files import write_json, write_whole
from tll_jax.ranking import munteanu_k
from tll_jax.report import charts, numbers, significance, style, table
from tll_jax.statistics import Bands, bootstrap_bands
from tll_jax.study.folder import Ranks, StudyFolder, starting_points
from tll_jax.study.learned import Learned, learned_by_study, overlap_facts, seen_test_pairs

NUM_BAND_RESAMPLES = 2_000
MOST_CURVES = 10
"""Maximum number of curves in one figure; more cannot be distinguished."""


class Joined(NamedTuple):
    """Ranks of all systems on the same pairs, the input of a comparison."""

    ids: list[str]
    ranks: dict[str, metrics.Ranks]
    kinds: dict[str, str]
    families: list[list[tuple[str, str]]]
    """Planned comparisons of each study."""
    starts: dict[str, list[int] | None]
    """Pretraining run that each seed of a system started from (see `starting_points`)."""
    galleries: list[int]
    """Gallery sizes: one number, or one for each fold."""
    num_pairs: list[int]
    """Number of queries in each gallery."""

    def of(self, keep: np.ndarray) -> "Joined":
        """Restriction of the queries to a mask, bool `[pairs]`; the candidates stay the same."""
        ends = np.cumsum(self.galleries)
        return self._replace(
            ids=[identity for identity, is_kept in zip(self.ids, keep, strict=True) if is_kept],
            ranks={name: ranks[:, :, keep] for name, ranks in self.ranks.items()},
            num_pairs=[int(part.sum()) for part in np.split(keep, ends[:-1])],
        )


def write_comparison(
    folders: Sequence[Path], out: Path, *, folds: bool = False, include_training: bool = False
) -> dict[str, Any]:
    """Compares the systems of several finished studies, or pools the folds of one.

    Pairs with an identical or nearly identical image that a system of their study was trained on are excluded for all
    systems, unless `include_training`; they remain candidates of the others.

    Writes `compare.md`, `compare.json`, and PNG files of the p-value matrix, the rank histograms and recall at k to
    `out`.

    Returns:
      Content of `compare.json`: protocol, rows, planned comparisons and matrix, in the format of a study's results.

    Raises:
      FileNotFoundError: a folder is not a finished study, or contains no ranks.
      ValueError: the studies tested different pairs, or no pair is left; with `folds`, a pair is in two folds, or the
        folds have different systems.
    """
    studies = [StudyFolder(folder) for folder in folders]
    joined = join_folds(studies) if folds else join(studies)
    learned_from, keep = _learned(studies, joined.ids, include_training=include_training)
    if not keep.any():
        raise InvalidValue("no pair is left to compare on: systems have learned from all. Give --include-training")
    joined = joined.of(keep)
    code = sorted({one for study in studies for one in study.results.get("code", [UNKNOWN])})
    results = {
        "studies": [str(study.path) for study in studies],
        "code": code,
        "learned_from": learned_from,
        **compared(joined),
    }
    write_json(out / "compare.json", results)
    write_whole(out / "compare.md", markdown(results))
    drawn = {name: [Ranks(joined.ids, *one) for one in ranks] for name, ranks in joined.ranks.items()}
    most = max(joined.galleries)
    shown = systems_with_curves(results)
    curves = {name: drawn[name] for name in shown}
    bands = recall_bands(joined._replace(ranks={name: joined.ranks[name] for name in shown}))
    figures = {
        "rank_histograms": charts.rank_histograms(drawn, num_candidates=most),
        "recall_at_k": charts.recall_at_k(curves, num_candidates=most, bands=bands),
    }
    if significance.has_matrix(results):
        figures["significance"] = significance.matrix_figure(results)
    for name, figure in figures.items():
        style.save(figure, out / f"{name}.png")
    return results


def join(studies: Sequence[StudyFolder]) -> Joined:
    """Joins all systems of all studies, which must have tested the same pairs; clashing names become `study/system`.

    Raises:
      ValueError: two studies tested different pairs; the message names both and the pairs.
    """
    first = studies[0]
    for study in studies[1:]:
        only_first, only_other = (
            sorted(set(one.ids) - set(other.ids)) for one, other in ((first, study), (study, first))
        )
        if only_first or only_other:
            alone = (
                f"{numbers.plural(len(ids), 'pair')} only in {one.path}: {first_few(ids)}"
                for one, ids in ((first, only_first), (study, only_other))
                if ids
            )
            raise InvalidValue(f"{first.path} and {study.path} tested different pairs. {'; '.join(alone)}")
    taken = Counter(system for study in studies for system in study.systems)
    joined = Joined(
        ids=first.ids,
        ranks={},
        kinds={},
        families=[],
        starts={},
        galleries=[len(first.ids)],
        num_pairs=[len(first.ids)],
    )
    for study, title in zip(studies, _titles(studies), strict=True):
        names = {system: f"{title}/{system}" if taken[system] > 1 else system for system in study.systems}
        joined.ranks.update((names[system], ranks) for system, ranks in _ranks(study, first.ids).items())
        joined.kinds.update((names[system], kind) for system, kind in _kinds(study).items())
        joined.starts.update((names[system], starts) for system, starts in _starts(study).items())
        joined.families.append([(names[a], names[b]) for a, b in _planned(study)])
    return joined


def join_folds(studies: Sequence[StudyFolder]) -> Joined:
    """Joins the folds of one study: every system once, on the test pairs of all folds.

    Raises:
      ValueError: a pair is in two folds, or the folds have different systems or seeds.
    """
    counted = Counter(identity for study in studies for identity in study.ids)
    if twice := sorted(identity for identity, count in counted.items() if count > 1):
        raise InvalidValue(
            f"{numbers.plural(len(twice), 'pair')} are tested in more than one fold: {first_few(twice)}. "
            "Give every run split.test_folds and a split.test_fold of its own"
        )
    return Joined(
        ids=[identity for study in studies for identity in study.ids],
        ranks=protocols.pool_folds([_ranks(study, study.ids) for study in studies]),
        kinds=_kinds(studies[0]),
        families=[_planned(studies[0])],
        starts=_starts(studies[0]),
        galleries=[len(study.ids) for study in studies],
        num_pairs=[len(study.ids) for study in studies],
    )


def _learned(
    studies: Sequence[StudyFolder], ids: Sequence[str], *, include_training: bool
) -> tuple[dict[str, Any], np.ndarray]:
    """Report on pairs that systems were trained on, and the mask of pairs to compare on."""
    known = [learned_by_study(study) for study in studies]
    found = [seen_test_pairs(study, one) for study, one in zip(studies, known, strict=True)]
    equal, similar = set[str](), set[str]()
    for study, one in zip(studies, found, strict=True):
        equal.update(study.ids[index] for index in np.flatnonzero(one.equal))
        similar.update(study.ids[index] for index in np.flatnonzero(one.similar))
    reasons = dict.fromkeys(one.not_looked_for for one in found if one.not_looked_for)
    is_equal, is_similar = (np.array([identity in some for identity in ids], bool) for some in (equal, similar - equal))
    overlap = Overlap(is_equal, is_similar, "; ".join(reasons))
    everyone = Learned(
        [part for one in known for part in one.pictures],
        list(dict.fromkeys(words for one in known for words in one.not_known)),
    )
    every = np.ones(len(ids), bool)
    counted = overlap_facts(overlap, everyone, every, include_training=include_training, who="a system")
    return counted, every if include_training else ~(overlap.equal | overlap.similar)


def _titles(studies: Sequence[StudyFolder]) -> list[str]:
    titles = [str(study.results["study"]) for study in studies]
    return titles if len(set(titles)) == len(titles) else [str(study.path) for study in studies]


def _kinds(study: StudyFolder) -> dict[str, str]:
    return {row["system"]: row["kind"] for row in study.results["rows"] if row["kind"] != "chance"}


def _starts(study: StudyFolder) -> dict[str, list[int] | None]:
    return starting_points(
        {row["system"]: row["num_seeds"] for row in study.results["rows"] if row["kind"] != "chance"}
    )


def _planned(study: StudyFolder) -> list[tuple[str, str]]:
    return list(dict.fromkeys((one["a"], one["b"]) for one in study.results["comparisons"] if one["planned"]))


def _ranks(study: StudyFolder, ids: Sequence[str]) -> dict[str, metrics.Ranks]:
    """Ranks of all systems, with pairs in the order of `ids`."""
    found = {}
    for system in study.systems:
        seeds = study.ranks(system)
        if not seeds:
            raise MissingFile(f"{study.path} keeps no ranks of {system}: run its evaluate and report stages again")
        in_order = []
        for one in seeds:
            position = {identity: index for index, identity in enumerate(one.ids)}
            order = [position[identity] for identity in ids]
            in_order.append(np.stack([one.left_to_right[order], one.right_to_left[order]]))
        found[system] = np.stack(in_order)
    return found


def compared(joined: Joined) -> dict[str, Any]:
    """Protocol, rows, planned comparisons and p-value matrix of the joined ranks, ready for JSON."""
    galleries = joined.galleries
    sizes = galleries if len(galleries) > 1 else galleries[0]
    rows = [metrics.chance_row(sizes)]
    rows += [
        metrics.metrics_row(name, joined.kinds[name], ranks, num_candidates=sizes, starts=joined.starts.get(name))
        for name, ranks in joined.ranks.items()
    ]
    protocol = {"queries": len(joined.ids), "candidates": max(galleries), "paper_k": munteanu_k(max(galleries))}
    results: dict[str, Any] = {
        "protocol": protocol | ({"folds": galleries} if len(galleries) > 1 else {}),
        "rows": rows,
        "comparisons": [one for family in joined.families for one in _planned_comparisons(joined, family)],
        "significance": metrics.significance(joined.ranks),
    }
    if min(galleries) >= protocols.COURSE_CANDIDATES:
        per_pair = np.repeat(galleries, joined.num_pairs)
        results["course"] = {
            name: metrics.estimate(protocols.course_chances(ranks, num_candidates=per_pair).mean(axis=(0, 1)))
            for name, ranks in joined.ranks.items()
        }
    return results


def _planned_comparisons(joined: Joined, family: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    ranks = {name: joined.ranks[name] for name in dict.fromkeys(name for pair in family for name in pair)}
    return [one for one in metrics.compare(ranks, planned=family, starts=joined.starts) if one["planned"]]


def systems_with_curves(results: dict[str, Any]) -> list[str]:
    """At most `MOST_CURVES` systems: those of planned comparisons first, then by decreasing MRR."""
    planned = [one[side] for one in results["comparisons"] for side in ("a", "b")]
    rows = sorted((row for row in results["rows"] if row["kind"] != "chance"), key=lambda row: -row["mrr"]["value"])
    return list(dict.fromkeys([*planned, *(row["system"] for row in rows)]))[:MOST_CURVES]


def recall_bands(joined: Joined) -> dict[str, Bands]:
    """95 % bootstrap interval over pairs of recall at k, for every k and system."""
    k = np.arange(1, max(joined.galleries) + 1)
    curves = {name: (ranks[..., None] <= k).mean(axis=(0, 1)) for name, ranks in joined.ranks.items()}
    return {name: bootstrap_bands(curve, num_resamples=NUM_BAND_RESAMPLES, seed=0) for name, curve in curves.items()}


def markdown(results: dict[str, Any]) -> str:
    """Comparison as a Markdown file."""
    lines = [
        f"# {printable(', '.join(results['studies']))}",
        "",
        table.rows_markdown(results),
        *table.planned_markdown(results),
    ]
    if significance.has_matrix(results):
        lines += significance.matrix_markdown(results)
    if "course" in results:
        lines += [
            "## Top 2 of 20",
            "",
            "Probability that the match is among the top 2 of 20 candidates if the 19 others are drawn at random from "
            "the candidates at hand (chance .10); brackets are 95 % intervals over pairs.",
            "",
            *table.markdown_table(
                ["system", "top-2 of 20"],
                [[name, numbers.estimate(value)] for name, value in results["course"].items()],
            ),
            "",
        ]
    return "\n".join(lines)
