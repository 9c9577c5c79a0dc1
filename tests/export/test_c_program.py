"""An ONNX file of the form `native` in a C program without Python: the code and the commands of docs/export.md."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deform_attn.backends.native import registration
from deform_attn.detr.checkpoints.checkpoint import save
from deform_attn.detr.config.detector import BackboneConfig, ModelConfig, TransformerConfig
from deform_attn.detr.data.base import Category
from deform_attn.detr.model.deformable_detr import build_model
from deform_attn.detr.model.detector import Detector
from tolerances import assert_close

for package in ("onnx", "onnxscript"):
    pytest.importorskip(package)
onnxruntime = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs" / "export.md").read_text().partition("## Or run an ONNX file in C")[2]
LIBRARY = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)


def small_detector():
    """Return a very small detector of two categories."""
    sizes = {"width": 16, "num_heads": 2, "num_points": 2, "feedforward_dim": 16, "num_queries": 5}
    transformer = TransformerConfig(**sizes, encoder_layers=1, decoder_layers=1)
    torch.manual_seed(0)
    model = build_model(ModelConfig(2, backbone=BackboneConfig(channels=(8, 8, 16, 16)), transformer=transformer))
    return Detector(model.eval(), (Category(1, "pine"), Category(2, "oak")))


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)


def test_the_page_prints_the_program():
    assert blocks("c") == [(ROOT / "examples" / "run_onnx.c").read_text()]


def shell(command, folder, **variables):
    """Run commands of the page as they are, in a folder that holds what they name."""
    python = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **python, **variables}
    return subprocess.run(["bash", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Follow the page: write the file and its inputs, and build; return the folder and what its Python defines.

    The folder of ONNX Runtime has the library of its wheel, and the header that stands in for its own.
    """
    for program in ("gcc", "bash", "ldd"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if LIBRARY is None:
        pytest.skip("the installed ONNX Runtime has no library of its own")
    if registration._library is None:
        pytest.skip("the CPU kernels are not built")
    folder = tmp_path_factory.mktemp("page")
    (folder / "examples").symlink_to(ROOT / "examples")
    for name in ("include", "lib"):
        (folder / "onnxruntime" / name).mkdir(parents=True)
    header = Path(__file__).parent / "onnxruntime_c_api.h"
    (folder / "onnxruntime" / "include" / header.name).symlink_to(header)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "onnxruntime" / "lib" / name).symlink_to(LIBRARY)
    names, here = {}, Path.cwd()
    torch.manual_seed(0)
    os.chdir(folder)
    try:
        exec(compile(*blocks("python"), "docs/export.md", "exec"), names)
    finally:
        os.chdir(here)
    built = shell(blocks("sh")[0], folder, ONNXRUNTIME=str(folder / "onnxruntime"))
    assert built.returncode == 0, built.stderr[-3000:]
    return folder, names


@pytest.mark.slow
def test_the_program_gives_the_output_of_the_module_without_python(page):
    folder, names = page
    linked = subprocess.run(["ldd", folder / "run_onnx"], capture_output=True, text=True, check=True).stdout
    assert "libonnxruntime" in linked
    assert "python" not in linked
    done = shell(blocks("sh")[1], folder)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = names["attention"](names["query"], names["reference_points"], names["maps"])
    output = torch.frombuffer(bytearray((folder / "output.bin").read_bytes()), dtype=torch.float32)
    assert expected.abs().max() > 0.01
    assert_close(output.reshape(expected.shape), expected, torch.float32)


@pytest.mark.slow
def test_what_is_wrong_ends_the_program_with_a_sentence(page):
    folder, _ = page
    right = blocks("sh")[1]
    for command, sentence in (
        (right.replace("map_1.bin", ""), "expected 4 inputs, got 3"),
        (right.replace("map_1.bin", "query.bin"), "query.bin: expected 3456 float32 numbers"),
        (right.replace("$LIBRARY", "missing.so"), "missing.so"),
        (right.replace("$LIBRARY", "onnxruntime/lib/libonnxruntime.so"), "RegisterCustomOps"),
    ):
        done = shell(command, folder)
        assert done.returncode == 1
        assert sentence in done.stderr


@pytest.mark.slow
def test_the_program_runs_a_detector_as_the_page_says(page):
    folder, _ = page
    detector = small_detector()
    save(folder / "runs" / "trees", detector)
    images, mask = torch.zeros(1, 3, 96, 128), torch.ones(1, 96, 128, dtype=torch.bool)
    images[:, :, :80, :128], mask[:, :80, :128] = torch.rand(3, 80, 128), False
    images.numpy().tofile(folder / "images.bin")
    mask.numpy().tofile(folder / "mask.bin")
    library, export, run = blocks("sh")[1].splitlines()[0], *blocks("sh")[2].splitlines()
    done = shell("\n".join((library, export.replace("deform-attn", "python -m deform_attn"), run)), folder)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = detector.model(images, mask)
    found = torch.frombuffer(bytearray((folder / "found.bin").read_bytes()), dtype=torch.float32)
    logits, boxes = found.split([expected.logits.numel(), expected.boxes.numel()])
    torch.testing.assert_close(logits.reshape(expected.logits.shape), expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(boxes.reshape(expected.boxes.shape), expected.boxes, rtol=1e-4, atol=1e-4)
    done = shell("\n".join((library, run.replace("mask.bin", "/dev/null"))), folder)
    assert (done.returncode, done.stderr) == (1, "/dev/null: expected 12288 bytes\n")
