"""`tll new` writes configs that train without changes."""

import csv
import re

import numpy as np
import pytest

from tll_jax import cli
from tll_jax.config_files import load_study
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.imaging import write_image
from tll_jax.data.pair_folders import MatchingFolders, PairsFromTable
from tll_jax.data.totally_looks_like import TotallyLooksLike
from tll_jax.settings import validate
from tll_jax.study.new_config import new_config


def write_images(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(len(names))
    for name in names:
        write_image(folder / name, random.integers(0, 256, (24, 24, 3), np.uint8))


def write_table(folder, num_pairs):
    write_images(folder, [f"{side}{number}.png" for side in "ab" for number in range(num_pairs)])
    with (folder / "pairs.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(("left", "right"))
        rows.writerows((f"a{number}.png", f"b{number}.png") for number in range(num_pairs))


@pytest.fixture
def layout(request, tmp_path):
    """A folder of 16 pairs in one of the layouts, with a name that a config must quote."""
    folder = tmp_path / 'my "pairs" $HOME'
    names = [f"{number}.png" for number in range(16)]
    if request.param is PairsFromTable:
        write_table(folder, 16)
    else:
        first, second = ("left", "right") if request.param is TotallyLooksLike else ("old", "new")
        for side in (first, second):
            write_images(folder / side, names)
    return folder, request.param


@pytest.mark.parametrize("layout", [PairsFromTable, MatchingFolders, TotallyLooksLike], indirect=True)
def test_a_new_config_builds_a_valid_study_of_the_recognized_pairs(layout, tmp_path):
    folder, expected = layout
    path = tmp_path / "mine.py"
    path.write_text(new_config(str(folder)))
    study = load_study(str(path))
    validate(study)
    assert type(study.pairs) is expected
    assert len(study.pairs.open()) == 16
    assert study.pairs.faces is None
    # 11 of 16 are trained on: the largest power of two among them.
    assert set(re.findall(r"batch_size=(\d+)", path.read_text())) == {"8", "256"}


def test_a_new_config_of_the_emoji_needs_no_path(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(new_config("emoji"))
    assert load_study(str(path)).pairs == EmojiPairs()


def test_too_few_pairs_and_single_images_are_refused(tmp_path):
    write_table(tmp_path / "few", 11)
    with pytest.raises(ValueError, match="holds 11 pairs; training and testing need 12 or more"):
        new_config(str(tmp_path / "few"))
    write_images(tmp_path / "single", ["one.png", "two.png"])
    with pytest.raises(ValueError, match="holds single images"):
        new_config(str(tmp_path / "single"))


def test_the_command_writes_the_file_once_and_says_what_to_do_next(tmp_path, capsys):
    config = tmp_path / "mine.py"
    cli.main(["new", "emoji", "--out", str(config)])
    assert f"tll run {config} runs/mine" in capsys.readouterr().out
    config.write_text("mine")
    with pytest.raises(SystemExit, match="is there already"):
        cli.main(["new", "emoji", "--out", str(config)])
    assert config.read_text() == "mine"


TINY = {
    "models.barlow.backbone.width": "4",
    "models.barlow.backbone.depth": "10",
    "models.barlow.pretrain": "None",
    "models.barlow.finetune.loop.num_steps": "2",
    "models.barlow.finetune.loop.evaluate_every": "1",
}


def test_a_study_of_a_new_config_trains_and_ranks(tll, tmp_path):
    write_table(tmp_path / "pairs", 16)
    config, workdir = tmp_path / "mine.py", tmp_path / "study"
    cli.main(["new", str(tmp_path / "pairs"), "--out", str(config)])
    fields = [f"--config.{path}={value}" for path, value in TINY.items()]
    ended = tll("run", config, workdir, "--stages=finetune,evaluate", *fields)
    assert ended.returncode == 0, ended.stderr
    assert "finetune barlow seed 0: step 2 of 2" in ended.stderr
    assert (workdir / "models" / "barlow" / "seed-0" / "ranks.npz").exists()
