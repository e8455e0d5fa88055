"""Near-duplicate detection on re-encoded, resized, recolored and different pictures."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from tll_jax.data.archive import Archive
from tll_jax.data.duplicates import NearDuplicates, count_duplicates, perceptual_hash
from tll_jax.data.emoji import ARCHIVE
from tll_jax.data.imaging import decode
from tll_jax.data.pairs import group_by_shared
from tll_jax.data.totally_looks_like import TotallyLooksLike


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TLL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pictures():
    archive = Archive(ARCHIVE)
    names = [name for name in archive.names if name.startswith("left/")][400:1600:80]
    return [Image.fromarray(decode(archive.read(name), name)).resize((200, 245)) for name in names]


def as_jpeg(picture, quality):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: as_jpeg(picture, 40),
        lambda picture: np.asarray(picture.resize((120, 147))),
        lambda picture: np.asarray(ImageEnhance.Brightness(picture).enhance(0.8)),
        lambda picture: np.asarray(picture.convert("L").convert("RGB")),
    ],
    ids=["saved anew", "resized", "darkened", "without color"],
)
def test_modified_copies_are_detected_and_other_pictures_are_not(pictures, change):
    images = [np.asarray(picture) for picture in pictures]
    images.append(change(pictures[4]))
    found = NearDuplicates()(images, [f"picture {index}" for index in range(len(images))])
    assert found.tolist() == [[4, len(pictures)]]


def test_both_hashes_must_be_close_counted_bit_by_bit(pictures):
    images = [np.asarray(picture) for picture in pictures]
    settings = NearDuplicates(phash_bits=26, dhash_bits=22)
    bits = [bin(int("1" + perceptual_hash(image), 16))[3:] for image in images]

    def differing(first, second):
        return sum(a != b for a, b in zip(first, second, strict=True))

    expected = [
        [i, j]
        for i in range(len(images))
        for j in range(i + 1, len(images))
        if differing(bits[i][:64], bits[j][:64]) <= 26 and differing(bits[i][64:], bits[j][64:]) <= 22
    ]
    assert expected, "the limits are wide enough for some to be close"
    assert settings(images, [str(index) for index in range(len(images))]).tolist() == expected


def test_a_picture_is_hashed_once(pictures):
    images, names = [np.asarray(pictures[0]), as_jpeg(pictures[0], 50)], ["one", "other"]
    assert NearDuplicates()(images, names).tolist() == [[0, 1]]
    assert NearDuplicates()([], names).tolist() == [[0, 1]]


def test_pairs_with_nearly_the_same_picture_are_of_one_group(tmp_path, pictures):
    for side in ("left", "right"):
        (tmp_path / side).mkdir()
    for index in range(7):
        pictures[index].save(tmp_path / "left" / f"{index:05}.png")
        pictures[index + 7].save(tmp_path / "right" / f"{index:05}.png")
    pictures[2].save(tmp_path / "right" / "00005.jpg", quality=60)
    (tmp_path / "right" / "00005.png").unlink()
    pairs = TotallyLooksLike(path=str(tmp_path)).open()
    assert pairs.groups[2] == pairs.groups[5]
    assert len(set(pairs.groups.tolist())) == 6
    assert len(set(TotallyLooksLike(path=str(tmp_path), duplicates=None).open().groups.tolist())) == 7


def test_links_and_shared_pictures_join_the_same_groups():
    hashes = [("a", "b"), ("c", "d"), ("e", "a"), ("f", "g"), ("h", "i")]
    groups = group_by_shared(hashes, [(1, 3)])
    assert groups[0] == groups[2]
    assert groups[1] == groups[3]
    assert len(set(groups.tolist())) == 3


def test_groups_of_more_than_one_pair_are_counted():
    assert count_duplicates(np.array([4, 4, 1, 2, 2, 2, 7])) == {"pairs": 5, "groups": 2}


@pytest.mark.parametrize("kept", ["{", '{"one": "0f"}', '{"one": 7, "two": null}', '{"one": "' + "x" * 32 + '"}'])
def test_damaged_hashes_are_made_again(tmp_path, pictures, kept):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "perceptual-hashes.json").write_text(kept)
    image = np.asarray(pictures[0])
    assert NearDuplicates()([image, image], ["one", "two"]).tolist() == [[0, 1]]
    hashes = json.loads((tmp_path / "cache" / "perceptual-hashes.json").read_text())
    assert hashes == {"one": perceptual_hash(image), "two": perceptual_hash(image)}


@pytest.mark.parametrize("field", ["phash_bits", "dhash_bits"])
def test_impossible_distances_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} is 33"):
        NearDuplicates(**{field: 33}).check()
