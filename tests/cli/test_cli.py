"""The command: usage, exit statuses, and the verbs `bench` and `info`."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
from cli_cases import error_line, train

from deform_attn import timing
from deform_attn.backends.native import registration
from deform_attn.cli import build_parser, info, main


def test_info_lists_backends_and_versions(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert f"torch {torch.__version__}" in printed
    assert "grid_sample" in printed
    assert "reference" in printed


def test_info_says_which_kernels_run_here_and_why_a_backend_does_not(capsys, monkeypatch):
    assert main(["info"]) == 0
    library = registration.loaded()
    assert f"the CPU kernels use {library.isa}, of {', '.join(library.isas)} " in capsys.readouterr().out
    monkeypatch.setattr(registration, "_reasons", ["the CPU kernels are not built"])
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "instruction sets: no CPU kernels (see below); torch's " in printed
    assert "native       no: the CPU kernels are not built\n" in printed


def test_info_says_which_package_is_missing(capsys, monkeypatch):
    def version_of(name):
        if name == "tqdm":
            raise PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(info, "version", version_of)
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "   tqdm is not installed\n" in printed
    assert "   numpy 1.2.3\n" in printed


@pytest.mark.parametrize("arguments", [[], ["train"], ["train", "--data", "x", "--out", "y", "--epochs", "0"], ["fly"]])
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: deform-attn" in capsys.readouterr().err


def test_the_command_alone_prints_its_help_and_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", build_parser().format_help())


def test_version_prints_the_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"deform-attn {version('deform-attn')}\n"


def test_bench_compares_with_grid_sample_on_the_threads_asked_for(capsys, monkeypatch):
    tiny = replace(timing.DEC300, spatial_shapes=((9, 13), (5, 7), (3, 4), (2, 3)), queries=21)
    for name in ("ENC800", "ENC640", "DEC300"):
        monkeypatch.setattr(timing, name, replace(tiny, name=name.lower()))
    monkeypatch.setattr(timing.report, "__defaults__", (0.0,))
    before = torch.get_num_threads()
    try:
        for threads, said in ((2, "2 threads"), (1, "1 thread")):
            assert main(["bench", "--threads", str(threads)]) == 0
            first, *others = capsys.readouterr().out.splitlines()
            assert f", {said}, torch" in first
            assert len(others) == 5
            assert others[1].startswith("enc800, 21 queries, forward")
    finally:
        torch.set_num_threads(before)


def test_bench_shows_each_line_as_soon_as_it_is_known(monkeypatch):
    flushed = []
    monkeypatch.setattr("builtins.print", lambda *_, flush=False, **__: flushed.append(flush))
    monkeypatch.setattr(timing, "report", lambda: iter("ab"))
    assert main(["bench"]) == 0
    assert flushed[:2] == [True, True]


@pytest.mark.parametrize(("argument", "unbuffered"), [("info", ""), ("info", "1"), ("--help", "")])
def test_a_reader_that_has_gone_is_no_error(argument, unbuffered):
    read, write = os.pipe()
    os.close(read)
    command, environment = (
        [sys.executable, "-m", "deform_attn", argument],
        {**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    try:
        result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment)
    finally:
        os.close(write)
    assert (result.returncode, result.stderr) == (141, b"")


def test_a_bug_of_ours_keeps_its_traceback(folder, monkeypatch):
    def fail(*_args, **_kwargs):
        raise ValueError("nobody's input")

    monkeypatch.setattr("deform_attn.detr.training.run.fit", fail)
    with pytest.raises(ValueError, match="nobody's input"):
        train(folder)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: _no_memory_on_a_gpu(), r"CUDA out of memory\. Tried to allocate 2\.00 GiB\."),
        (lambda: torch.empty(2**60, dtype=torch.uint8), r".*DefaultCPUAllocator.*"),
    ],
)
def test_memory_that_is_too_small_is_one_line(folder, capsys, monkeypatch, ask, said):
    monkeypatch.setattr("deform_attn.detr.training.run.fit", lambda *_args, **_kwargs: ask())
    assert train(folder) == 1
    line = error_line(capsys)
    cure = r"smaller images \(--max-size\) or batches \(--batch-size\) need less"
    expected = rf"deform-attn: error: out of memory \({said}\); {cure}"
    assert re.fullmatch(expected, line), line


def _no_memory_on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB.")


def test_an_error_of_torch_that_is_no_lack_of_memory_is_not_called_one(folder, monkeypatch):
    monkeypatch.setattr("deform_attn.detr.training.run.fit", lambda *_args, **_kwargs: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        train(folder)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
def test_an_output_that_cannot_be_written_is_one_line():
    command, environment = [sys.executable, "-m", "deform_attn", "--help"], {**os.environ, "PYTHONUNBUFFERED": ""}
    with open("/dev/full", "wb") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment)
    assert (result.returncode, result.stderr) == (1, b"deform-attn: error: [Errno 28] No space left on device\n")
    command[-1] = "info"
    with open("/dev/full", "wb") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment)
    assert result.returncode == 1
    assert b"Traceback" not in result.stderr


def test_the_package_runs_as_the_command_and_a_name_that_the_output_cannot_hold_is_escaped():
    command = [sys.executable, "-m", "deform_attn", "train", "--print-config", "--data", "B\u00e4ume"]
    result = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (result.returncode, result.stderr) == (0, b"")
    assert b'dir = "B\\xe4ume"' in result.stdout
