"""The verb `train`: its config file, its starting weights, and the layouts of data."""

import json

import pytest
import torch
from cli_cases import edit, error_line, train, write_checkpoint, write_split

from deform_attn.cli import main
from deform_attn.detr.checkpoints.checkpoint import load_model
from deform_attn.detr.checkpoints.training_state import load_training
from deform_attn.detr.training import engine


def test_flags_win_over_the_file_and_the_file_over_the_defaults(folder, capsys):
    (folder / "run.toml").write_text(
        "[train]\nlr = 0.5\nseed = 3\nloss.gamma = 1.0\n[model.transformer]\nnum_queries = 6\nwidth = 16\n"
        f"[data]\ndir = {json.dumps(str(folder))}\nmax_size = 32\n"
    )
    options = ["--config", str(folder / "run.toml"), "--lr", "0.25", "--queries", "7", "--epochs", "1"]
    assert main(["train", *options, "--out", str(folder / "run")]) == 0
    config, detector = load_training(folder / "run").config, load_model(folder / "run")
    assert (config.lr, config.seed, config.loss.gamma, config.batch_size) == (0.25, 3, 1.0, 8)
    transformer = detector.model.config.transformer
    assert (transformer.num_queries, transformer.width, detector.max_size) == (7, 16, 32)


def test_flags_and_tables_for_how_a_training_runs_reach_it(folder, capsys):
    (folder / "run.toml").write_text("[train.augment]\nhorizontal_flip = true\n")
    options = ["--config", str(folder / "run.toml"), "--precision", "bfloat16", "--save-every", "3", "--tensorboard"]
    assert train(folder, "--queries", "5", *options) == 0
    config = load_training(folder / "run").config
    assert (config.precision, config.save_every, config.augment.horizontal_flip) == ("bfloat16", 3, True)
    assert any((folder / "run" / "tensorboard").iterdir())
    with pytest.raises(SystemExit):
        train(folder, "--precision", "int8")
    assert "choose from" in capsys.readouterr().err


def test_bad_records_are_listed_and_the_rest_is_used_when_asked(folder, capsys):
    edit(folder / "train.json", lambda truth: truth["annotations"][1].update(category_id=77))
    (folder / "val" / "0.png").write_text("not a picture")
    write_split(folder / "more.json", folder / "val", 2)
    (folder / "more.json").replace(folder / "val.json")
    (folder / "val" / "0.png").write_text("not a picture")
    assert train(folder, "--queries", "5", "--skip-bad") == 0
    skipped = [line for line in capsys.readouterr().err.splitlines() if line.startswith("deform-attn: skipped: ")]
    assert len(skipped) == 2
    assert "77" in skipped[0]
    assert "0.png" in skipped[1]
    assert main(["evaluate", str(folder / "run"), "--data", str(folder), "--skip-bad"]) == 0
    assert "deform-attn: skipped: " in capsys.readouterr().err
    assert main(["evaluate", str(folder / "run"), "--data", str(folder)]) == 1


def test_the_printed_config_repeats_the_run(folder, capsys):
    options = ["--data", str(folder), "--epochs", "1", "--queries", "5", "--lr", "0.01", "--seed", "7"]
    assert main(["train", *options, "--print-config"]) == 0
    (folder / "run.toml").write_text(capsys.readouterr().out)
    assert main(["train", *options, "--out", str(folder / "a")]) == 0
    assert main(["train", "--config", str(folder / "run.toml"), "--out", str(folder / "b")]) == 0
    assert (folder / "a" / "model.safetensors").read_bytes() == (folder / "b" / "model.safetensors").read_bytes()


def test_a_wrong_key_of_the_file_is_one_line_with_file_and_key(folder, capsys):
    (folder / "run.toml").write_text("[train]\nepoch = 3\n")
    assert train(folder, "--config", str(folder / "run.toml")) == 1
    assert error_line(capsys).startswith(f"deform-attn: error: {folder / 'run.toml'}: train: unknown field 'epoch'")
    assert train(folder, "--config", str(folder / "gone.toml")) == 1
    assert f"{folder / 'gone.toml'}: cannot be read" in error_line(capsys)
    assert train(folder, "--lr", "0") == 1
    assert error_line(capsys) == "deform-attn: error: train: lr: must be above zero, got 0.0"


