import importlib
import io
import os
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from tests.gallery.embedders import embedding
from tests.gallery.raw_files import dng
from tll_jax.data.geometry import Resize
from tll_jax.data.imaging import BrokenImage
from tll_jax.errors import DamagedFile, FileProblem, InvalidValue, MissingPackage
from tll_jax.gallery import arrow, embed, pictures
from tll_jax.gallery.embed import embed_files, prune, read_rows
from tll_jax.gallery.pictures import decode_all
from tll_jax.gallery.scan import ScanOptions, roots_of, scan
from tll_jax.gallery.store import Store

lancedb = pytest.importorskip("lancedb")
"""Its import takes seconds, once."""


def picture(seed, size=(40, 30)):
    """A picture that differs from others in its coarse colors."""
    colors = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return PillowImage.fromarray(colors).resize(size, PillowImage.Resampling.BICUBIC)


def save(path, seed, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path, **options)
    return path


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    for seed in range(6):
        save(tmp_path / "photos" / f"{seed}.png", seed)
    return tmp_path / "photos"


def visit(folder, cache, *, verify=False, **options):
    """The index, and how many pictures the network saw."""
    model, store = embedding(**options), Store(str(cache))
    with store.writing("test"):
        index = embed_files(scan(roots_of([str(folder)]), ScanOptions()), store, model, verify=verify)
    return index, model.embedder.num_embedded


def rows_of(index, cache):
    table = Store(str(cache)).contents("cells", 48)
    return read_rows(table, set(index.contents.values()), 48)


def test_every_content_is_embedded_once_whatever_its_files_are_called(folder, tmp_path):
    shutil.copy(folder / "0.png", folder / "copy of 0.png")
    index, num_embedded = visit(folder, tmp_path / "cache")
    assert (num_embedded, index.embedded, index.kept, len(index.contents)) == (6, 7, 0, 7)
    again, num_embedded = visit(folder, tmp_path / "cache")
    assert (num_embedded, again.embedded, again.kept) == (0, 0, 7)
    for path in list(folder.iterdir()):
        os.rename(path, folder / f"renamed-{path.name}")
    os.rename(folder, tmp_path / "moved")
    moved, num_embedded = visit(tmp_path / "moved", tmp_path / "cache")
    assert (num_embedded, moved.kept, moved.renamed) == (0, 7, 7)
    assert sorted(moved.contents.values()) == sorted(index.contents.values())


def test_a_changed_file_is_embedded_anew_and_a_touched_one_is_not(folder, tmp_path):
    visit(folder, tmp_path / "cache")
    save(folder / "0.png", 10)
    os.utime(folder / "1.png", ns=(1, 1))
    index, num_embedded = visit(folder, tmp_path / "cache")
    assert (num_embedded, index.embedded, index.kept, index.renamed) == (1, 1, 5, 0)


def test_verify_finds_a_change_that_size_and_time_do_not_show(folder, tmp_path):
    path, status = folder / "0.png", os.stat(folder / "0.png")
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    visit(folder, tmp_path / "cache")
    data = bytearray(encoded(picture(11), "PNG"))
    (folder / "0.png").write_bytes(bytes(data).ljust(status.st_size, b"\0")[: max(status.st_size, len(data))])
    if os.stat(path).st_size != status.st_size:
        path.write_bytes(path.read_bytes()[: status.st_size])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert visit(folder, tmp_path / "cache")[0].kept == 6
    checked, _ = visit(folder, tmp_path / "cache", verify=True)
    assert checked.embedded + len(checked.broken) == 1


