"""CSV tables: unchanged content, and errors with line numbers."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tll_jax.data.tables import read_csv, read_rows

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(rows=st.lists(st.lists(texts, min_size=2, max_size=4)))
def test_spaces_quotes_and_line_breaks_survive_a_round_trip(rows):
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(rows)
    assert [row for _, row in read_rows(buffer.getvalue().encode(), "x.csv")] == rows


def test_rows_have_the_number_of_their_last_line():
    assert read_rows(b'a,b\n\n"1\n2", 3 \n4,5', "x.csv") == [(1, ["a", "b"]), (4, ["1\n2", " 3 "]), (5, ["4", "5"])]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'a,b\n1,2\n"3,4\n5,6\n', "line 3: a quote is opened there and not closed"),
        (b'a,b\n1,"2', "line 2: a quote is opened there and not closed"),
        (b'a,b\n"1" x,2\n', "line 2: "),
        (b'a,b\n1,2\n"' + b"x" * 200_000, "line 3: field larger than"),
        ("a,é\n".encode("latin-1"), "'utf-8' codec"),
        ("a,b\n".encode("utf-16"), "'utf-8' codec"),
    ],
)
def test_an_invalid_table_is_refused_in_one_line_with_file_and_line(tmp_path, data, reason):
    (tmp_path / "x.csv").write_bytes(data)
    with pytest.raises(ValueError, match=rf"x\.csv is not a CSV in UTF-8 \({reason}") as refused:
        read_csv(tmp_path / "x.csv", what="a table")
    assert "\n" not in str(refused.value)


def test_a_missing_table_is_refused_with_its_expected_content(tmp_path):
    for path in (tmp_path, tmp_path / "x.csv"):
        with pytest.raises(FileNotFoundError, match=r"no file at .*: a table of pairs"):
            read_csv(path, what="a table of pairs")
