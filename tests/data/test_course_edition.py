"""Files of the course edition: candidate lists and submissions."""

import cv2
import numpy as np
import pytest

from tll_jax.data.course_edition import confidences, read_candidates, write_submission


def write_test(folder, rows, *, left, right, under="test"):
    """Constant pictures, each of its own gray value."""
    for side, grays in (("left", left), ("right", right)):
        (folder / under / side).mkdir(parents=True)
        for name, gray in grays.items():
            cv2.imwrite(str(folder / under / side / f"{name}.png"), np.full((4, 4, 3), gray, np.uint8))
    (folder / "test_candidates.csv").write_text("left,c0,c1,c2\n" + "".join(f"{row}\n" for row in rows))
    return folder / "test_candidates.csv"


@pytest.mark.parametrize("under", ["test", ""])
def test_candidates_are_read_with_each_picture_once(tmp_path, under):
    rows = ["abc,ddd,eee,fff", "xyz,eee,ggg,ddd"]
    path = write_test(
        tmp_path, rows, left={"abc": 1, "xyz": 2}, right={"ddd": 3, "eee": 4, "fff": 5, "ggg": 6}, under=under
    )
    found = read_candidates(path)
    assert found.names == ["abc", "xyz"]
    assert [int(image[0, 0, 0]) for image in found.left] == [1, 2]
    shown = np.array([int(image[0, 0, 0]) for image in found.right])
    assert shown[found.columns].tolist() == [[3, 4, 5], [4, 6, 3]]


def test_pictures_that_are_not_there_are_named(tmp_path):
    path = write_test(tmp_path, ["abc,ddd,eee,fff"], left={"abc": 1}, right={"ddd": 3})
    with pytest.raises(ValueError, match=r"2 pictures are not in .*/test/right: eee, fff"):
        read_candidates(path)


def test_a_submission_has_the_form_of_the_candidates(tmp_path):
    out = tmp_path / "new" / "submission.csv"
    write_submission(out, ["abc", "xyz"], np.array([[-3.0, -1.0, -2.0], [5.0, 5.0, 5.0]]))
    assert out.read_text() == "left,c0,c1,c2\nabc,0.0,1.0,0.5\nxyz,0.0,0.0,0.0\n"


def test_names_that_would_be_formulas_are_quoted_in_a_submission(tmp_path):
    write_submission(tmp_path / "out.csv", ["=1+1", "a"], np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert (tmp_path / "out.csv").read_text().splitlines()[1:] == ["'=1+1,0.0,1.0", "a,1.0,0.0"]


def test_missing_candidates_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file at .*candidates\.csv: .*test_candidates"):
        read_candidates(tmp_path / "candidates.csv")


def test_confidences_preserve_the_order_of_scores_of_any_magnitude():
    scores = np.random.default_rng(0).normal(size=(5, 20)).astype(np.float32) * 1e6 - 1e8
    found = confidences(scores)
    assert (found.argsort(axis=1, kind="stable") == scores.argsort(axis=1, kind="stable")).all()
    assert found.min() == 0
    assert found.max() == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has the columns ; they must be left,c0,c1"),
        ("left,right\na,b\n", "has the columns left,right; they must be left,c0,c1"),
        ("left,c0,c1\na,b,c\nd,e\n", "line 3: 3 names are expected, got d,e"),
        ("left,c0,c1\na,b,\n", "line 2: 3 names are expected"),
        ("left,c0\n", "lists no queries"),
        ('left,c0\na,b\n"c,d\n', r"candidates\.csv is not a CSV in UTF-8 \(line 3: a quote"),
    ],
)
def test_a_candidates_file_in_another_format_is_refused(tmp_path, text, message):
    table = tmp_path / "candidates.csv"
    table.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_candidates(table)


def test_broken_scores_are_not_submitted(tmp_path):
    with pytest.raises(ValueError, match="some scores are not finite"):
        write_submission(tmp_path / "out.csv", ["a"], np.array([[1.0, np.nan]]))
    assert not (tmp_path / "out.csv").exists()


def test_names_are_submitted_unchanged_unless_a_spreadsheet_would_read_them_as_formulas(tmp_path):
    names = ["abc", "a,b", 'a"b', "=1+1", "-rf", "a=1"]
    write_submission(tmp_path / "new" / "out.csv", names, np.tile([[1.0, 3.0]], (6, 1)))
    assert (tmp_path / "new" / "out.csv").read_text().splitlines() == [
        "left,c0,c1",
        "abc,0.0,1.0",
        '"a,b",0.0,1.0',
        '"a""b",0.0,1.0',
        "'=1+1,0.0,1.0",
        "'-rf,0.0,1.0",
        "a=1,0.0,1.0",
    ]
