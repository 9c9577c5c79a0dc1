"""Orientation: pictures of every format come out upright, and their header already says the upright size."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from deform_attn.detr.data.picture_file import check_header, read_picture_file
from deform_attn.detr.errors import DataError

WIDTH, HEIGHT = 48, 32
FORMATS = ["jpg", "mpo", "png", "png behind", "png text", "tif", "tif deflated", "tif in strips", "webp"]
Image.init()
FORMATS += ["avif"] if "AVIF" in Image.SAVE else []


def upright():
    """Return a picture whose four corners differ in brightness, so that each turn and each mirror image shows."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    half, middle = HEIGHT // 2, WIDTH // 2
    pixels[:half, middle:], pixels[half:, :middle], pixels[half:, middle:] = 80, 160, 240
    return Image.fromarray(pixels)


UNTURN = {  # by orientation, what a camera does to the upright picture; by the definition of EXIF, not by Pillow's
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: p.swapaxes(0, 1)[::-1],  # the first row stored is the right side
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: p.swapaxes(0, 1)[:, ::-1],  # the first row stored is the left side, from below
}


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def exif_text(text):
    """Return EXIF data whose orientation is a text of up to 3 letters, which Pillow does not write."""
    return b"Exif\0\0II*\0" + struct.pack("<IHHHI4sI", 8, 1, 0x0112, 2, len(text) + 1, text.encode(), 0)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def put_behind_pixels(path, addition):
    content = path.read_bytes()
    end = content.rindex(b"IEND") - 4
    path.write_bytes(content[:end] + addition + content[end:])


def write(folder, kind, orientation, picture=None):
    """Write the upright picture as a file of that kind and orientation, and return its path."""
    suffix, _, way = kind.partition(" ")
    path = folder / f"{orientation}.{suffix}"
    stored = Image.fromarray(np.ascontiguousarray(UNTURN[orientation](np.asarray(picture or upright()))))
    data = exif(orientation)
    if kind == "png behind":
        stored.save(path)
        put_behind_pixels(
            path, chunk(b"tEXt", b"Comment\0eXIf") + chunk(b"eXIf", data.tobytes().removeprefix(b"Exif\0\0"))
        )
    elif kind == "png text":
        stored.save(path)
        raw = data.tobytes()
        text = f"\nexif\n{len(raw):8}\n{raw.hex()}\n".encode()
        put_behind_pixels(path, chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)))
    elif kind == "mpo":
        stored.save(path, exif=data, save_all=True, append_images=[stored], quality=95)
    elif suffix == "tif":
        compression = {"compression": "tiff_deflate"} if way == "deflated" else {}
        stored.save(path, tiffinfo={0x0112: orientation} | ({278: 3} if way == "in strips" else {}), **compression)
    else:
        stored.save(path, exif=data, quality=95)
    return path


