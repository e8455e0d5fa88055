"""What a stage's hash follows, and what it does not."""

import shutil

import pytest

from tests.configs import tiny
from tll_jax import stages
from tll_jax.data.archive import Archive
from tll_jax.data.emoji import ARCHIVE
from tll_jax.data.folder import ImageFolder


@pytest.fixture
def photos(tmp_path):
    archive = Archive(ARCHIVE)
    (tmp_path / "photos").mkdir()
    for index, name in enumerate(name for name in archive.images[:4]):
        (tmp_path / "photos" / f"{index}.webp").write_bytes(archive.read(name))
    return tmp_path / "photos"


def key(path, **settings):
    arm = tiny.get_config().arms["barlow"]
    arm.pretrain.images = ImageFolder(path=str(path), **settings)
    return stages.pretrain_key(arm, arm.pretrain.images.open(held_out=frozenset()))


def test_pretraining_is_known_by_what_its_images_hold_and_not_by_where_they_lie(photos, tmp_path):
    first = key(photos)
    shutil.copytree(photos, tmp_path / "elsewhere")
    assert key(tmp_path / "elsewhere", max_broken_share=0.5) == first
    (tmp_path / "elsewhere" / "3.webp").unlink()
    assert key(tmp_path / "elsewhere") != first


def test_pretraining_is_known_by_its_settings(photos):
    arm = tiny.get_config().arms["barlow"]
    images = ImageFolder(path=str(photos)).open(held_out=frozenset())
    first = stages.pretrain_key(arm, images)
    arm.pretrain.loop.num_steps += 1
    assert stages.pretrain_key(arm, images) != first
    arm.pretrain.loop.num_steps -= 1
    assert stages.pretrain_key(arm, images) == first
    arm.pretrain = None
    assert stages.pretrain_key(arm, images) is None
