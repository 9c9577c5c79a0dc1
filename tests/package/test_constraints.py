"""constraints.txt fits the torch that a package index has, not only a build for the CPU, which wants less."""

import json
import os
import sys

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from release import ROOT, run

# Where somebody may have put another build of torch.
_LOCAL = ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT")


def constraints():
    """Return the specifiers of constraints.txt, by the names of packages."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(each.name): each.specifier for each in found}


def wishes_of_torch(version, report):
    """Return what torch of this version from an index requires here; of the package only its metadata is fetched."""
    env = {name: value for name, value in os.environ.items() if name not in _LOCAL} | {"PIP_CONFIG_FILE": os.devnull}
    pip = (sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet")
    only = ("--dry-run", "--no-deps", "--ignore-installed", "--report", report)
    run(*pip, *only, f"torch{version}", env=env)
    (torch,) = json.loads(report.read_text())["install"]
    found = [Requirement(text) for text in torch["metadata"]["requires_dist"]]
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})]


def test_what_the_torch_of_an_index_requires_is_allowed(tmp_path):
    allowed = constraints()
    found = wishes_of_torch(allowed["torch"], tmp_path / "report.json")
    wishes = [each for each in found if canonicalize_name(each.name) in allowed]
    assert wishes
    for wish in wishes:
        # A wish for one version must be allowed; a pinned version must be one that is wished for.
        theirs = {each.version for each in wish.specifier if each.operator == "=="}
        ours = {each.version for each in allowed[canonicalize_name(wish.name)] if each.operator == "=="}
        assert theirs | ours, f"constraints.txt neither pins {wish.name} nor does torch"
        for version in theirs:
            assert version in allowed[canonicalize_name(wish.name)], f"torch wants {wish}"
        for version in ours:
            assert version in wish.specifier, f"torch wants {wish}"
