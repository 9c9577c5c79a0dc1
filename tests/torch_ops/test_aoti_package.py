"""A package of AOTInductor in a C++ program without Python: the code and the commands of docs/export.md."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.export import Dim
from torch.utils import cpp_extension

from deform_attn.backends.native import registration
from tolerances import assert_close

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "export.md").read_text()
HEADER = "torch/csrc/inductor/aoti_package/model_package_loader.h"
# By torch itself, where it compiles a package.
of_torch = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning", "ignore:`isinstance:FutureWarning")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def shell(command, folder, **variables):
    """Run commands of the page as they stand there, in a folder that holds what they name; return what comes of it."""
    python = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **python, **variables}
    return subprocess.run(["bash", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Follow the page: export, compile and build; return the folder and the names that its Python defines."""
    for program in ("g++", "bash", "ldd"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if not any((Path(folder) / HEADER).exists() for folder in cpp_extension.include_paths()):
        pytest.skip("the headers of torch are not installed")
    if registration._library is None:
        pytest.skip("the CPU kernels are not built")
    folder = tmp_path_factory.mktemp("page")
    (folder / "examples").symlink_to(ROOT / "examples")
    names, here = {}, Path.cwd()
    torch.manual_seed(0)
    os.chdir(folder)
    try:
        exec(compile(blocks("python")[0], "docs/export.md", "exec"), names)
    finally:
        os.chdir(here)
    package(names["program"], folder, "attention.pt2")
    built = shell(blocks("sh")[0], folder)
    assert built.returncode == 0, built.stderr[-3000:]
    return folder, names


def package(program, folder, name):
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(program, package_path=str(folder / name))


def run(folder, inputs, package="attention.pt2", **variables):
    """Run the program on some inputs with the commands of the page."""
    torch.save(list(inputs), folder / "inputs.pt")
    (folder / "output.pt").unlink(missing_ok=True)
    return shell(blocks("sh")[1].replace("attention.pt2", package), folder, **variables)


def output(folder, inputs, package="attention.pt2"):
    done = run(folder, inputs, package, AOTI_RUNTIME_CHECK_INPUTS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "output.pt")


def draw(batch, queries, shapes):
    generator = torch.Generator().manual_seed(batch)
    query = torch.randn(batch, queries, 32, generator=generator)
    references = torch.rand(batch, queries, 2, generator=generator)
    return query, references, torch.randn(batch, sum(H * W for H, W in shapes), 32, generator=generator)


def test_the_page_prints_the_program():
    assert blocks("cpp") == [(ROOT / "examples" / "run_package.cpp").read_text()]


@pytest.mark.slow
@of_torch
def test_the_program_is_linked_with_no_python(page):
    linked = subprocess.run(["ldd", page[0] / "run_package"], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu" in linked
    assert "libpython" not in linked
    assert "libtorch_python" not in linked


@pytest.mark.slow
@of_torch
def test_one_package_gives_the_output_of_the_module_for_any_batch_queries_and_image_size(page):
    folder, names = page
    for batch, queries, shapes in ((2, 5, [(12, 18), (6, 9)]), (3, 7, [(8, 5), (4, 3)]), (4, 11, [(7, 11), (5, 2)])):
        inputs = *draw(batch, queries, shapes), torch.tensor(shapes)
        with torch.no_grad():
            expected = names["attention"](*inputs)
        assert expected.abs().max() > 0.01
        assert_close(output(folder, inputs), expected, torch.float32)


@pytest.mark.slow
@of_torch
def test_a_package_with_fixed_map_sizes_gives_the_output_of_the_module_for_any_batch_and_queries(page):
    folder, names = page
    shapes = [(6, 9), (3, 5)]

    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = names["attention"]

        def forward(self, query, references, features):
            return self.attention(query, references, features, shapes)

    rows = {0: Dim("batch"), 1: Dim("queries")}
    with torch.no_grad():
        program = torch.export.export(Fixed(), draw(2, 5, shapes), dynamic_shapes=(rows, rows, {0: rows[0]}))
    package(program, folder, "fixed.pt2")
    for batch, queries in ((2, 5), (3, 8)):
        inputs = draw(batch, queries, shapes)
        with torch.no_grad():
            expected = Fixed()(*inputs)
        assert_close(output(folder, inputs, "fixed.pt2"), expected, torch.float32)
    done = run(folder, draw(2, 5, [(6, 9), (3, 4)]), "fixed.pt2", AOTI_RUNTIME_CHECK_INPUTS="1")
    assert done.returncode == 1
    assert "expected: 69, but got: 66" in done.stderr


@pytest.mark.slow
@of_torch
def test_wrong_sizes_end_the_program_with_the_sentence_of_the_library(page):
    folder, _ = page
    right = draw(2, 5, [(12, 18), (6, 9)])
    for sizes, sentence in (
        (
            torch.tensor([[12, 18], [6, 8]]),
            "spatial_shapes: expected sizes H*W that add up to S, got [(12, 18), (6, 8)], 264 pixels in all, "
            "but value has S = 270. Check the order (H, W) and the number of levels.",
        ),
        (
            torch.tensor([[12, 18]]),
            "spatial_shapes: expected an integer tensor [L, 2] = [2, 2], got [1, 2]. "
            "Give a size (H, W) and a count of points for each level.",
        ),
    ):
        done = run(folder, (*right, sizes))
        assert done.returncode == 1, done.stderr
        assert sentence in done.stderr
        assert not (folder / "output.pt").exists()


@pytest.mark.slow
@of_torch
def test_a_library_that_is_missing_or_another_ends_the_program_with_a_sentence(page):
    folder, _ = page
    other = Path(torch.__file__).parent / "lib" / "libc10.so"
    for library, sentence in (
        ("missing.so", "missing.so: cannot open shared object file"),
        (other, "undefined symbol: deform_attn_register_with_torch"),
    ):
        done = shell(f"./run_package {library} attention.pt2 inputs.pt output.pt", folder)
        assert done.returncode == 1
        assert sentence in done.stderr
        assert len(done.stderr.splitlines()) == 1
