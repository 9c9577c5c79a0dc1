"""Starting weights: where they are found, and what becomes of them with other categories."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deform_attn.detr.checkpoints import starting
from deform_attn.detr.checkpoints.checkpoint import save
from deform_attn.detr.config.detector import BackboneConfig, ModelConfig, TransformerConfig
from deform_attn.detr.data.base import Category
from deform_attn.detr.errors import CheckpointError
from deform_attn.detr.model.deformable_detr import build_model
from deform_attn.detr.model.detector import Detector

BEFORE = (Category(1, "cat"), Category(2, "dog"), Category(3, "owl"))


def detector(**transformer):
    sizes = {"width": 16, "num_heads": 2, "num_points": 2, "feedforward_dim": 16, "num_queries": 5}
    sizes |= {"encoder_layers": 1, "decoder_layers": 2} | transformer
    config = ModelConfig(3, backbone=BackboneConfig(channels=(8, 8, 16, 16)), transformer=TransformerConfig(**sizes))
    torch.manual_seed(0)
    return Detector(build_model(config).eval(), BEFORE, max_size=77)


@pytest.mark.parametrize("two_stage", [True, False])
def test_categories_of_one_name_keep_their_rows_and_all_else_is_kept(two_stage):
    before = detector(two_stage=two_stage)
    now = [Category(9, "owl"), Category(8, "fox"), Category(7, "cat"), Category(6, "elk")]
    start = starting.fit_categories(before, now)
    assert (start.kept, start.new) == (("owl", "cat"), ("fox", "elk"))
    assert str(start) == "known: owl, cat; new, trained from scratch: fox, elk; all other weights are kept"
    assert [category.id for category in start.detector.categories] == [9, 8, 7, 6]
    assert start.detector.max_size == 77
    assert start.detector.model.config.num_classes == 4
    old, new = before.model.state_dict(), start.detector.model.state_dict()
    assert old.keys() == new.keys()
    changed = [name for name in old if old[name].shape != new[name].shape]
    assert len(changed) == 2 * (3 if two_stage else 2)  # weight and bias of each decoder layer, and of the proposals
    for name in old:
        if name in changed:
            assert torch.equal(new[name][[0, 2]], old[name][[2, 0]])
        else:
            assert torch.equal(new[name], old[name])


def rows_of(start):
    """Return, by label, which row of `detector()` each row of the class heads is, None for one that is new."""
    old, new = detector().model.state_dict(), start.detector.model.state_dict()
    heads = [name for name in new if "class_head" in name and name.endswith(".weight")]
    found = []
    for row in range(len(new[heads[0]])):
        same = [i for i in range(3) if all(torch.equal(new[name][row], old[name][i]) for name in heads)]
        found.append(same[0] if same else None)
    return found


TWO = (Category(0, "tree"), Category(1, "tree"), Category(3, "owl"))  # as Roboflow exports a group with its only class


@pytest.mark.parametrize(
    ("before", "now", "rows"),
    [
        (TWO, TWO, [0, 1, 2]),
        (TWO, (Category(1, "tree"), Category(0, "tree")), [1, 0]),
        (TWO, (Category(5, "tree"), Category(6, "tree")), [0, 1]),
        (TWO, (Category(5, "tree"), Category(0, "tree")), [1, 0]),
        (TWO, (Category(8, "owl"), Category(9, "elk")), [2, None]),
        ((Category(1, "cat"), Category(2, "tree"), Category(3, "owl")), TWO, [1, 1, 2]),
    ],
)
def test_of_categories_of_one_name_each_keeps_its_own_rows(before, now, rows):
    start = starting.fit_categories(replace(detector(), categories=before), now)
    assert rows_of(start) == rows
    assert start.kept == tuple(category.name for category, row in zip(now, rows, strict=True) if row is not None)


@pytest.mark.parametrize("count", [1, 3])
def test_categories_of_one_name_that_have_become_more_or_fewer_are_refused(count):
    now = [Category(i, "tree") for i in range(count)]
    message = rf"2 categories are called 'tree' \(ids 0, 1\), {count} of the data; give the data as many"
    with pytest.raises(CheckpointError, match=message):
        starting.fit_categories(replace(detector(), categories=TWO), now)


def test_with_the_same_categories_the_detector_is_the_same():
    before = detector()
    start = starting.fit_categories(before, BEFORE)
    assert str(start) == "all 3 categories are known"
    images = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        actual, expected = start.detector.model.eval()(images), before.model(images)
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual.boxes, expected.boxes)


def test_a_long_list_of_new_categories_is_cut():
    start = starting.Start(detector(), (), tuple(f"c{i}" for i in range(11)))
    assert str(start).startswith("new, trained from scratch: c0, c1, c2, c3, c4, c5, c6, c7 and 3 more; ")


def test_a_model_of_the_hubs_cache_is_found_without_the_net(tmp_path, monkeypatch):
    cache = tmp_path / "models--somebody--cats"
    save(cache / "snapshots" / ("0" * 40), detector())
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert starting.resolve("somebody/cats") == cache / "snapshots" / ("0" * 40)
    assert starting.load("somebody/cats").categories == BEFORE


@pytest.mark.parametrize("source", ["somebody/dogs", "dogs", "a--b/c"])
def test_what_is_nowhere_on_this_disk_is_one_line_that_says_how_to_put_it_there(tmp_path, monkeypatch, source):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        starting.resolve(source)
    message = str(caught.value)
    assert message.startswith(f"{source}: no such directory, nor a model of that name in the hub's cache")
    assert f"`hf download {source}`" in message
    assert "\n" not in message


@pytest.mark.parametrize("source", ["./runs", "/nowhere", "a/b/c", "~/x", "a b"])
def test_a_path_is_not_looked_up_in_the_hubs_cache(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there are no runs
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it fails
    with pytest.raises(CheckpointError, match="no such directory; pass the directory of a checkpoint"):
        starting.resolve(source)


def test_a_path_that_exists_is_itself_and_a_file_of_another_kind_is_no_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "weights.pt").touch()
    assert starting.resolve(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    assert starting.resolve(".") == Path(".")
    with pytest.raises(CheckpointError, match=r"weights.pt"):
        starting.load("weights.pt")
