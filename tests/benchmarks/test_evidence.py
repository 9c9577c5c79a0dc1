"""The evidence: it judges before it measures, fits what it says it fits, and draws what it found."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import memory, report
from benchmarks.evidence import convergence, cost, independence, layers, plots, pretraining, results
from deform_attn.detr.data.digits import DigitScenes
from deform_attn.detr.errors import DivergenceError
from deform_attn.detr.model.deformable_detr import build_model


def test_exponents_are_those_of_a_power_law():
    points = {str(side): 3e-9 * side**3.7 for side in cost.SIDES}
    assert cost.exponents(points) == {"all": 3.7, "large": 3.7}
    bent = {side: value + 1 for side, value in points.items()}
    assert cost.exponents(bent)["all"] < cost.exponents(bent)["large"]
    assert cost.exponents({"128": 1.0, "256": 2.0}) == {}
    assert cost.exponents({"64": 0.5, "128": 1.0, "512": 4.0}) == {"all": 1.0}


def test_the_crossing_lies_between_the_sides_around_it():
    dense, deformable = (
        {str(side): factor * side**power for side in cost.SIDES} for factor, power in ((1, 4), (9e4, 2))
    )
    assert cost.crossing(dense, deformable) == pytest.approx(300, abs=1)
    assert cost.crossing(dense, {side: value / 9e4 for side, value in deformable.items()}) == 0
    assert cost.crossing({"128": 1.0, "256": 2.0}, {"128": 2.0, "256": 3.0}) is None


def test_the_kinds_have_the_same_projections_but_for_what_places_the_points():
    count = {kind: sum(p.numel() for p in layers.build(kind, 64)[0].parameters()) for kind in layers.KINDS}
    assert count["dense"] == count["dense, whole matrix"]
    C, M, P = layers.WIDTH, layers.HEADS, layers.POINTS
    assert count["dense"] - count["deformable"] == 2 * (C + 1) * C - 3 * M * P * (C + 1)


def test_queries_of_the_deformable_layer_look_around_themselves_and_not_all_alike():
    attention, features = layers.build("deformable", 128)
    sampling, _, _ = attention.attention.compute_sampling(features, attention.references, features, attention.shapes)
    offsets = (sampling.locations - attention.references[:, :, None, :, None]) * 16  # pixels of the map
    assert 1 < offsets.std() < 5
    assert offsets.std(dim=1).min() > 0.3


@pytest.mark.parametrize(("broken", "trains"), [("dense", False), ("deformable, grid_sample", True)])
def test_the_cost_is_not_measured_where_ours_is_wrong(monkeypatch, broken, trains):
    call, peer = layers.call, {"dense": "dense, whole matrix", "deformable, grid_sample": "reference"}[broken]

    def wrong(kind, side, way):
        factor = 1.01 if (kind, way) == (broken, trains) else 1
        return lambda: tuple(factor * tensor for tensor in call(kind, side, way)())

    monkeypatch.setattr(cost, "call", wrong)
    with pytest.raises(RuntimeError, match=f"{broken} and {peer} differ by .* {'gradients' if trains else 'output'}"):
        cost.measure([64], 0)


@pytest.mark.skipif(memory.unavailable() is not None, reason=str(memory.unavailable()))
def test_the_cost_is_measured_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "FITTED_FROM", 64)
    elsewhere = cost._peak_elsewhere("deformable", 64, "training")  # in a process of its own, as the others would be
    assert elsewhere > 0
    monkeypatch.setattr(cost, "_peak_elsewhere", lambda kind, side, way: elsewhere)
    measured = cost.measure([64, 96, 128], 0, say=lambda line: None)
    for what, way in (("seconds", "forward"), ("seconds", "training"), ("peak_bytes", "training")):
        assert set(measured[what][way]) == set(layers.KINDS)
        assert all(min(points.values()) > 0 for points in measured[what][way].values())
    assert set(measured["exponents"]["seconds"]["forward"]["dense"]) == {"all", "large"}
    assert plots.draw_cost(measured, tmp_path / "cost.png").stat().st_size > 10_000


def test_the_independence_is_measured_and_drawn(tmp_path):
    measured = independence.measure([16, 32], 0, say=lambda line: None)
    assert {kind: list(points) for kind, points in measured["milliseconds"].items()} == {
        kind: ["16", "32"] for kind in ("window", "spread", "grid_sample", "dense")
    }
    assert measured["growth"]["dense"] > 0
    assert plots.draw_independence(measured, tmp_path / "plot.png").stat().st_size > 10_000


def test_the_window_is_the_same_pixels_on_every_map():
    smallest, larger = independence.SIDES[:2]
    first = independence.case_of(smallest)
    here, there = (independence.in_window(first, side) * side for side in (smallest, larger))
    torch.testing.assert_close(here, there)
    assert 0.5 < here.min() < here.max() < smallest - 0.5  # nowhere beyond the border of the first


def test_a_result_says_where_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    written = json.loads(results.write("here", {"found": 1}).read_text())
    assert {"machine", "threads", "commit", "measured"} <= set(written)
    assert written["found"] == 1


def test_the_kinds_of_detector_differ_in_their_attention_alone_and_hardly_in_size():
    recipe, counts = convergence.RECIPE, {}
    for kind in recipe.epochs:
        config = recipe.model_of(kind)
        assert config.transformer.two_stage is False
        counts[kind] = sum(p.numel() for p in build_model(config).parameters())
    assert max(counts.values()) < 1.1 * min(counts.values())
    assert max(recipe.epochs, key=recipe.epochs.__getitem__) == "dense"


def test_pretraining_sees_the_mean_of_what_lies_in_the_box():
    boxes = torch.tensor([[0.5, 0.25, 0.5, 0.5], [0.3, 0.9, 0.1, 0.1]])  # four whole pixels of 4 x 4; part of one
    block, part = pretraining._inside(boxes, torch.Size((4, 4))).view(2, 4, 4)
    expected = torch.zeros(4, 4)
    expected[:2, 1:3] = 1 / 4
    torch.testing.assert_close(block, expected)
    assert part[3, 1] == pytest.approx(1)
    assert part.sum() == pytest.approx(1)


@pytest.mark.slow
def test_a_pretrained_backbone_tells_digits_apart():
    torch.manual_seed(0)
    model = build_model(convergence.RECIPE.model)
    data, judge = DigitScenes("train", 400, size=64), DigitScenes("val", 40, size=64)
    before = [parameter.clone() for parameter in model.backbone.parameters()]
    assert pretraining.pretrain(model, data, judge, epochs=4) > 0.3  # of ten classes
    assert not any(torch.equal(*pair) for pair in zip(before, model.backbone.parameters(), strict=True))


@pytest.mark.slow
def test_the_convergence_is_measured_drawn_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    epochs = {"dense": 2, "deformable_single_scale": 1, "deformable": 1}  # so few that they teach nothing
    tiny = replace(
        convergence.RECIPE, size=48, scenes=32, pretraining=1, judged=2, rates=(1e-3, 1e-4, 1e-5), epochs=epochs
    )
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(convergence, "RECIPE", tiny)
    monkeypatch.setattr(plots, "IMAGES", tmp_path)
    path = tmp_path / "evidence-convergence.json"
    monkeypatch.setattr("sys.argv", ["convergence", "--steps", "choose", "train", "--seeds", "0", "1"])
    convergence.main()
    trainings = capsys.readouterr().out.count(" epochs\n")
    assert trainings == 3 * 3 + 3 * 2 + 3 + 2 * 2  # tries, in full, further seeds, short and long
    found = json.loads(path.read_text())
    assert {name: [len(rows) for rows in seeds.values()] for name, seeds in found["runs"].items()} == {
        "dense": [2, 2],
        "deformable_single_scale": [1, 1],
        "deformable": [1, 1],
        "dense, short": [1, 1],
        "deformable, long": [2, 2],
    }
    assert set(found["chosen"].values()) <= set(tiny.rates)
    assert 0 <= found["backbone_accuracy"] <= 1
    assert set(found["verdict"]) == set(found["runs"])
    monkeypatch.setattr("sys.argv", ["convergence", "--seeds", "0", "1"])
    convergence.main()
    assert capsys.readouterr().out.count(" epochs\n") == 0  # nothing is trained again
    again = json.loads(path.read_text())
    assert again["runs"] == found["runs"]
    assert all(seconds > 0 for seconds in again["seconds_per_epoch"].values())
    assert (tmp_path / "evidence-convergence.png").stat().st_size > 10_000
    assert "runs" not in convergence.begun(replace(tiny, scenes=5), path)  # of another recipe


def test_rates_are_chosen_on_validation_scenes_and_trainings_judged_on_test_scenes_that_chose_nothing(monkeypatch):
    asked, tried, in_full = [], {"0.002": 0.5, "0.004": 0.4}, {"0.002": 0.6, "0.004": 0.7}

    def learn_all(recipe, backbone, trainings, judge, processes):
        asked.append((judge, trainings))
        for name, (kind, config) in trainings.items():
            better = tried if config.epochs < recipe.epochs[kind] else in_full
            yield name, [{"epoch": 1, "AP": 1 - config.lr, "validation_AP": better.get(str(config.lr), 0)}]

    monkeypatch.setattr(convergence, "_learn_all", learn_all)
    found = {}
    convergence.choose(convergence.RECIPE, dict, found, lambda: None, 1)
    convergence.train(convergence.RECIPE, dict, found, [7, 8], lambda: None, 1)
    assert found["chosen"] == dict.fromkeys(convergence.RECIPE.epochs, 4e-3)  # the second best of the tries
    assert found["runs"]["dense"]["7"] == found["in_full"]["dense"]["0.004"]
    (validation, tries), (test, finals), (same_test, trainings) = asked
    assert (validation.split, len(validation)) == ("val", convergence.RECIPE.judged)
    assert {config.seed for _, config in tries.values()} == {convergence.CHOOSING_SEED}
    for judge in (test, same_test):
        assert (judge.data.split, list(judge.indices)) == ("test", list(convergence.TESTED))
    assert set(finals) == {(kind, rate) for kind in convergence.RECIPE.epochs for rate in tried}
    assert {(config.epochs, config.lr, config.seed) for kind, config in finals.values() if kind == "dense"} == {
        (100, 2e-3, 7),
        (100, 4e-3, 7),
    }
    assert {name: (kind, config.epochs, config.lr) for name, (kind, config) in trainings.items()} == {
        ("dense", 8): ("dense", 100, 4e-3),
        ("deformable_single_scale", 8): ("deformable_single_scale", 10, 4e-3),
        ("deformable", 8): ("deformable", 10, 4e-3),
        ("dense, short", 7): ("dense", 10, 4e-3),
        ("dense, short", 8): ("dense", 10, 4e-3),
        ("deformable, long", 7): ("deformable", 15, 4e-3),
        ("deformable, long", 8): ("deformable", 15, 4e-3),
    }


def test_a_training_that_diverges_has_found_nothing(monkeypatch):
    def diverges(learner, data, epoch):
        raise DivergenceError("the loss is not finite")

    monkeypatch.setattr(convergence, "train_one_epoch", diverges)
    backbone = build_model(convergence.RECIPE.model).backbone.state_dict()
    weights = {name: tensor.numpy() for name, tensor in backbone.items()}
    config = convergence.RECIPE.training_of("deformable", 1e-3, 0)
    rows = convergence.learn(convergence.RECIPE, weights, "deformable", config, DigitScenes("val", 1, size=128))
    assert rows == [{"epoch": 1, **dict.fromkeys((*convergence.KEPT, "validation_AP"), 0.0)}]


def test_the_verdict_is_when_the_mean_of_the_seeds_has_reached_an_ap_for_good():
    def curve(*values):
        return [{"epoch": 2 * i, "AP": value} for i, value in enumerate(values, 1)]

    runs = {
        "dense": {"0": curve(0.0, 0.25, 0.375, 0.5), "1": curve(0.0, 0.25, 0.375, 0.25)},
        "deformable": {"0": curve(0.125, 0.5, 0.125), "1": curve(0.375, 0.375, 0.625)},
        "deformable_single_scale": {"0": curve(0.1, 0.4, 0.1), "1": curve(0.1, 0.4, 0.1)},
    }
    assert convergence.verdict(runs) == {
        "dense": {"0.2": 4, "0.4": None, "0.6": None, "dense": 6},
        "deformable": {"0.2": 2, "0.4": None, "0.6": None, "dense": 4},
        "deformable_single_scale": {"0.2": None, "0.4": None, "0.6": None, "dense": None},
    }
