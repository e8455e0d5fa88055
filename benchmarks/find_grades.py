"""How many of the pairs that `tll find`, pHash and fastdup call strongest look alike to the eye, graded blind.

export TLL_DATA=FOLDER_WITH_THE_ZIP
python benchmarks/find_grades.py draw --work FOLDER [--fastdup PYTHON]      (pairs, shuffled, as numbered sheets)
python benchmarks/find_grades.py count --work FOLDER [--out benchmarks/results/find_grades.json]

`draw` takes 2,000 photos of Imagenette and the strongest pairs of each system at equal numbers, and as many random
pairs as a quarter of these. A pair that several systems found is shown once. Sheets show numbers alone; what found a
pair is in `key.json`, which is opened after all grades stand in `WORK/grades.csv` (`number,grade`). `count` joins the
two into `find_grades.csv`, beside this file, and counts. Of pictures only names are kept.

Grades: `alike` where the two pictures look alike beyond what they show, by composition, shapes, colors or light;
`same thing` where they show the same kind of thing and do not look alike otherwise; `chance` for all else.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import imagehash
import numpy as np
from harness import imagenette_photos, show, write_results
from PIL import Image

from tll_jax.data.imaging import decode, write_image
from tll_jax.statistics import wilson_interval

TABLE = Path(__file__).parent / "find_grades.csv"
SYSTEMS = ("tll find", "fastdup", "pHash", "random")
GRADES = ("alike", "same thing", "chance")
NUM_PHOTOS, NUM_PAIRS, NUM_RANDOM, SEED = 2000, 200, 50, 0
PAIRS_ON_SHEET, COLUMNS, SIDE, GAP = 20, 4, 160, 14

Pair = tuple[str, str]
"""Names of two photos, sorted."""


def photos(folder: Path) -> list[str]:
    """Photos at even distances in the order of classes and names, under their own names, which hold no slash."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for member, content in imagenette_photos(NUM_PHOTOS):
        names.append(Path(member).name)
        (folder / names[-1]).write_bytes(content)
    return sorted(names)


def strongest_by_find(folder: Path, work: Path) -> tuple[list[Pair], set[Pair]]:
    """The strongest pairs of `tll find`, and those that it sets aside as the same file or near-duplicates."""
    command = [sys.executable, "-c", "from tll_jax.cli import main; main()", "find", str(folder)]
    options = ["--pairs", str(NUM_PAIRS), "--out", str(work / "find"), "--cache", str(work / "cache")]
    subprocess.run([*command, *options], check=True)
    result = json.loads((work / "find" / "find.json").read_text())
    aside = set()
    for found in result["duplicates"]:
        names = [found["kept"]["path"], *(other["path"] for other in found["others"])]
        aside |= {_pair(a, b) for a in names for b in names if a != b}
    return [_pair(pair["left"]["path"], pair["right"]["path"]) for pair in result["pairs"]], aside


def strongest_by_phash(folder: Path, names: Sequence[str], aside: set[Pair]) -> list[Pair]:
    """Each photo's nearest by the package imagehash's pHash, fewest bits first; equal numbers in random order."""
    bits = np.stack([imagehash.phash(Image.open(folder / name)).hash.ravel() for name in names])
    distances = np.count_nonzero(bits[:, None] != bits[None], axis=2)
    np.fill_diagonal(distances, bits.shape[1] + 1)
    for a, b in aside:
        left, right = names.index(a), names.index(b)
        distances[left, right] = distances[right, left] = bits.shape[1] + 1
    order = np.random.default_rng(SEED).permutation(len(names))
    nearest = order[np.argmin(distances[:, order], axis=1)]
    found = sorted(order.tolist(), key=lambda at: distances[at, nearest[at]])
    return list(dict.fromkeys(_pair(names[at], names[nearest[at]]) for at in found))[:NUM_PAIRS]


