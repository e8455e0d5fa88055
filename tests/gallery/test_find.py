import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage

from tests.gallery.embedders import embedding
from tests.gallery.fake_model import MeanColors
from tests.gallery.test_embed_files import picture, save
from tll_jax.cli import main
from tll_jax.data.duplicates import perceptual_hash
from tll_jax.data.imaging import read_image
from tll_jax.gallery import embed, find, known, result, search, state
from tll_jax.gallery.neighbors import within

pytest.importorskip("lancedb")
ROOT = Path(__file__).parents[2]


MODEL_FACTS = state._model_facts


class Model(MeanColors):
    file = None


@pytest.fixture
def models(monkeypatch, tmp_path, request):
    """Embedders of the runs so far; the command finds them under any name."""
    made = []

    def load(name):
        made.append(embedding(batch_size=8))
        return Model(), made[-1]

    monkeypatch.setattr(find, "load_embedding", load)
    monkeypatch.setattr(state, "_model_facts", str)
    if "reasons" not in request.node.name:
        monkeypatch.setattr(find, "with_reasons", lambda pairs, *_, **__: list(pairs))
    monkeypatch.setenv("TLL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return made


@pytest.fixture
def photos(tmp_path):
    for seed in range(24):
        save(tmp_path / "photos" / f"{seed:02}.png", seed)
    return tmp_path / "photos"


def tll(capsys, *arguments):
    """The exit status, the last line, and what was said on standard error."""
    capsys.readouterr()
    status = 0
    try:
        main(["find", *map(str, arguments)])
    except SystemExit as ended:
        status = ended.code
    out, err = capsys.readouterr()
    return status, out.splitlines()[-1] if out else "", err


def found(folder="find"):
    return result.read(Path(folder) / "find.json")


def without_run(folder="find"):
    content = json.loads((Path(folder) / "find.json").read_text())
    del content["run"], content["command"]
    return content


def test_pictures_that_a_model_file_was_fitted_on_are_counted(models, photos, monkeypatch, capsys, caplog):
    learned = [perceptual_hash(read_image(photos / f"{seed:02}.png")) for seed in (3, 5)]
    monkeypatch.setattr(Model, "file", SimpleNamespace(perceptual=learned, provenance={}))
    monkeypatch.setattr(Model, "source", Path("mine.safetensors"), raising=False)
    tll(capsys, photos)
    assert "mine.safetensors is fitted on 2 of 24 pictures here, or on nearly the same" in caplog.text
    caplog.clear()
    tll(capsys, photos, "--query", photos / "05.png", "--out", "asked")
    assert "mine.safetensors is fitted on 1 of 1 picture here" in caplog.text
    caplog.clear()
    tll(capsys, photos, "--query", photos / "06.png", "--out", "other")
    assert "fitted on" not in caplog.text


def test_a_rerun_and_a_rename_embed_nothing_and_the_last_line_says_so(photos, models, capsys):
    (photos / "broken.jpg").write_bytes(b"no picture")
    (photos / "x.jxl").write_bytes(b"")
    more = "(find/index.html), 1 .jxl not read: convert them to JPEG or PNG"
    assert tll(capsys, photos)[1] == f"25 images: 0 kept, 24 embedded, 1 broken {more}"
    first = (Path("find") / "find.json").read_bytes()
    assert tll(capsys, photos)[1] == f"25 images: 24 kept, 0 embedded, 1 broken {more}"
    assert (len(models), (Path("find") / "find.json").read_bytes()) == (1, first)
    for path in photos.glob("*.png"):
        os.rename(path, photos / f"a-{path.name}")
    assert tll(capsys, photos)[1] == f"25 images: 24 kept, 0 embedded, 24 renamed, 1 broken {more}"
    assert (len(models), models[-1].embedder.num_embedded) == (2, 0)
    assert (Path("find") / "index.html").exists()


@pytest.mark.parametrize("out", ["find", "."])
def test_a_result_inside_the_searched_folder_is_not_searched(photos, models, capsys, monkeypatch, out):
    monkeypatch.chdir(photos)
    for kept, embedded in ((0, 24), (24, 0)):
        assert (
            tll(capsys, ".", "--out", out)[1]
            == f"24 images: {kept} kept, {embedded} embedded ({Path(out) / 'index.html'})"
        )
    assert len(list(Path(out, "thumbnails").iterdir())) > 10


def test_other_options_and_a_result_that_was_deleted_are_no_unchanged_run(photos, models, capsys):
    tll(capsys, photos)
    tll(capsys, photos, "--top", "3")
    for number, name in enumerate(("find.json", "index.html"), 3):
        os.remove(f"find/{name}")
        for _ in range(2):
            tll(capsys, photos, "--top", "3")
            assert len(models) == number


def test_an_unchanged_run_imports_neither_jax_nor_lancedb(photos, models, capsys, monkeypatch):
    monkeypatch.setattr(state, "_model_facts", MODEL_FACTS)
    Path("run").mkdir()
    tll(capsys, photos, "--model", "run")
    code = "import sys\nfrom tll_jax.cli import main\nmain()\nprint(*{'jax', 'lancedb', 'cv2'} & set(sys.modules))"
    command = [sys.executable, "-c", code, "find", str(photos), "--model", "run"]
    ran = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "24 images: 24 kept, 0 embedded (find/index.html)\n\n"


def test_a_picture_that_cannot_be_reached_is_tried_again_the_next_time(photos, models, capsys, monkeypatch):
    reading = open

    def deny(path, *more):
        if str(path).endswith("07.png"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return reading(path, *more)

    monkeypatch.setattr(embed, "open", deny, raising=False)
    assert tll(capsys, photos)[1].startswith("24 images: 0 kept, 23 embedded, 1 broken")
    assert found().broken[0].reason == "cannot be read (Permission denied)"
    monkeypatch.setattr(embed, "open", reading, raising=False)
    assert tll(capsys, photos)[1].startswith("24 images: 23 kept, 1 embedded (")


def test_planted_copies_are_told_apart(photos, models, capsys):
    original = PillowImage.open(photos / "03.png")
    shutil.copy(photos / "05.png", photos / "z same.png")
    original.resize((36, 27)).save(photos / "z smaller.jpg", quality=60)
    cells = np.asarray(PillowImage.open(photos / "07.png")).astype(int)
    tiles = cv2.resize(
        np.random.default_rng(0).integers(-60, 61, (12, 16)).astype(np.float32), (40, 30), interpolation=0
    )
    PillowImage.fromarray(np.clip(cells + tiles[..., None], 0, 255).astype(np.uint8)).save(photos / "z alike.png")
    tll(capsys, photos)
    read = found()
    kinds = {(one.kept.path, *(other.path for other in one.others)): one.kind for one in read.duplicates}
    assert kinds == {("05.png", "z same.png"): "same-file", ("03.png", "z smaller.jpg"): "near-duplicate"}
    assert (read.counts.images, read.counts.contents, read.counts.compared) == (27, 26, 25)
    best = read.pairs[0]
    assert {best.left.path, best.right.path} == {"07.png", "z alike.png"}
    assert (best.kind, best.left_rank, best.right_rank, best.one_in) == ("look-alike", 1, 1, 300.0)
    assert all(pair.kind == "look-alike" for pair in read.pairs)
    names = {name for pair in read.pairs for name in (pair.left.path, pair.right.path)}
    assert not names & {"z same.png", "z smaller.jpg"}


def test_many_copies_of_few_pictures_do_not_crowd_out_the_look_alikes(tmp_path, models, capsys, monkeypatch):
    monkeypatch.setattr(search, "LISTED", 4)
    for seed in range(5):
        image = picture(seed, (80, 60))
        for copy in range(12):
            path = tmp_path / "many" / f"{seed}-{copy}.jpg"
            path.parent.mkdir(exist_ok=True)
            image.resize((80 - copy, 60 - copy)).save(path, quality=90)
    tll(capsys, "many", "--top", "2")
    read = found()
    assert read.counts.compared == 5
    assert len({frozenset((pair.left.path[0], pair.right.path[0])) for pair in read.pairs}) == len(read.pairs) >= 5


def test_the_best_frame_of_an_animation_counts(photos, models, capsys):
    frames = [picture(seed, (40, 30)) for seed in (90, 91, 11)]
    frames[0].save(photos / "moving.gif", save_all=True, append_images=frames[1:], duration=50)
    tll(capsys, photos, "--pairs", "3")
    pair = next(pair for pair in found().pairs if "moving.gif" in (pair.left.path, pair.right.path))
    assert {pair.left.path, pair.right.path} == {"moving.gif", "11.png"}
    assert {pair.left.path: pair.left, pair.right.path: pair.right}["moving.gif"].frame == 2
    # Facts and sentences are those of this frame.
    assert pair.dhash_bits is not None
    assert pair.dhash_bits < 8


def test_pairs_have_reasons_whose_places_sum_to_the_cosine(photos, models, capsys):
    tll(capsys, photos, "--pairs", "5")
    for pair in found().pairs:
        assert sum(pair.reasons.places) == pytest.approx(pair.cosine, abs=0.02)


def test_a_query_lists_its_look_alikes_and_not_itself(photos, models, capsys):
    shutil.copy(photos / "02.png", photos / "copy.png")
    tll(capsys, photos, "--query", photos / "02.png", "--query", photos / "04.png", "--top", "5")
    read = found()
    assert read.mode == "query"
    by_query = [[pair for pair in read.pairs if pair.left.path == name] for name in ("02.png", "04.png")]
    assert [len(pairs) for pairs in by_query] == [5, 5]
    assert (by_query[0][0].right.path, by_query[0][0].kind) == ("copy.png", "same-file")
    assert all(pair.right.path != "04.png" for pair in by_query[1])
    assert [pair.left_rank for pair in by_query[0]] == [1, 2, 3, 4, 5]
    assert [folder.role for folder in read.folders] == ["searched", "query", "query"]


def test_an_approximate_query_says_how_much_its_index_finds(photos, models, capsys, monkeypatch):
    for seed in range(24, 300):
        save(photos / f"{seed}.png", seed)
    query = (photos, "--query", photos / "02.png", "--top", "5")
    tll(capsys, *query, "--approximate")
    exact = found()
    assert (exact.search.exact, exact.search.recall) == (True, None)
    monkeypatch.setattr(find, "APPROXIMATE_FROM", 100)
    _, _, err = tll(capsys, *query, "--approximate", "--out", "approximate")
    read = found("approximate")
    assert (read.search.exact, read.search.recall_queries) == (False, 100)
    assert read.search.recall > 0.9
    assert f"it finds {read.search.recall:.3f} of the exact neighbors" in err
    assert read.pairs[0].right == exact.pairs[0].right
    assert read.pairs[0].cosine == exact.pairs[0].cosine


def test_against_pairs_are_across_alone(photos, tmp_path, models, capsys):
    save(tmp_path / "archive" / "other.png", 50)
    shutil.copy(photos / "01.png", tmp_path / "archive" / "one.png")
    os.link(photos / "02.png", tmp_path / "archive" / "link.png")
    tll(capsys, photos, "--against", tmp_path / "archive")
    read = found()
    assert all((pair.left.folder, pair.right.folder) == (0, 1) for pair in read.pairs)
    assert [(pair.left.path, pair.right.path) for pair in read.pairs if pair.kind == "same-file"] == [
        ("01.png", "one.png")
    ]
    assert ("02.png", "link.png") not in [(pair.left.path, pair.right.path) for pair in read.pairs]


def test_two_files_are_compared_with_each_other(photos, models, capsys):
    _, line, _ = tll(capsys, photos / "00.png", photos / "01.png")
    (pair,) = found().pairs
    a, b = (np.asarray(PillowImage.open(photos / f"0{at}.png")) for at in (0, 1))
    expected = Model().embed([cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA) for image in (a, b)])
    assert (found().mode, pair.kind, pair.one_in) == ("pair", "look-alike", None)
    assert pair.cosine == pytest.approx(float(expected[0] @ expected[1]), abs=0.02)
    assert line == "2 images: 0 kept, 2 embedded (find/index.html)"


def test_pairs_that_are_not_alike_stay_away(photos, models, capsys, tmp_path):
    tll(capsys, photos)
    first = found().pairs[0]
    (tmp_path / "not.txt").write_text(f"# Not alike\n{first.right.content} {first.left.content} # a.png b.png\n\n")
    tll(capsys, photos, "--ignore", tmp_path / "not.txt")
    read = found()
    assert (read.counts.ignored, read.pairs[0].left != first.left or read.pairs[0].right != first.right) == (1, True)
    (tmp_path / "not.txt").write_text("a.png b.png")
    status, _, _ = tll(capsys, photos, "--ignore", tmp_path / "not.txt")
    assert "line 1: 'a.png b.png'; it must be two content hashes" in status
    status, _, _ = tll(capsys, photos, "--ignore", tmp_path / "nowhere.txt")
    assert "nowhere.txt cannot be read (No such file or directory): give the file that the page made" in status


def test_kind_strength_and_number_choose_pairs(photos, models, capsys):
    shutil.copy(photos / "00.png", photos / "copy.png")
    tll(capsys, photos, "--kind", "same-file")
    assert ([one.kind for one in found().duplicates], found().pairs) == (["same-file"], ())
    tll(capsys, photos, "--kind", "look-alike", "--min-strength", "20", "--pairs", "4")
    read = found()
    assert read.duplicates == ()
    assert len(read.pairs) == 4 < read.counts.pairs
    assert all(pair.one_in >= 20 for pair in read.pairs)


def test_groups_are_stars_with_their_least_cosine(photos, models, capsys):
    for at in range(3):
        image = np.asarray(picture(60)).astype(int)
        noise = cv2.resize(np.random.default_rng(at).normal(0, 40, (12, 16)), (40, 30), interpolation=0)
        PillowImage.fromarray(np.clip(image + noise[..., None], 0, 255).astype(np.uint8)).save(photos / f"g{at}.png")
    tll(capsys, photos, "--group", "--min-strength", "100")
    (group,) = found().groups
    assert {group.medoid.path, *(member.path for member in group.members)} == {"g0.png", "g1.png", "g2.png"}
    assert group.least_cosine <= min(group.cosines) <= max(group.cosines) < 1


def test_hostile_names_come_through(tmp_path, models, capsys):
    names = ["<b>&.png", "50%#1.png", 'it\'s "so".png', "line\nbreak.png", "caf\udce9.png", "=1+1.png"]
    for seed, name in enumerate(names):
        save(tmp_path / "plain.png", seed)
        os.rename(tmp_path / "plain.png", os.path.join(tmp_path, "odd", name)) if seed else save(
            tmp_path / "odd" / name, 0
        )
    status, line, _ = tll(capsys, tmp_path / "odd", "--export", "pairs.csv")
    assert (status, line.split(" (")[0]) == (0, "6 images: 0 kept, 6 embedded")
    read = found()
    assert {name for pair in read.pairs for name in (pair.left.path, pair.right.path)} == set(names)
    with open("pairs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(read.pairs)
    assert any("'=1+1.png" in (row["left_path"], row["right_path"]) for row in rows)


def test_pairs_are_exported_as_parquet_also_from_an_unchanged_result(photos, models, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    tll(capsys, photos)
    tll(capsys, photos, "--export", "pairs.parquet")
    table = parquet.read_table("pairs.parquet").to_pylist()
    assert len(models) == 1
    assert [row["cosine"] for row in table] == [pair.cosine for pair in found().pairs]
    assert table[0]["left_folder"] == str(photos)


def test_json_goes_to_standard_output_and_progress_to_standard_error(photos, models, capsys, monkeypatch):
    monkeypatch.setattr(embed, "CHUNK", 8)
    capsys.readouterr()
    monkeypatch.setattr(time, "monotonic", iter(range(10**6)).__next__)
    main(["find", str(photos), "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out)["format"] == "tll-find/1"
    *lines, last = err.splitlines()
    assert last.startswith("24 images: 0 kept, 24 embedded")
    embedding_lines = [json.loads(line) for line in lines if '"embed"' in line]
    assert [line["done"] for line in embedding_lines] == [8, 16, 24]
    assert set(embedding_lines[0]) == {"part", "fraction", "done", "total", "images_per_second", "seconds_left"}


def test_statuses_say_whether_something_was_found_or_broken(photos, models, capsys):
    assert tll(capsys, photos, "--fail-on", "broken")[0] == 0
    assert tll(capsys, photos, "--fail-on", "found")[0] == 11
    (photos / "broken.jpg").write_bytes(b"")
    assert tll(capsys, photos, "--fail-on", "broken", "--fail-on", "found")[0] == 12
    assert tll(capsys, photos, "--fail-on", "broken")[0] == 12
    assert tll(capsys, photos, "--top", "0")[0] == 2
    assert tll(capsys, photos, "--query", "a", "--against", "b")[0] == 2


def test_bad_places_are_named_with_what_mends_them(tmp_path, models, capsys):
    (tmp_path / "empty").mkdir()
    assert "empty: no picture is there that can be read" in tll(capsys, tmp_path / "empty")[0]
    (tmp_path / "empty" / "a.jxl").touch()
    assert "not read are 1 .jxl (convert them to JPEG or PNG)" in tll(capsys, tmp_path / "empty")[0]
    (tmp_path / "empty" / "b.jpg").write_bytes(b"text")
    assert "none of 1 pictures can be read; b.jpg: not an image" in tll(capsys, tmp_path / "empty")[0]
    assert "nowhere is not there" in tll(capsys, tmp_path / "nowhere")[0]
    save(tmp_path / "one" / "a.png", 0)
    (tmp_path / "query.txt").write_text("no picture")
    status = tll(capsys, tmp_path / "one", "--query", tmp_path / "query.txt")[0]
    assert "query.txt: not an image that can be read" in status
    assert models[-1].embedder.num_embedded == 0
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        archive.write(tmp_path / "one" / "a.png", "a.png")
    whole = (tmp_path / "whole.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    assert "cut.zip is not a complete zip file" in tll(capsys, tmp_path / "cut.zip")[0]
    (tmp_path / "file").touch()
    assert "cannot be written" in tll(capsys, tmp_path / "one", "--out", tmp_path / "file" / "out")[0]
    assert "cannot be written" in tll(capsys, tmp_path / "one", "--cache", tmp_path / "file" / "cache")[0]
    assert "--approximate goes with --query" in tll(capsys, tmp_path / "one", "--approximate")[0]


def test_a_page_that_somebody_else_made_is_not_replaced(photos, models, capsys):
    (photos / "index.html").write_text("my album")
    status, _, _ = tll(capsys, photos, "--out", photos)
    assert "index.html is not of tll find, and would be replaced: give --out another folder" in status
    assert (photos / "index.html").read_text() == "my album"


def test_a_single_picture_has_no_pairs_and_is_no_error(tmp_path, models, capsys):
    save(tmp_path / "one" / "a.png", 0)
    assert tll(capsys, tmp_path / "one")[:2] == (0, "1 image: 0 kept, 1 embedded (find/index.html)")
    assert found().pairs == ()


def test_a_drive_that_is_away_hides_its_pictures_and_loses_none(photos, tmp_path, models, capsys):
    save(tmp_path / "drive" / "a.png", 70)
    tll(capsys, photos, tmp_path / "drive")
    os.rename(tmp_path / "drive", tmp_path / "away")
    status, line, _ = tll(capsys, photos, tmp_path / "drive")
    assert (status, line.split(" (")[0]) == (0, "24 images: 24 kept, 0 embedded")
    assert "nowhere is not there" in tll(capsys, photos, tmp_path / "nowhere")[0]
    os.rename(tmp_path / "away", tmp_path / "drive")
    tll(capsys, photos, tmp_path / "drive")
    assert sum(model.embedder.num_embedded for model in models) == 25


def test_kept_neighbor_lists_give_the_result_that_new_ones_give(photos, models, capsys, monkeypatch):
    monkeypatch.setattr(known, "LEAST_PICTURES", 10)
    monkeypatch.setattr(search, "LISTED", 8)
    tll(capsys, photos, "--top", "4")
    os.remove(photos / "03.png")
    for seed in (60, 61):
        save(photos / f"{seed}.png", seed)
    compared = []
    monkeypatch.setattr(known, "within", lambda points, *_, **__: compared.append(len(points)))
    tll(capsys, photos, "--top", "4")
    assert compared == []
    monkeypatch.setattr(known, "LEAST_PICTURES", 1000)
    monkeypatch.setattr(known, "within", within)
    tll(capsys, photos, "--top", "4", "--out", "anew", "--cache", "other")
    assert without_run() == without_run("anew")


KILLED = """
import sys, time
sys.path.insert(0, {root!r})
from tests.gallery.embedders import embedding
from tests.gallery.test_find import Model
from tll_jax.gallery import embed, find, state
from tll_jax.cli import main
model = embedding(batch_size=8)
whole = type(model.embedder).__call__
def until_the_third(self, batch):
    print("batch", flush=True)
    if len(self.batches) == 2:
        time.sleep(600)
    return whole(self, batch)
type(model.embedder).__call__ = until_the_third
embed.CHUNK = 8
find.load_embedding = lambda name: (Model(), model)
find.with_reasons = lambda pairs, *_, **__: list(pairs)
state._model_facts = str
main()
"""


def test_a_killed_process_leaves_what_it_embedded_and_ends_with_the_same_result(photos, models, capsys, environment):
    tll(capsys, photos, "--out", "whole", "--cache", "other")
    command = [sys.executable, "-c", KILLED.format(root=str(ROOT)), "find", str(photos)]
    process = subprocess.Popen(command, env=environment | dict(os.environ), stdout=subprocess.PIPE, text=True)
    for _ in range(3):
        assert process.stdout.readline() == "batch\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not Path("find/find.json").exists()
    tll(capsys, photos)
    # Of three chunks two were committed.
    assert models[-1].embedder.num_embedded == 8
    assert without_run("find") == without_run("whole")
