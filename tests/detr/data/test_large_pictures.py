"""Large pictures: a limit of our own that says what to do, Pillow's left to everybody else, and reduced decoding."""

import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from deform_attn.detr.config.detector import MAX_PIXELS
from deform_attn.detr.data.coco import CocoFolder
from deform_attn.detr.data.picture_file import check_header, read_picture_file
from deform_attn.detr.data.pillow_limit import lifted_limit
from deform_attn.detr.errors import DataError
from deform_attn.detr.prediction.predict import read_picture, sample_of, whole_image

FORMATS = ["jpg", "png", "tif", "webp", "bmp", "gif", "jp2"]


@pytest.fixture
def small_limit(monkeypatch):
    """Let Pillow warn above 600 pixels and refuse above 1200, so that small pictures are large ones."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)


def noise(width, height, seed=0):
    """Return a smooth picture with some noise, as photographs are."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return Image.fromarray((np.asarray(coarse) + rng.normal(0, 8, (height, width, 3))).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(40, 20), (40, 50)], ids=["it would warn", "it would refuse"])
@pytest.mark.parametrize("kind", FORMATS)
def test_pillow_neither_warns_nor_refuses_here(tmp_path, small_limit, kind, size):
    noise(*size).save(tmp_path / f"x.{kind}")
    check_header(tmp_path / f"x.{kind}", size, "x")
    assert read_picture_file(tmp_path / f"x.{kind}", size, "x").image.size == size
    assert Image.MAX_IMAGE_PIXELS == 600


def test_pillow_still_protects_everybody_else_meanwhile(tmp_path, small_limit):
    noise(40, 50).save(tmp_path / "x.png")
    noise(40, 20).save(tmp_path / "y.png")
    said = []

    def open_elsewhere():
        try:
            Image.open(tmp_path / "x.png")
        except Image.DecompressionBombError:
            said.append("refused")

    with lifted_limit(), Image.open(tmp_path / "x.png"):
        thread = threading.Thread(target=open_elsewhere)
        thread.start()
        thread.join()
    open_elsewhere()
    assert said == ["refused", "refused"]
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(tmp_path / "y.png").close()


def test_pillow_protects_others_after_an_error_here(tmp_path, small_limit):
    noise(40, 50).save(tmp_path / "x.png")
    with pytest.raises(DataError):
        read_picture_file(tmp_path / "x.png", (1, 1), "x")
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "x.png")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_above_the_limit_is_refused_with_what_to_do(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    noise(40, 50).save(path)
    message = (
        "x: the image has 40 x 50 = 2000 pixels, the limit is 1999; cut it into tiles, scale the file down, or pass "
        "--max-pixels 2000 (max_pixels in Python); decoding takes at least 4 bytes per pixel, or less for a JPEG with "
        "--max-size"
    )
    for check in (
        lambda limit: check_header(path, (40, 50), "x", limit),
        lambda limit: read_picture_file(path, (40, 50), "x", max_pixels=limit),
    ):
        with pytest.raises(DataError) as caught:
            check(1999)
        assert str(caught.value) == message
        check(2000)


def test_a_picture_above_the_limit_is_not_decoded_to_find_metadata_behind_its_pixels(tmp_path, monkeypatch):
    noise(40, 50).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    exif = b"\0\0\0\x08eXIfII*\0\x08\0\0\0" + bytes(4)
    (tmp_path / "x.png").write_bytes(content[:-12] + exif + content[-12:])

    def fail(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(AssertionError, match="decoded"):  # below the limit it is
        check_header(tmp_path / "x.png", (40, 50), "x", 2000)
    with pytest.raises(DataError, match="the limit is 1999"):
        check_header(tmp_path / "x.png", (40, 50), "x", 1999)


def test_the_limit_holds_a_picture_of_182_megapixels_and_no_bomb():
    assert 13_500**2 < MAX_PIXELS < 2**29


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(1001, 667), (803, 1207), (4003, 257)])
def test_a_jpeg_decoded_at_a_fraction_of_its_size_is_close_to_one_decoded_whole(
    tmp_path, size, orientation, monkeypatch
):
    path = tmp_path / "x.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise(*size).save(path, quality=92, exif=exif)
    reduced = read_picture_file(path, None, "x", max_size=100)
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", lambda *_: None)
    whole = read_picture_file(path, None, "x", max_size=100)
    upright = size[::-1] if orientation > 4 else size
    assert reduced.size == whole.size == upright
    assert reduced.image.size == whole.image.size
    assert max(reduced.image.size) == 100
    difference = np.abs(np.asarray(reduced.image).astype(int) - np.asarray(whole.image))
    assert difference.mean() < 1
    assert difference.max() <= 8


def test_a_large_jpeg_is_never_decoded_whole_where_it_is_scaled_down(tmp_path, monkeypatch):
    path = tmp_path / "x.jpg"
    noise(1600, 1200).save(path)
    decoded = []
    new = Image.core.new
    monkeypatch.setattr(Image.core, "new", lambda mode, size: decoded.append(size) or new(mode, size))
    read_picture_file(path, None, "x", max_size=100)
    assert max(decoded) == (200, 150)


def test_data_sets_and_predictions_give_the_model_the_same_pixels(tmp_path):
    noise(1001, 667).save(tmp_path / "x.jpg")
    table = {"id": 1, "file_name": "x.jpg", "width": 1001, "height": 667}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}
    content = {"images": [table], "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    sample = CocoFolder(tmp_path / "boxes.json", tmp_path, max_size=60)[0]
    picture = read_picture(tmp_path / "x.jpg", 60)
    assert torch.equal(sample.image, sample_of(picture).image)
    assert sample.original_size == sample_of(picture).original_size == (667, 1001)
    assert whole_image(tmp_path / "x.jpg", picture, MAX_PIXELS).size == (1001, 667)


def test_a_limit_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_pixels: expected a number of pixels, at least 1, got 0"):
        CocoFolder(tmp_path / "boxes.json", tmp_path, max_pixels=0)
