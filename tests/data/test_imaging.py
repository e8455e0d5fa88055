"""Real encoded files of every kind a folder may hold, and broken ones."""

import io
import struct
import zlib
from contextlib import suppress

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tll_jax.data.archive import Archive
from tll_jax.data.emoji import ARCHIVE
from tll_jax.data.geometry import RandomResizedCrop, Resize
from tll_jax.data.imaging import BrokenImage, content_hash, decode, quiet_opencv, read_image, resize, write_image


@pytest.fixture(scope="module")
def picture():
    return decode(Archive(ARCHIVE).read("left/1f34e.webp"), "red apple")


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_an_emoji_decodes_to_rgb_not_bgr(picture):
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    red, _, blue = picture[32, 32].astype(int)
    assert red > blue + 80, "the apple is red"


def test_a_gray_image_becomes_rgb(picture):
    gray = Image.fromarray(picture).convert("L")
    for kind in ("PNG", "JPEG"):
        decoded = decode(encode(gray, kind), "gray")
        assert decoded.shape == (64, 64, 3)
        assert np.all(decoded[:, :, 0] == decoded[:, :, 2])


def test_sixteen_bits_become_eight():
    wide = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    _, data = cv2.imencode(".png", wide)
    decoded = decode(data.tobytes(), "wide")
    assert decoded.dtype == np.uint8
    np.testing.assert_allclose(decoded[:, :, 1], wide / 257, atol=1)


def test_a_cmyk_jpeg_has_the_colors_of_its_rgb(picture):
    cmyk = Image.fromarray(picture).convert("CMYK")
    decoded = decode(encode(cmyk, "JPEG", quality=95), "cmyk")
    assert np.abs(decoded.astype(int) - picture.astype(int)).mean() < 6


def test_transparency_is_composited_on_white():
    clear = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    assert np.all(decode(encode(clear, "PNG"), "clear") == 255)


def test_exif_orientation_is_applied():
    tall = Image.new("RGB", (20, 40), "black")
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encode(tall, "JPEG", exif=exif), "rotated").shape == (20, 40, 3)


def test_a_palette_image_keeps_its_colors(picture):
    palette = Image.fromarray(picture).convert("P", palette=Image.Palette.ADAPTIVE)
    decoded = decode(encode(palette, "PNG"), "palette")
    assert np.abs(decoded.astype(int) - picture.astype(int)).mean() < 8


def tiny_file_of(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(b"\0" * 100), b"IEND"]
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"<html>not found</html>", "not an image"),
        (tiny_file_of(30_000, 30_000), "more pixels than"),
        (tiny_file_of(9_000, 10_000), "more pixels than"),
    ],
    ids=["empty", "text", "bomb", "huge"],
)
def test_what_is_no_image_is_refused_with_its_name(data, reason):
    with pytest.raises(BrokenImage, match=f"thing.jpg: .*{reason}"):
        decode(data, "thing.jpg")


