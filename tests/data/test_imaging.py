"""Decoding of real files of all formats, and of broken ones."""

import io
import os
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tll_jax.data import imaging
from tll_jax.data.archive import Archive
from tll_jax.data.emoji import ARCHIVE
from tll_jax.data.geometry import RandomResizedCrop, Resize
from tll_jax.data.imaging import (
    FORMATS,
    BrokenImage,
    content_hash,
    decode,
    quiet_opencv,
    read_image,
    resize,
    write_image,
)


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
def test_a_file_that_is_not_an_image_is_refused_with_its_name(data, reason):
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
def test_an_animation_decodes_to_its_first_frame(kind):
    frames = [Image.new("RGB", (12, 8), color) for color in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options), "animated")
    assert np.array_equal(decoded, np.asarray(frames[0]))


def test_a_single_pixel_can_be_decoded_cropped_and_resized():
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
@settings(max_examples=300)
@given(data=st.data())
def test_a_file_damaged_anywhere_gives_pixels_or_a_reason_and_nothing_else(encoded, data):
    damaged = bytearray(data.draw(st.sampled_from(encoded)))
    # Changed bytes in the header have the largest effect.
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


def test_content_hashes_distinguish_pixels_and_shapes():
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


def chunk(kind, content=b""):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


MODES = {
    "RGB": "JPEG PNG WEBP TIFF",
    "L": "JPEG PNG WEBP TIFF",
    "RGBA": "PNG WEBP TIFF",
    "LA": "PNG",
    "CMYK": "JPEG TIFF",
    "I;16": "PNG TIFF",
}
ORIENTED = [(mode, kind) for mode, kinds in MODES.items() for kind in kinds.split()]
# Position of the upper left corner of a picture of two rows and three columns after it is made upright.
CORNERS = {1: (0, 0), 2: (0, 2), 3: (1, 2), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (2, 1), 8: (2, 0)}


def bright_corner(mode):
    """32 x 48 pixels, black but for the 16 in the upper left corner."""
    gray = np.zeros((32, 48), np.uint8)
    gray[:16, :16] = 255
    if mode == "I;16":
        return Image.fromarray(gray.astype(np.uint16) * 257)
    image = Image.fromarray(gray).convert("RGB")
    if mode in ("RGBA", "LA"):
        image.putalpha(255)
    return image.convert(mode)


@pytest.mark.parametrize(("mode", "kind"), ORIENTED)
def test_every_orientation_of_every_format_and_mode_comes_out_upright(mode, kind):
    for orientation, corner in CORNERS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        decoded = decode(encode(bright_corner(mode), kind, exif=exif), "turned")
        cells = decoded[8::16, 8::16, 0].astype(int)
        assert cells.shape == ((2, 3) if orientation <= 4 else (3, 2))
        assert tuple(np.argwhere(cells > 128)[0]) == corner, orientation
        assert (cells > 128).sum() == 1


@pytest.mark.parametrize(
    "exif", [b"garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b""]
)
@pytest.mark.parametrize(("mode", "kind"), [one for one in ORIENTED if one[1] != "TIFF"])
def test_damaged_exif_does_not_prevent_decoding(mode, kind, exif):
    plain = encode(bright_corner(mode), kind)
    if kind == "PNG":
        data = plain[:33] + chunk(b"eXIf", exif) + plain[33:]
    elif kind == "JPEG":
        data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    else:
        data = encode(bright_corner(mode), kind, exif=exif)
    assert np.array_equal(decode(data, "damaged"), decode(plain, "plain"))


def test_exif_behind_other_segments_counts():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(bright_corner("RGB"), "JPEG", exif=exif)
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x/>"
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp + data[2:]
    assert decode(data, "turned").shape == (48, 32, 3)


def ramp(highest, kind):
    return np.linspace(0, highest, 200).reshape(10, 20).astype(kind)


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        (ramp(1, np.float32), 255),
        (ramp(255, np.float32), 1),
        (ramp(0.01, np.float32), 255),
        (ramp(255, np.int32), 1),
        (ramp(65535, np.int32), 1 / 257),
        (ramp(255, np.uint16), 1),
        (ramp(65535, np.uint16), 1 / 257),
        (ramp(4095, np.uint16), 1 / 257),
        (ramp(0, np.float32), 1),
    ],
)
def test_wide_values_are_scaled_by_their_range(values, scale):
    decoded = decode(encode(Image.fromarray(values), "TIFF"), "wide.tif")
    expected = np.floor(values.astype(float) * scale)
    assert np.abs(decoded - expected[:, :, None]).max() <= 1


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (ramp(1.5, np.float32), r"go to 1\.5; floats from 0 to 1, or to 255 with some above 2"),
        (ramp(4000, np.float32), "go to 4000.0"),
        (ramp(1, np.float32) - 1, "go from -1.0 to"),
        (ramp(np.nan, np.float32), "go from nan"),
        (np.full((9, 9), np.inf, np.float32), "go from inf to inf"),
        (ramp(70000, np.int32), "go to 70000; whole numbers to 65535"),
        (ramp(9, np.int32) - 1, "go from -1 to"),
    ],
)
def test_wide_values_of_no_known_range_are_refused_in_words(values, reason):
    with pytest.raises(BrokenImage, match=f"wide.tif: its values {reason}"):
        decode(encode(Image.fromarray(values), "TIFF"), "wide.tif")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "I;16", "1"])
