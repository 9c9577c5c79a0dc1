"""Pictures through every verb: on their side, above the limit, without a certain meaning, and nearly black."""

import json

import numpy as np
import pytest
from cli_cases import edit, error_line, train, write_checkpoint
from PIL import Image

from deform_attn.cli import main
from deform_attn.detr.data.coco import CocoFolder

SIZE = (64, 48)


def replace_pictures(folder, write):
    """Write every picture of both splits anew, by `write(picture, path)`, as files that need not be PNGs."""
    for split in ("train", "val"):
        for path in (folder / split).glob("*.png"):
            with Image.open(path) as file:
                picture = file.copy()
            write(picture, path)


def lying(kind):
    """Return a function that writes a picture as a file of that kind, on its side."""

    def write(picture, path):
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.transpose(Image.Transpose.ROTATE_90).save(path, kind, exif=exif)

    return write


def verbs(folder):
    """Return the command line of each verb that reads pictures, on the pictures of `folder`."""
    run, picture = str(folder / "before"), str(folder / "val" / "0.png")
    data = ["--data", str(folder)]
    return {
        "train": ["train", *data, "--out", str(folder / "run"), "--epochs", "1", "--from", run],
        "train --skip-bad": [
            "train",
            *data,
            "--out",
            str(folder / "run-2"),
            "--epochs",
            "1",
            "--from",
            run,
            "--skip-bad",
        ],
        "evaluate": ["evaluate", run, *data],
        "evaluate --skip-bad": ["evaluate", run, *data, "--skip-bad"],
        "predict": ["predict", run, picture, "--out", str(folder / "out"), "--threshold", "0"],
        "explore": ["explore", run, picture, "--out", str(folder / "page.html"), "--threshold", "0"],
    }


VERBS = ["train", "train --skip-bad", "evaluate", "evaluate --skip-bad", "predict", "explore"]


def as_the_checkpoint_has_it(truth):
    for one in truth["annotations"]:
        one["category_id"] = 10
    truth["categories"][0]["id"] = 10


@pytest.fixture
def prepared(folder):
    """The folder, with a checkpoint `before` of its one category."""
    write_checkpoint(folder / "before", ("block",))
    for split in ("train", "val"):
        edit(folder / f"{split}.json", as_the_checkpoint_has_it)
    return folder


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", ["TIFF", "JPEG", "PNG", "WebP"])
def test_pictures_on_their_side_go_through_every_verb_upright(prepared, kind, verb):
    replace_pictures(prepared, lying(kind))
    assert main(verbs(prepared)[verb]) == 0
    if verb == "predict":
        (image,) = json.loads((prepared / "out" / "predictions.json").read_text())["images"]
        assert (image["width"], image["height"]) == SIZE
        CocoFolder(prepared / "out" / "predictions.json", prepared / "val")


@pytest.mark.parametrize("verb", VERBS[:4])
@pytest.mark.parametrize("kind", ["TIFF", "JPEG", "PNG", "WebP"])
def test_annotations_of_pictures_as_they_are_stored_are_refused_by_every_verb(prepared, kind, verb, capsys):
    replace_pictures(prepared, lying(kind))
    for split in ("train", "val"):
        edit(prepared / f"{split}.json", lambda truth: [one.update(width=48, height=64) for one in truth["images"]])
    assert main(verbs(prepared)[verb]) == 1
    assert "is 64 x 48 pixels large, the annotations say 48 x 64; annotate the upright" in error_line(capsys)


@pytest.mark.parametrize("verb", VERBS)
def test_a_large_picture_goes_through_every_verb_without_a_word_of_pillow(prepared, verb, monkeypatch, capsys):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # it would refuse 64 x 48
    assert main(verbs(prepared)[verb]) == 0
    assert "bomb" not in capsys.readouterr().err
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize("verb", VERBS)
def test_a_picture_above_the_limit_is_refused_by_every_verb(prepared, verb, capsys):
    assert main([*verbs(prepared)[verb], "--max-pixels", "3071"]) == 1
    line = error_line(capsys)
    assert "0.png" in line
    assert "64 x 48 = 3072 pixels, the limit is 3071; cut it into tiles" in line
    assert "--max-pixels 3072" in line
    assert main([*verbs(prepared)[verb], "--max-pixels", "3072"]) == 0


def test_the_limit_is_a_setting_that_a_file_can_hold(prepared, capsys):
    (prepared / "settings.toml").write_text("[data]\nmax_pixels = 3071\n")
    assert train(prepared, "--config", str(prepared / "settings.toml")) == 1
    assert "the limit is 3071" in error_line(capsys)
    assert train(prepared, "--config", str(prepared / "settings.toml"), "--print-config") == 0
    assert "max_pixels = 3071" in capsys.readouterr().out
    (prepared / "settings.toml").write_text("[data]\nmax_pixels = 0\n")
    assert train(prepared, "--config", str(prepared / "settings.toml")) == 1
    assert "data: max_pixels: must be above zero, got 0" in error_line(capsys)


@pytest.mark.parametrize("verb", VERBS)
def test_floating_point_pixels_are_refused_by_every_verb(prepared, verb, capsys):
    replace_pictures(prepared, lambda picture, path: picture.convert("F").save(path, "TIFF"))
    assert main(verbs(prepared)[verb]) == 1
    assert "0.png" in (line := error_line(capsys))
    assert "the pixels are floating-point numbers of unknown range; convert the image to 8 or 16 bits" in line


def twelve_bits(picture, path):
    """Write a picture in grey with 12 bits in 16."""
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 16).save(path, "PNG")


@pytest.mark.filterwarnings("default::deform_attn.detr.errors.DataWarning")
@pytest.mark.parametrize("verb", VERBS)
def test_12_bits_in_16_are_one_line_of_warning_in_every_verb(prepared, verb, capsys):
    replace_pictures(prepared, twelve_bits)
    assert main(verbs(prepared)[verb]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "16-bit" in line]
    assert len(lines) == (2 if "train" in verb else 1)  # one for each split
    assert all(line.startswith(f"deform-attn: {prepared}") for line in lines)
    assert "no pixel of this 16-bit image exceeds 6% of the range" in lines[0]
    assert "if the camera has 12 bits, multiply the pixels by 16" in lines[0]


@pytest.mark.parametrize("verb", VERBS)
def test_one_bright_picture_shows_that_all_16_bits_are_used(prepared, verb, capsys):
    replace_pictures(prepared, twelve_bits)
    for split, name in (("train", "1"), ("val", "0")):
        Image.fromarray(np.full(SIZE[::-1], 60000, np.uint16)).save(prepared / split / f"{name}.png")
    assert main(verbs(prepared)[verb]) == 0
    assert "16-bit" not in capsys.readouterr().err


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("verb", VERBS)
def test_damaged_exif_data_of_a_readable_image_are_one_line_per_file(prepared, verb, capsys):
    replace_pictures(prepared, lambda picture, path: picture.save(path, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0"))
    assert main(verbs(prepared)[verb]) == 0
    printed = capsys.readouterr().err
    lines = [line for line in printed.splitlines() if "Pillow warns" in line]
    assert all(line.startswith(f"deform-attn: {prepared}") for line in lines)
    pictures = [path for split in ("train", "val") for path in (prepared / split).glob("*.png")]
    read = {"train": len(pictures), "evaluate": len(list((prepared / "val").glob("*.png")))}
    assert len(lines) == read.get(verb.split()[0], 1)
    assert "UserWarning" not in printed
