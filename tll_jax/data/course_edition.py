"""Test set and submission file of the course edition (COMP90086, 2023), in which each query has its own candidates."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real

from tll_jax.data.archive import Archive, as_listed, first_few, printable
from tll_jax.data.pairs import Crop, ImageSequence
from tll_jax.data.tables import read_csv
from tll_jax.errors import InvalidValue
from tll_jax.files import csv_cell, write_whole


class Candidates(NamedTuple):
    """Distinct left and right images, and the candidate list of each query.

    Row i of `columns` holds the indices into `right` of the candidates of left image i.
    """

    names: list[str]
    left: ImageSequence
    right: ImageSequence
    columns: Int[np.ndarray, "queries candidates"]


def read_candidates(path: Path) -> Candidates:
    """Reads the candidate lists of a `test_candidates.csv` with the columns `left,c0,c1,...`.

    The cells are names, without suffix, of images in `test/left` and `test/right` beside the file, or in `left` and
    `right`.

    Raises:
      FileNotFoundError: the file is missing.
      ValueError: unexpected columns, incomplete rows, or missing images.
    """
    lines = read_csv(path, what="it should be the course edition's test_candidates.csv")
    (_, header), *rows = lines or [(0, [])]
    if len(header) < 2 or header != submission_header(len(header) - 1):
        raise InvalidValue(f"{path} has the columns {','.join(header)}; they must be left,c0,c1,...")
    for number, row in rows:
        if len(row) != len(header) or not all(row):
            raise InvalidValue(f"{path}, line {number}: {len(header)} names are expected, got {','.join(row)}")
    if not rows:
        raise InvalidValue(f"{path} lists no queries")
    archive = Archive(path.parent)
    names = [row[0] for _, row in rows]
    candidates = {name: index for index, name in enumerate(dict.fromkeys(name for _, row in rows for name in row[1:]))}
    return Candidates(
        names=names,
        left=_images(archive, "left", names),
        right=_images(archive, "right", list(candidates)),
        columns=np.array([[candidates[name] for name in row[1:]] for _, row in rows]),
    )


def _images(archive: Archive, side: str, names: Sequence[str]) -> ImageSequence:
    by_folder: dict[PurePosixPath, dict[str, str]] = {}
    for name in map(PurePosixPath, archive.images):
        by_folder.setdefault(name.parent, {})[name.stem] = str(name)
    found = by_folder.get(PurePosixPath("test", side)) or by_folder.get(PurePosixPath(side), {})
    if missing := sorted(name for name in set(names) if as_listed(name) not in found):
        raise InvalidValue(
            f"{len(missing)} pictures are not in {archive.path}/test/{side}: {printable(first_few(missing))}"
        )
    return ImageSequence(archive, [Crop(found[as_listed(name)]) for name in names])


def confidences(scores: Real[np.ndarray, "queries candidates"]) -> Float[np.ndarray, "queries candidates"]:
    """Scores rescaled to [0, 1] for each query (min-max over its candidates); 0 if all its scores are equal."""
    scores = scores.astype(np.float64)
    lowest = scores.min(axis=1, keepdims=True)
    spread = scores.max(axis=1, keepdims=True) - lowest
    return (scores - lowest) / np.where(spread > 0, spread, 1)


def write_submission(path: Path, names: Sequence[str], scores: Real[np.ndarray, "queries candidates"]) -> None:
    """Writes the submission `left,c0,c1,...`: one row of `confidences` for each query.

    Query names are written as they are, except that an apostrophe is put before one that a spreadsheet would read as a
    formula (`csv_cell`).

    Raises:
      ValueError: a score is not a number.
      OSError: the file cannot be written; the message names it and suggests a remedy.
    """
    if not np.isfinite(scores).all():
        raise InvalidValue(f"{path} is not written: some scores are not finite, so what was trained is broken")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(submission_header(scores.shape[1]))
    for name, row in zip(names, confidences(scores).tolist(), strict=True):
        writer.writerow([csv_cell(name), *row])
    write_whole(path, text.getvalue())


def submission_header(num_candidates: int) -> list[str]:
    """Header row of a submission: `left, c0, c1, ...`."""
    return ["left", *(f"c{index}" for index in range(num_candidates))]
