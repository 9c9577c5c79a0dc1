"""The sdist: exactly the files that a build needs."""

import subprocess
import tarfile

import pytest
from release import ROOT


def tracked(*places):
    """Return the files under these places that git has, or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *places]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("the sources are in no repository of git")
    return {name for name in done.stdout.splitlines() if (ROOT / name).exists()}


def test_it_has_the_sources_what_builds_them_the_licence_and_the_readme_and_nothing_else(sdist):
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    (folder,) = {member.name.partition("/")[0] for member in members}
    assert sdist.name == f"{folder}.tar.gz"
    alone = {"CMakeLists.txt", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    files = {member.name.partition("/")[2] for member in members if not member.isdir()}
    assert files == alone | tracked("native", "src")
    assert len(files) > 100
    assert all(member.isreg() or member.isdir() for member in members)
