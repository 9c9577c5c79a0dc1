"""The README and the docs: their links lead somewhere, what they name exists, and their figures are committed ones."""

import json
import re
import statistics
from pathlib import Path

import pytest
import torch
from pages import pages_of

import deform_attn
from deform_attn import MultiScaleDeformableAttention, cli, multi_scale_deformable_attention
from deform_attn.backends.registry import BACKENDS
from deform_attn.interop.families import FAMILIES

ROOT = Path(__file__).parents[2]
PAGES = pages_of(ROOT)


def test_the_code_of_the_readme_shows_the_published_module_the_classic_op_and_every_helper():
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE))
    assert set(deform_attn.__all__) - set(re.findall(r"\w+", code)) <= {"DeformableAttention", "deformable_attention"}


def test_zeroed_pixels_are_for_the_classic_op_what_a_mask_is_for_the_others():
    torch.manual_seed(0)
    module, shapes = MultiScaleDeformableAttention(16, num_heads=2, num_levels=2, num_points=3), [(5, 7), (3, 4)]
    features, query, references = torch.randn(2, 47, 16), torch.randn(2, 6, 16), torch.rand(2, 6, 2)
    mask = torch.rand(2, 47) < 0.5
    expected, (locations, weights) = module(
        query, references, features, shapes, padding_mask=mask, return_sampling=True
    )
    value = module.value_proj(features).unflatten(-1, (2, 8))
    assert "`value.masked_fill(mask[..., None, None], 0)`" in (ROOT / "README.md").read_text()
    masked = value.masked_fill(mask[..., None, None], 0)
    actual = module.output_proj(multi_scale_deformable_attention(masked, shapes, locations, weights))
    torch.testing.assert_close(actual, expected)


CONTRIBUTORS = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "contributing").glob("*.md"))]
FOLDERS = [ROOT, ROOT / "src" / "deform_attn", ROOT / "tests"]


def found_below(name, folders):
    """Return the path of a file or folder that a page names, or None."""
    return next((folder / name for folder in folders if (folder / name).exists()), None)


@pytest.mark.parametrize("page", CONTRIBUTORS, ids=lambda page: page.stem)
def test_the_folders_and_files_that_a_page_for_contributors_names_exist(page):
    folders = [*FOLDERS, ROOT / "tests" / "torch_ops"] if page.stem == "pytorch" else FOLDERS
    named = re.findall(r"`([\w/.-]+(?:/|\.(?:py|h|cpp|md|toml|txt|yml)))`", page.read_text())
    assert [name for name in named if found_below(name, folders) is None] == []


def defines(source, name):
    """Return whether a file of Python or C++ defines what is called `name`; a method is `Class.method`."""
    definition = r"^ *(?!return |else )(?:[\w:<>]+ )+[*&]*{0}[(:]|^{0} = "
    return all(re.search(definition.format(part), source, re.MULTILINE) for part in name.split("."))


def test_the_tour_names_files_and_what_they_define():
    text = (ROOT / "docs" / "contributing" / "tour.md").read_text()
    rows = re.findall(r"^\| `([\w/.]+)` \| `([\w.]+)` \|", text, re.MULTILINE)
    assert len(rows) > 40
    assert [row for row in rows if not defines(found_below(row[0], FOLDERS).read_text(), row[1])] == []


def test_a_call_of_a_function_is_not_its_definition():
    for source in ("    def name(self):", "class name:", "inline bool name(int x) {", "name = 1"):
        assert defines(source, "name")
    for source in ("def other(): name()", "    return name(1);", "x = name(1)"):
        assert not defines(source, "name")


def test_the_verbs_of_the_command_that_a_page_names_exist(capsys):
    text = "\n".join(page.read_text() for page in PAGES)
    verbs = set(re.findall(r"(?:`|^)deform-attn ([a-z]+)", text, re.MULTILINE))
    assert {"train", "predict", "explore"} < verbs
    for verb in verbs:
        with pytest.raises(SystemExit) as stop:
            cli.main([verb, "--help"])
        assert stop.value.code == 0, verb


