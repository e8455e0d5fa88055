"""Galleries as users make them: real processes, real kills, broken pictures, and what is refused."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data.one_of_two_hosts import color_sums
from tests.pairs_of_processes import free_address
from tll_jax.data.archive import Archive
from tll_jax.data.emoji import ARCHIVE
from tll_jax.data.folder import ImageFolder
from tll_jax.data.geometry import Resize
from tll_jax.data.imaging import read_image
from tll_jax.devices import make_mesh
from tll_jax.errors import DamagedFile, FileProblem
from tll_jax.evaluation import gallery
from tll_jax.evaluation.embed import Embedder, head_embedding
from tll_jax.evaluation.gallery import open_gallery
from tll_jax.files import LOCK
from tll_jax.study.load import load_run
from tll_jax.study.networks import make_embedder, siamese

DOCS = Path(__file__).parents[2] / "docs" / "galleries.md"
SHARD_SIZE = 4


def extract(folder, side, chosen):
    """Emoji of one side, at two depths."""
    archive = Archive(ARCHIVE)
    for number, name in enumerate([name for name in archive.images if name.startswith(f"{side}/")][chosen]):
        path = folder / ("plain" if number % 3 else "deep/er") / Path(name).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(archive.read(name))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """149 readable pictures and two that are not, which make 38 shards of four."""
    folder = extract(tmp_path_factory.mktemp("pictures"), "right", slice(149))
    (folder / "plain" / "0-empty.webp").write_bytes(b"")
    whole = min((folder / "plain").glob("[1-9]*.webp")).read_bytes()
    (folder / "plain" / "zz-cut-short.webp").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture(scope="module")
def run_folder(finished):
    return finished / "models" / "barlow" / "seed-0"


@pytest.fixture(scope="module")
def undisturbed(tll, run_folder, pictures, tmp_path_factory):
    """The gallery of the pictures from one process that nobody stopped."""
    folder = tmp_path_factory.mktemp("undisturbed") / "gallery"
    outcome = tll("embed", run_folder, pictures, f"--out={folder}", f"--shard-size={SHARD_SIZE}")
    assert outcome.returncode == 0, outcome.stderr
    assert num_embedded(outcome.stdout) == 151
    return folder


def num_embedded(output):
    return int(re.search(r"(\d+) images embedded by this process", output)[1])


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in (gallery.DESCRIPTION, LOCK)}


def start(environment, *arguments):
    command = [sys.executable, "-c", "from tll_jax.cli import main; main()", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_rows_are_the_embeddings_of_the_pictures_that_their_ids_name(undisturbed, run_folder, pictures):
    opened = open_gallery(undisturbed)
    ids = opened.ids(range(len(opened)))
    readable = {path.relative_to(pictures).as_posix() for path in pictures.rglob("*.webp")} - {
        "plain/0-empty.webp",
        "plain/zz-cut-short.webp",
    }
    assert ids.tolist() == sorted(readable)
    model, evaluate, trained = load_run(run_folder)
    embedder = make_embedder(head_embedding(siamese(model)), evaluate, make_mesh())
    alone = embedder(trained.variables, [read_image(pictures / name) for name in ids])
    assert opened.shape == (149, 16)
    np.testing.assert_allclose(opened[:], alone, atol=1e-5)


def test_broken_pictures_are_named_and_left_out(undisturbed):
    assert open_gallery(undisturbed).broken == [
        ("plain/0-empty.webp", "the file is empty"),
        ("plain/zz-cut-short.webp", "not an image that can be read: a damaged WEBP, or one of a rare kind"),
    ]


def test_a_process_that_is_killed_and_started_again_embeds_every_image_once(
    environment, tll, undisturbed, run_folder, pictures, tmp_path
):
    arguments = ("embed", run_folder, pictures, f"--out={tmp_path}", f"--shard-size={SHARD_SIZE}")
    process = start(environment, *arguments)
    assert all("images embedded" in process.stdout.readline() for _ in range(2))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.array_record")}
    assert 2 <= len(written) < 38
    # As if killed while writing, and as a machine leaves a file that loses its power.
    late = sorted(set(shards(undisturbed)) - {path.name for path in written})
    (tmp_path / f"{late[0]}.12345.partial").write_bytes(b"half")
    (tmp_path / late[-1]).write_bytes(shards(undisturbed)[late[-1]][:50])
    outcome = tll(*arguments)
    assert outcome.returncode == 0, outcome.stderr
    assert shards(tmp_path) == shards(undisturbed)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    # The last shard, of three, was cut short and is not among those written.
    assert SHARD_SIZE * len(written) + num_embedded(outcome.stdout) == 151


def test_processes_at_once_embed_every_image_once_also_where_two_are_the_same(
    environment, undisturbed, run_folder, pictures, tmp_path
):
    arguments = ("embed", run_folder, pictures, f"--out={tmp_path}", f"--shard-size={SHARD_SIZE}", "--num-processes=2")
    processes = [start(environment, *arguments, f"--process={process}") for process in (0, 0, 1)]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    # 19 shards each; the last process has the last, of three.
    first, double, second = (num_embedded(output) for output, _ in outputs)
    assert (first + double, second) == (76, 75)
    assert shards(tmp_path) == shards(undisturbed)


def test_a_gallery_of_another_network_or_of_other_images_is_refused(tll, finished, undisturbed, pictures, tmp_path):
    before = shards(undisturbed)
    out = (f"--out={undisturbed}", f"--shard-size={SHARD_SIZE}")
    other = tll("embed", finished / "models" / "random" / "seed-0", pictures, *out)
    assert (other.returncode, "another network" in other.stderr) == (1, True)
    extract(tmp_path, "left", slice(9))
    other = tll("embed", finished / "models" / "barlow" / "seed-0", tmp_path, *out)
    assert (other.returncode, "151 images, not 9" in other.stderr) == (1, True)
    assert "Traceback" not in other.stderr
    assert shards(undisturbed) == before


def fence(language):
    (block,) = re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(), re.DOTALL)
    return block


def test_the_lines_in_the_docs_find_the_nearest_on_one_and_on_two_processes(
    environment, tll, undisturbed, run_folder, tmp_path
):
    (tmp_path / "gallery").symlink_to(undisturbed)
    extract(tmp_path / "asked", "left", slice(5))
    assert tll("embed", run_folder, tmp_path / "asked", f"--out={tmp_path / 'queries'}").returncode == 0
    opened, asked = open_gallery(undisturbed), open_gallery(tmp_path / "queries")
    ids, expected = opened.ids(range(149)).tolist(), []
    for name, query in zip(asked.ids(range(5)), asked[:].astype(float), strict=True):
        distances = [float(np.sum((query - row) ** 2)) for row in opened[:].astype(float)]
        expected.append([name, *(ids[row] for row in sorted(range(149), key=distances.__getitem__)[:10])])

    def run(preface, **variables):
        return subprocess.Popen(
            [sys.executable, "-c", preface + fence("python")],
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": str(DOCS.parents[1])} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    address = free_address()
    initialize = "import jax; jax.distributed.initialize({!r}, num_processes=2, process_id={})\n"
    processes = [
        run("", JAX_NUM_CPU_DEVICES="3"),
        *(run(initialize.format(address, number), JAX_NUM_CPU_DEVICES="2") for number in (0, 1)),
    ]
    for process in processes:
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        # Gloo tells on stdout which peers it has found.
        assert [line.split() for line in output.splitlines() if "[Gloo]" not in line] == expected


@pytest.fixture
def plan(tmp_path):
    """23 pictures in shards of seven, a few rows a record, embedded by a sum of colors."""
    images = ImageFolder(path=str(extract(tmp_path / "few", "left", slice(23)))).open(held_out=frozenset())
    return gallery.GallerySpec(network="sums", settings={}, images=images, shard_size=7, command="tll embed RUN few")


def write(plan, folder, *, process=0, num_processes=1):
    embedder = Embedder(embed=color_sums, geometry=Resize(size=16), batch_size=8, mesh=make_mesh())
    found = gallery.write_gallery(plan, folder, embedder, np.float32(2), process=process, num_processes=num_processes)
    return [(shard.number, shard.num_images, shard.was_there) for shard in found]


def test_any_run_of_rows_is_read_and_any_rows_are_named(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "ROWS_PER_RECORD", 3)
    (plan.images.archive.path / plan.images.names[9]).write_bytes(b"broken")
    write(plan, tmp_path / "gallery")
    opened, kept = open_gallery(tmp_path / "gallery"), [name for at, name in enumerate(plan.images.names) if at != 9]
    # The same sum, one picture at a time.
    weights = 2 * np.arange(1, 17)[:, None, None]
    small = [Resize(size=16)(None, read_image(plan.images.archive.path / name)) for name in kept]
    expected = np.stack([(image / 255 * weights).sum((0, 1)) for image in small])
    for first in range(23):
        for end in range(first, 23):
            np.testing.assert_allclose(opened[first:end], expected[first:end], rtol=1e-5)
    rows = np.array([[21, 0], [9, 6]])
    assert opened.ids(rows).tolist() == [[kept[21], kept[0]], [kept[9], kept[6]]]
    assert (len(opened), opened[-2:].shape, opened[30:].shape) == (22, (2, 3), (0, 3))


def test_shards_of_changed_images_are_made_anew_and_only_those(plan, tmp_path):
    assert write(plan, tmp_path / "gallery") == [(0, 7, False), (1, 7, False), (2, 7, False), (3, 2, False)]
    changed = plan.images.archive.path / plan.images.names[8]
    changed.write_bytes(changed.read_bytes() + b" ")
    assert write(plan, tmp_path / "gallery") == [(0, 7, True), (1, 7, False), (2, 7, True), (3, 2, True)]


def test_an_incomplete_gallery_is_refused_with_the_shards_it_lacks_and_the_command(plan, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no gallery\.json"):
        open_gallery(tmp_path / "gallery")
    assert write(plan, tmp_path / "gallery", process=1, num_processes=3) == [(1, 7, False)]
    with pytest.raises(FileNotFoundError, match=r"lacks 3 of 4 shards: 0, 2, 3\. Make them with `tll embed RUN few`"):
        open_gallery(tmp_path / "gallery")
    write(plan, tmp_path / "gallery")
    assert open_gallery(tmp_path / "gallery").shape == (23, 3)


def test_a_gallery_with_a_shard_of_another_is_refused_until_it_is_made_anew(plan, tmp_path):
    write(plan, tmp_path / "gallery")
    plan.network = "other sums"
    write(plan, tmp_path / "other")
    (name,) = (path.name for path in (tmp_path / "other").glob("*-00002-of-*"))
    shutil.copy(tmp_path / "other" / name, tmp_path / "gallery" / name)
    with pytest.raises(ValueError, match="is mixed: shards 2 are not of the network"):
        open_gallery(tmp_path / "gallery")
    plan.network = "sums"
    assert [number for number, _, was_there in write(plan, tmp_path / "gallery") if not was_there] == [2]
    shutil.copy(tmp_path / "other" / name, tmp_path / "gallery" / name.replace("-of-00004", "-of-00009"))
    with pytest.raises(ValueError, match="also holds embeddings-00002-of-00009"):
        open_gallery(tmp_path / "gallery")


def damaged(path, change):
    whole = path.read_bytes()
    path.write_bytes(change(whole))
    return path


DAMAGES = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "zeros": lambda whole: bytes(len(whole)),
    "other": lambda whole: b"no shard" * 10_000,
    "its description": lambda whole: whole[:120] + b"?" + whole[121:],
}


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_shard_is_named_and_made_anew(plan, tmp_path, caplog, change):
    write(plan, tmp_path / "gallery")
    before = shards(tmp_path / "gallery")
    path = damaged(tmp_path / "gallery" / sorted(before)[2], change)
    with pytest.raises(FileNotFoundError, match="lacks 1 of 4 shards: 2"):
        open_gallery(tmp_path / "gallery")
    assert f"{path} is damaged: it counts as missing" in caplog.text
    assert write(plan, tmp_path / "gallery") == [(0, 7, True), (1, 7, True), (2, 7, False), (3, 2, True)]
    assert shards(tmp_path / "gallery") == before


def test_damage_behind_a_shards_description_is_named_where_it_is_read(plan, tmp_path):
    write(plan, tmp_path / "gallery")
    opened = open_gallery(tmp_path / "gallery")
    path = tmp_path / "gallery" / sorted(shards(tmp_path / "gallery"))[0]
    row, name = opened[0:1].tobytes(), plan.images.names[0].encode()
    damaged(path, lambda whole: whole.replace(row, bytes(len(row))).replace(name, name.upper()))
    for read in (lambda: opened[0:3], lambda: opened.ids(range(3))):
        with pytest.raises(DamagedFile, match=rf"{path} is damaged .*: delete it; `tll embed RUN few` makes it anew"):
            read()
    assert opened[7:].shape == (16, 3)
    path.unlink()
    with pytest.raises(FileProblem, match=f"{path} cannot be read: No such file"):
        opened[0:3]


def test_a_shard_that_cannot_be_read_is_not_taken_for_a_damaged_one(plan, tmp_path, monkeypatch):
    write(plan, tmp_path / "gallery")
    before = shards(tmp_path / "gallery")
    opening = Path.open

    def fail(path, *arguments, **options):
        if path.suffix == ".array_record":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opening(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", fail)
    for attempt in (lambda: write(plan, tmp_path / "gallery"), lambda: open_gallery(tmp_path / "gallery")):
        with pytest.raises(FileProblem, match="cannot be read: Input/output error"):
            attempt()
    monkeypatch.undo()
    assert shards(tmp_path / "gallery") == before


@pytest.mark.parametrize("content", ["", "{", "null", "[]", "{}", '{"command": "x", "num_images": 3, "shard_size": 0}'])
def test_a_damaged_description_is_named_with_the_mend_which_costs_no_shard(plan, tmp_path, content):
    write(plan, tmp_path / "gallery")
    path = tmp_path / "gallery" / gallery.DESCRIPTION
    whole = path.read_text()
    path.write_text(content)
    for attempt in (lambda: write(plan, tmp_path / "gallery"), lambda: open_gallery(tmp_path / "gallery")):
        with pytest.raises(DamagedFile, match=rf"{path} is damaged .*: delete it and run the command that wrote it"):
            attempt()
    path.unlink()
    assert all(was_there for _, _, was_there in write(plan, tmp_path / "gallery"))
    assert path.read_text() == whole


def test_names_that_are_no_text_are_ids_like_all_others(tmp_path):
    folder = extract(tmp_path / "few", "left", slice(2)) / "plain"
    names = [b"caf\xe9.webp", b"line\nbreak.webp", b"\xff\xfe \xf0\x9f.webp"]
    for name, path in zip(names, 3 * list(folder.glob("*.webp")), strict=False):
        shutil.copy(os.fsencode(path), os.path.join(os.fsencode(folder), name))
    images = ImageFolder(path=str(folder)).open(held_out=frozenset())
    write(
        gallery.GallerySpec(network="sums", settings={}, images=images, shard_size=2, command="tll"),
        tmp_path / "gallery",
    )
    opened = open_gallery(tmp_path / "gallery")
    found = {os.fsencode(name) for name in opened.ids(range(len(opened)))}
    assert found == {os.fsencode(path.name) for path in folder.iterdir()}
    assert set(names) < found


def test_a_shard_of_which_nothing_can_be_read_does_not_count_as_done(plan, tmp_path):
    for name in plan.images.names[7:14]:
        os.remove(plan.images.archive.path / name)
    with pytest.raises(ValueError, match="no image of shard 1 can be read"):
        write(plan, tmp_path / "gallery")
    assert len(shards(tmp_path / "gallery")) == 1


@pytest.mark.parametrize(
    ("options", "shard_size", "named"),
    [
        ({"process": 2, "num_processes": 2}, 7, "--process is 2; of 2 it must be from 0 to 1"),
        ({"process": -1}, 7, "--process is -1"),
        ({}, 0, "--shard-size is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(plan, tmp_path, options, shard_size, named):
    plan.shard_size = shard_size
    with pytest.raises(ValueError, match=named):
        write(plan, tmp_path / "gallery", **options)
    assert not (tmp_path / "gallery").exists()


def test_the_description_says_what_the_embeddings_follow_from(undisturbed):
    description = json.loads((undisturbed / gallery.DESCRIPTION).read_text())
    assert description["settings"]["geometry"] == {"class": "Resize", "size": 32}
    assert (description["num_images"], description["shard_size"]) == (151, SHARD_SIZE)
    assert re.fullmatch("[0-9a-f]{64}", description["network"])
