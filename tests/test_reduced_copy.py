"""benchmarks/reduced_copy.py: smaller pictures under the same names, and what was known of the whole ones."""

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from tll_jax.data.faces import DlibFaces
from tll_jax.data.totally_looks_like import TotallyLooksLike


@pytest.fixture
def reduced_copy(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import reduced_copy

    yield reduced_copy
    del sys.modules["reduced_copy"]


def jpeg(rng, width, height):
    coarse = PillowImage.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    written = io.BytesIO()
    coarse.resize((width, height), PillowImage.Resampling.BICUBIC).save(written, "JPEG", quality=95)
    return written.getvalue()


def test_pairs_of_a_reduced_copy_keep_their_ids_and_face_counts_without_a_detector(reduced_copy, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    whole, copy, cache = tmp_path / "whole.zip", tmp_path / "copy.zip", tmp_path / "cache"
    with zipfile.ZipFile(whole, "w") as file:
        file.writestr("train/train.csv", "left,right\naa,ab\nba,bb\n")
        for name in ("left/aa", "right/ab", "left/ba", "right/bb"):
            file.writestr(f"train/{name}.jpg", jpeg(rng, 200, 245))
    counts = iter([2, 0, 1, 3])
    monkeypatch.setenv("TLL_CACHE", str(tmp_path / "first"))
    monkeypatch.setattr("tll_jax.data.findings.num_cores", lambda: 1)
    monkeypatch.setattr(DlibFaces, "_detector", lambda self: lambda image: next(counts))
    reduced_copy.copy_zip(whole, copy, {"train/": (80, 80)})
    reduced_copy.write_cache(whole, copy, cache)

    assert list(counts) == []
    known, pairs = (TotallyLooksLike(path=str(path), faces=DlibFaces()).open() for path in (whole, copy))
    monkeypatch.setenv("TLL_CACHE", str(cache))
    assert pairs.ids == known.ids == ["aa-ab", "ba-bb"]
    assert pairs.num_faces().tolist() == [[2, 0], [1, 3]]
    assert len(json.loads((cache / "perceptual-hashes.json").read_text())) == 4
    assert pairs[0].left.shape == (98, 80, 3)
    shrunk = np.asarray(PillowImage.fromarray(known[0].left).resize((80, 98), PillowImage.Resampling.LANCZOS))
    assert np.abs(pairs[0].left.astype(float) - shrunk).mean() < 4
    assert copy.stat().st_size < whole.stat().st_size / 2
