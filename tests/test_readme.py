"""The README and the docs: their code runs, their links lead somewhere, their make targets exist."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BLOCKS = [
    pytest.param(code, id=f"{page.name}-{i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
]


@pytest.mark.parametrize("code", BLOCKS)
def test_the_python_code_of_the_pages_runs(code):
    exec(compile(code, "page", "exec"), {})


def test_the_readme_shows_about_ten_lines_of_code_first():
    first = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE).group(1)
    assert 5 <= len(first.strip().splitlines()) <= 12


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_to_files_that_exist(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_make_targets_that_a_page_names_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE))
    assert named <= targets


def demo_row(result):
    """Return the README's row of a result of `python -m benchmarks.demo`."""
    metrics, seconds = result["metrics"], result["seconds"]
    figures = [f"{metrics[name]:.2f}" for name in ("AP", "AP50", "AP<16", "AP<32")]
    epochs = sorted(seconds["epochs"])
    return (
        f"| `{result['backend']}` | {' | '.join(figures)} | {epochs[len(epochs) // 2]:.0f} s | {seconds['all']:.0f} s |"
    )


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "results").glob("demo-*.json")), ids=lambda path: path.stem
)
def test_the_figures_of_the_demo_in_the_readme_are_the_committed_ones(path):
    assert demo_row(json.loads(path.read_text())) in (ROOT / "README.md").read_text().splitlines()