def test_the_readme_shows_about_ten_lines_of_code_first():
    first = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE).group(1)
    assert 5 <= len(first.strip().splitlines()) <= 12


def test_the_first_screen_says_what_a_gpu_gains_and_quotes_the_committed_gains():
    first, heading, _ = (ROOT / "README.md").read_text().partition("## Install")
    assert heading
    assert "`grid_sample`" in first.partition("**On a GPU there is no measured gain yet.**")[2]
    assert len(re.findall(r"\d+\.\d+x", first)) == 6  # those of the next test


def test_the_links_of_all_pages_lead_to_files_that_exist():
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())]
    assert len(links) > 30
    missing = [(p.name, link) for p, link in links if not link.startswith("http") and not (p.parent / link).exists()]
    assert missing == []


def test_the_make_targets_that_a_page_names_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        (page.name, target)
        for page in PAGES
        for target in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE)
    }
    assert len(named) > 5
    assert {(page, target) for page, target in named if target not in targets} == set()


RIVAL = "torch-ms-deform-attn"
SPEED = [
    ("forward", "enc640", "encoder, 640 x 640, forward"),
    ("forward", "enc800", "encoder, 800 x 1333, forward"),
    ("forward", "dec300", "decoder, 300 queries, forward"),
    ("training", "enc640", "encoder, 640 x 640, forward and backward"),
]


def demo_row(result):
    """Return the page's row of a result of `python -m benchmarks.demo`."""
    metrics, seconds = result["metrics"], result["seconds"]
    figures = [f"{metrics[name]:.2f}" for name in ("AP", "AP50", "AP<16", "AP<32")]
    epoch = statistics.median(seconds["epochs"])
    times = f"{result['epochs']} | {epoch:.0f} s | {seconds['all']:.0f} s"
    return f"| `{result['backend']}` | {' | '.join(figures)} | {times} |"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "results").glob("demo-*.json")), ids=lambda path: path.stem
)
def test_the_figures_of_the_demo_are_the_committed_ones(path):
    result, page = json.loads(path.read_text()), (ROOT / "docs" / "start" / "first-detector.md").read_text()
    assert demo_row(result) in page.splitlines()
    assert "| epochs | an epoch (median) |" in page


def test_the_times_in_the_readme_are_the_committed_ones():
    """Each row: a case, our median time, and how many times that each rival takes."""
    result = json.loads((ROOT / "benchmarks" / "results" / "epyc-zen3-2.json").read_text())
    lines = (ROOT / "README.md").read_text().splitlines()
    for section, case, label in SPEED:
        times = result[section][case]["times"]
        rivals = [times.get(name, {}).get("ratio") for name in ("eager", "onnxruntime", "openvino", RIVAL)]
        cells = ["-" if ratio is None else f"{ratio:.1f}x" for ratio in rivals]
        assert f"| {label} | {times['ours']['median_ms']:.1f} ms | {' | '.join(cells)} |" in lines


FIGURE = re.compile(r"\d+(?:\.\d+)?(?:x| ms| µs| MB)(?![\w])")


def written_by_benchmarks():
    """Return the tables of the page of the benchmarks, which are written from committed results."""
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    return "\n".join(re.findall(r"<!-- \w+ of [\w-]+ -->\n(.*?)<!-- end -->", text, re.DOTALL))


@pytest.mark.parametrize("folder", ["start", "guides", "concepts", "help"])
def test_the_figures_that_a_page_quotes_are_those_of_the_benchmarks(folder):
    known = set(FIGURE.findall(written_by_benchmarks()))
    assert len(known) > 100
    quoted = {}
    for page in (ROOT / "docs" / folder).glob("*.md"):
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)  # what a command printed
        quoted[page.name] = set(FIGURE.findall(text))
    assert {name: figures - known for name, figures in quoted.items() if figures - known} == {}


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_gains_on_the_first_pages_are_the_committed_ones(page):
    result = json.loads((ROOT / "benchmarks" / "results" / "epyc-zen3-2.json").read_text())["end_to_end"]
    lines = (ROOT / page).read_text().splitlines()
    for name, label in (("deformable_detr", "Deformable DETR"), ("mask2former", "Mask2Former"), ("rt_detr", "RT-DETR")):
        gains = [result[name][what]["times"]["stock"]["ratio"] for what in ("inference", "training")]
        (row,) = [line for line in lines if line.startswith(f"| {label}, ")]
        assert row.endswith("| " + " | ".join(f"{gain:.2f}x" for gain in gains) + " |")