@pytest.mark.parametrize(("options", "missing"), [(["--data", "x"], "--out"), (["--out", "x"], "--data")])
def test_without_data_or_out_the_usage_is_wrong(options, missing, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", *options])
    assert stop.value.code == 2
    assert f"the following arguments are required: {missing}" in capsys.readouterr().err


def test_coco_and_roboflow_folders_are_trained_on_and_evaluated(tmp_path, capsys):
    coco, roboflow = tmp_path / "coco", tmp_path / "roboflow"
    for split, count in (("train", 2), ("val", 1)):
        write_split(coco / "annotations" / f"instances_{split}2017.json", coco / f"{split}2017", count)
        folder = roboflow / ("valid" if split == "val" else split)
        write_split(folder / "_annotations.coco.json", folder, count)
    metrics = []
    for folder in (coco, roboflow):
        assert train(folder, "--queries", "5") == 0
        assert main(["evaluate", str(folder / "run"), "--data", str(folder)]) == 0
        metrics.append(capsys.readouterr().out.replace(str(folder), "FOLDER"))
    assert metrics[0] == metrics[1]
    assert "AP50" in metrics[0]


def test_without_a_validation_split_training_says_that_nothing_is_evaluated(folder, capsys):
    (folder / "val.json").unlink()
    assert train(folder, "--queries", "5") == 0
    printed = capsys.readouterr()
    assert f"deform-attn: {folder}: there is no val split, so there are no metrics; looked for val.json" in printed.err
    assert printed.out.startswith("loss ")
    assert main(["evaluate", str(folder / "run"), "--data", str(folder)]) == 1
    assert f"{folder}: there is no val split; looked for val.json, " in error_line(capsys)


def test_pictures_with_one_json_file_are_trained_on_and_some_are_held_out(tmp_path, capsys):
    write_split(tmp_path / "result.json", tmp_path / "images", 4)
    assert train(tmp_path, "--queries", "5", "--hold-out", "0.25") == 0
    printed = capsys.readouterr()
    assert f"deform-attn: {tmp_path}: 1 of 4 images are held out to validate on" in printed.err
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(tmp_path), "--hold-out", "0.25"]) == 0
    assert printed.out.startswith(capsys.readouterr().out)


@pytest.mark.parametrize("verb", [["train", "--out", "run"], ["evaluate", "run"]], ids=lambda verb: verb[0])
@pytest.mark.parametrize("share", ["0", "1", "2", "-0.1", "nan", "some"])
def test_a_hold_out_that_is_no_share_is_wrong_usage_in_every_verb(capsys, verb, share):
    with pytest.raises(SystemExit) as stop:
        main([*verb, "--data", "nowhere", f"--hold-out={share}"])
    assert stop.value.code == 2
    said = f"argument --hold-out: expected a number above 0 and below 1, got {share!r}"
    assert said in capsys.readouterr().err


def test_a_hold_out_of_everything_in_a_config_file_is_one_line(tmp_path, capsys):
    (tmp_path / "run.toml").write_text("[data]\nhold_out = 1.0\n")
    assert train(tmp_path, "--config", str(tmp_path / "run.toml")) == 1
    assert "data: hold_out: must be at least 0 and below 1, got 1.0" in error_line(capsys)


def test_a_validation_split_is_validated_on_and_nothing_held_out(folder, capsys):
    assert train(folder, "--queries", "5", "--hold-out", "0.5") == 0
    printed = capsys.readouterr()
    assert f"{folder}: there is a val split, so no image of the train split is held out" in printed.err
    evaluate = ["evaluate", str(folder / "run"), "--data", str(folder)]
    assert main(evaluate) == 0
    metrics = capsys.readouterr().out
    assert printed.out.startswith(metrics)
    assert main([*evaluate, "--hold-out", "0.5"]) == 0  # would be images that were trained on
    again = capsys.readouterr()
    assert again.out == metrics
    assert f"{folder}: there is a val split, so no image of the train split is held out" in again.err


def test_without_a_training_split_there_is_one_line_that_says_what_was_looked_for(folder, capsys):
    (folder / "train.json").unlink()
    assert train(folder) == 1
    looked_for = "train.json, annotations/instances_train*.json, train/_annotations.coco.json, a single json file"
    cure = "put the annotations there, exported as COCO JSON, and pass the folder that holds them and the images"
    line = f"deform-attn: error: {folder}: there is no train split; looked for {looked_for}; {cure}"
    assert error_line(capsys) == line


