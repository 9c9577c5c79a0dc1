"""The verb `predict`: pictures with boxes, a COCO file, and pictures that cannot be read."""

import json

import numpy as np
import pytest
import torch
from cli_cases import error_line, write_checkpoint
from PIL import Image
from pycocotools.coco import COCO

from deform_attn.cli import main
from deform_attn.detr.data.batch import collate
from deform_attn.detr.data.coco import CocoFolder
from deform_attn.detr.prediction import predict as predict_module
from deform_attn.detr.prediction.predict import find_pictures, predict, read_picture, sample_of


@pytest.fixture
def pictures(tmp_path):
    """A folder with pictures of three sizes, two of which have one stem."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    numbers = np.random.default_rng(0)
    for name, size in (("a.jpg", (48, 64)), ("a.bmp", (48, 64)), ("b.png", (48, 64)), ("c.webp", (90, 70))):
        Image.fromarray(numbers.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture either")
    return folder


def run(checkpoint, *arguments, out):
    return main(["predict", str(checkpoint), *map(str, arguments), "--out", str(out), "--threshold", "0"])


def test_predictions_are_those_of_the_model_and_load_as_data_set_and_as_results(tmp_path, pictures, capsys):
    detector = write_checkpoint(tmp_path / "run")
    assert run(tmp_path / "run", pictures, out=tmp_path / "out") == 0
    file = tmp_path / "out" / "predictions.json"
    content = json.loads(file.read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.bmp", "a.jpg", "b.png", "c.webp"]
    assert content["categories"] == [{"id": 10, "name": "ball"}, {"id": 11, "name": "block"}]
    data = CocoFolder(file, pictures, max_size=detector.max_size)  # checks sizes and boxes
    for index in range(4):
        (expected,) = detector.model.detect(collate([data[index]]))
        mine = [one for one in content["annotations"] if one["image_id"] == index + 1]
        boxes = torch.tensor([one["bbox"] for one in mine])
        # Pictures of one size go through the model together, which may add the same numbers in another order.
        torch.testing.assert_close(torch.tensor([one["score"] for one in mine]), expected.scores, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(boxes[:, :2] + boxes[:, 2:], expected.boxes[:, 2:], rtol=1e-5, atol=1e-3)
        assert [one["category_id"] for one in mine] == [10 + label for label in expected.labels.tolist()]
    results = COCO(file).loadRes(content["annotations"])
    assert len(results.getAnnIds()) == len(content["annotations"]) > 0
    assert f"images: 4, objects found: {len(content['annotations'])}, images skipped: 0\n" in capsys.readouterr().out


def test_more_than_100_objects_are_found_where_there_are_more_queries(tmp_path, pictures):
    detector = write_checkpoint(tmp_path / "run", names=("ball",), num_queries=250, two_stage=False)
    annotations = predict(detector, [pictures / "b.png"], tmp_path / "out", threshold=0).coco["annotations"]
    assert len(annotations) == 250
    (found,) = detector.model.detect(collate([sample_of(read_picture(pictures / "b.png", detector.max_size))]))
    bar = found.scores.median().item()
    some = predict(detector, [pictures / "b.png"], tmp_path / "out", threshold=bar).coco["annotations"]
    assert len(some) == (found.scores >= bar).sum() > 100


def test_each_picture_is_drawn_under_a_name_of_its_own(tmp_path, pictures):
    write_checkpoint(tmp_path / "run")
    assert run(tmp_path / "run", pictures, pictures / "b.png", out=tmp_path / "out") == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a.jpg", "a.png", "b.png", "c.png", "predictions.json"]
    upper = tmp_path / "upper"
    upper.mkdir()
    (pictures / "b.png").rename(upper / "A.png")
    assert run(tmp_path / "run", pictures, upper, out=tmp_path / "again") == 0
    names = sorted(path.name for path in (tmp_path / "again").iterdir())
    assert names == ["A-2.png", "a.jpg", "a.png", "c.png", "predictions.json"]
    content = json.loads((tmp_path / "again" / "predictions.json").read_text())
    assert content["images"][-1]["file_name"] == "upper/A.png"


def pixels_of(path):
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def test_boxes_are_drawn_where_they_were_found(tmp_path):
    detector = write_checkpoint(tmp_path / "run")
    Image.new("RGB", (600, 480), "black").save(tmp_path / "night.png")
    result = predict(detector, [tmp_path / "night.png"], tmp_path / "out", threshold=0)
    drawn = pixels_of(tmp_path / "out" / "night.png")
    assert drawn.shape == (480, 600, 3)
    best = max(result.coco["annotations"], key=lambda one: one["score"])
    left, top, width, _ = best["bbox"]
    column = round(min(max(left + width / 2, 2), 597))
    rows = slice(max(round(top) - 4, 0), round(top) + 5)
    assert drawn[rows, column].sum(-1).max() > 200  # a bright line on a black picture
    predict(detector, [tmp_path / "night.png"], tmp_path / "out", threshold=1)
    assert pixels_of(tmp_path / "out" / "night.png").max() == 0


@pytest.mark.parametrize("kind", ["grey", "RGBA", "16 bits", "EXIF"])
def test_pictures_of_any_kind_are_read_as_in_training(tmp_path, kind):
    write_checkpoint(tmp_path / "run")
    pixels = np.random.default_rng(1).integers(0, 256, (40, 64), dtype=np.uint8)
    path, options = tmp_path / "x.png", {}
    picture = Image.fromarray(pixels.astype(np.uint16) * 257 if kind == "16 bits" else pixels)
    if kind == "RGBA":
        picture = picture.convert("RGBA")
    if kind == "EXIF":
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees
        options = {"exif": exif}
    picture.save(path, **options)
    assert run(tmp_path / "run", path, out=tmp_path / "out") == 0
    (image,) = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    expected = (40, 64) if kind == "EXIF" else (64, 40)
    assert (image["width"], image["height"]) == expected
    with Image.open(tmp_path / "out" / "x.png") as drawn:
        width, height = drawn.size
    assert (width > height) == (expected[0] > expected[1])
    CocoFolder(tmp_path / "out" / "predictions.json", tmp_path)[0]


def test_what_is_found_in_a_picture_does_not_depend_on_the_others(tmp_path, pictures, monkeypatch):
    detector = write_checkpoint(tmp_path / "run")
    together = predict(detector, find_pictures([pictures]), tmp_path / "out", threshold=0)
    monkeypatch.setattr(predict_module, "_MOST_PIXELS", 1)
    sizes = []
    detect = detector.model.detect
    monkeypatch.setattr(detector.model, "detect", lambda batch: sizes.append(len(batch.samples)) or detect(batch))
    alone = predict(detector, find_pictures([pictures]), tmp_path / "out", threshold=0)
    assert sizes == [1, 1, 1, 1]
    for one, other in zip(together.coco["annotations"], alone.coco["annotations"], strict=True):
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-3)


def test_a_picture_that_cannot_be_read_stops_or_is_listed(tmp_path, pictures, capsys):
    write_checkpoint(tmp_path / "run")
    (pictures / "b.png").write_text("not a picture")
    assert run(tmp_path / "run", pictures, out=tmp_path / "out") == 1
    line = error_line(capsys)
    assert line.startswith(f"deform-attn: error: {pictures / 'b.png'}: not a readable image")
    assert not (tmp_path / "out" / "predictions.json").exists()
    assert run(tmp_path / "run", pictures, "--skip-bad", out=tmp_path / "out") == 0
    printed = capsys.readouterr()
    assert printed.err.startswith(f"deform-attn: skipped: {pictures / 'b.png'}: not a readable image")
    assert "images: 3, " in printed.out
    assert "images skipped: 1\n" in printed.out
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2, 3]


def test_nothing_to_predict_is_one_line(tmp_path, pictures, capsys):
    write_checkpoint(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_text("not a picture")
    for place, said in (
        ("empty", "no image in this folder"),
        ("gone.png", "no such file or folder"),
        ("bad.png", "not a readable image"),
    ):
        assert run(tmp_path / "run", tmp_path / place, "--skip-bad", out=tmp_path / "out") == 1
        assert error_line(capsys).startswith(f"deform-attn: error: {tmp_path / place}: {said}")
    assert not (tmp_path / "out" / "predictions.json").exists()


def test_originals_are_never_written_over(tmp_path, pictures, capsys):
    write_checkpoint(tmp_path / "run")
    before = {path: path.read_bytes() for path in pictures.iterdir()}
    assert run(tmp_path / "run", pictures, out=pictures) == 1
    assert "holds the images themselves" in error_line(capsys)
    assert {path: path.read_bytes() for path in pictures.iterdir()} == before
    assert run(tmp_path / "run", pictures, out=pictures / "b.png") == 1
    assert "is not a folder" in error_line(capsys)


@pytest.mark.parametrize("threshold", ["2", "-0.1", "much"])
def test_a_threshold_that_is_no_score_is_wrong_usage(tmp_path, capsys, threshold):
    with pytest.raises(SystemExit) as stop:
        main(["predict", "run", "x.png", "--out", str(tmp_path), f"--threshold={threshold}"])
    assert stop.value.code == 2
    assert "expected a number from 0 to 1" in capsys.readouterr().err


def test_an_original_behind_a_link_is_never_written_over(tmp_path, capsys):
    write_checkpoint(tmp_path / "run")
    for folder in ("originals", "links"):
        (tmp_path / folder).mkdir()
    original = tmp_path / "originals" / "a.png"
    Image.new("RGB", (64, 48), "green").save(original)
    (tmp_path / "links" / "a.png").symlink_to(original)
    before = original.read_bytes()
    assert run(tmp_path / "run", tmp_path / "links", out=tmp_path / "originals") == 1
    assert "holds the images themselves" in error_line(capsys)
    assert original.read_bytes() == before


def test_a_full_disk_is_one_line_with_the_file(tmp_path, pictures, capsys, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    write_checkpoint(tmp_path / "run")
    monkeypatch.setattr(Image.Image, "save", full)
    assert run(tmp_path / "run", pictures / "b.png", out=tmp_path / "out") == 1
    said = f"No space left on device; it is not written: '{tmp_path / 'out' / 'b.png'}'"
    assert error_line(capsys) == f"deform-attn: error: [Errno 28] {said}"


def test_without_an_error_stream_predictions_are_made_all_the_same(tmp_path, pictures, monkeypatch):
    write_checkpoint(tmp_path / "run")
    monkeypatch.setattr("sys.stderr", None)
    assert run(tmp_path / "run", pictures, out=tmp_path / "out") == 0
    assert (tmp_path / "out" / "predictions.json").exists()


def test_a_line_break_in_a_category_is_drawn_as_a_space(tmp_path, pictures):
    for name, names in (("breaks", ("a\nb", "c")), ("spaces", ("a b", "c"))):
        write_checkpoint(tmp_path / name, names=names)
        assert run(tmp_path / name, pictures / "b.png", out=tmp_path / "out" / name) == 0
    breaks, spaces = (pixels_of(tmp_path / "out" / name / "b.png") for name in ("breaks", "spaces"))
    assert (breaks == spaces).all()


def test_where_nothing_is_found_the_threshold_is_named(tmp_path, pictures, capsys):
    write_checkpoint(tmp_path / "run")
    options = "--out", str(tmp_path / "out"), "--threshold", "1"
    assert main(["predict", str(tmp_path / "run"), str(pictures), *options]) == 0
    printed = capsys.readouterr()
    assert "objects found: 0" in printed.out
    assert printed.err == "deform-attn: no score is above --threshold 1.0: lower it, or train longer\n"
