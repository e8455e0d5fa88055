"""Pairs from tables and from matching folders: rows, ids, missing pictures and repeats."""

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tll_jax.data.pair_folders import MatchingFolders, PairsFromTable, read_table


def paint(folder, *names):
    """Pictures of one color each, in the order of a counter."""
    for count, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (count, 0, 0)).save(folder / name)


def color(image):
    return int(image[0, 0, 0])


@pytest.fixture
def table(tmp_path):
    paint(tmp_path, "lists/a.png", "lists/deep/b.png", "other/c.png", 'other/d, "e".png')
    rows = ["left,right", "a.png,deep/b.png", "../other/c.png,a.png", '"../other/d, ""e"".png",./a.png']
    (tmp_path / "lists" / "pairs.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def open_table(folder, **options):
    return PairsFromTable(path=str(folder), table="lists/pairs.csv", **options).open()


def test_a_table_names_pictures_relative_to_its_folder(table):
    pairs = open_table(table)
    assert pairs.ids == ["a.png|deep/b.png", "../other/c.png|a.png", '../other/d, "e".png|./a.png']
    assert [(color(pair.left), color(pair.right)) for pair in (pairs[index] for index in range(3))] == [
        (0, 1),
        (2, 0),
        (3, 0),
    ]
    assert len(set(pairs.groups.tolist())) == 1, "all three share a.png"


def test_a_table_in_a_zip_gives_the_same_pairs(table, tmp_path_factory):
    path = tmp_path_factory.mktemp("zip") / "pairs.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for name in sorted(table.rglob("*.*")):
            packed.write(name, name.relative_to(table))
    assert open_table(path).digest() == open_table(table).digest()


def test_ids_of_a_table_are_taken_where_they_are_given(table):
    (table / "lists" / "pairs.csv").write_text("id,left,right\nfirst,a.png,deep/b.png\n,a.png,../other/c.png\n")
    assert open_table(table).ids == ["first", "a.png|../other/c.png"]


def test_rows_with_missing_pictures_are_skipped_with_table_and_line(table):
    path = table / "lists" / "pairs.csv"
    path.write_text(path.read_text() + "a.png,gone.png\n/etc/passwd,../../up.png\na.png\n")
    skipped = open_table(table, max_broken_fraction=0.5).skipped
    assert [item.name for item in skipped] == ["a.png|gone.png", "/etc/passwd|../../up.png", "a.png|"]
    assert skipped[0].reason == "lists/pairs.csv, line 5 names lists/gone.png, which is not there"
    assert "line 6 names /etc/passwd and ../up.png" in skipped[1].reason
    assert "line 7" in skipped[2].reason
    with pytest.raises(ValueError, match=r"3 of 6 pairs .* more than the 5% allowed"):
        open_table(table)


def test_a_repeated_id_is_refused_with_both_lines(table):
    path = table / "lists" / "pairs.csv"
    path.write_text(path.read_text() + "a.png,deep/b.png\n")
    with pytest.raises(ValueError, match=r"lists/pairs\.csv, line 5 repeats the pair a\.png\|deep/b\.png of line 2"):
        open_table(table)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "has the columns None; it needs left and right"),
        (b"left,write\na,b\n", r"has the columns \['left', 'write'\]"),
        ("left,right\né,b\n".encode("latin-1"), "is not a CSV in UTF-8"),
        (b"left,right\n" + b"a" * 200_000, "is not a CSV in UTF-8"),
        (b"left,right\n", "lists no pairs"),
    ],
    ids=["empty", "columns", "latin-1", "one endless field", "no rows"],
)
def test_a_file_that_is_not_a_table_of_pairs_is_refused_with_its_name(table, content, reason):
    (table / "lists" / "pairs.csv").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        open_table(table)
    with pytest.raises(ValueError, match=r"has no pairs\.csv: set `table`. It holds 5 files"):
        PairsFromTable(path=str(table)).open()


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_tables_of_any_system_are_read(table, line_end):
    text = line_end.join(["left,right", "a.png,deep/b.png", "a.png,../other/c.png", ""])
    (table / "lists" / "pairs.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(open_table(table)) == 2


class Folder:
    """An archive in memory."""

    path = Path("memory")

    def __init__(self, table, names=()):
        self.table = table
        self.names = [*names, "pairs.csv"]

    def read(self, name):
        assert name == "pairs.csv"
        return self.table


def as_csv(rows):
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([("left", "right"), *rows])
    return buffer.getvalue().encode()


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(rows=st.lists(st.tuples(names, names)))
def test_any_names_come_back_from_a_table_as_they_were_written(rows):
    found = read_table(Folder(as_csv(rows)), "pairs.csv")
    assert [(row["left"], row["right"]) for _, row in found] == rows


files = [f"{letter}.png" for letter in "abcdefgh"]


@given(
    rows=st.lists(st.tuples(st.sampled_from(files), st.sampled_from(files)), unique=True),
    present=st.sets(st.sampled_from(files)),
    data=st.data(),
)
def test_the_order_of_the_lines_changes_neither_ids_nor_pictures_nor_skips(rows, present, data):
    def find(lines):
        entries, skipped = PairsFromTable(path="memory").find(Folder(as_csv(lines), present))
        assert [entry.id for entry in entries] == ["|".join(row) for row in lines if set(row) <= present]
        return {(entry.id, entry.left.name, entry.right.name) for entry in entries}, {item.name for item in skipped}

    assert find(rows) == find(data.draw(st.permutations(rows)))


def test_equal_names_in_two_folders_are_a_pair_whatever_the_suffix(tmp_path):
    paint(tmp_path, "photo/b.png", "photo/a.jpg", "photo/in/c.png", "sketch/a.png", "sketch/b.png", "sketch/in/c.webp")
    paint(tmp_path, "else/a.png")
    pairs = MatchingFolders(path=str(tmp_path), left="photo", right="sketch").open()
    assert pairs.ids == ["a", "b", "in/c"]
    assert np.array_equal(pairs[1].left, np.zeros((9, 9, 3)))
    assert color(pairs[1].right) == 4


def test_a_picture_without_a_partner_is_skipped(tmp_path):
    paint(tmp_path, *(f"{side}/{index}.png" for side in ("left", "right") for index in range(30)), "right/lone.png")
    pairs = MatchingFolders(path=str(tmp_path)).open()
    assert len(pairs) == 30
    assert pairs.skipped == [("lone", "has no picture in left/")]


def test_folders_that_are_not_there_and_names_that_stand_twice_are_refused(tmp_path):
    paint(tmp_path, "left/a.png", "left/a.jpg", "right/a.png")
    with pytest.raises(ValueError, match=r"left/a\.jpg and left/a\.png would be one picture; remove one"):
        MatchingFolders(path=str(tmp_path)).open()
    with pytest.raises(
        ValueError, match=r"has no pictures in one/ and other/: set `left` and `right`\. It holds 3 files"
    ):
        MatchingFolders(path=str(tmp_path), left="one", right="other").open()
