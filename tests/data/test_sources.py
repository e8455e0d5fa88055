"""The emoji pairs, the three layouts of Totally Looks Like and class folders, intact and damaged."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.layouts import emoji_pairs, save_joint, save_numbered, zipped
from tll_jax.data import pairs
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.folder import ClassFolder, ImageFolder, ImagesOfPairs
from tll_jax.data.imaging import content_hash, decode
from tll_jax.data.totally_looks_like import TotallyLooksLike

needs_data = pytest.mark.skipif("TLL_DATA" not in os.environ, reason="TLL_DATA names no folder with the research sets")
NUM = 24


@pytest.fixture(scope="module")
def pictures():
    """Pairs of real pictures, 200 x 245 pixels."""
    return emoji_pairs(slice(NUM))


@pytest.fixture
def numbered(tmp_path, pictures):
    save_numbered(tmp_path, pictures)
    return tmp_path


@pytest.fixture
def csv_edition(tmp_path, numbered):
    (tmp_path / "train").mkdir()
    for side in ("left", "right"):
        (numbered / side).rename(tmp_path / "train" / side)
    lines = [f"{index:05},{index:05}" for index in range(NUM)]
    (tmp_path / "train" / "train.csv").write_text("\n".join(["left,right", *lines]) + "\n")
    return tmp_path


def test_the_embedded_pairs_are_all_there():
    pairs = EmojiPairs().open()
    assert len(pairs) == 1610
    assert len(set(pairs.categories)) == 8
    assert len(set(pairs.subcategories)) == 95
    assert (pairs.num_faces() == 1).all(axis=1).sum() == 169 + 360
    assert pairs.skipped == []
    assert pairs[0].left.shape == pairs[0].right.shape == (64, 64, 3)


def test_numbered_folders_and_the_csv_edition_give_the_same_pictures(numbered, tmp_path):
    one = TotallyLooksLike(path=str(numbered)).open()
    assert one.ids == [f"{index:05}" for index in range(NUM)]
    first = one[3].left
    (tmp_path / "train").mkdir()
    for side in ("left", "right"):
        (numbered / side).rename(tmp_path / "train" / side)
    rows = "\n".join(f"{index:05},{index:05}" for index in range(NUM))
    (tmp_path / "train" / "train.csv").write_text(f"left,right\n{rows}\n")
    other = TotallyLooksLike(path=str(tmp_path)).open()
    assert other.ids[3] == "00003-00003"
    assert np.array_equal(other[3].left, first)


def test_joint_images_are_cut_into_their_two_halves(tmp_path, pictures):
    save_joint(tmp_path, pictures, "png")
    pairs = TotallyLooksLike(path=str(tmp_path)).open()
    assert len(pairs) == NUM
    assert np.array_equal(pairs[5].left, np.asarray(pictures[5][0]))
    assert np.array_equal(pairs[5].right, np.asarray(pictures[5][1]))


def test_a_zip_gives_what_the_folder_gives_also_after_pickling(csv_edition, tmp_path_factory):
    path = zipped(csv_edition, tmp_path_factory.mktemp("zip") / "pairs.zip")
    folder, packed = (TotallyLooksLike(path=str(where)).open() for where in (csv_edition, path))
    assert folder.digest() == packed.digest()
    arrived = pickle.loads(pickle.dumps(packed))
    assert np.array_equal(arrived[7].right, folder[7].right)


def test_a_broken_picture_is_a_counted_skip_named_in_one_warning(csv_edition, caplog):
    (csv_edition / "train" / "left" / "00004.jpg").write_bytes(b"")
    pairs = TotallyLooksLike(path=str(csv_edition)).open()
    assert len(pairs) == NUM - 1
    assert "00004-00004" not in pairs.ids
    assert [item.name for item in pairs.skipped] == ["00004-00004"]
    assert caplog.text.count("1 of 24 pairs are skipped: 00004-00004") == 1


def test_a_table_that_names_a_missing_picture_skips_that_pair(csv_edition):
    (csv_edition / "train" / "right" / "00009.jpg").unlink()
    pairs = TotallyLooksLike(path=str(csv_edition)).open()
    assert pairs.skipped[0].name == "00009-00009"
    assert "line 11 names train/right/00009" in pairs.skipped[0].reason


def test_half_extracted_data_is_refused_with_the_mend(numbered):
    for index in range(10):
        (numbered / "right" / f"{index:05}.jpg").unlink()
    with pytest.raises(ValueError, match=r"10 of 24 pairs .*has no picture in right/.*extract it again"):
        TotallyLooksLike(path=str(numbered)).open()


def test_a_pair_listed_twice_is_refused_with_both_lines(csv_edition):
    table = csv_edition / "train" / "train.csv"
    table.write_text(table.read_text() + "00002,00002\n")
    with pytest.raises(ValueError, match="line 26 repeats the pair 00002-00002 of line 4"):
        TotallyLooksLike(path=str(csv_edition)).open()


def test_missing_data_an_unset_variable_a_cut_zip_and_an_unknown_layout_are_distinguished(
    tmp_path, csv_edition, monkeypatch
):
    with pytest.raises(FileNotFoundError, match="no data at"):
        TotallyLooksLike(path=str(tmp_path / "nowhere")).open()
    monkeypatch.delenv("TLL_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"\$TLL_DATA, which is not set"):
        TotallyLooksLike(path="$TLL_DATA/pairs.zip").open()
    path = zipped(csv_edition, tmp_path / "pairs.zip")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="not a complete zip file"):
        TotallyLooksLike(path=str(path)).open()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("none")
    with pytest.raises(ValueError, match=r"Looked for: a train\.csv"):
        TotallyLooksLike(path=str(tmp_path / "other")).open()


def test_pairs_that_share_a_picture_are_of_one_group(csv_edition):
    left = csv_edition / "train" / "left"
    (left / "00001.jpg").write_bytes((left / "00000.jpg").read_bytes())
    # Drawings of faces are too much alike for the perceptual hashes.
    groups = TotallyLooksLike(path=str(csv_edition), duplicates=None).open().groups
    assert groups[0] == groups[1]
    assert len(set(groups.tolist())) == NUM - 1


def test_class_folders_number_their_classes_by_name_and_replace_broken_images(tmp_path, pictures):
    for index, (left, right) in enumerate(pictures):
        for name, image in (("apple", left), ("zebra", right)):
            (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / "set" / name / f"{index:02}.jpg")
    (tmp_path / "set" / "apple" / "03.jpg").write_bytes(b"nothing")
    source = ClassFolder(path=str(tmp_path), subfolder="set").open(held_out=frozenset())
    assert (len(source), source.num_classes, source.classes) == (2 * NUM, 2, ["apple", "zebra"])
    assert source[NUM].label == 1
    assert np.array_equal(source[3].image, source[4].image)
    assert [Path(item.name).name for item in source.skipped] == ["03.jpg"]
    with pytest.raises(ValueError, match="no images in class folders"):
        ClassFolder(path=str(tmp_path), subfolder="elsewhere").open(held_out=frozenset())


def test_images_without_classes_are_listed_at_any_depth_and_labeled_minus_one(tmp_path, pictures):
    for name, (image, _) in zip(("b.jpg", "a/c.png", "a/d/e.WEBP", "f.gif"), pictures, strict=False):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "set" / name)
    (tmp_path / "set" / "notes.txt").write_text("none")
    source = ImageFolder(path=str(tmp_path), subfolder="set").open(held_out=frozenset())
    assert source.names == ["set/a/c.png", "set/a/d/e.WEBP", "set/b.jpg", "set/f.gif"]
    assert (source.num_classes, source.classes) == (0, [])
    assert {source[index].label for index in range(4)} == {-1}
    assert np.array_equal(source[0].image, np.asarray(pictures[1][0]))
    with pytest.raises(ValueError, match="holds no images below 'sat'; it holds 5 files"):
        ImageFolder(path=str(tmp_path), subfolder="sat").open(held_out=frozenset())


def test_broken_images_up_to_the_allowed_share_are_replaced_and_one_more_stops_with_their_names(tmp_path, pictures):
    for index, (image, _) in enumerate(pictures[:20]):
        image.save(tmp_path / f"{index:02}.jpg")
    for index in (4, 5, 6):
        (tmp_path / f"{index:02}.jpg").write_bytes(b"<html>")
    # Two of twenty are allowed.
    source = ImageFolder(path=str(tmp_path), max_broken_fraction=0.1).open(held_out=frozenset())
    assert np.array_equal(source[5].image, source[7].image)
    with pytest.raises(ValueError, match=r"3 of 20 images .* more than the 10% allowed: 05\.jpg .*06\.jpg .*04\.jpg"):
        source[4]
    with pytest.raises(ValueError, match="max_broken_fraction is 1; it must be from 0 to below 1"):
        ImageFolder(path=str(tmp_path), max_broken_fraction=1).check()


def test_the_digest_of_class_folders_depends_on_names_sizes_and_labels_and_not_on_their_location(tmp_path, pictures):
    def digest(path):
        return ClassFolder(path=str(path), subfolder="set").open(held_out=frozenset()).digest()

    folder = tmp_path / "photos"
    for name, (left, _) in zip(("apple", "zebra"), pictures, strict=False):
        (folder / "set" / name).mkdir(parents=True)
        left.save(folder / "set" / name / "00.png")
    first = digest(folder)
    assert digest(zipped(folder, tmp_path / "photos.zip")) == first
    # The same name, another picture.
    pictures[5][1].save(folder / "set" / "apple" / "00.png")
    assert digest(folder) != first


def test_pictures_of_held_out_pairs_are_not_pretrained_on():
    pairs = EmojiPairs().open()
    held_out = frozenset(pairs.ids[10:30])
    source = ImagesOfPairs(pairs=EmojiPairs(), label="subcategories").open(held_out=held_out)
    assert len(source) == 2 * 1590
    assert source.num_classes == 95
    # Image 20 is the left picture of the eleventh pair that is left, the one after the gap.
    assert np.array_equal(source[20].image, pairs[30].left)
    assert np.array_equal(source[21].image, pairs[30].right)
    assert source[20].label == source[21].label


def test_classes_that_pairs_do_not_have_are_refused(numbered):
    settings = ImagesOfPairs(pairs=TotallyLooksLike(path=str(numbered)), label="categories")
    with pytest.raises(ValueError, match="have no categories; use label='none'"):
        settings.open(held_out=frozenset())


def test_excluding_faces_without_a_detector_says_what_to_set(numbered):
    with pytest.raises(ValueError, match="no face detector: set `faces`"):
        TotallyLooksLike(path=str(numbered)).open().num_faces()


def test_a_text_file_as_png_is_reported_by_the_reader(tmp_path):
    buffer = io.BytesIO(b"hello")
    (tmp_path / "00000.png").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="not an image that can be read"):
        TotallyLooksLike(path=str(tmp_path)).open()


def test_pictures_of_pairs_are_decoded_once_for_their_content_hashes(monkeypatch):
    source = EmojiPairs().open()
    read = []

    def watch(data, name):
        read.append(name)
        return decode(data, name)

    monkeypatch.setattr(pairs, "decode", watch)
    first, second = source.images([3, 1, 4]), source.images([1, 5])
    hashes = first.left.content_hashes()
    assert hashes == [content_hash(image) for image in source.images([3, 1, 4]).left]
    assert len(set(hashes)) == 3
    read.clear()
    assert first.left[1:].content_hashes() == hashes[1:]
    assert second.left.content_hashes()[0] == hashes[1]
    assert read == [source.entries[5].left.name]


def test_the_embedded_pairs_can_be_pickled():
    pairs = EmojiPairs().open()
    assert np.array_equal(pickle.loads(pickle.dumps(pairs)).num_faces(), pairs.num_faces())


def test_one_side_extracted_alone_is_refused_as_pairs_without_a_partner(tmp_path):
    (tmp_path / "left").mkdir()
    # Wide enough to pass for joint images.
    Image.new("RGB", (420, 260)).save(tmp_path / "left" / "00000.jpg")
    with pytest.raises(ValueError, match="has no picture in right/"):
        TotallyLooksLike(path=str(tmp_path)).open()


def test_a_table_without_rows_is_refused(csv_edition):
    (csv_edition / "train" / "train.csv").write_text("left,right\n")
    with pytest.raises(ValueError, match="lists no pairs"):
        TotallyLooksLike(path=str(csv_edition)).open()


def test_the_table_may_be_above_the_folder_of_the_pictures(csv_edition):
    (csv_edition / "train" / "train.csv").rename(csv_edition / "train.csv")
    assert len(TotallyLooksLike(path=str(csv_edition)).open()) == NUM


def test_files_that_macos_adds_to_a_zip_are_ignored(numbered, tmp_path_factory):
    path = zipped(numbered, tmp_path_factory.mktemp("zip") / "pairs.zip")
    with zipfile.ZipFile(path, "a") as archive:
        for side in ("left", "right"):
            archive.writestr(f"__MACOSX/{side}/._00000.jpg", b"Mac OS X")
    assert TotallyLooksLike(path=str(path)).open().skipped == []


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_picture_damaged_inside_a_zip_is_skipped_like_any_other(tmp_path, pictures, compression):
    path, victim = tmp_path / "photos.zip", "photos/apple/01.jpg"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for index in range(4):
            buffer = io.BytesIO()
            pictures[index][0].save(buffer, "JPEG")
            archive.writestr(f"photos/apple/{index:02}.jpg", buffer.getvalue())
        start = archive.getinfo(victim).header_offset + 30 + len(victim)
    data = bytearray(path.read_bytes())
    data[start + 20 : start + 200] = bytes(byte ^ 0x5A for byte in data[start + 20 : start + 200])
    path.write_bytes(bytes(data))
    settings = ClassFolder(path=str(path), subfolder="photos", max_broken_fraction=0.25)
    source = settings.open(held_out=frozenset())
    assert np.array_equal(source[1].image, source[2].image)
    assert [item.name for item in source.skipped] == [victim]


def test_held_out_ids_of_another_set_have_no_effect():
    source = ImagesOfPairs(pairs=EmojiPairs()).open(held_out=frozenset({"aaa-osr"}))
    assert len(source) == 2 * 1610


@needs_data
def test_the_real_pairs_are_complete():
    pairs = TotallyLooksLike(path="$TLL_DATA/totally-looks-like.zip").open()
    assert len(pairs) == 1599
    assert pairs.skipped == []
    assert pairs[0].left.shape == (245, 200, 3)


@needs_data
def test_the_real_photos_are_complete():
    source = ClassFolder(path="$TLL_DATA/imagenette-128.zip", subfolder="imagenette/train").open(held_out=frozenset())
    assert (len(source), source.num_classes) == (9469, 10)
    assert source[0].image.shape == (128, 128, 3)