def strongest_by_fastdup(python: Path, folder: Path, work: Path, aside: set[Pair]) -> list[Pair]:
    """The most similar pairs of fastdup, which is installed in an environment of its own."""
    code = (
        f"import fastdup; made = fastdup.create(input_dir={str(folder)!r}, work_dir={str(work / 'fastdup')!r}); "
        "made.run(threshold=.5, nearest_neighbors_k=10, ccthreshold=.96, overwrite=True); "
        f"table = made.similarity()[['filename_from', 'filename_to', 'distance']]; "
        f"table.to_csv({str(work / 'fastdup.csv')!r}, index=False)"
    )
    subprocess.run([str(python), "-c", code], check=True, env=os.environ | {"SENTRY_OPT_OUT": "1"})
    with (work / "fastdup.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: -float(row["distance"]))
    pairs = dict.fromkeys(_pair(Path(row["filename_from"]).name, Path(row["filename_to"]).name) for row in rows)
    return [pair for pair in pairs if pair not in aside][:NUM_PAIRS]


def random_pairs(names: Sequence[str]) -> list[Pair]:
    """Distinct pairs of photos, for what chance finds and how strict the eye is."""
    generator = np.random.default_rng(SEED + 1)
    drawn = [_pair(*generator.choice(names, 2, replace=False).tolist()) for _ in range(2 * NUM_RANDOM)]
    return list(dict.fromkeys(drawn))[:NUM_RANDOM]


def _pair(a: str, b: str) -> Pair:
    return (a, b) if a < b else (b, a)


def draw(work: Path, fastdup: Path | None) -> None:
    """Writes numbered sheets of all pairs in random order, and the key apart."""
    folder = work / "photos"
    names = photos(folder)
    found, aside = strongest_by_find(folder, work)
    systems = {"tll find": found, "pHash": strongest_by_phash(folder, names, aside), "random": random_pairs(names)}
    if fastdup is not None:
        systems["fastdup"] = strongest_by_fastdup(fastdup, folder, work, aside)
    pairs = sorted(set().union(*systems.values()))
    generator = np.random.default_rng(SEED + 2)
    key = []
    for number, at in enumerate(generator.permutation(len(pairs)).tolist(), 1):
        sides = generator.permutation(pairs[at]).tolist()
        by = {name: ranked.index(pairs[at]) + 1 for name, ranked in systems.items() if pairs[at] in ranked}
        key.append({"number": number, "left": sides[0], "right": sides[1], "ranks": by})
    for first in range(0, len(key), PAIRS_ON_SHEET):
        shown = key[first : first + PAIRS_ON_SHEET]
        write_image(work / f"sheet-{first // PAIRS_ON_SHEET + 1:02}.png", sheet(shown, folder))
    (work / "key.json").write_text(json.dumps({"aside": sorted(aside), "pairs": key}, indent=1))
    show({"pairs": {name: len(ranked) for name, ranked in systems.items()}, "shown": len(key), "aside": len(aside)})


def sheet(shown: Sequence[Mapping[str, Any]], folder: Path) -> np.ndarray:
    """uint8 `[height, width, 3]`: two pictures a pair under its number."""
    tall, wide = SIDE + 22 + GAP, 2 * SIDE + 4 + GAP
    page = np.full((-(-PAIRS_ON_SHEET // COLUMNS) * tall, COLUMNS * wide, 3), 255, np.uint8)
    for at, pair in enumerate(shown):
        top, left = at // COLUMNS * tall, at % COLUMNS * wide
        cv2.putText(page, str(pair["number"]), (left + 2, top + 17), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 2)
        for place, side in ((left, "left"), (left + SIDE + 4, "right")):
            image = decode((folder / pair[side]).read_bytes(), pair[side])
            shape = page[top + 22 : top + 22 + SIDE, place : place + SIDE]
            shape[:] = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return page


def count(work: Path) -> list[dict[str, Any]]:
    """Joins key and grades into `find_grades.csv`; the rows of the result.

    Raises:
      ValueError: a pair has no grade, or one that is none.
    """
    key = json.loads((work / "key.json").read_text())["pairs"]
    with (work / "grades.csv").open(newline="") as file:
        grades = {int(row["number"]): row["grade"] for row in csv.DictReader(file)}
    if set(grades) != {pair["number"] for pair in key} or not set(grades.values()) <= set(GRADES):
        raise ValueError(f"{work / 'grades.csv'}: every number of the sheets needs one of {', '.join(GRADES)}")
    names = [name for name in SYSTEMS if any(name in pair["ranks"] for pair in key)]
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["number", "left", "right", *names, "grade"])
        for pair in key:
            ranks = [pair["ranks"].get(name, "") for name in names]
            writer.writerow([pair["number"], pair["left"], pair["right"], *ranks, grades[pair["number"]]])
    return rows_of(TABLE)


def rows_of(table: Path) -> list[dict[str, Any]]:
    """Shares of each grade by system, with Wilson 95 % intervals; and how many photos its pairs are made of."""
    with table.open(newline="") as file:
        read = list(csv.DictReader(file))
    rows = []
    for name in SYSTEMS:
        found = [row for row in read if row.get(name)]
        if not found:
            continue
        photos_of = {row[side] for row in found for side in ("left", "right")}
        shares: dict[str, Any] = {"system": name, "pairs": len(found), "photos": len(photos_of)}
        for grade in GRADES:
            number = sum(row["grade"] == grade for row in found)
            low, high = wilson_interval(number, len(found))
            shares[grade] = {"count": number, "share": number / len(found), "low": low, "high": high}
        rows.append(shares)
    return rows


def main() -> None:
    """Draws, or counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("draw", "count"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--fastdup", type=Path, help="the Python of an environment with fastdup; without it no row")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    if arguments.action == "draw":
        draw(work, None if arguments.fastdup is None else arguments.fastdup.absolute())
        return
    rows = count(work)
    for row in rows:
        show(row)
    write_results(arguments.out, photos=NUM_PHOTOS, rows=rows)


if __name__ == "__main__":
    main()
