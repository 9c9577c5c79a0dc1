"""The guides: the figures that they quote are committed ones, and their tables are true of the code."""

import json
import math
import re
from pathlib import Path

from deform_attn.export.forms import FORMS

ROOT = Path(__file__).parents[2]
TRAIN, DEPLOY, PERFORMANCE, ONNX = (
    (ROOT / "docs" / name).read_text()
    for name in ("guides/train.md", "guides/deploy.md", "guides/performance.md", "onnx.md")
)


def rows(page, head):
    """Return the cells of each row of the table of a page whose head begins so."""
    table = page.partition(f"\n| {head} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[2:]]


def test_the_curve_in_the_guide_to_training_is_the_committed_one():
    history = json.loads((ROOT / "benchmarks" / "results" / "trees.json").read_text())["seeds"]["0"]["history"]
    curve = rows(TRAIN, "epoch")
    assert len(curve) > 5
    assert curve[-1][0] == str(len(history))
    for epoch, *figures in curve:
        record = history[int(epoch) - 1]
        assert figures == [f"{record['loss']:.1f}", f"{record['AP50']:.2f}"]


def test_the_times_of_a_training_step_are_those_of_the_benchmarks():
    benchmarks = (ROOT / "docs" / "benchmarks.md").read_text()
    times = dict(rows(TRAIN, "image"))
    assert len(times) == 3
    for size, time in times.items():
        assert f"| {size}, training | {time} |" in benchmarks
    seconds = 500 * 50 * float(times["640 x 640"].removesuffix(" s"))
    assert f"500 images at 640 x 640 take {math.ceil(seconds / 60)} minutes for 50 epochs." in TRAIN


def test_the_times_of_the_detector_in_the_performance_tips_are_the_committed_ones():
    result = json.loads((ROOT / "benchmarks" / "results" / "onnx.json").read_text())["onnx"]["detector"]
    assert result["pixels"] == [640, 640]
    sides = {"PyTorch, our kernels": "patched", "PyTorch, `grid_sample`": "stock"}
    table = rows(PERFORMANCE, "where it runs")
    assert len(table) == 5
    for side, time in table:
        assert time == f"{result['times'][sides.get(side, side)]['median_ms'] / 1000:.2f} s", side
    benchmarks, times = (ROOT / "docs" / "benchmarks.md").read_text(), rows(PERFORMANCE, "image")
    assert len(times) == 3
    assert all(f"| {size}, inference | {time} |" in benchmarks for size, time in times)


def test_the_steps_in_the_guide_to_training_follow_from_images_and_epochs():
    table = rows(TRAIN, "images, in batches of 8")
    assert len(table) == 3
    for row in table:
        images, epochs, steps = (int(cell.replace(",", "")) for cell in row)
        assert steps == math.ceil(images / 8) * epochs


def test_the_table_of_runtimes_says_which_forms_are_checked_as_a_graph_only_and_their_dtypes():
    table = rows(DEPLOY, "runtime")
    assert {len(row) for row in table} == {6}
    for name, form in FORMS.items():
        of_form = [row for row in table if f"`{name}`" in row[1]]
        assert of_form
        assert all((row[5] == "as a graph only") == (not form.runs_here) for row in of_form)
    for name in ("native", "tensorrt"):
        dtypes = {str(dtype).removeprefix("torch.") for dtype in FORMS[name].dtypes}
        assert set(next(row for row in table if f"`{name}`" in row[1])[3].split(", ")) == dtypes


def test_the_page_on_onnx_lists_every_form_and_has_code_that_writes_it():
    assert [re.findall(r"`(\w+)`", row[0])[0] for row in rows(ONNX, "form")] == [*FORMS]
    for name in FORMS:
        section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", ONNX, re.DOTALL | re.MULTILINE).group(1)
        code = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
        assert any(f'form="{name}"' in block for block in code)