def test_a_broken_file_is_not_decoded_again_until_it_changes(folder, tmp_path, monkeypatch):
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "copy.jpg").write_bytes(b"no picture")
    index, _ = visit(folder, tmp_path / "cache")
    assert {file.path: reason for file, reason in index.broken.items()} == dict.fromkeys(
        ("broken.jpg", "copy.jpg"), "not an image that can be read"
    )
    decoded = []
    monkeypatch.setattr(embed, "decode_all", lambda data, *more: decoded.append(data) or decode_all(data, *more))
    again, _ = visit(folder, tmp_path / "cache")
    assert (len(again.broken), decoded) == (2, [])
    (folder / "broken.jpg").write_bytes(encoded(picture(12), "JPEG"))
    mended, num_embedded = visit(folder, tmp_path / "cache")
    assert (len(mended.broken), num_embedded, len(decoded)) == (1, 1, 1)
    monkeypatch.setattr(pictures, "DECODER", 99)
    visit(folder, tmp_path / "cache")
    assert len(decoded) == 2


def test_a_kill_after_any_commit_costs_nothing_and_changes_nothing(folder, tmp_path, monkeypatch):
    (folder / "broken.jpg").write_bytes(b"no picture")
    monkeypatch.setattr(embed, "CHUNK", 3)
    whole, _ = visit(folder, tmp_path / "whole")
    seen = 0
    for stop_after in (1, 2):
        commits = 0

        def kill(progress, stop_after=stop_after):
            nonlocal commits
            commits += 1
            if commits == stop_after:
                raise KeyboardInterrupt

        model, store = embedding(), Store(str(tmp_path / "cut"))
        with pytest.raises(KeyboardInterrupt), store.writing("test"):
            embed_files(scan(roots_of([str(folder)]), ScanOptions()), store, model, tell=kill)
        seen += model.embedder.num_embedded
        if stop_after == 1:
            assert len(store.contents("cells", 48)) == 3
    index, num_embedded = visit(folder, tmp_path / "cut")
    assert seen + num_embedded == 6
    a, b = rows_of(whole, tmp_path / "whole"), rows_of(index, tmp_path / "cut")
    assert a.embedding.tobytes() == b.embedding.tobytes()
    assert a.content.tolist() == b.content.tolist()


