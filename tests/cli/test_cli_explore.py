"""The verb `explore`: a page of what the model attends to, and one line where there can be none."""

import base64
import json
import os
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from cli_cases import error_line, write_checkpoint
from PIL import Image

from deform_attn import record
from deform_attn.cli import main
from deform_attn.detr.data.batch import collate
from deform_attn.detr.model.deformable_detr import build_model
from deform_attn.detr.prediction.attended import attend
from deform_attn.detr.prediction.predict import predict, read_picture, sample_of
from deform_attn.evaluating import evaluating
from deform_attn.explore import Scene

HEIGHT, WIDTH = 70, 90  # larger than the checkpoint's 60 pixels


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "garden.jpg"
    numbers = np.random.default_rng(0)
    Image.fromarray(numbers.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
    return path


def page_data(path):
    (text,) = re.findall(
        r'<script type="application/json" id="scene">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL
    )
    return json.loads(text)


def array(data, layer, name, kind):
    return np.frombuffer(base64.b64decode(data["layers"][layer][name]), kind)


def test_the_page_shows_the_detections_of_predict_and_the_records_of_the_model(tmp_path, picture, capsys):
    detector = write_checkpoint(tmp_path / "run")
    out = tmp_path / "pages" / "garden.html"
    assert main(["explore", str(tmp_path / "run"), str(picture), "--out", str(out), "--threshold", "0"]) == 0
    data = page_data(out)
    found = predict(detector, [picture], tmp_path / "found", threshold=0).coco["annotations"]
    printed = capsys.readouterr().out
    assert printed.startswith(f"objects found: {len(data['detections'])}, layers: encoder 0, decoder 0\nwrote {out}, ")
    assert len(data["detections"]) == 10  # 5 queries, 2 categories
    boxes = {tuple(np.round(one["box"], 2)) for one in data["detections"]}
    for one in found:
        left, top, width, height = one["bbox"]
        assert any(np.allclose(box, (left, top, left + width, top + height), atol=0.02) for box in boxes)
    assert {one["label"] for one in data["detections"]} == {"ball", "block"}
    scores = [one["score"] for one in data["detections"]]
    assert scores == sorted(scores, reverse=True)

    batch = collate([sample_of(read_picture(picture, 60))])
    with torch.no_grad(), evaluating(detector.model), record(detector.model) as records:
        output = detector.model(batch.images, batch.padding_mask)
    for one in data["detections"]:
        label = ["ball", "block"].index(one["label"])
        assert one["score"] == pytest.approx(output.logits[0, one["query"], label].sigmoid().item(), abs=1e-5)
    # The picture became 47 x 60, the input 64 x 64: so much of the original does what was looked at span.
    span = np.array([64 / 60 * WIDTH, 64 / 47 * HEIGHT])
    for i, entry in enumerate(records):
        places = array(data, i, "locations", "<u2") / data["steps"] * 2 - 0.5
        exact = entry.locations[0].double().reshape(-1, 2).numpy() * span / np.array([WIDTH, HEIGHT])
        np.testing.assert_allclose(places.reshape(-1, 2), exact.clip(-0.5, 1.5), atol=1e-4)
    centres = array(data, 0, "references", "<f4").reshape(len(records[0].locations[0]), -1, 2)[:, 0]
    # The pixel at the top left of the first map has a stride of 8 pixels of the input.
    np.testing.assert_allclose(centres[0], (4 / 60 * WIDTH, 4 / 47 * HEIGHT), rtol=1e-5)
    np.testing.assert_allclose(centres[1], (12 / 60 * WIDTH, 4 / 47 * HEIGHT), rtol=1e-5)


def test_the_page_lists_more_than_100_objects_where_there_are_more_queries(tmp_path, picture):
    write_checkpoint(tmp_path / "run", names=("ball",), num_queries=250, two_stage=False)
    out = tmp_path / "x.html"
    assert main(["explore", str(tmp_path / "run"), str(picture), "--out", str(out), "--threshold", "0"]) == 0
    assert sorted(one["query"] for one in page_data(out)["detections"]) == list(range(250))


def test_without_a_name_the_page_is_called_as_the_picture_and_lies_here(tmp_path, picture, monkeypatch):
    write_checkpoint(tmp_path / "run")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert main(["explore", str(tmp_path / "run"), str(picture), "--max-size", "32"]) == 0
    assert [path.name for path in here.iterdir()] == ["garden.html"]
    shapes = page_data(here / "garden.html")["layers"][0]["shapes"]
    assert shapes == [[4, 4], [2, 2]]  # 25 x 32 pixels, padded to 32 x 32
    assert "<title>garden.jpg</title>" in (here / "garden.html").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="file systems of other platforms refuse such a name")
