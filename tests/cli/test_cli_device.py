"""The flag `--device`: what runs where, and a device that is not there."""

import pytest
from cli_cases import error_line, train, write_checkpoint

from deform_attn.cli import main
from deform_attn.detr.model.deformable_detr import DeformableDetr
from second_device import Elsewhere, second_device


@pytest.fixture
def devices(monkeypatch):
    """Return a set that collects the devices on which models see pictures."""
    seen = set()
    original = DeformableDetr.forward

    def forward(model, images, padding_mask=None):
        assert {isinstance(parameter, Elsewhere) for parameter in model.parameters()} == {isinstance(images, Elsewhere)}
        seen.add(images.device.type)
        return original(model, images, padding_mask)

    monkeypatch.setattr(DeformableDetr, "forward", forward)
    return seen


def test_train_evaluate_and_predict_run_on_the_device_that_is_named(folder, devices, capsys):
    with second_device():
        assert train(folder, "--queries", "5", "--device", "meta") == 0
        trained = capsys.readouterr().out
        assert main(["evaluate", str(folder / "run"), "--data", str(folder), "--device", "meta"]) == 0
        assert trained.startswith(capsys.readouterr().out)
        place = str(folder / "train"), "--out", str(folder / "found")
        assert main(["predict", str(folder / "run"), *place, "--device", "meta"]) == 0
    assert devices == {"meta"}
    assert main(["evaluate", str(folder / "run"), "--data", str(folder), "--device", "cpu"]) == 0
    assert devices == {"meta", "cpu"}


def test_a_device_that_is_not_there_is_one_line_before_anything_is_read_or_written(tmp_path, capsys):
    missing, out = str(tmp_path / "missing"), str(tmp_path / "out")
    for verb in (
        ["train", "--data", missing, "--out", out],
        ["evaluate", missing, "--data", missing],
        ["predict", missing, missing, "--out", out],
        ["demo", "--out", out],
    ):
        for name, cure in (("gpu0", "check the spelling"), ("xpu:7", "`deform-attn info` prints")):
            assert main([*verb, "--device", name]) == 1
            line = error_line(capsys)
            assert f"device: expected one of cpu, got '{name}'" in line
            assert cure in line
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_learn_or_detect_has_no_device(tmp_path):
    write_checkpoint(tmp_path / "run")
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "x.pt2"), "--device", "cpu"])