def test_training_starts_from_the_weights_of_a_checkpoint(folder, capsys, monkeypatch):
    before = write_checkpoint(folder / "start", ("ball", "block"))
    monkeypatch.setattr(engine, "learning_rate", lambda *_: 0.0)  # so that the training changes no parameter
    assert train(folder, "--from", str(folder / "start")) == 0
    assert f"starting weights: {folder / 'start'}; all 1 categories are known\n" in capsys.readouterr().out
    after = load_model(folder / "run")
    assert [tuple(category) for category in after.categories] == [(3, "block")]
    assert (after.max_size, after.model.config.num_classes) == (before.max_size, 1)
    expected, rows = dict(before.model.named_parameters()), 0
    for name, parameter in after.model.named_parameters():
        if parameter.shape != expected[name].shape:
            rows += 1
            torch.testing.assert_close(parameter, expected[name][1:], rtol=0, atol=0)
        else:
            torch.testing.assert_close(parameter, expected[name], rtol=0, atol=0)
    assert rows == 4  # weight and bias of the proposals' head and of the decoder layer's
    assert main(["train", "--from", str(folder / "start"), "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"start = {json.dumps(str(folder / 'start'))}\n")
    assert "[model" not in printed


def test_categories_that_the_starting_weights_do_not_know_are_named(folder, capsys):
    write_checkpoint(folder / "start", ("ball",))
    assert train(folder, "--from", str(folder / "start"), "--max-size", "40") == 0
    assert "new, trained from scratch: block; all other weights are kept" in capsys.readouterr().out
    assert load_model(folder / "run").max_size == 40
    assert train(folder, "--from", str(folder / "start"), "--max-size", "40", "--resume") == 0


def test_starting_weights_that_are_not_there_or_come_with_a_model_are_one_line(folder, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "cache"))
    for verb in (["train", "--data", str(folder), "--out", str(folder / "run"), "--from"], ["evaluate", "--data", "x"]):
        assert main([*verb, "somebody/cats"]) == 1
        assert "`hf download somebody/cats` (deform-attn downloads nothing)" in error_line(capsys)
    assert train(folder, "--from", str(folder / "start"), "--queries", "5") == 1
    assert "have a model of their own; leave out either --from, or --queries, --backbone and" in error_line(capsys)
    assert train(folder, "--backbone", "somebody/resnet") == 1
    assert "`hf download somebody/resnet`" in error_line(capsys)


def test_a_backbone_of_transformers_starts_with_its_weights(folder, capsys, monkeypatch):
    from transformers import ResNetBackbone, ResNetConfig

    sizes = {"embedding_size": 8, "hidden_sizes": [16, 16, 24, 24], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    network = ResNetBackbone(ResNetConfig(**sizes, out_features=["stage2", "stage3"]))
    network.save_pretrained(folder / "resnet")
    monkeypatch.setattr(engine, "learning_rate", lambda *_: 0.0)
    assert train(folder, "--backbone", str(folder / "resnet"), "--queries", "5") == 0
    assert main(["evaluate", str(folder / "run"), "--data", str(folder)]) == 0
    after = dict(load_model(folder / "run").model.backbone.named_parameters())
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(after[f"network.{name}"], parameter, rtol=0, atol=0)
    assert train(folder, "--backbone", str(folder / "resnet"), "--queries", "5", "--resume") == 0


@pytest.mark.parametrize("config", [None, "{", "{}", '{"model_type": "bert"}', '{"model_type": "nobody-knows"}'])
def test_a_folder_without_a_backbone_is_one_line(folder, capsys, config):
    (folder / "other").mkdir()
    if config is not None:
        (folder / "other" / "config.json").write_text(config)
    assert train(folder, "--backbone", str(folder / "other")) == 1
    assert error_line(capsys).startswith(f"deform-attn: error: {folder / 'other'}: holds no backbone of transformers (")


def test_a_config_of_no_backbone_in_the_file_is_one_line(folder, capsys):
    for source in ('source.model_type = "nobody-knows"', 'source = {model_type = "resnet", depths = "x"}'):
        (folder / "run.toml").write_text(f'[model.backbone]\nname = "transformers"\n{source}\n')
        assert train(folder, "--config", str(folder / "run.toml")) == 1
        said = "deform-attn: error: model.backbone.source: holds no backbone of transformers"
        assert error_line(capsys).startswith(said)


def test_a_checkpoint_of_other_categories_is_one_line(folder, capsys):
    write_checkpoint(folder / "start", ("ball",))
    edit(folder / "val.json", lambda truth: truth["categories"][0].update(name="ball"))
    assert main(["evaluate", str(folder / "start"), "--data", str(folder)]) == 1
    assert f"'ball' (id 3); only in the checkpoint {folder / 'start'}: 'ball' (id 10); give" in error_line(capsys)
