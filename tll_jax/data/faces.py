"""Which pictures show a face: the filter that the study applies to its test pairs."""

import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import tqdm

from tll_jax.cache import cache_folder
from tll_jax.contracts import Image


@dataclass(kw_only=True)
class DlibFaces:
    """dlib's frontal face detector (histograms of oriented gradients), from the extra `tll_jax[faces]`.

    `upsample` doublings of the picture find smaller faces, at four times the cost each. Findings are kept by
    picture content in a JSON file that can be read and edited.

    Source: King 2015 (arXiv 1502.00046).
    """

    upsample: int = 1

    def check(self) -> None:
        if not 0 <= self.upsample <= 3:
            raise ValueError(f"upsample is {self.upsample}; it must be from 0 to 3")

    def __call__(self, images: Sequence[Image], hashes: Sequence[str]) -> np.ndarray:
        """bool `[images]`: whether each shows a face.

        Raises:
          ImportError: the extra is not installed.
          ValueError: the file of earlier findings is damaged.
        """
        path = cache_folder() / f"faces-dlib-{self.upsample}.json"
        try:
            known: dict[str, bool] = json.loads(path.read_text()) if path.exists() else {}
        except json.JSONDecodeError as error:
            raise ValueError(f"the face findings in {path} are damaged ({error}): delete the file") from error
        new = [index for index, content in enumerate(hashes) if content not in known]
        if new:
            detect = self._detector()
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                found = pool.map(lambda index: detect(images[index]), new)
                bar = tqdm.tqdm(found, "find faces", len(new), disable=not sys.stderr.isatty())
                known |= {hashes[index]: face for index, face in zip(new, bar, strict=True)}
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(json.dumps(known, indent=0, sort_keys=True) + "\n")
            partial.replace(path)
        return np.array([known[content] for content in hashes], dtype=bool)

    def _detector(self) -> Callable[[Image], bool]:
        try:
            import dlib
        except ImportError as error:
            raise ImportError(
                "excluding faces from photographs needs a detector: pip install 'tll_jax[faces]'"
            ) from error
        local = threading.local()

        def detect(image: Image) -> bool:
            if not hasattr(local, "detector"):
                local.detector = dlib.get_frontal_face_detector()
            return len(local.detector(image, self.upsample)) > 0

        return detect
