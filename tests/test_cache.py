"""The cache folder for users with and without a home."""

import os
import tempfile
from pathlib import Path

import pytest

from tll_jax import cache
from tll_jax.cache import cache_folder


@pytest.fixture(autouse=True)
def without_variables(monkeypatch, tmp_path):
    monkeypatch.delenv("TLL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def without_home(monkeypatch):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)


def test_the_cache_folder_is_tll_cache_or_in_the_users_cache_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/.cache/tll_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert cache_folder() == Path("/shared/tll_jax")
    monkeypatch.setenv("TLL_CACHE", "~/chosen")
    assert cache_folder() == Path("/somewhere/chosen")
    monkeypatch.setenv("TLL_CACHE", "")
    assert cache_folder() == Path("/shared/tll_jax")


def test_without_a_home_it_is_a_folder_for_temporary_files_that_others_cannot_write(without_home, tmp_path):
    folder = cache_folder()
    assert folder == tmp_path / f"tll_jax-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert cache_folder() == folder


def test_a_folder_for_temporary_files_that_another_has_made_is_not_used(without_home, monkeypatch, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"tll_jax-{os.getuid()}").symlink_to(elsewhere)
    assert cache_folder() == Path(os.devnull) / "tll_jax"
    # As if another user had made it.
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    (tmp_path / "tll_jax-54321").mkdir()
    assert cache_folder() == Path(os.devnull) / "tll_jax"


def test_an_unusable_cache_folder_is_warned_of_once(monkeypatch, tmp_path, caplog):
    for folder in ("one", "two"):
        monkeypatch.setenv("TLL_CACHE", str(tmp_path / folder))
        for _ in range(3):
            with cache.ignoring_cache_errors():
                raise PermissionError(13, "Permission denied")
    assert len(caplog.messages) == 2
    assert f"{tmp_path / 'one'} cannot be used (Permission denied)" in caplog.messages[0]
    assert f"{tmp_path / 'two'} cannot be used" in caplog.messages[1]


def test_bugs_are_not_reported_as_an_unusable_cache():
    with pytest.raises(ValueError, match="a fault"), cache.ignoring_cache_errors():
        raise ValueError("a fault")
