"""Face counts, their cache, and manual overrides."""

import os
from pathlib import Path

import numpy as np
import pytest

from tll_jax.data.archive import Archive
from tll_jax.data.emoji import ARCHIVE
from tll_jax.data.faces import DlibFaces, read_overrides
from tll_jax.data.imaging import content_hash, decode
from tll_jax.data.pairs import Crop, Entry, Pairs
from tll_jax.data.totally_looks_like import TotallyLooksLike

needs_data = pytest.mark.skipif("TLL_DATA" not in os.environ, reason="TLL_DATA names no folder with the research sets")


@pytest.mark.parametrize("count", ["true", "-1", "1.5", '"2"', "null", "NaN"])
def test_impossible_counts_are_computed_again(tmp_path, monkeypatch, caplog, count):
    monkeypatch.setenv("TLL_CACHE", str(tmp_path))
    monkeypatch.setattr(DlibFaces, "_detector", lambda self: lambda image: 1)
    path = tmp_path / "face-counts-dlib-0.json"
    path.write_text(f'{{"a": {count}, "b": 5}}')
    assert DlibFaces(upsample=0)([None, None], ["a", "b"]).tolist() == [1, 5]
    assert f"{path}: 1 of the face findings cannot be, such as that of a" in caplog.text


def emoji(names, **options):
    entries = [Entry(name, Crop(f"left/{name}.webp"), Crop(f"right/{name}.webp")) for name in names]
    return Pairs(Archive(ARCHIVE), entries, find_faces=lambda images, hashes: np.ones(len(hashes), int), **options)


def test_manual_face_counts_override_the_detector(tmp_path):
    names = [name.removeprefix("left/").removesuffix(".webp") for name in Archive(ARCHIVE).names if "left/" in name][:3]
    path = tmp_path / "faces.csv"
    path.write_text(f"id,side,faces\n{names[1]},right,0\n{names[2]},left,3\n{names[2]},right, 2\n")
    overrides = read_overrides(path)
    assert overrides == {names[1]: [None, 0], names[2]: [3, 2]}
    assert emoji(names, face_overrides=overrides).num_faces().tolist() == [[1, 1], [1, 0], [3, 2]]
    with pytest.raises(ValueError, match=f"name 1 pairs that .* does not list, such as '{names[2]}'"):
        emoji(names[:2], face_overrides=overrides)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("id,faces\na,1\n", "it needs id, side and faces"),
        ("id,side,faces\na,left,1\nb,up,1\n", "line 3 is b,up,1"),
        ("id,side,faces\na,left,many\n", "line 2 is a,left,many"),
        ("id,side,faces\na,left\n", "a whole number of faces"),
        ("", "it needs id, side and faces"),
    ],
)
def test_overrides_that_cannot_be_read_name_the_line(tmp_path, text, named):
    (tmp_path / "faces.csv").write_text(text)
    with pytest.raises(ValueError, match=named):
        read_overrides(tmp_path / "faces.csv")


def test_ids_of_overrides_are_kept_as_they_are_but_for_the_quoting_of_formulas(tmp_path):
    path = tmp_path / "faces.csv"
    path.write_text(
        "faces,id,side\n1,photo ,left\n2,\" a\",right\n3,'=b,left\n4,''-c,left\n5,'d,left\n 6 ,photo , right\n"
    )
    assert read_overrides(path) == {
        "photo ": [1, 6],
        " a": [None, 2],
        "=b": [3, None],
        "'-c": [4, None],
        "'d": [5, None],
    }


def test_overrides_with_a_quote_left_open_are_refused_with_the_line(tmp_path):
    (tmp_path / "faces.csv").write_text('id,side,faces\na,left,1\n"b,left,1\n')
    with pytest.raises(ValueError, match=r"faces\.csv is not a CSV in UTF-8 \(line 3: a quote"):
        read_overrides(tmp_path / "faces.csv")


def test_a_missing_detector_is_reported_before_pictures_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("TLL_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'tll_jax\[faces\]', or from a checkout pip install -e"):
        DlibFaces().check()
    # Cached counts may suffice.
    (tmp_path / "face-counts-dlib-1.json").write_text("{}")
    DlibFaces().check()


def test_missing_overrides_say_what_writes_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="`tll review` makes a page"):
        TotallyLooksLike(path=str(tmp_path), face_overrides=str(tmp_path / "faces.csv")).open()


@needs_data
def test_the_detector_distinguishes_faces_from_objects_on_real_pairs(tmp_path, monkeypatch):
    monkeypatch.setenv("TLL_CACHE", str(tmp_path))
    # Of the archive itself, for opening the set hashes all of its pictures.
    archive = Archive(Path(os.environ["TLL_DATA"]) / "totally-looks-like.zip")
    names = [name for name in archive.images if "left/" in name][:40]
    images = [decode(archive.read(name), name) for name in names]
    detector, hashes = DlibFaces(upsample=0), [content_hash(image) for image in images]
    found = detector(images, hashes)
    # Seen by eye: most of the set are faces, but not all.
    assert 10 <= (found > 0).sum() <= 35
    # The second call reads the cache and decodes no picture.
    assert np.array_equal(detector([], hashes), found)
