"""The trees data set: cut as docs/trees.md says, and committed figures that are those of its recipe."""

import io
import json
import zipfile

import pytest
from PIL import Image

from benchmarks import report, trees, trees_data
from deform_attn.detr.checkpoints import checkpoint
from deform_attn.detr.config.detector import ModelConfig
from deform_attn.detr.config.run import Settings, read_settings
from deform_attn.detr.data.base import Category
from deform_attn.detr.data.coco import CocoFolder
from deform_attn.detr.model.deformable_detr import build_model
from deform_attn.detr.model.detector import Detector

VOC = "<annotation>{}</annotation>"
BOX = "<object><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


@pytest.fixture
def wheel(tmp_path):
    """Return a package with photographs of 1,000 x 640 pixels, whose trees lie on both sides of the 60 % line."""
    picture = io.BytesIO()
    Image.new("RGB", (1000, 640), (40, 90, 40)).save(picture, "PNG")
    voc = VOC.format(
        "".join(BOX.format(*box) for box in [(10, 10, 50, 40), (595, 300, 635, 340), (900, 600, 930, 630)])
    )
    path = tmp_path / "package.whl"
    with zipfile.ZipFile(path, "w") as package:
        for name in {strip.photograph for strip in trees_data.STRIPS}:
            package.writestr(f"deepforest/data/{name}.png", picture.getvalue())
            package.writestr(f"deepforest/data/{name}.xml", voc)
        package.writestr("deepforest.dist-info/licenses/LICENSE", "MIT")
    return path


def test_the_tiles_of_a_strip_cover_it_and_leave_it_nowhere():
    assert trees_data.starts(749, 1249) == [749, 929]
    assert trees_data.starts(0, 320) == [0]
    found = [(left, top) for left, top, _ in trees_data.tiles(trees_data.STRIPS[2], (1249, 1035), [(0, 0, 1249, 1035)])]
    assert found == []  # less than the share that must lie inside
    everywhere = [(x, y, x + 10, y + 10) for x in range(0, 1240, 10) for y in range(0, 1030, 10)]
    found = [(left, top) for left, top, _ in trees_data.tiles(trees_data.STRIPS[2], (1249, 1035), everywhere)]
    assert found == [(left, top) for top in (0, 256, 512, 715) for left in (749, 929)]


def test_a_box_stays_if_enough_of_it_lies_in_the_tile():
    assert trees_data.boxes_in([(311, 0, 331, 10)], 0, 0) == [(311, 0, 320, 10)]
    assert trees_data.boxes_in([(313, 0, 333, 10)], 0, 0) == []
    assert trees_data.boxes_in([(260, 300, 300, 330)], 256, 256) == [(4, 44, 44, 74)]


def test_the_data_set_loads_and_no_photographed_place_is_in_both_splits(wheel, tmp_path):
    trees_data.make(wheel, tmp_path / "trees")
    assert (tmp_path / "trees" / "LICENSE").read_text() == "MIT"
    shown = {}
    for split in ("train", "val"):
        data = CocoFolder(tmp_path / "trees" / f"{split}.json", tmp_path / "trees" / split)
        assert {tuple(sample.image.shape) for sample in (data[i] for i in range(len(data)))} == {(3, 320, 320)}
        names = [
            image["file_name"] for image in json.loads((tmp_path / "trees" / f"{split}.json").read_text())["images"]
        ]
        second = [name for name in names if trees_data.STRIPS[2].photograph in name]
        shown[split] = [int(name.split("_")[-2]) for name in second]
    assert max(shown["train"]) + trees_data.TILE <= 600 <= min(shown["val"])


def test_an_existing_folder_is_left_alone(wheel, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["trees_data", str(wheel), str(tmp_path)])
    with pytest.raises(SystemExit):
        trees_data.main()
    assert "exists; name a folder that does not" in capsys.readouterr().err


def test_the_committed_figures_are_those_of_the_recipe_beside_the_page():
    measured = report.load(trees.NAME)
    recipe = read_settings(trees.RECIPE)
    assert measured["recipe"] == recipe
    epochs = Settings.from_layers(recipe).train.epochs
    for row in measured["seeds"].values():
        assert [record["epoch"] for record in row["history"]] == list(range(1, epochs + 1))
        assert row["AP50"] == row["history"][-1]["AP50"]  # the last epoch's, not the best one's
    assert len(measured["seeds"]) >= 3


def test_the_curves_of_a_result_are_drawn(tmp_path):
    path = trees.draw_curves(report.load(trees.NAME), tmp_path / "curve.png")
    assert path.stat().st_size > 10_000


def test_what_is_found_in_the_strip_is_drawn_tile_below_tile(wheel, tmp_path, monkeypatch):
    trees_data.make(wheel, tmp_path / "trees")
    monkeypatch.setattr(trees, "RUNS", tmp_path)
    detector = Detector(build_model(ModelConfig(1)), (Category(1, "tree"),), max_size=96)
    checkpoint.save(tmp_path / "trees-0", detector)
    path = trees.draw_strip(tmp_path / "trees", "0", tmp_path / "strip.png")
    tiles = len(json.loads((tmp_path / "trees" / "val.json").read_text())["images"])
    with Image.open(path) as drawn:
        assert drawn.size == (524, 600 * -(-tiles // 4))