def test_a_kill_between_both_tables_embeds_nothing_anew(folder, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    store, model = Store(str(tmp_path / "cache")), embedding()
    files = store.files()
    monkeypatch.setattr(type(files), "upsert", _only_contents(type(files).upsert))
    with pytest.raises(KeyboardInterrupt):
        embed_files(scan(roots_of([str(folder)]), ScanOptions()), store, model)
    monkeypatch.undo()
    index, num_embedded = visit(folder, tmp_path / "cache")
    assert (num_embedded, index.kept) == (0, 6)


def _only_contents(upsert):
    def stop(self, rows):
        if "broken" in rows.column_names:
            raise KeyboardInterrupt
        upsert(self, rows)

    return stop


def test_pictures_that_are_gone_are_forgotten_when_asked_to_and_only_then(folder, tmp_path):
    visit(folder, tmp_path / "cache")
    os.remove(folder / "0.png")
    os.rename(folder / "1.png", folder / "one.png")
    visit(folder, tmp_path / "cache")
    store = Store(str(tmp_path / "cache"))
    assert (len(store.files()), len(store.contents("cells", 48))) == (7, 6)
    assert prune(scan(roots_of([str(folder)]), ScanOptions()), store, embedding()) == (2, 1)
    assert (len(store.files()), len(store.contents("cells", 48))) == (5, 5)
    assert visit(folder, tmp_path / "cache")[1] == 0
    for some in (ScanOptions(exclude=("*",)), ScanOptions()):
        place = folder if some.exclude else folder / "2.png"
        assert prune(scan(roots_of([str(place)]), some), store, embedding()) == (0, 0)


def test_pictures_in_zips_are_read_like_files(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"sub/{path.name}")
        archive.writestr("broken.png", b"no picture")
    index, num_embedded = visit(tmp_path / "photos.zip", tmp_path / "cache")
    assert (num_embedded, len(index.broken)) == (6, 1)
    assert visit(folder, tmp_path / "cache")[1] == 0


def test_embeddings_are_those_of_the_pixels_and_fit_their_contents(folder, tmp_path):
    index, _ = visit(folder, tmp_path / "cache")
    rows = rows_of(index, tmp_path / "cache")
    for file, content in index.contents.items():
        at = rows.content.tolist().index(content)
        pixels = np.asarray(PillowImage.open(folder / file.path))
        cells = Resize(size=32)(np.random.default_rng(0), pixels).reshape(4, 8, 4, 8, 3).mean(axis=(1, 3)).ravel()
        expected = cells / 255 - 0.5
        np.testing.assert_allclose(rows.embedding[at], expected / np.linalg.norm(expected), atol=2e-3)
        assert (rows.width[at], rows.height[at]) == (40, 30)


def test_a_drive_that_vanishes_ends_the_run_with_what_was_embedded_kept(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "CHUNK", 3)
    monkeypatch.setattr(embed, "IN_FLIGHT", 1)
    store, model = Store(str(tmp_path / "cache")), embedding()
    with pytest.raises(FileProblem, match=r"cannot be read \(No such file or directory\).*is the drive still there"):
        embed_files(
            scan(roots_of([str(folder)]), ScanOptions()), store, model, tell=lambda progress: shutil.rmtree(folder)
        )
    assert len(store.contents("cells", 48)) == 3


def test_a_damaged_table_and_one_of_another_kind_are_named(folder, tmp_path):
    visit(folder, tmp_path / "cache")
    shutil.copytree(tmp_path / "cache", tmp_path / "other")
    for path in (tmp_path / "cache" / "cells.lance").rglob("*.manifest"):
        path.write_bytes(b"damaged")
    with pytest.raises(DamagedFile, match=r"cells\.lance is damaged .*delete it; the pictures are then embedded anew"):
        visit(folder, tmp_path / "cache")
    with pytest.raises(InvalidValue, match="is no table of this version"):
        Store(str(tmp_path / "other")).contents("cells", 49)
    for path in (tmp_path / "other" / "cells.lance").rglob("*.lance"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises((DamagedFile, FileProblem), match=r"cells\.lance"):
        visit(folder, tmp_path / "other")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackage, match=r"pip install 'tll_jax\[find\]'"):
        importlib.reload(arrow)
    monkeypatch.undo()
    importlib.reload(arrow)


def test_a_store_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileProblem, match="A part of the path is a file"):
        Store(str(tmp_path / "file" / "cache"))


def one(data, name="x"):
    (found,) = decode_all(data, name, Resize(size=32))
    return found


def test_sizes_are_upright_and_of_the_file_though_jpegs_are_decoded_smaller():
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9003] = "2024:05:17 10:11:12"
    found = one(encoded(picture(0, (800, 600)), "JPEG", exif=exif))
    assert (found.width, found.height, found.taken) == (600, 800, "2024-05-17T10:11:12")
    upright = one(encoded(picture(0, (800, 600)).transpose(PillowImage.Transpose.ROTATE_270), "JPEG"))
    assert np.abs(found.pixels.astype(int) - upright.pixels).mean() < 3


def test_a_jpeg_that_was_cut_short_is_embedded_and_said_so_if_most_of_it_is_there():
    data = encoded(picture(0, (400, 300)), "JPEG", quality=95)
    assert not one(data).cut_short
    cut = one(data[: int(len(data) * 0.8)])
    assert cut.cut_short
    assert (cut.width, cut.height) == (400, 300)
    for share in (0.1, 0.3):
        with pytest.raises(BrokenImage, match="damaged or cut short"):
            one(data[: int(len(data) * share)])