@pytest.mark.parametrize("cut", [1, 12, 14, 20])
def test_a_png_without_its_tail_is_refused_in_every_mode(picture, mode, cut):
    image = bright_corner("I;16") if mode == "I;16" else Image.fromarray(picture).convert(mode)
    with pytest.raises(BrokenImage, match="damaged or cut short"):
        decode(encode(image, "PNG")[:-cut], "cut.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_png_of_which_a_byte_has_changed_is_refused_in_every_mode(picture, mode):
    data = bytearray(encode(Image.fromarray(picture).convert(mode), "PNG", compress_level=0))
    data[len(data) // 2] ^= 1
    with pytest.raises(BrokenImage, match="damaged or cut short"):
        decode(bytes(data), "changed.png")


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_data_after_a_jpeg_neither_breaks_it_nor_completes_a_truncated_one(picture, options):
    data = encode(Image.fromarray(picture), "JPEG", quality=95, **options)
    whole = decode(data, "photo")
    movie = b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 9 + b"\xff\xda\xff\xd8"
    for rest in (movie, data, data[: len(data) // 2]):
        assert np.array_equal(decode(data + rest, "motion photo"), whole)
    for rest in (b"", movie, data):
        for share in (0.6, 0.9, 0.99):
            with pytest.raises(BrokenImage, match="damaged or cut short"):
                decode(data[: int(share * len(data))] + rest, "cut motion photo")


def test_a_thumbnail_does_not_end_a_jpeg(picture):
    image = Image.fromarray(picture)
    thumbnail = b"Exif\0\0" + encode(image.resize((16, 16)), "JPEG")
    data = encode(image, "JPEG")
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + data[2:]
    assert np.array_equal(decode(data, "photo"), decode(encode(image, "JPEG"), "photo"))
    for share in (0.5, 0.99):
        with pytest.raises(BrokenImage, match="damaged or cut short"):
            decode(data[: int(share * len(data))], "cut.jpg")


def test_the_first_of_two_pictures_in_a_file_is_taken(picture):
    frames = [Image.fromarray(picture), Image.new("RGB", (64, 64), "red")]
    data = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(decode(data, "stereo.mpo").astype(int) - picture).mean() < 6


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image that can be read"),
        (b"%PDF-1.7\n", "not an image that can be read"),
        (b"P6 1 1 255 abc", "not an image that can be read"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, which is not read: convert it to JPEG or PNG"),
        (b"\xff\x0a\0\0", "JPEG XL, which is not read"),
    ],
)
def test_only_listed_formats_are_opened_whatever_the_name(monkeypatch, start, reason):
    # Pillow would start Ghostscript for the first.
    monkeypatch.setattr(imaging.PillowImage, "open", None)
    with pytest.raises(BrokenImage, match=f"photo.jpg: {reason}"):
        decode(start + bytes(99), "photo.jpg")


@pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow cannot read AVIF")
def test_avif_is_read_where_pillow_can(picture):
    data = encode(Image.fromarray(picture), "AVIF", quality=90)
    assert np.abs(decode(data, "a.avif").astype(int) - picture).mean() < 6


def png_of(width, height, color, depth=8):
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND")


def jpeg_of(width, height, *, frame=0xC0, scans=1, components=1, in_scan=1, precision=8):
    parts = [b"\xff\xd8\xff", bytes([frame]), struct.pack(">HBHHB", 8, precision, height, width, components)]
    return b"".join([*parts, (b"\xff\xda" + struct.pack(">HB", 3, in_scan)) * scans, b"\xff\xd9"])


@pytest.mark.parametrize(
    ("data", "shortest_side", "reason"),
    [
        (png_of(1, 2**17 + 1, 6), None, "a side of at most 131,072"),
        (png_of(30_000, 3_000, 6), None, "more pixels than"),
        (jpeg_of(60_000, 60_000), 100, "more pixels than the 715,827,880"),
        (jpeg_of(20_000, 20_000), None, "more pixels than the 89,478,485"),
        (jpeg_of(20_000, 20_000, frame=0xC2), 100, "more pixels than the 89,478,485"),
        (jpeg_of(20_000, 20_000, components=3), 100, "more pixels than the 89,478,485"),
        (jpeg_of(9_000, 9_000, frame=0xC2, scans=30), None, "in 30 scans would take too long"),
        (jpeg_of(9, 9, precision=12), None, "12 bits, which is not read"),
        (encode(Image.new("RGB", (8, 8)), "JPEG")[:2] + b"\xff\xfe\0\2" * 2**17, None, "more than 131,072 parts"),
        (png_of(8, 8, 6)[:33] + chunk(b"tEXt") * 2**17, None, "more than 131,072 parts"),
        (b"GIF89a\x01\0\x01\0\0\0\0!\xfe" + b"\1a" * 2**17 + b"\1a", None, "more than 131,072 parts"),
        (b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 273, 4, 2**18, 0), None, "262,144 strips"),
    ],
)
def test_images_that_would_take_much_memory_or_time_are_refused_before_decoding(data, shortest_side, reason):
    with pytest.raises(BrokenImage, match=f"big: .*{reason}"):
        decode(data, "big", shortest_side=shortest_side)


def test_a_jpeg_too_large_to_read_whole_is_read_at_a_half(monkeypatch):
    data = encode(Image.new("RGB", (640, 480), "red"), "JPEG")
    monkeypatch.setattr(imaging, "MAX_PIXELS", 320 * 240)
    assert decode(data, "large", shortest_side=200).shape == (240, 320, 3)
    with pytest.raises(BrokenImage, match="more pixels than the 76,800"):
        decode(data, "large")


def test_profiles_of_a_png_are_not_unpacked(picture):
    data = encode(Image.fromarray(picture).convert("RGBA"), "PNG")
    bomb = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**20))) * 500
    assert np.array_equal(decode(data[:33] + bomb + data[33:], "bomb.png"), picture)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "CMYK"])
