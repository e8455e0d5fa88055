"""Data sets prepared as TFDS folders and read back without TensorFlow: equal pictures, interruption and damage."""

import functools
import http.server
import io
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.layouts import emoji_pairs, save_joint, save_numbered, zipped
from tll_jax import cli
from tll_jax.data import prepare as preparing
from tll_jax.data.folder import ClassFolder
from tll_jax.data.prepare import prepare
from tll_jax.data.tfds_builders.totally_looks_like import TotallyLooksLikeBuilder
from tll_jax.data.tfds_sources import Records, TfdsImages, TfdsPairs
from tll_jax.data.totally_looks_like import TotallyLooksLike
from tll_jax.typing import ImageSource, PairSource

needs_data = pytest.mark.skipif("TLL_DATA" not in os.environ, reason="TLL_DATA names no folder with the research sets")
NUM = 24


@pytest.fixture(scope="module")
def pictures():
    """Pairs of real pictures, 200 x 245 pixels; the second pair shares a picture with the first."""
    # Spread over the set: neighbors are so much alike that they count as near duplicates.
    pairs = emoji_pairs(slice(400, 400 + 50 * NUM, 50))
    return [pairs[0], (pairs[0][0], pairs[1][1]), *pairs[2:]]


@pytest.fixture
def numbered(tmp_path, pictures):
    folder = tmp_path / "numbered"
    save_numbered(folder, pictures)
    return folder


@pytest.fixture
def joint(tmp_path, pictures):
    folder = tmp_path / "joint"
    folder.mkdir()
    save_joint(folder, pictures, "jpg")
    return folder


@pytest.fixture
def photos(tmp_path, pictures):
    """Two classes with NUM training and 2 validation pictures each."""
    folder = tmp_path / "photos"
    for split, count in (("train", NUM), ("val", 2)):
        for name, side in (("apple", 0), ("zebra", 1)):
            (folder / "set" / split / name).mkdir(parents=True)
            for index in range(count):
                pictures[index][side].save(folder / "set" / split / name / f"{name}-{index:02}.jpg")
    return folder


def content(images):
    """Pixels and labels, to compare two picture sources."""
    return [(image.tobytes(), label) for image, label in images]


@pytest.fixture
def csv_edition(numbered, tmp_path):
    folder = tmp_path / "csv_edition"
    (folder / "train").mkdir(parents=True)
    for side in ("left", "right"):
        shutil.copytree(numbered / side, folder / "train" / side)
    rows = [f"{index:05},{index:05}" for index in range(NUM)]
    (folder / "train" / "train.csv").write_text("\n".join(["left,right", *rows]))
    return folder


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", ["numbered", "joint", "csv_edition"])
def test_prepared_pairs_equal_their_source(layout, packed, tmp_path, request):
    source = request.getfixturevalue(layout)
    if packed:
        source = zipped(source, tmp_path / "pairs.zip")
    report = prepare("totally_looks_like", source=str(source), data_dir=str(tmp_path))
    assert report.num_examples == {"train": NUM}
    direct, stored = TotallyLooksLike(path=str(source)).open(), TfdsPairs(data_dir=str(tmp_path)).open()
    assert isinstance(stored, PairSource)
    assert (stored.ids, stored.digest(), stored.skipped) == (direct.ids, direct.digest(), [])
    assert stored.groups.tolist() == direct.groups.tolist()
    assert len(set(stored.groups.tolist())) == NUM - 1
    for index in range(NUM):
        for one, other in zip(stored[index], direct[index], strict=True):
            assert np.array_equal(one, other)


def test_files_are_passed_through_byte_for_byte_and_groups_are_written(numbered, tmp_path):
    prepare("totally_looks_like", source=str(numbered), data_dir=str(tmp_path))
    records = Records("totally_looks_like", "train", str(tmp_path))
    assert [record["id"].decode() for record in map(records.__getitem__, range(NUM))] == [f"{i:05}" for i in range(NUM)]
    for index in (0, 1, 23):
        for side in ("left", "right"):
            assert records[index][side] == (numbered / side / f"{index:05}.jpg").read_bytes()
    assert [int(records[index]["group"]) for index in range(3)] == [0, 0, 2]