def test_of_an_animation_the_first_the_middle_and_the_last_frame_are_taken():
    frames = [PillowImage.new("RGB", (20, 20), color) for color in ("red", "lime", "blue", "white", "black")]
    for kind in ("GIF", "WEBP", "PNG"):
        found = decode_all(
            encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50), "x", Resize(size=32)
        )
        assert [one.frame for one in found] == [0, 2, 4]
        colors = [one.pixels[16, 16].astype(int) for one in found]
        np.testing.assert_allclose(colors, [(255, 0, 0), (0, 0, 255), (0, 0, 0)], atol=4)
    assert len(decode_all(encoded(frames[0], "GIF"), "x", Resize(size=32))) == 1


def test_of_a_multi_picture_file_cmyk_and_sixteen_bits_all_are_read():
    found = one(encoded(picture(1, (64, 64)), "MPO", save_all=True, append_images=[picture(2, (64, 64))]))
    plain = one(encoded(picture(1, (64, 64)), "JPEG"))
    assert np.abs(found.pixels.astype(int) - plain.pixels).max() <= 2
    cmyk = one(encoded(picture(1, (64, 64)).convert("CMYK"), "JPEG"))
    assert np.abs(cmyk.pixels.astype(int) - plain.pixels).mean() < 4
    gray = np.asarray(picture(1, (64, 64)).convert("L"))
    sixteen = one(encoded(PillowImage.fromarray(gray.astype(np.uint16) * 257), "PNG"))
    eight = one(encoded(PillowImage.fromarray(gray), "PNG"))
    assert np.abs(sixteen.pixels.astype(int) - eight.pixels).max() <= 1


def test_heic_is_read_where_its_package_is_installed_and_named_where_not(monkeypatch):
    pytest.importorskip("pi_heif")
    # Written by pillow_heif: the same colors as `picture(0, (64, 48))`.
    found = one((Path(__file__).parent / "picture.heic").read_bytes())
    plain = one(encoded(picture(0, (64, 48)), "PNG"))
    assert np.abs(found.pixels.astype(int) - plain.pixels).mean() < 6
    assert (found.width, found.height, found.taken) == (64, 48, "2024-05-17T10:11:12")
    for setting in (None, "pi_heif"):
        if setting:
            monkeypatch.setitem(sys.modules, setting, None)
        with pytest.raises(BrokenImage, match=r"tll_jax\[heic\]" if setting else "a damaged HEIC"):
            one(b"\0\0\0\x18ftypheic" + bytes(60))


def test_a_jpeg_of_108_megapixels_is_read_at_an_eighth():
    big = PillowImage.fromarray(np.repeat(np.repeat(np.asarray(picture(3, (375, 281))), 32, 0), 32, 1))
    assert big.width * big.height > 107e6
    found = one(encoded(big, "JPEG", quality=30))
    assert (found.width, found.height) == big.size


def test_of_a_raw_file_the_preview_is_taken_upright():
    pytest.importorskip("rawpy")
    plain = picture(0, (64, 48))
    turns = {1: None, 6: PillowImage.Transpose.ROTATE_270, 8: PillowImage.Transpose.ROTATE_90}
    for orientation, turn in turns.items():
        found = one(dng(plain, orientation), "shot.DNG")
        expected = one(encoded(plain if turn is None else plain.transpose(turn), "PNG"))
        assert np.abs(found.pixels.astype(int) - expected.pixels).mean() < 6
        assert (found.width, found.height) == (expected.width, expected.height)
    with pytest.raises(BrokenImage, match="no preview can be read from the RAW file"):
        one(encoded(picture(0), "TIFF"), "x.dng")


def test_a_full_disk_is_said_with_the_mend(folder, tmp_path, monkeypatch):
    store, model = Store(str(tmp_path / "cache")), embedding()
    table = store.contents("cells", 48)

    def full(*_):
        raise RuntimeError("lance error: LanceError(IO): No space left on device (os error 28)")

    monkeypatch.setattr(type(table._table), "merge_insert", full)
    with pytest.raises(FileProblem, match=r"cells\.lance cannot be written: No space left on device\. Make room there"):
        embed_files(scan(roots_of([str(folder)]), ScanOptions()), store, model)
