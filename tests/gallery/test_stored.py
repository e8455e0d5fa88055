import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.test_gallery import folder as shard_folder
from tests.evaluation.test_gallery import ids_and_sums
from tests.pairs_of_processes import free_address
from tll_jax.cli import main
from tll_jax.data.archive import Archive
from tll_jax.data.emoji import ARCHIVE
from tll_jax.errors import InvalidValue, MissingFile
from tll_jax.gallery.store import Store
from tll_jax.gallery.stored import Gallery, open_gallery
from tll_jax.study.load import load

pytest.importorskip("lancedb")
DOCS = Path(__file__).parents[2] / "docs" / "galleries.md"
folder = shard_folder
"""The fixture of shards."""


def extract(folder, side, chosen):
    """Emoji of one side, at two depths."""
    archive = Archive(ARCHIVE)
    for number, name in enumerate([name for name in archive.images if name.startswith(f"{side}/")][chosen]):
        path = folder / ("plain" if number % 3 else "deep/er") / Path(name).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(archive.read(name))
    return folder


def test_shards_are_converted_with_their_rows_ids_and_broken_pictures(folder, tmp_path, capsys):
    for _ in range(2):
        main(["gallery", "import", str(folder), "--out", str(tmp_path / "new")])
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'new'}: 22 images converted\n")
    opened, (names, sums) = open_gallery(tmp_path / "new"), ids_and_sums()
    assert isinstance(opened, Gallery)
    assert opened.ids(range(22)).tolist() == names
    np.testing.assert_allclose(opened[:], sums / np.linalg.norm(sums, axis=1, keepdims=True), atol=1e-3)
    old = open_gallery(folder)
    assert (opened.broken, opened.embedded_by, opened.shape) == (old.broken, old.embedded_by, old.shape)
    ids, cosines = Store(str(tmp_path / "new")).contents(opened.embedded_by).nearest(opened[3:4], 1)
    assert (len(ids[0]), cosines[0, 0]) == (1, pytest.approx(1, abs=1e-3))


@pytest.fixture(scope="module")
def run_folder(finished):
    return finished / "models" / "barlow" / "seed-0"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = extract(tmp_path_factory.mktemp("pictures"), "right", slice(40))
    (folder / "plain" / "0-empty.webp").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def embedded(run_folder, pictures, tmp_path_factory):
    out, shown = tmp_path_factory.mktemp("embedded") / "gallery", io.StringIO()
    with contextlib.redirect_stdout(shown):
        main(["embed", str(run_folder), str(pictures), "--out", str(out)])
    assert shown.getvalue().splitlines()[-1] == f"{out}: 40 images embedded, 0 were there, 1 are broken"
    return out


def test_rows_are_the_embeddings_of_the_pictures_that_their_ids_name(embedded, run_folder, pictures):
    opened, model = open_gallery(embedded), load(run_folder)
    names = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.webp"))
    names.remove("plain/0-empty.webp")
    assert opened.ids(range(40)).tolist() == names
    assert opened.broken == [("plain/0-empty.webp", "the file is empty")]
    assert opened.embedded_by == model.fingerprint
    expected = model.embed([pictures / name for name in names])
    np.testing.assert_allclose(opened[:], expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=2e-3)


def test_a_gallery_holds_a_table_a_model(finished, run_folder, tmp_path):
    few = extract(tmp_path / "few", "left", slice(3))
    out = tmp_path / "gallery"
    for model in (run_folder, finished / "models" / "random" / "seed-0"):
        main(["embed", str(model), str(few), "--out", str(out)])
    with pytest.raises(InvalidValue, match=r"has tables of the models \w+, \w+: name one"):
        open_gallery(out)
    assert open_gallery(out, model=load(run_folder).fingerprint).shape == (3, 16)
    with pytest.raises(SystemExit, match="nothing"):
        main(["embed", str(run_folder), str(tmp_path / "nothing"), "--out", str(out)])


def test_options_of_earlier_versions_are_taken_and_do_nothing(embedded, run_folder, pictures, capsys, caplog):
    main(["embed", str(run_folder), str(pictures), "--out", str(embedded), "--shard-size", "4"])
    assert "--shard-size does nothing any more" in caplog.text
    assert "0 images embedded, 40 were there" in capsys.readouterr().out


def test_a_place_without_a_gallery_is_named(tmp_path):
    with pytest.raises(MissingFile, match="holds no gallery: make one with tll embed RUN IMAGES"):
        open_gallery(tmp_path)


def fence(language):
    (block,) = re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(), re.DOTALL)
    return block


def test_the_lines_in_the_docs_find_the_nearest_on_one_and_on_two_processes(
    environment, embedded, run_folder, tmp_path, monkeypatch, capsys
):
    (tmp_path / "gallery").symlink_to(embedded)
    extract(tmp_path / "asked", "left", slice(5))
    main(["embed", str(run_folder), str(tmp_path / "asked"), f"--out={tmp_path / 'queries'}"])
    opened, asked = open_gallery(embedded), open_gallery(tmp_path / "queries")
    ids, expected = opened.ids(range(40)).tolist(), []
    for name, query in zip(asked.ids(range(5)), asked[:].astype(float), strict=True):
        distances = [float(np.sum((query - row) ** 2)) for row in opened[:].astype(float)]
        expected.append([name, *(ids[row] for row in sorted(range(40), key=distances.__getitem__)[:10])])

    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(fence("python"), {})
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == expected

    address = free_address()
    initialize = "import jax; jax.distributed.initialize({!r}, num_processes=2, process_id={})\n"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", initialize.format(address, number) + fence("python")],
            env=environment | {"PYTHONPATH": str(DOCS.parents[1]), "JAX_NUM_CPU_DEVICES": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        # Threads of Gloo write of their peers before, some into the lines of others.
        assert [line.split() for line in output.splitlines()[-len(expected) :]] == expected