def test_the_page_of_other_projects_quotes_the_committed_gains():
    results = {
        name: json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["end_to_end"]
        for name in ("epyc-zen3-2", "research")
    }
    lines = (ROOT / "docs" / "interop.md").read_text().splitlines()
    for label, name, model, side in (
        ("a model of transformers", "epyc-zen3-2", "deformable_detr", "patched"),
        ("a model of transformers", "epyc-zen3-2", "rt_detr", "patched"),
        ("the repository of Deformable DETR", "research", "original", "patched"),
        ("the same, and its extension", "research", "original", "stand-in"),
        ("RT-DETR of ultralytics", "research", "ultralytics", "patched"),
        ("RF-DETR of the package", "research", "rfdetr", "patched"),
    ):
        times = [results[name][model][what]["times"] for what in ("inference", "training")]
        inference, training = (f"{each['stock']['ratio'] / each[side]['ratio']:.2f}x" for each in times)
        (row,) = [line for line in lines if line.startswith(f"| {label}")]
        assert f"{inference} and {training}" in row


def test_the_tutorial_quotes_the_committed_figures_of_the_demo():
    result = json.loads((ROOT / "benchmarks" / "results" / "demo-native.json").read_text())
    text = (ROOT / "docs" / "start" / "first-detector.md").read_text()
    assert f"for {result['epochs']} epochs of 2,000 and reaches an AP50 of {result['metrics']['AP50']:.2f}" in text


def test_the_page_of_families_has_a_row_for_each_that_patch_knows():
    text = (ROOT / "docs" / "reference" / "families.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", text, re.MULTILINE)
    assert rows == [(family.name, family.structure.class_name) for family in FAMILIES]


def test_the_version_to_cite_is_the_version():
    (version,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"version = {{{version}}}" in (ROOT / "docs" / "help" / "citation.md").read_text()
    assert f"The version is {version}," in (ROOT / "docs" / "help" / "versions.md").read_text()


def test_the_tests_that_a_table_names_exist():
    table = (ROOT / "docs" / "contributing" / "pytorch.md").read_text()
    names = set(re.findall(r"`([\w/]+\.py)`", table))
    assert len(names) > 8
    missing = {
        name for name in names if not any((ROOT / "tests" / folder / name).exists() for folder in ("", "torch_ops"))
    }
    assert missing == set()


def test_what_the_page_of_installation_shows_is_what_the_command_prints():
    text = (ROOT / "docs" / "start" / "install.md").read_text()
    for backend in BACKENDS:
        assert f"   {backend.name:<12} yes\n{'':16}{backend.summary}\n" in text


def test_the_messages_in_the_faq_are_those_of_the_library():
    text = (ROOT / "docs" / "help" / "faq.md").read_text()
    headings = "\n".join(re.findall("^### (.*)$", text.partition("## Messages of deform-attn")[2], re.MULTILINE))
    tensors = torch.ones(1, 6, 1, 1), torch.tensor([[2, 3]]), torch.tensor([0]), torch.rand(1, 4, 1, 1, 1, 2)
    calls = {
        "expected 1 argument by position (embed_dim)": lambda: MultiScaleDeformableAttention(256, 4, 8, 4),
        "Leave out level_start_index and im2col_step: they are not needed": lambda: multi_scale_deformable_attention(
            *tensors, torch.rand(1, 4, 1, 1, 1), 64
        ),
        "model: expected a model with a deformable attention that a rule knows": lambda: deform_attn.patch(
            torch.nn.Linear(2, 2)
        ),
    }
    for message, call in calls.items():
        assert f"`{message}`" in headings
        with pytest.raises((TypeError, ValueError), match=re.escape(message)):
            call()