def test_the_builder_is_registered_the_way_of_tfds_and_needs_no_tensorflow(numbered, tmp_path):
    program = f"""
import sys
import tensorflow_datasets as tfds
import tll_jax.data.tfds_builders.totally_looks_like
settings = dict(data_dir={str(tmp_path)!r}, file_format="array_record")
builder = tfds.builder("totally_looks_like", **settings)
builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir={str(numbered)!r}))
assert "research only" in builder.info.description
example = tfds.builder("totally_looks_like", **settings).as_data_source("train")[3]
assert example["left"].shape == (245, 200, 3), example["left"].shape
from tll_jax.data.tfds_sources import TfdsImages, TfdsPairs
assert len(TfdsPairs(data_dir={str(tmp_path)!r}).open()) == {NUM}
from tll_jax.cli import main
main(["prepare", "totally_looks_like", "--data-dir", {str(tmp_path)!r}])
assert "tensorflow" not in sys.modules
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "totally_looks_like is already there" in finished.stdout


def test_the_builder_can_be_pickled(tmp_path):
    builder = TotallyLooksLikeBuilder(source="somewhere", data_dir=tmp_path)
    assert pickle.loads(pickle.dumps(builder)).source == "somewhere"


def test_prepared_class_folders_equal_their_source(photos, tmp_path):
    report = prepare("imagenette", source=str(zipped(photos, tmp_path / "photos.zip")), data_dir=str(tmp_path))
    assert report.num_examples == {"train": 2 * NUM, "validation": 4}
    for split, folder in (("train", "train"), ("validation", "val")):
        direct = ClassFolder(path=str(photos), subfolder=f"set/{folder}").open(held_out=frozenset())
        stored = TfdsImages(name="imagenette", split=split, data_dir=str(tmp_path)).open(held_out=frozenset())
        assert isinstance(stored, ImageSource)
        assert stored.num_classes == 2
        assert content(stored[i] for i in range(len(stored))) == content(direct[i] for i in range(len(direct)))
    records = Records("imagenette", "validation", str(tmp_path))
    assert records[3]["image"] == (photos / "set" / "val" / "zebra" / "zebra-01.jpg").read_bytes()
    assert records[3]["file_name"] == b"zebra-01.jpg"
    assert records.info.features["label"].names == ["apple", "zebra"]


def test_shards_are_closed_by_their_size_and_keep_the_order(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("tll_jax.data.tfds_builders.class_folders.SHARD_BYTES", 60_000)
    prepare("imagenette", source=str(photos), data_dir=str(tmp_path))
    stored = TfdsImages(name="imagenette", split="train", data_dir=str(tmp_path)).open(held_out=frozenset())
    assert len(stored.records.info.splits["train"].shard_lengths) > 2
    assert [stored[index].label for index in range(2 * NUM)] == [0] * NUM + [1] * NUM


def test_a_shard_of_broken_pictures_alone_does_no_harm(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("tll_jax.data.tfds_builders.class_folders.SHARD_BYTES", 1)
    (photos / "set" / "train" / "apple" / "apple-01.jpg").write_bytes(b"text")
    report = prepare("imagenette", source=str(photos), data_dir=str(tmp_path))
    assert (report.num_examples["train"], len(report.broken)) == (2 * NUM - 1, 1)
    records = Records("imagenette", "train", str(tmp_path))
    assert [records[index]["file_name"] for index in (0, 1, 46)] == [b"apple-00.jpg", b"apple-02.jpg", b"zebra-23.jpg"]


def test_names_with_line_breaks_and_bytes_that_are_no_text_pass(photos, numbered, tmp_path, capsys):
    odd = "a\nb\udcff"
    for name in ("left", "right"):
        (numbered / name / "00000.jpg").rename(numbered / name / f"{odd}.jpg")
    (photos / "set" / "train" / "apple" / "apple-00.jpg").rename(photos / "set" / "train" / "apple" / f"{odd}.jpg")
    (photos / "set" / "train" / "apple" / f"{odd}.png").write_bytes(b"")
    prepare("totally_looks_like", source=str(numbered), data_dir=str(tmp_path))
    assert odd in TfdsPairs(data_dir=str(tmp_path)).open().ids
    cli.main(["prepare", "imagenette", "--source", str(photos), "--data-dir", str(tmp_path)])
    assert r"apple/a\nb\udcff.png: the file is empty" in capsys.readouterr().out
    assert Records("imagenette", "train", str(tmp_path))[0]["file_name"] == b"a\nb\xff.jpg"


def test_sources_can_be_pickled_and_read_from_threads(photos, numbered, tmp_path):
    prepare("imagenette", source=str(photos), data_dir=str(tmp_path))
    prepare("totally_looks_like", source=str(numbered), data_dir=str(tmp_path))
    images = TfdsImages(name="imagenette", split="train", data_dir=str(tmp_path)).open(held_out=frozenset())
    pairs = TfdsPairs(data_dir=str(tmp_path)).open()
    for source in (images, pairs):
        arrived = pickle.loads(pickle.dumps(source))
        assert arrived.digest() == source.digest()
        alone = [source[index][0].tobytes() for index in range(len(source))]
        with ThreadPoolExecutor(8) as pool:
            together = pool.map(lambda index, source=arrived: source[index][0].tobytes(), range(len(source)))
            assert list(together) == alone


def test_a_part_of_a_split_is_a_split_and_an_unknown_one_names_those_there(photos, tmp_path):
    prepare("imagenette", source=str(photos), data_dir=str(tmp_path))

    def opened(split):
        return TfdsImages(name="imagenette", split=split, data_dir=str(tmp_path)).open(held_out=frozenset())

    half, whole = opened("train[50%:]"), opened("train")
    assert (len(half), half[0].label) == (NUM, 1)
    assert len({half.digest(), whole.digest(), opened("validation").digest()}) == 3
    with pytest.raises(ValueError, match="no split 'test'; it has train, validation"):
        opened("test")


def test_a_data_set_that_is_not_prepared_is_refused_with_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"imagenette is not prepared in .*: run `tll prepare imagenette`"):
        TfdsImages(name="imagenette", split="train", data_dir=str(tmp_path)).open(held_out=frozenset())
    with pytest.raises(FileNotFoundError, match="run `tll prepare totally_looks_like`"):
        TfdsPairs(data_dir=str(tmp_path)).open()


def test_pictures_without_classes_are_labeled_minus_one_and_broken_ones_replaced(tmp_path, pictures, caplog):
    class Loose(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"image": tfds.features.Image()})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for index in range(NUM):
                buffer = io.BytesIO()
                pictures[index][1].save(buffer, "PNG")
                yield index, {"image": io.BytesIO(b"broken" if index == 2 else buffer.getvalue())}

    Loose(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    source = TfdsImages(name="loose", split="train", data_dir=str(tmp_path)).open(held_out=frozenset())
    assert (source.num_classes, source[0].label) == (0, -1)
    assert np.array_equal(source[2].image, np.asarray(pictures[3][1]))
    assert source[2].label == -1
    assert [item.name for item in source.skipped] == ["train 2"]
    assert caplog.text.count("is skipped") == 1
    source.max_broken_fraction = 0.0
    with pytest.raises(ValueError, match=r"1 of 24 images in .*loose.*: train 2 \(not an image"):
        _ = source[2]


def test_a_damaged_record_is_a_broken_picture(photos, numbered, tmp_path):
    for name, source in (("imagenette", photos), ("totally_looks_like", numbered)):
        (shard,) = prepare(name, source=str(source), data_dir=str(tmp_path)).folder.glob("*train.array_record*")
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 0xFF
        shard.write_bytes(data)
    images = TfdsImages(name="imagenette", split="train", data_dir=str(tmp_path)).open(held_out=frozenset())
    assert len([images[index] for index in range(2 * NUM)]) == 2 * NUM
    pairs = TfdsPairs(data_dir=str(tmp_path)).open()
    assert len(pairs) == NUM - 1
    for source in (images, pairs):
        (item,) = source.skipped
        assert "is damaged (Corrupted" in item.reason


def test_unsupported_formats_and_ambiguous_versions_are_refused(photos, tmp_path):
    folder = prepare("imagenette", source=str(photos), data_dir=str(tmp_path)).folder
    shutil.copytree(folder, folder.parent / "2.0.0")
    with pytest.raises(ValueError, match=r"holds .*1\.0\.0, .*2\.0\.0: give the name up to the one meant"):
        prepare("imagenette", data_dir=str(tmp_path))
    assert len(Records("imagenette/2.0.0", "train", str(tmp_path))) == 2 * NUM
    shutil.rmtree(folder.parent / "2.0.0")
    (folder / "dataset_info.json").write_text((folder / "dataset_info.json").read_text().replace("array_", "tf"))
    for call in (
        lambda: prepare("imagenette", data_dir=str(tmp_path)),
        lambda: Records("imagenette", "train", str(tmp_path)),
    ):
        with pytest.raises(ValueError, match="is written as tfrecord, which is not read here: prepare it with"):
            call()


def test_each_broken_file_is_named_with_its_reason(numbered, photos, tmp_path, capsys):
    (photos / "set" / "train" / "apple" / "apple-05.jpg").write_bytes(b"")
    (numbered / "left" / "00007.jpg").write_bytes(b"text")
    (numbered / "right" / "00009.jpg").unlink()
    for name in (f"{index:05}.jpg" for index in range(NUM, 2 * NUM)):
        for side in ("left", "right"):
            (numbered / side / name).write_bytes((numbered / side / "00003.jpg").read_bytes())
    cli.main(["prepare", "imagenette", "--source", str(photos), "--data-dir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "examples  train 47, validation 4" in printed
    assert "set/train/apple/apple-05.jpg: set/train/apple/apple-05.jpg: the file is empty" in printed
    cli.main(["prepare", "totally_looks_like", "--source", str(numbered), "--data-dir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "broken    2" in printed
    assert "00007: left/00007.jpg: not an image that can be read" in printed
    assert "00009: has no picture in right/" in printed
    stored = TfdsPairs(data_dir=str(tmp_path)).open()
    assert [item.name for item in stored.skipped] == ["00009", "00007"]


def test_more_than_a_twentieth_broken_stops_and_names_all(numbered, photos, tmp_path, capsys):
    for index in range(4):
        (photos / "set" / "train" / "zebra" / f"zebra-{index:02}.jpg").write_bytes(b"")
    for index in range(2):
        (numbered / "left" / f"{index:05}.jpg").write_bytes(b"")
    for name, source, message in (
        ("imagenette", photos, "3 broken of 52 in .*zebra-00.*zebra-01.*zebra-02"),
        ("totally_looks_like", numbered, "2 broken of 24 in .*00000: left/00000.jpg: the file is empty.*00001: left"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["prepare", name, "--source", str(source), "--data-dir", str(tmp_path)])
        assert re.search(message, str(stopped.value.code), re.DOTALL)
        # Nothing is left that would count as prepared.
        assert not list((tmp_path / name).glob("*"))
    assert capsys.readouterr().out == ""


def test_an_existing_data_set_is_reported_and_another_source_refused(numbered, joint, tmp_path):
    first = prepare("totally_looks_like", source=str(numbered), data_dir=str(tmp_path))
    again = prepare("totally_looks_like", data_dir=str(tmp_path))
    assert (first.was_there, again.was_there) == (False, True)
    assert (again.num_examples, again.num_bytes, again.source) == ({"train": NUM}, first.num_bytes, str(numbered))
    assert first.num_bytes == sum(path.stat().st_size for path in first.folder.rglob("*"))
    with pytest.raises(ValueError, match=r"was prepared from .*numbered, not from .*joint: give another --data-dir"):
        prepare("totally_looks_like", source=str(joint), data_dir=str(tmp_path))


def test_a_lost_or_cut_shard_is_noticed(numbered, tmp_path):
    folder = prepare("totally_looks_like", source=str(numbered), data_dir=str(tmp_path)).folder
    (shard,) = folder.glob("*.array_record*")
    whole = shard.read_bytes()
    for damage in (lambda: shard.write_bytes(whole[: len(whole) // 2]), shard.unlink):
        damage()
        with pytest.raises(ValueError, match=r"is damaged.*: delete the folder and prepare it again"):
            prepare("totally_looks_like", data_dir=str(tmp_path))


STOPS_IN_THE_MIDDLE = """
import os, sys, time
from tll_jax.cli import main
from tll_jax.data.tfds_builders import class_folders, totally_looks_like

