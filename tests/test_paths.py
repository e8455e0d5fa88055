"""Expansion of variables and homes in paths, also with dollar signs in names."""

from pathlib import Path

import pytest

from tll_jax.files import expand


def test_homes_and_variables_are_filled_in(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SETS", "/data")
    assert expand("~/a.zip") == tmp_path / "a.zip"
    assert expand("$SETS/a.zip") == expand("${SETS}/a.zip") == Path("/data/a.zip")


def test_a_dollar_sign_in_the_name_of_a_folder_is_kept(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SETS", str(tmp_path))
    monkeypatch.setenv("half", "other")
    for name in ("$half", "a$", "$0 off", "~", "${x"):
        (tmp_path / name).mkdir()
        assert expand(str(tmp_path / name)) == tmp_path / name
        assert expand(name) == Path(name)
    (tmp_path / "$unset_price").mkdir()
    assert expand("$SETS/$unset_price") == tmp_path / "$unset_price"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("$UNSET_ONE/a", r"uses \$UNSET_ONE, which is not set: export UNSET_ONE=FOLDER first"),
        ("/x/${UNSET_ONE}/a", r"uses \$UNSET_ONE, which is not set"),
        # Without this it would be the system's folder.
        ("$EMPTY_ONE/tmp", r"uses \$EMPTY_ONE, which is empty"),
        ("~nobody_of_this_name/a", "begins with ~nobody_of_this_name, a home that is not known"),
    ],
)
def test_an_impossible_path_is_refused_with_the_fix(monkeypatch, path, reason):
    monkeypatch.delenv("UNSET_ONE", raising=False)
    monkeypatch.setenv("EMPTY_ONE", "")
    with pytest.raises(FileNotFoundError, match=reason):
        expand(path)
