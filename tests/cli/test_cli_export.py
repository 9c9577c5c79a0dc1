"""The verb `export`: the file, what is checked before it is there, and the file in a fresh process."""

import json
import subprocess
import sys

import pytest
import torch
from cli_cases import error_line, write_checkpoint

from deform_attn.cli import main
from deform_attn.detr.prediction import export_model


@pytest.mark.slow
def test_the_exported_file_takes_any_batch_and_size_in_a_fresh_process_as_the_printed_lines_say(tmp_path, capsys):
    detector = write_checkpoint(tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "model.pt2"), "--batch", "free"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "any number of images, any size\n" in printed.out
    assert "checked: read back, it differs" in printed.out
    first, second = (line.strip() for line in printed.out.splitlines()[-2:])
    inputs = []
    for batch, height, width in ((1, 40, 72), (4, 88, 56)):
        mask = torch.zeros(batch, height, width, dtype=torch.bool)
        mask[0, height - 10 :] = True
        inputs.append((torch.rand(batch, 3, height, width), mask))
    torch.save(inputs, tmp_path / "in.pt")
    program, arguments = second.removeprefix("logits, boxes = ").split("(images")
    assert arguments == ", padding_mask)"
    calls = f"program = {program}\noutputs = [program(*each) for each in torch.load({str(tmp_path / 'in.pt')!r})]"
    after = f"torch.save([[part.detach() for part in one] for one in outputs], {str(tmp_path / 'out.pt')!r})"
    subprocess.run([sys.executable, "-c", "\n".join((first, calls, after))], check=True)
    for (logits, boxes), each in zip(torch.load(tmp_path / "out.pt"), inputs, strict=True):
        with torch.no_grad():
            expected = detector.model(*each)
        torch.testing.assert_close((logits, boxes), (expected.logits, expected.boxes))


def test_a_fixed_batch_and_size_are_exported_as_asked(tmp_path, capsys):
    write_checkpoint(tmp_path / "run")
    file = tmp_path / "model.pt2"
    assert main(["export", str(tmp_path / "run"), "--out", str(file), "--batch", "1", "--size", "50x70"]) == 0
    first, traced, checked, wrote, *_ = capsys.readouterr().out.splitlines()
    assert first == f"exporting {tmp_path / 'run'} to {file}"
    assert (traced, checked) == (
        "tracing the model with torch.export ...",
        "checking against PyTorch: the file is read back and run ...",
    )
    assert wrote == f"wrote {file}, {file.stat().st_size / 1e6:.1f} MB: 1 image per call, 50 x 70 pixels"
    extra = {"detector.json": ""}
    program = torch.export.load(file, extra_files=extra).module()
    logits, boxes = program(torch.rand(1, 3, 50, 70), torch.zeros(1, 50, 70, dtype=torch.bool))
    assert (logits.shape, boxes.shape) == ((1, 5, 2), (1, 5, 4))
    names = [{"id": 10, "name": "ball"}, {"id": 11, "name": "block"}]
    assert json.loads(extra["detector.json"]) == {"categories": names, "max_size": 60}
    with pytest.raises((AssertionError, RuntimeError, ValueError)):  # torch's own, of several kinds
        program(torch.rand(1, 3, 64, 70), torch.zeros(1, 64, 70, dtype=torch.bool))


def test_a_program_that_differs_from_the_model_is_not_written(tmp_path, capsys, monkeypatch):
    write_checkpoint(tmp_path / "run")
    monkeypatch.setattr(export_model, "_TOLERANCE", -1.0)
    options = ["--out", str(tmp_path / "model.pt2"), "--batch", "1", "--size", "32x32"]
    assert main(["export", str(tmp_path / "run"), *options]) == 1
    assert "the exported program differs from the model" in error_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_checkpoint_that_is_not_there_is_one_line(tmp_path, capsys):
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "model.pt2")]) == 1
    assert error_line(capsys).startswith(f"deform-attn: error: {tmp_path / 'run'}: no such directory")


@pytest.mark.parametrize("options", [["--size", "640"], ["--size", "0x9"], ["--batch", "0"], ["--out", "model.pt"]])
def test_wrong_sizes_and_names_are_wrong_usage(options, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["export", "run", "--out", "model.pt2", *options])
    assert stop.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_a_full_disk_is_one_line_with_the_file(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    write_checkpoint(tmp_path / "run")
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    file = tmp_path / "model.pt2"
    assert main(["export", str(tmp_path / "run"), "--out", str(file), "--batch", "1", "--size", "32x32"]) == 1
    assert error_line(capsys).endswith(f"[Errno 28] No space left on device; it is not written: '{file}'")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
