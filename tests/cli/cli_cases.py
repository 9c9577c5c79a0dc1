"""What the tests of the command share: a folder of pictures, a checkpoint, and what was printed."""

import json

import torch
from PIL import Image

from deform_attn.cli import main
from deform_attn.detr.checkpoints.checkpoint import save
from deform_attn.detr.config.detector import BackboneConfig, ModelConfig, TransformerConfig
from deform_attn.detr.data.base import Category
from deform_attn.detr.model.deformable_detr import build_model
from deform_attn.detr.model.detector import Detector


def write_split(annotations, pictures, count):
    """Write `count` pictures with a box each, and their annotations."""
    pictures.mkdir(parents=True, exist_ok=True)
    images, boxes = [], []
    for i in range(count):
        picture = Image.new("RGB", (64, 48), "black")
        picture.paste("white", (10 + i, 10, 30, 34))
        picture.save(pictures / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "width": 64, "height": 48})
        box = {"bbox": [10 + i, 10, 20 - i, 24], "area": (20 - i) * 24, "iscrowd": 0}
        boxes.append({"id": i + 1, "image_id": i + 1, "category_id": 3, **box})
    truth = {"images": images, "annotations": boxes, "categories": [{"id": 3, "name": "block"}]}
    annotations.parent.mkdir(parents=True, exist_ok=True)
    annotations.write_text(json.dumps(truth))


def write_checkpoint(path, names=("ball", "block"), **transformer):
    """Write a checkpoint of a very small detector of categories with these names, and return the detector."""
    sizes = {"width": 16, "num_heads": 2, "num_points": 2, "feedforward_dim": 16, "num_queries": 5}
    sizes |= {"encoder_layers": 1, "decoder_layers": 1} | transformer
    backbone, transformer = BackboneConfig(channels=(8, 8, 16, 16)), TransformerConfig(**sizes)
    torch.manual_seed(len(names))
    model = build_model(ModelConfig(len(names), backbone=backbone, transformer=transformer)).eval()
    detector = Detector(model, tuple(Category(10 + i, name) for i, name in enumerate(names)), max_size=60)
    save(path, detector)
    return detector


def edit(path, change):
    """Change the content of a json file in place."""
    truth = json.loads(path.read_text())
    change(truth)
    path.write_text(json.dumps(truth))


def train(folder, *options):
    """Train one epoch on `folder`, by the command."""
    return main(["train", "--data", str(folder), "--out", str(folder / "run"), "--epochs", "1", *options])


def error_line(capsys):
    """Return the last line that was printed, after checking that there is no traceback."""
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    lines = [line for line in printed.err.splitlines() if line.startswith("deform-attn: ")]
    assert len(lines) == 1
    return lines[0]


def interrupt(*_args, **_kwargs):
    """Do as Ctrl-C does."""
    raise KeyboardInterrupt
