"""Face counts of images, and the face filters that exclude pairs from testing."""

import importlib.util
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tll_jax.cache import cache_folder
from tll_jax.data.findings import cached_findings
from tll_jax.data.pairs import SIDES
from tll_jax.data.tables import read_csv
from tll_jax.errors import InvalidValue, missing_package
from tll_jax.files import text_of_cell
from tll_jax.typing import Image

FaceRule = Literal["none", "not-single", "both", "include"]

RULES: dict[FaceRule, str] = {
    "none": "a face on either side",
    "not-single": "exactly one face on either side",
    "both": "a face on both sides",
    "include": "",
}
"""Description of the pairs that each rule excludes from testing and validation."""


def dropped(num_faces: np.ndarray, rule: FaceRule) -> np.ndarray:
    """Mask of the pairs that a face rule excludes from testing, bool `[pairs]`.

    Args:
      num_faces: int `[pairs, 2]`, the face counts of the left and the right image.
      rule: which pairs to exclude.
        `none` (the rule of [Munteanu 2022]): pairs with at least one face on either side.
        `not-single` (Rosenfeld et al. 2018): pairs with exactly one face on the left or exactly one on the right; sides
        with no face or several do not count. Their 1,622 pairs are the remaining ones without duplicates.
        `both`: pairs with at least one face on each side.
        `include`: no pair.

    Source: the notebook of Rosenfeld et al. 2018 (arXiv 1803.01485) for `not-single`.

    Examples:
      >>> dropped(np.array([[0, 0], [1, 0], [2, 0], [1, 1]]), "not-single")
      array([False,  True, False,  True])
    """
    if rule == "none":
        return np.any(num_faces > 0, axis=1)
    if rule == "not-single":
        return np.any(num_faces == 1, axis=1)
    if rule == "both":
        return np.all(num_faces > 0, axis=1)
    return np.zeros(len(num_faces), dtype=bool)


@dataclass(kw_only=True)
class DlibFaces:
    """dlib's frontal face detector (HOG features and a linear classifier); needs the extra `tll_jax[faces]`.

    `upsample` (0 to 3) is the number of times the image is doubled in size before detection; each doubling finds
    smaller faces and costs four times as much.

    Source: King 2015 (arXiv 1502.00046).
    """

    upsample: int = 1

    def check(self) -> None:
        if not 0 <= self.upsample <= 3:
            raise InvalidValue(f"upsample is {self.upsample}; it must be from 0 to 3")
        # Checked early because reading the images takes minutes; cached counts may suffice without dlib.
        if importlib.util.find_spec("dlib") is None and not self._findings.exists():
            raise missing_package("finding faces in photographs", "faces")

    @property
    def _findings(self) -> Path:
        return cache_folder() / f"face-counts-dlib-{self.upsample}.json"

    def __call__(self, images: Sequence[Image], hashes: Sequence[str]) -> np.ndarray:
        """Number of faces in each image, int64 `[images]`; cached in `face-counts-dlib-*.json`.

        Raises:
          ImportError: the extra is not installed.
        """
        found = cached_findings(
            self._detector, images, hashes, self._findings, what="face findings", check=_check_count
        )
        return np.array(found, dtype=np.int64)

    def _detector(self) -> Callable[[Image], int]:
        try:
            import dlib
        except ImportError as error:
            raise missing_package("finding faces in photographs", "faces") from error
        local = threading.local()

        def detect(image: Image) -> int:
            if not hasattr(local, "detector"):
                local.detector = dlib.get_frontal_face_detector()
            return len(local.detector(image, self.upsample))

        return detect


def _check_count(count: object) -> None:
    if type(count) is not int or count < 0:
        raise InvalidValue(f"{count!r} faces; it must be a whole number, 0 or more")


def read_overrides(path: Path) -> dict[str, list[int | None]]:
    """Reads manual face counts: `{pair id: [left, right]}`, None where the detected count applies.

    The file is a CSV with the header `id,side,faces`; `side` is left or right. `tll review` makes a page that writes
    it, with an apostrophe before ids that a spreadsheet would read as formulas (see `files.csv_cell`). Otherwise ids
    must match exactly, including leading and trailing spaces.

    Raises:
      FileNotFoundError: nothing exists at `path`.
      ValueError: a column is missing, or a line cannot be parsed; the message names the line.
      OSError: the file cannot be read.
    """
    what = "face overrides should be there; `tll review` makes a page that writes them"
    (_, columns), *rows = read_csv(path, what=what) or [(0, [])]
    if not {"id", "side", "faces"} <= set(columns):
        raise InvalidValue(f"{path} has the columns {','.join(columns)}; it needs id, side and faces")
    overrides: dict[str, list[int | None]] = {}
    for line, row in rows:
        found = dict(zip(columns, row, strict=False))
        identity, side, faces = (
            text_of_cell(found.get("id", "")),
            found.get("side", "").strip(),
            found.get("faces", "").strip(),
        )
        if side not in SIDES or not faces.isdecimal():
            raise InvalidValue(
                f"{path}, line {line} is {identity},{side},{faces}; it must be a pair's id, left or right, and a whole "
                "number of faces"
            )
        overrides.setdefault(identity, [None, None])[SIDES.index(side)] = int(faces)
    return overrides