def assert_upright(picture):
    assert (picture.size, picture.image.size) == ((WIDTH, HEIGHT), (WIDTH, HEIGHT))
    assert np.abs(np.asarray(picture.image).astype(int) - np.asarray(upright())).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_comes_out_upright_whatever_its_orientation(tmp_path, kind, orientation):
    path = write(tmp_path, kind, orientation)
    check_header(path, (WIDTH, HEIGHT), "x")
    assert_upright(read_picture_file(path, (WIDTH, HEIGHT), "x"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", FORMATS)
def test_a_lying_size_is_refused_by_the_header_and_by_reading(tmp_path, kind, orientation):
    path = write(tmp_path, kind, orientation)
    for check in (check_header, read_picture_file):
        with pytest.raises(DataError, match="x: the image is 48 x 32 pixels large, the annotations say 32 x 48"):
            check(path, (HEIGHT, WIDTH), "x")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_that_is_scaled_down_keeps_its_orientation_and_tells_its_whole_size(tmp_path, kind, orientation):
    path = write(tmp_path, kind, orientation)
    picture = read_picture_file(path, None, "x", max_size=12)
    assert (picture.size, picture.image.size) == ((WIDTH, HEIGHT), (12, 8))
    expected = np.asarray(upright().resize((12, 8), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(np.asarray(picture.image).astype(int) - expected).mean() < 4


@pytest.mark.parametrize("kind", ["jpg", "png", "png behind", "webp"])
@pytest.mark.parametrize(
    "data", [exif(0), exif(9), exif(600), exif_text("6"), exif_text("6 x")], ids=["0", "9", "600", "text 6", "text"]
)
def test_an_orientation_that_does_not_exist_is_none(tmp_path, kind, data):
    path = tmp_path / f"x.{kind[:4].strip()}"
    if kind == "png behind":
        content = data if isinstance(data, bytes) else data.tobytes()
        upright().save(path)
        put_behind_pixels(path, chunk(b"eXIf", content.removeprefix(b"Exif\0\0")))
    else:
        upright().save(path, exif=data, quality=95)
    check_header(path, (WIDTH, HEIGHT), "x")
    assert_upright(read_picture_file(path, (WIDTH, HEIGHT), "x"))


@pytest.mark.parametrize("orientation", [0, 9, 600, "6"], ids=repr)
def test_an_orientation_that_does_not_exist_is_none_in_a_tiff(tmp_path, orientation):
    path = tmp_path / "x.tif"
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    if isinstance(orientation, str):
        tags.tagtype[0x0112] = 2  # text
    tags[0x0112] = orientation
    upright().save(path, tiffinfo=tags)
    check_header(path, (WIDTH, HEIGHT), "x")
    assert_upright(read_picture_file(path, (WIDTH, HEIGHT), "x"))


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("kind", ["jpg", "png", "png behind", "tif", "webp"])
def test_an_orientation_in_xmp_counts_as_one_in_exif(tmp_path, kind):
    stored = Image.fromarray(np.ascontiguousarray(UNTURN[6](np.asarray(upright()))))
    path = tmp_path / f"x.{kind[:4].strip()}"
    if kind.startswith("png"):
        text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
        stored.save(path)
        if kind == "png":
            content = path.read_bytes()
            at = content.index(b"IDAT") - 4
            path.write_bytes(content[:at] + text + content[at:])
        else:
            put_behind_pixels(path, text)
    elif kind == "tif":
        stored.save(path, tiffinfo={700: XMP})
    else:
        stored.save(path, xmp=XMP, quality=95)
    check_header(path, (WIDTH, HEIGHT), "x")
    assert_upright(read_picture_file(path, (WIDTH, HEIGHT), "x"))


def test_a_header_is_checked_without_decoding_the_pixels(tmp_path, monkeypatch):
    paths = [write(tmp_path, kind, 6) for kind in FORMATS if kind not in ("png behind", "png text")]
    plain = tmp_path / "plain.png"
    upright().save(plain)
    put_behind_pixels(plain, chunk(b"tEXt", b"date:create\0today"))

    def fail(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", fail)
    for path in (*paths, plain):
        check_header(path, (WIDTH, HEIGHT), "x")


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_damaged_exif_data_are_told_from_damaged_pixels(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    upright().save(path, exif=b"Exif\0\0IX*\0" + bytes(20))
    for check in (check_header, read_picture_file):
        with pytest.raises(DataError, match=r"x: the EXIF data cannot be read \(.*\); remove or repair them"):
            check(path, (WIDTH, HEIGHT), "x")


def test_damaged_exif_data_of_a_jpeg_say_nothing_as_in_pillow(tmp_path):
    path = tmp_path / "x.jpg"
    upright().save(path, exif=b"Exif\0\0IX*\0" + bytes(20), quality=95)
    check_header(path, (WIDTH, HEIGHT), "x")
    assert_upright(read_picture_file(path, (WIDTH, HEIGHT), "x"))