def test_decoding_in_several_strips_equals_decoding_in_one(monkeypatch, mode):
    data = encode(bright_corner(mode), "TIFF" if mode == "CMYK" else "PNG")
    whole = decode(data, "whole")
    monkeypatch.setattr(imaging, "_STRIP_PIXELS", 48 * 5)
    assert np.array_equal(decode(data, "strips"), whole)


def test_a_memory_error_is_not_reported_as_damage(monkeypatch, picture):
    def fail(*_):
        raise cv2.error("Failed to allocate")

    data = encode(Image.fromarray(picture), "JPEG")
    monkeypatch.setattr(imaging.cv2, "imdecode", fail)
    with pytest.raises(BrokenImage):
        decode(data, "photo")
    monkeypatch.setattr(cv2.error, "code", cv2.Error.STS_NO_MEM, raising=False)
    with pytest.raises(MemoryError):
        decode(data, "photo")


def test_a_path_that_is_not_a_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path, reason in (
        (tmp_path / "pipe.png", "no regular file"),
        (tmp_path, "no regular"),
        (tmp_path / "a", "not there"),
    ):
        with pytest.raises(FileNotFoundError, match=reason):
            read_image(path)
    for path in ("/dev/zero", ""):
        with pytest.raises(FileNotFoundError, match="no regular file"):
            read_image(Path(path))


def test_importing_the_package_does_not_change_opencv_settings():
    program = (
        "import cv2; before = cv2.getNumThreads(), cv2.utils.logging.getLogLevel(); import tll_jax.data.imaging as i; "
        "assert (cv2.getNumThreads(), cv2.utils.logging.getLogLevel()) == before; "
        "i.quiet_opencv(); assert cv2.getNumThreads() <= 1 and cv2.utils.logging.getLogLevel() == 0"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path.cwd())