def test_a_picture_whose_name_is_no_utf8_has_a_page(tmp_path, picture, monkeypatch):
    write_checkpoint(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    named = picture.rename(tmp_path / os.fsdecode(b"g\xe4rden.jpg"))
    assert main(["explore", str(tmp_path / "run"), str(named), "--max-size", "32"]) == 0
    text = (tmp_path / os.fsdecode(b"g\xe4rden.html")).read_text(encoding="utf-8")
    assert "<title>g\N{REPLACEMENT CHARACTER}rden.jpg</title>" in text


def test_a_threshold_leaves_out_what_is_less_certain(tmp_path, picture):
    detector = write_checkpoint(tmp_path / "run")
    everything = attend(detector, picture, threshold=0)
    bar = everything.found.scores[3].item()
    some = attend(detector, picture, threshold=bar)
    assert torch.equal(some.queries, everything.queries[:4])
    assert torch.equal(some.found.boxes, everything.found.boxes[:4])


def test_as_published_too_the_pixels_of_a_map_lie_where_they_are_in_the_picture(tmp_path, picture):
    detector = write_checkpoint(tmp_path / "run")
    model = build_model(replace(detector.model.config, exact_padding=False))
    seen = attend(replace(detector, model=model), picture)
    layer = Scene(seen.picture, seen.records, frame=seen.frame).layers[0]
    for level, (first, stride) in enumerate(((0, 8), (64, 16))):
        for pixel in range(2):
            expected = torch.tensor([(pixel + 0.5) * stride / 60 * WIDTH, stride / 2 / 47 * HEIGHT])
            torch.testing.assert_close(layer.references[first + pixel, level], expected)


@pytest.mark.parametrize("trained", [True, False])
def test_the_detector_stays_in_its_mode(tmp_path, picture, trained):
    detector = write_checkpoint(tmp_path / "run")
    detector.model.train(trained)
    attend(detector, picture)
    assert all(module.training == trained for module in detector.model.modules())


def test_what_cannot_be_used_is_one_line(tmp_path, picture, capsys):
    write_checkpoint(tmp_path / "run")
    write_checkpoint(tmp_path / "dense", attention="dense")
    (tmp_path / "bad.png").write_text("no picture")
    (tmp_path / "file").write_text("no folder")
    run, out = tmp_path / "run", tmp_path / "x.html"
    for checkpoint, image, page, said in (
        (run, tmp_path / "gone.png", out, f"{tmp_path / 'gone.png'}: no such file"),
        (run, tmp_path / "bad.png", out, f"{tmp_path / 'bad.png'}: not a readable image"),
        (run, tmp_path, out, f"{tmp_path}: is a folder; pass one image"),
        (tmp_path / "nothing", picture, out, f"{tmp_path / 'nothing'}: no such directory"),
        (tmp_path / "dense", picture, out, "attention: expected a deformable one, got 'dense'"),
        (
            run,
            picture,
            tmp_path / "file" / "x.html",
            f"{tmp_path / 'file'}: is not a folder, so x.html cannot be written there",
        ),
    ):
        assert main(["explore", str(checkpoint), str(image), "--out", str(page)]) == 1
        line = error_line(capsys)
        assert line.startswith(f"deform-attn: error: {said}")
    assert not out.exists()


def test_a_page_that_would_overwrite_a_picture_is_wrong_usage(tmp_path, picture, capsys):
    before = picture.read_bytes()
    with pytest.raises(SystemExit) as stop:
        main(["explore", "run", str(picture), "--out", str(picture)])
    assert stop.value.code == 2
    assert "expected a name that ends in .html" in capsys.readouterr().err
    assert picture.read_bytes() == before