def test_a_jpeg_cut_short_is_refused_rather_than_filled_with_gray(picture):
    data = encode(Image.fromarray(picture), "JPEG")
    with pytest.raises(BrokenImage, match="damaged or cut short"):
        decode(data[: len(data) // 2], "half.jpg")


def test_shrinking_averages_areas():
    checkers = np.indices((8, 8)).sum(0) % 2 * 255
    image = np.repeat(checkers[:, :, None], 3, axis=2).astype(np.uint8)
    assert np.all(np.abs(resize(image, 4).astype(int) - 127.5) <= 0.5)


def test_a_transparent_color_is_composited_on_white():
    plain = Image.new("RGB", (8, 8), (10, 20, 30))
    assert np.all(decode(encode(plain, "PNG", transparency=(10, 20, 30)), "transparent") == 255)


def test_bytes_after_the_end_of_a_jpeg_do_not_make_it_broken(picture):
    data = encode(Image.fromarray(picture), "JPEG")
    assert np.array_equal(decode(data + b"\0" * len(data), "motion photo"), decode(data, "photo"))


def test_a_broken_image_is_reported_once_and_not_by_opencv_too(picture, capfd):
    data = encode(Image.fromarray(picture), "PNG")
    quiet_opencv()
    with pytest.raises(BrokenImage):
        decode(data[: len(data) // 2], "half.png")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (12, 8), color) for color in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options), "animated")
    assert np.array_equal(decoded, np.asarray(frames[0]))


def test_a_single_pixel_is_a_picture_to_decode_to_crop_and_to_resize():
    decoded = decode(encode(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"), "dot")
    assert decoded.tolist() == [[[9, 8, 7]]]
    views = [Resize(size=8)(None, decoded), RandomResizedCrop(size=8)(np.random.default_rng(0), decoded)]
    for view in views:
        assert np.array_equal(view, np.broadcast_to(decoded, (8, 8, 3)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_file_of_any_format_cut_short_is_refused(picture, kind):
    data = encode(Image.fromarray(picture), kind)
    with pytest.raises(BrokenImage, match=r"half\.jpg: "):
        decode(data[: len(data) // 2], "half.jpg")


@pytest.fixture(scope="module")
def encoded(picture):
    small = Image.fromarray(picture[16:48, 16:48])
    gray, palette = small.convert("L"), small.convert("P")
    kinds = [(small, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]
    return [encode(*each) for each in (*kinds, (small.convert("CMYK"), "JPEG"), (gray, "PNG"), (palette, "PNG"))]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_file_damaged_anywhere_gives_pixels_or_a_reason_and_nothing_else(encoded, data):
    damaged = bytearray(data.draw(st.sampled_from(encoded)))
    # Headers are where a changed byte does most.
    places = st.one_of(st.integers(0, 60), st.integers(0, len(damaged) - 1))
    for place in data.draw(st.lists(places, min_size=1, max_size=5)):
        damaged[place] = data.draw(st.integers(0, 255))
    with suppress(BrokenImage):
        pixels = decode(bytes(damaged), "damaged")
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3


@pytest.mark.parametrize(("side", "reason"), [(2**17 + 1, "a side of at most 131,072"), (2**17, "damaged or cut")])
def test_a_picture_of_one_endless_row_is_refused(picture, side, reason):
    data = bytearray(encode(Image.fromarray(picture), "BMP"))
    data[18:22] = struct.pack("<i", side)
    data[22:26] = struct.pack("<i", 1)
    with pytest.raises(BrokenImage, match=f"wide.bmp: .*{reason}"):
        decode(bytes(data), "wide.bmp")


@pytest.mark.parametrize(
    ("shortest_side", "expected"),
    [(None, (480, 640)), (480, (480, 640)), (241, (480, 640)), (240, (240, 320)), (100, (120, 160)), (20, (60, 80))],
)
def test_a_jpeg_is_read_smaller_only_as_far_as_its_shorter_side_allows(picture, shortest_side, expected):
    buffer = io.BytesIO()
    large = Image.fromarray(picture).resize((640, 480))
    large.save(buffer, "JPEG", quality=95)
    read = decode(buffer.getvalue(), "large", shortest_side=shortest_side)
    assert read.shape == (*expected, 3)
    # Areas are averaged: it looks like the whole picture made smaller.
    smaller = np.asarray(large.resize(expected[::-1], Image.Resampling.BOX), int)
    assert np.abs(read - smaller).mean() < 4


def test_other_formats_are_read_whole(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture).resize((640, 480)).save(buffer, "PNG")
    assert decode(buffer.getvalue(), "large", shortest_side=20).shape == (480, 640, 3)


def test_content_hashes_tell_pixels_and_shapes_apart():
    image = np.random.default_rng(0).integers(0, 256, size=(16, 16, 3), dtype=np.uint8)
    other = image.copy()
    other[0, 0, 0] ^= 1
    assert len({content_hash(image), content_hash(other), content_hash(image.reshape(8, 32, 3))}) == 3
    assert content_hash(image) == content_hash(image.copy())


def test_a_picture_is_written_whole_whatever_its_path_and_read_again(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    path = tmp_path / "new" / "caf\udce9\n.png"
    write_image(path, image)
    np.testing.assert_array_equal(read_image(path), image)
    assert list((tmp_path / "new").iterdir()) == [path]
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot be written: .*A part of the path is a file"):
        write_image(tmp_path / "file" / "a.png", image)