def stopping(read):
    calls = []
    def read_ten(*arguments):
        calls.append(arguments)
        if len(calls) > 10:
            # Standard output is hidden from TFDS.
            os.write(1, b"in the middle\\n")
            time.sleep(600)
        return read(*arguments)
    return read_ten

class_folders.decode = stopping(class_folders.decode)
totally_looks_like._encoded = stopping(totally_looks_like._encoded)
main(sys.argv[1:])
"""


@pytest.mark.parametrize(("name", "layout"), [("totally_looks_like", "numbered"), ("imagenette", "photos")])
def test_a_run_killed_in_the_middle_starts_afresh(name, layout, tmp_path, request):
    source, data_dir = request.getfixturevalue(layout), tmp_path / "prepared"
    arguments = ["prepare", name, "--source", str(source), "--data-dir", str(data_dir)]
    running = subprocess.Popen([sys.executable, "-c", STOPS_IN_THE_MIDDLE, *arguments], stdout=subprocess.PIPE)
    assert running.stdout.readline() == b"in the middle\n"
    with pytest.raises(ValueError, match=f"another command works in .*: `tll prepare {name} --source .*`, process"):
        prepare(name, source=str(tmp_path), data_dir=str(data_dir))
    running.kill()
    running.communicate()
    assert list((data_dir / name).glob("incomplete*"))
    with pytest.raises(FileNotFoundError, match="is not prepared"):
        Records(name, "train", str(data_dir))
    report = prepare(name, source=str(source), data_dir=str(data_dir))
    assert not report.was_there
    assert report.num_examples["train"] == (NUM if name == "totally_looks_like" else 2 * NUM)
    assert [path.name for path in (data_dir / name).iterdir()] == ["1.0.0"]


def test_a_source_that_differs_from_its_checksum_is_refused(numbered, tmp_path):
    path = zipped(numbered, tmp_path / "pairs.zip")
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  other.zip\n{'0' * 64}  pairs.zip\n")
    with pytest.raises(ValueError, match=r"pairs\.zip has the SHA-256 .*SHA256SUMS says 0000"):
        prepare("totally_looks_like", source=str(path), data_dir=str(tmp_path / "prepared"))
    sums = subprocess.run(["sha256sum", "pairs.zip"], cwd=tmp_path, capture_output=True, text=True, check=True)
    (tmp_path / "SHA256SUMS").write_text(sums.stdout)
    report = prepare("totally_looks_like", source=str(path), data_dir=str(tmp_path / "prepared"))
    assert report.checksum == "SHA-256 as in SHA256SUMS"


def tar_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def test_imagenet_is_read_out_of_its_tars_with_the_labels_of_tfds(photos, tmp_path, monkeypatch):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    data = [path.read_bytes() for path in sorted((photos / "set").glob("*/apple/*"))][:5]
    # The 2nd and the 1st class of TFDS's list; the first two validation pictures are of n01751748 and n09193705.
    inner = {
        "n01443537.tar": tar_of({"n01443537_1.JPEG": data[0], "n01443537_2.JPEG": data[1]}),
        "n01440764.tar": tar_of({"n01440764_9.JPEG": data[2]}),
    }
    (manual / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    with pytest.raises(FileNotFoundError, match=r"put .*manual/ILSVRC2012_img_val\.tar there"):
        prepare("imagenet2012", data_dir=str(tmp_path))
    validation = {"ILSVRC2012_val_00000002.JPEG": data[4], "ILSVRC2012_val_00000001.JPEG": data[3]}
    (manual / "ILSVRC2012_img_val.tar").write_bytes(tar_of(validation))
    with pytest.raises(ValueError, match="holds 3 pictures, not 1,281,167: download it again"):
        prepare("imagenet2012", data_dir=str(tmp_path))
    monkeypatch.setattr(preparing, "IMAGENET_COUNTS", {"train": 3, "validation": 2})
    assert prepare("imagenet2012", data_dir=str(tmp_path)).num_examples == {"train": 3, "validation": 2}
    train, held = (Records("imagenet2012", split, str(tmp_path)) for split in ("train", "validation"))
    assert [train[i]["image"] for i in range(3)] == [data[2], data[0], data[1]]
    assert [int(train[i]["label"]) for i in range(3)] == [0, 1, 1]
    assert [held[i]["image"] for i in range(2)] == [data[3], data[4]]
    names = train.info.features["label"].names
    assert len(names) == 1000
    assert [names[int(held[i]["label"])] for i in range(2)] == ["n01751748", "n09193705"]
    # TFDS's own builder of this name finds and reads what was written.
    own = tfds.builder("imagenet2012", data_dir=tmp_path, file_format="array_record")
    assert own.as_data_source("train")[0]["file_name"] == b"n01440764_9.JPEG"


def test_a_tar_cut_short_is_refused(tmp_path):
    cut = tar_of({"a.jpg": bytes(5000), "b.jpg": bytes(5000)})[:7000]
    for name in ("train", "val"):
        (tmp_path / f"ILSVRC2012_img_{name}.tar").write_bytes(cut)
    with pytest.raises(ValueError, match=r"ILSVRC2012_img_train\.tar is not a complete tar file"):
        prepare("imagenet2012", source=str(tmp_path), data_dir=str(tmp_path / "prepared"))


def test_imagenette_is_downloaded_unpacked_and_read(photos, tmp_path, monkeypatch):
    served = tmp_path / "served"
    served.mkdir()
    with tarfile.open(served / "imagenette2-320.tgz", "w:gz") as tar:
        tar.add(photos / "set", "imagenette2-320")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=served)
    handler.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(preparing, "IMAGENETTE_URL", f"{url}/missing.tgz")
        with pytest.raises(ValueError, match=r"missing\.tgz cannot be downloaded .*give --source"):
            prepare("imagenette", data_dir=str(tmp_path / "prepared"))
        monkeypatch.setattr(preparing, "IMAGENETTE_URL", f"{url}/imagenette2-320.tgz")
        report = prepare("imagenette", data_dir=str(tmp_path / "prepared"))
        server.shutdown()
    assert report.num_examples == {"train": 2 * NUM, "validation": 4}
    assert sorted(path.name for path in (tmp_path / "prepared").iterdir()) == [
        ".imagenette.lock", "downloads", "imagenette",
    ]  # fmt: skip


def test_wrong_names_missing_sources_and_folders_without_classes_are_told_apart(tmp_path, numbered, monkeypatch):
    monkeypatch.delenv("TLL_DATA", raising=False)
    data_dir = str(tmp_path / "prepared")
    for arguments, kind, message in (
        (
            {"name": "mnist"},
            ValueError,
            "cannot prepare 'mnist'; it can be totally_looks_like, imagenette, imagenet2012",
        ),
        ({"name": "totally_looks_like"}, FileNotFoundError, r"no pairs at .*manual/totally-looks-like\.zip.*--source"),
        ({"name": "imagenette", "source": str(tmp_path / "nowhere")}, FileNotFoundError, "no data at"),
        ({"name": "imagenette", "source": "$TLL_DATA/a.zip"}, FileNotFoundError, "TLL_DATA, which is not set"),
        ({"name": "imagenet2012", "source": str(numbered)}, ValueError, "should hold train/CLASS/IMAGE.jpg"),
        ({"name": "imagenet2012"}, FileNotFoundError, "register at .* and put .*train.tar and .*val.tar there"),
    ):
        with pytest.raises(kind, match=message):
            prepare(**arguments, data_dir=data_dir)


def test_the_help_of_the_command_is_quick(tmp_path):
    program = "import sys; from tll_jax import cli\ntry: cli.main(['prepare', '--help'])\nexcept SystemExit: pass\n"
    program += "assert 'tensorflow_datasets' not in sys.modules and 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=Path.cwd())


@pytest.mark.release
@needs_data
def test_the_real_pairs_are_the_same_when_prepared(tmp_path):
    source = os.path.expandvars("$TLL_DATA/totally-looks-like.zip")
    report = prepare("totally_looks_like", source=source, data_dir=str(tmp_path))
    assert (report.num_examples, report.broken) == ({"train": 1599}, [])
    has_sums = Path(source).with_name("SHA256SUMS").exists()
    assert report.checksum == ("SHA-256 as in SHA256SUMS" if has_sums else "none known")
    direct, stored = TotallyLooksLike(path=source).open(), TfdsPairs(data_dir=str(tmp_path)).open()
    assert (stored.ids, stored.digest()) == (direct.ids, direct.digest())
    assert stored.groups.tolist() == direct.groups.tolist()
    assert np.array_equal(stored[800].right, direct[800].right)
