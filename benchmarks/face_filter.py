"""How well the face filter decides which pairs to drop: recall and false alarms against labels made by eye.

export TLL_DATA=FOLDER_WITH_THE_ZIP
python benchmarks/face_filter.py [--out benchmarks/results/face_filter.json]
python benchmarks/face_filter.py --sheets FOLDER    (the pictures that were labeled, to look at)

`face_labels.csv` holds, for both sides of 100 pairs that `drawn` picks, how many faces are clearly seen, 2 standing
for two or more: `people` are faces of people in photographs, `others` all else that has eyes and a mouth
(drawings, paintings, statues, dolls, masks, animals). `benchmarks/README.md` says what was counted and what was found.
"""

import argparse
import csv
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tll_jax.data.faces import RULES, DlibFaces, dropped
from tll_jax.data.pairs import SIDES, Pairs
from tll_jax.data.totally_looks_like import TotallyLooksLike
from tll_jax.statistics import wilson_interval

LABELS = Path(__file__).parent / "face_labels.csv"
NUM_PAIRS, SEED = 100, 0
PAIRS_ON_SHEET, COLUMNS = 10, 5
TRUTHS = {"people": ("people",), "any face": ("people", "others")}


def drawn(pairs: Pairs) -> list[str]:
    """The ids of the pairs that are labeled, sorted."""
    return sorted(np.random.default_rng(SEED).choice(sorted(pairs.ids), NUM_PAIRS, replace=False).tolist())


def read_labels(ids: Sequence[str], columns: Sequence[str]) -> np.ndarray:
    """int `[pairs, 2]`: the faces on both sides, summed over `columns`."""
    with LABELS.open(newline="") as file:
        found = {(row["id"], row["side"]): sum(int(row[name]) for name in columns) for row in csv.DictReader(file)}
    return np.array([[found[identity, side] for side in SIDES] for identity in ids])


def rate(hits: np.ndarray, of: np.ndarray) -> dict[str, Any]:
    """How often `hits` among `of`, with its Wilson 95 % interval."""
    count, total = int((hits & of).sum()), int(of.sum())
    low, high = wilson_interval(count, total)
    return {"count": count, "of": total, "value": count / total, "low": float(low), "high": float(high)}


def measure(pairs: Pairs) -> list[dict[str, Any]]:
    """A row for every detector, rule and notion of a face."""
    ids = drawn(pairs)
    indices = pairs.indices(ids)
    images = pairs.images(indices)
    rows = []
    for upsample in (0, 1):
        detector = DlibFaces(upsample=upsample)
        sides = [
            detector(side, [pairs.hashes[index][number] for index in indices])
            for number, side in enumerate((images.left, images.right))
        ]
        found = np.stack(sides, axis=1)
        for truth, columns in TRUTHS.items():
            labels = read_labels(ids, columns)
            for rule in RULES:
                if rule == "include":
                    continue
                out, should_be_out = dropped(found, rule), dropped(labels, rule)
                rows.append(
                    {
                        "detector": f"dlib, upsample {upsample}",
                        "truth": truth,
                        "rule": rule,
                        "recall": rate(out, should_be_out),
                        "false_alarms": rate(out, ~should_be_out),
                        "missed_among_kept": rate(should_be_out, ~out),
                    }
                )
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table."""

    def cell(measure: dict[str, Any]) -> str:
        return (
            f"{measure['count']}/{measure['of']} = {measure['value']:.2f} [{measure['low']:.2f}, {measure['high']:.2f}]"
        )

    lines = [
        "| detector | a face is | rule | recall | false alarms | missed, of those kept |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        words = (row["detector"], row["truth"], row["rule"])
        numbers = (cell(row[name]) for name in ("recall", "false_alarms", "missed_among_kept"))
        lines.append(f"| {' | '.join((*words, *numbers))} |")
    return "\n".join(lines)


def write_sheets(pairs: Pairs, folder: Path) -> None:
    """The drawn pairs as pictures with their ids, ten a sheet."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = drawn(pairs)
    for start in range(0, NUM_PAIRS, PAIRS_ON_SHEET):
        cards = []
        for identity in ids[start : start + PAIRS_ON_SHEET]:
            pair = pairs[pairs.indices([identity])[0]]
            both = np.hstack([cv2.resize(side, (200, 245)) for side in (pair.left, pair.right)])
            card = cv2.copyMakeBorder(both, 26, 6, 6, 6, cv2.BORDER_CONSTANT, value=(255, 255, 255))
            cards.append(cv2.putText(card, identity, (8, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA))
        rows = [np.hstack(cards[row : row + COLUMNS]) for row in range(0, len(cards), COLUMNS)]
        cv2.imwrite(str(folder / f"sheet-{start // PAIRS_ON_SHEET}.png"), np.vstack(rows)[:, :, ::-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--sheets", type=Path, metavar="FOLDER", help="write contact sheets there, and nothing else")
    arguments = parser.parse_args()
    pairs = TotallyLooksLike(path="$TLL_DATA/totally-looks-like.zip").open()
    if arguments.sheets is not None:
        write_sheets(pairs, arguments.sheets)
        return
    rows = measure(pairs)
    print(markdown(rows))
    if arguments.out is not None:
        result = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "seed": SEED, "rows": rows}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
