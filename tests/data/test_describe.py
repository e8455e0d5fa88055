"""Output of `tll data`, counted by hand."""

import numpy as np
import pytest
from PIL import Image

from tll_jax import cli
from tll_jax.data.describe import contact_sheet, describe
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.folder import ClassFolder
from tll_jax.data.pair_folders import MatchingFolders


def paint(path, size, color="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def classes(tmp_path):
    for name, size in (("cat/a.png", (10, 30)), ("cat/b.jpg", (20, 30)), ("dog/c.jpg", (90, 50)), ("lone.png", (1, 1))):
        paint(tmp_path / name, size)
    (tmp_path / "dog" / "a copy.png").write_bytes((tmp_path / "cat" / "a.png").read_bytes())
    paint(tmp_path / ".hidden" / "a.png", (9, 9))
    (tmp_path / "cat" / "phone.heic").write_bytes(b"none")
    (tmp_path / "dog" / "line\nbreak \udcff.jpg").write_bytes(b"<html>")
    return tmp_path


def test_counts_formats_sizes_broken_files_and_duplicates_are_as_counted_by_hand(classes):
    found = describe(ClassFolder(path=str(classes)))
    assert found.num_pairs is None
    assert found.classes == {"cat": 2, "dog": 3}
    assert (found.num_images, found.num_unused) == (4, 1)
    assert found.num_bytes == sum(
        (classes / name).stat().st_size for name in ("cat/a.png", "cat/b.jpg", "dog/c.jpg", "dog/a copy.png")
    )
    assert found.formats == {"PNG": 2, "JPEG": 2}
    assert (found.widths, found.heights) == ((10, 15, 90), (30, 30, 50))
    assert found.broken == [("dog/line\nbreak \udcff.jpg", "not an image that can be read")]
    assert found.refused, "one of five is more than 5 %"
    assert found.duplicates == [["cat/a.png", "dog/a copy.png"]]
    assert len(found.examples) == 4


def test_pairs_are_described_however_many_are_broken(tmp_path):
    for side in ("left", "right"):
        for index in range(3):
            paint(tmp_path / side / f"{index}.png", (8, 8), (index, 9 * (side == "left"), 0))
    (tmp_path / "left" / "0.png").write_bytes(b"")
    (tmp_path / "right" / "1.png").unlink()
    settings = MatchingFolders(path=str(tmp_path))
    found = describe(settings)
    assert (found.num_pairs, found.num_images, found.num_unused) == (1, 2, 3)
    assert [item.name for item in found.broken] == ["1", "0"]
    assert found.refused
    assert found.settings is settings
    assert settings.max_broken_fraction == 0.05


def test_a_source_of_which_nothing_can_be_read_is_refused_with_the_reasons(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"nothing in .* can be read: cat/a\.jpg \(the file is empty\)"):
        describe(ClassFolder(path=str(tmp_path)))


def test_the_contact_sheet_shows_examples_in_rows_of_eight_each_as_one():
    examples = [(np.full((96, 96, 3), 10 * k, np.uint8), np.full((96, 96, 3), 10 * k + 1, np.uint8)) for k in range(9)]
    sheet = contact_sheet(examples)
    # Two pictures of 96 pixels and four on each side.
    width, height = 2 * 96 + 8, 96 + 8
    assert sheet.shape == (2 * height, 8 * width, 3)
    for k in range(9):
        row, column = divmod(k, 8)
        assert sheet[row * height + 50, column * width + 50, 0] == 10 * k
        assert sheet[row * height + 50, column * width + 150, 0] == 10 * k + 1
    assert np.all(sheet[height:, width:] == 255)


def test_the_command_prints_one_fact_per_line_and_writes_the_sheet_only_on_request(classes, tmp_path_factory, capsys):
    cli.main(["data", str(classes)])
    printed = capsys.readouterr().out
    assert "recognized as  ClassFolder(path=" in printed
    assert "classes        2 of 2 to 3 images" in printed
    assert "broken         1, more than is allowed: training stops" in printed
    assert "not read       1 .heic: convert them to JPEG or PNG" in printed
    assert "hidden         1, which are no data: .hidden" in printed
    assert "dog/line\\nbreak \\udcff.jpg: not an image" in printed
    assert "cat/a.png = dog/a copy.png" in printed
    assert "add --out DIR" in printed
    out = tmp_path_factory.mktemp("out") / "new"
    cli.main(["data", str(classes), "--out", str(out)])
    assert f"A sample to look at: {out}" in capsys.readouterr().out
    with Image.open(out / "contact-sheet.png") as sheet:
        assert sheet.size == (8 * 104, 104)


def test_the_command_names_what_is_wrong_with_a_path_without_a_traceback(tmp_path):
    with pytest.raises(SystemExit, match="tll: no data at"):
        cli.main(["data", str(tmp_path / "nowhere")])


def test_the_embedded_pairs_are_described():
    found = describe(EmojiPairs())
    assert (found.num_pairs, found.num_images, found.broken, found.refused) == (1610, 3220, [], False)
    assert len(found.examples) == 48
    assert all(len(example) == 2 for example in found.examples)
