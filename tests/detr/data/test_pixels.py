"""Pixels: each kind that Pillow reads becomes the right RGB, or is refused with the file's name."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from deform_attn.detr.data.brightness import warn_if_dark
from deform_attn.detr.data.picture_file import check_header, read_picture_file
from deform_attn.detr.data.pixels import _WAYS, eight_bits
from deform_attn.detr.errors import DataError, DataWarning

HEIGHT, WIDTH = 6, 10


def read(path):
    """Return the RGB pixels of a picture that both checks find good."""
    check_header(path, (WIDTH, HEIGHT), "x")
    return np.asarray(read_picture_file(path, (WIDTH, HEIGHT), "x").image).astype(int)


def colours():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def ramp(last, dtype=np.uint16):
    """Return [HEIGHT, WIDTH] numbers from 0 to `last`."""
    return np.linspace(0, last, HEIGHT * WIDTH).round().astype(dtype).reshape(HEIGHT, WIDTH)


def assert_grey(pixels, expected):
    assert np.abs(pixels - np.asarray(expected)[..., None]).max() <= 0.51


def png(bits, colour, rows):
    """Return a PNG of `rows`, the bytes of each."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colour, 0, 0, 0))
    pixels = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tiff(values, bits, *, photometric=1, sample_format=1, order="<", samples=1):
    """Return an uncompressed TIFF of the bytes `values`."""
    tags = [
        (256, WIDTH),
        (257, HEIGHT),
        (259, 1),
        (262, photometric),
        (277, samples),
        (278, HEIGHT),
        (279, len(values)),
    ]
    entries = [(tag, 3, 1, struct.pack(order + "HH", value, 0)) for tag, value in tags]
    offset = 8 + 2 + 12 * 10 + 4
    pairs = [(258, bits, offset), (339, sample_format, offset + 2 * samples)]
    for tag, value, place in pairs:
        inline = struct.pack(order + "HH", value, 0) if samples == 1 else struct.pack(order + "I", place)
        entries.append((tag, 3, samples, inline))
    entries.append((273, 4, 1, struct.pack(order + "I", offset + 4 * samples)))
    body = b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in sorted(entries))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    extra = struct.pack(order + f"{2 * samples}H", *[bits] * samples, *[sample_format] * samples)
    return head + body + bytes(4) + extra + values


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV"])
def test_colours_of_every_mode_come_out(mode):
    pixels = colours()
    picture = Image.fromarray(pixels)
    picture = picture.quantize(200).convert(mode) if mode in ("P", "PA") else picture.convert(mode)
    result = np.asarray(eight_bits(picture, "x")).astype(int)
    assert np.abs(result - pixels).mean() < (20 if mode in ("P", "PA") else 6)


def test_every_mode_of_pillow_is_read_or_refused_by_name(tmp_path):
    known = {*_WAYS, "I", "I;16", "I;16B", "I;16L", "I;16N", "F"}
    assert set(Image.MODES) <= known


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La"])
def test_grey_of_every_mode_comes_out(mode):
    picture = Image.fromarray((colours()[..., 0] > 127).astype(np.uint8) * 255)
    result = eight_bits(picture.convert("LA").convert("La") if mode == "La" else picture.convert(mode), "x")
    assert np.array_equal(np.asarray(result), np.asarray(picture))


def test_colours_with_premultiplied_alpha_are_divided_by_it():
    picture = Image.new("RGBA", (2, 2), (200, 100, 40, 128))
    assert np.abs(np.asarray(eight_bits(picture.convert("RGBa"), "x")).astype(int) - (200, 100, 40)).max() <= 1


@pytest.mark.parametrize("transparency", [3, bytes(range(256))], ids=["one colour", "each colour"])
def test_a_palette_keeps_its_colours_under_transparency(tmp_path, transparency):
    picture = Image.fromarray(colours()).quantize(200)
    picture.save(tmp_path / "x.png", transparency=transparency)
    assert np.array_equal(read(tmp_path / "x.png"), np.asarray(picture.convert("RGB")))


