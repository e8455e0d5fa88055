"""The model that comes with the package: found, small enough, and of use."""

import shutil

import numpy as np
import pytest

import tll_jax
from tll_jax.data.emoji import EmojiPairs
from tll_jax.model_files import SHIPPED, look_alike_path, model_path, read_model_file
from tll_jax.study.default_model import Pictures, distorted


@pytest.fixture(autouse=True)
def no_other_model(monkeypatch, tmp_path):
    monkeypatch.setenv("TLL_CACHE", str(tmp_path))


def test_the_file_is_small_and_says_what_it_is_made_of():
    assert SHIPPED.stat().st_size < 6_000_000
    file = read_model_file(SHIPPED)
    assert "No picture is in it" in file.provenance["license"]
    assert file.network["weights"] == {"class": "EfficientNetLite0ImageNet"}
    assert not any("backbone" in name for name in file.tensors)
    known = {content for both in EmojiPairs().open().hashes for content in both}
    assert set(file.pictures) < known


def test_the_default_is_the_one_in_the_cache_folder_where_that_is_there(tmp_path, monkeypatch):
    assert model_path("default") == SHIPPED
    look_alike_path().parent.mkdir()
    shutil.copy(SHIPPED, look_alike_path())
    assert model_path("default") == look_alike_path() == tmp_path / "models" / "look_alike_tll.safetensors"
    assert model_path("other") == model_path("other").relative_to(".")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "default").mkdir()
    assert str(model_path("default")) == "default", "a folder of that name is meant"


def test_the_default_finds_the_same_emoji_and_tells_places_and_stages_apart():
    model = tll_jax.load("default")
    assert model.source == SHIPPED
    pairs = EmojiPairs().open()
    # Far apart, so that they differ in category.
    images = pairs.images(range(0, len(pairs), 500))
    left, right = model.embed(list(images.left)), model.embed(list(images.right))
    assert left.shape == (4, 256)
    np.testing.assert_allclose(np.sum(left**2, axis=1), 1, atol=1e-5)
    assert np.argmax(left @ right.T, axis=1).tolist() == [0, 1, 2, 3]
    parts = model.contributions([images.left[0], images.right[0]])
    assert parts.shape == (2, 4, 4, 4, 256)
    table = model.decompose(images.left[0], images.right[0])
    assert table.shape == (4, 4, 4, 4)
    assert table.sum() == pytest.approx(float(left[0] @ right[0]), abs=1e-4)


def test_a_distorted_copy_is_the_same_each_time_and_another_for_each_picture():
    emoji = list(EmojiPairs().open().images(range(3)).left)
    chosen = (np.zeros(0, int), np.array([2, 0, 2]))
    plain, copies = (Pictures([], emoji, chosen, distorts=distorts) for distorts in (False, True))
    assert [np.array_equal(plain[at], emoji[number]) for at, number in enumerate(chosen[1])] == [True] * 3
    first = copies[0:3]
    assert all(np.array_equal(one, again) for one, again in zip(first, copies[0:3], strict=True))
    assert {one.shape for one in first} == {(224, 224, 3)}
    assert not np.array_equal(first[0], first[2])
    gray = [distorted(np.random.default_rng(seed), emoji[0]).std(axis=-1).max() == 0 for seed in range(40)]
    assert 8 <= sum(gray) <= 32