def test_a_jpeg_of_adobe_whose_inks_are_inverted_has_its_colours(tmp_path):
    picture = Image.new("CMYK", (WIDTH, HEIGHT), (255, 0, 0, 0))  # cyan
    picture.save(tmp_path / "x.jpg", quality=95)
    assert b"Adobe" in (tmp_path / "x.jpg").read_bytes()
    assert np.abs(read(tmp_path / "x.jpg") - (0, 255, 255)).max() <= 3


def test_a_tiff_in_lab_has_its_colours(tmp_path):
    lab = struct.pack("Bbb", 138, 81, 70)  # 54.3, 81, 70: pure red under the white of D50
    (tmp_path / "x.tif").write_bytes(tiff(lab * (HEIGHT * WIDTH), 8, photometric=8, samples=3))
    assert np.abs(read(tmp_path / "x.tif") - (255, 0, 0)).max() <= 6  # a unit of LAB is several of red here


@pytest.mark.parametrize("colour", [0, 2, 4, 6], ids=["grey", "RGB", "grey and alpha", "RGBA"])
def test_a_png_of_16_bits_is_scaled_to_8(tmp_path, colour):
    samples = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    values = ramp(65535)
    (tmp_path / "x.png").write_bytes(
        png(16, colour, np.repeat(values[..., None], samples, 2).astype(">u2").view("u1").reshape(HEIGHT, -1))
    )
    assert np.abs(read(tmp_path / "x.png") - (values / 257)[..., None]).max() <= 1


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_png_of_few_bits_is_scaled_to_8(tmp_path, bits):
    values = np.resize(np.arange(2**bits), (HEIGHT, 16))
    packed = np.packbits((values[..., None] >> np.arange(bits - 1, -1, -1)) & 1, axis=None).reshape(HEIGHT, -1)
    (tmp_path / "x.png").write_bytes(png(bits, 0, packed[:, : -(-WIDTH * bits // 8)]))
    assert_grey(read(tmp_path / "x.png"), values[:, :WIDTH] * 255 / (2**bits - 1))


# A big-endian one whose white is zero is not opened by Pillow.
@pytest.mark.parametrize(("order", "photometric"), [("<", 0), ("<", 1), (">", 1)])
def test_a_tiff_of_16_bits_is_scaled_to_8(tmp_path, order, photometric):
    values = ramp(65535)
    (tmp_path / "x.tif").write_bytes(
        tiff(values.astype(order + "u2").tobytes(), 16, photometric=photometric, order=order)
    )
    assert_grey(read(tmp_path / "x.tif"), values / 257 if photometric else 255 - values / 257)


def test_a_tiff_of_12_bits_is_scaled_by_them(tmp_path):
    values = ramp(4095)
    pairs = values.reshape(-1, 2)
    packed = np.stack((pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255), 1)
    (tmp_path / "x.tif").write_bytes(tiff(packed.astype(np.uint8).tobytes(), 12))
    assert_grey(read(tmp_path / "x.tif"), values / 4095 * 255)


@pytest.mark.parametrize("most", [255, 1000, 4095, 65535])
def test_a_pgm_is_scaled_by_its_largest_number(tmp_path, most):
    values = ramp(most)
    (tmp_path / "x.pgm").write_bytes(
        f"P5 {WIDTH} {HEIGHT} {most}\n".encode() + values.astype(">u2" if most > 255 else "u1").tobytes()
    )
    assert_grey(read(tmp_path / "x.pgm"), values / most * 255)


def test_numbers_of_32_bits_are_read_as_the_16_that_they_hold(tmp_path):
    values = ramp(65535, np.int32)
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert_grey(read(tmp_path / "x.tif"), values / 257)


def refuse(path, message, *, by_header):
    """Check what reading says of the picture, and that its header already says it, or not."""
    with pytest.raises(
        DataError, match=rf"^x: the pixels are {message}; convert the image to 8 or 16 bits per channel"
    ):
        read_picture_file(path, (WIDTH, HEIGHT), "x")
    if by_header:
        with pytest.raises(DataError, match=message):
            check_header(path, (WIDTH, HEIGHT), "x")
    else:
        check_header(path, (WIDTH, HEIGHT), "x")


@pytest.mark.parametrize(("low", "high"), [(0, 65536), (-1, 5), (0, 2**31 - 1)])
def test_numbers_of_more_than_16_bits_are_refused(tmp_path, low, high):
    values = np.array([low, high] * (HEIGHT * WIDTH // 2), dtype=np.int32).reshape(HEIGHT, WIDTH)
    Image.fromarray(values).save(tmp_path / "x.tif")
    refuse(tmp_path / "x.tif", f"numbers from {low} to {high}, expected 0 to 65535", by_header=False)


@pytest.mark.parametrize("most", [1, 255, 65535])
@pytest.mark.parametrize("kind", ["tif", "pfm"])
def test_floating_point_numbers_are_refused(tmp_path, most, kind):
    Image.fromarray(np.full((HEIGHT, WIDTH), most, dtype=np.float32)).save(tmp_path / f"x.{kind}")
    refuse(tmp_path / f"x.{kind}", "floating-point numbers of unknown range", by_header=True)


@pytest.mark.parametrize("bits", [8, 16])
def test_numbers_with_a_sign_are_refused(tmp_path, bits):
    (tmp_path / "x.tif").write_bytes(tiff(ramp(100, f"i{bits // 8}").tobytes(), bits, sample_format=2))
    refuse(tmp_path / "x.tif", f"signed {bits}-bit numbers of unknown range", by_header=True)


def test_a_mode_that_is_not_known_is_refused(tmp_path, monkeypatch):
    Image.fromarray(colours()).save(tmp_path / "x.png")
    monkeypatch.delitem(_WAYS, "RGB")
    refuse(tmp_path / "x.png", "in Pillow's mode RGB, which cannot be read here", by_header=True)


def bytes_of(values, samples, dtype):
    """Return the rows of bytes of a picture whose channels all have these `values`."""
    return np.repeat(values[..., None], samples, 2).astype(dtype).view("u1").reshape(HEIGHT, -1)


DARK = {
    "grey PNG": lambda last: png(16, 0, bytes_of(ramp(last), 1, ">u2")),
    "RGB PNG": lambda last: png(16, 2, bytes_of(ramp(last), 3, ">u2")),
    "grey TIFF": lambda last: tiff(bytes_of(ramp(last), 1, "<u2").tobytes(), 16),
    "RGB TIFF": lambda last: tiff(bytes_of(ramp(last), 3, "<u2").tobytes(), 16, photometric=2, samples=3),
    "32-bit TIFF": lambda last: tiff(bytes_of(ramp(last), 1, "<i4").tobytes(), 32, sample_format=2),
}


@pytest.mark.parametrize(("last", "dark"), [(4095, True), (16383, True), (65535, False)])
@pytest.mark.parametrize("kind", DARK)
def test_it_is_seen_when_16_bits_hold_fewer(tmp_path, kind, last, dark):
    (tmp_path / "x").write_bytes(DARK[kind](last))
    brightest = read_picture_file(tmp_path / "x", None, "x").brightest
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_dark([("x", brightest)])
    assert [issubclass(one.category, DataWarning) for one in caught] == [True] * dark
    if dark:
        share = 6 if last == 4095 else 25
        assert str(caught[0].message).startswith(
            f"x: no pixel of this 16-bit image exceeds {share}% of the range, so it"
        )


def test_8_bits_have_no_brightness_to_judge(tmp_path):
    Image.new("L", (WIDTH, HEIGHT), 3).save(tmp_path / "x.png")
    assert check_header(tmp_path / "x.png", (WIDTH, HEIGHT), "x") is False
    assert read_picture_file(tmp_path / "x.png", None, "x").brightest is None


def test_a_dark_picture_among_bright_ones_and_a_black_one_are_no_reason_to_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_dark([])
        warn_if_dark([("black.png", 0)])
        warn_if_dark([("dark.png", 16), ("bright.png", 250)])
    with pytest.warns(DataWarning, match=r"^b: no pixel .* exceeds 12% .*, and no pixel of the 1 other ones read does"):
        warn_if_dark([("a", 16), ("b", 30)])
