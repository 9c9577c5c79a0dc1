"""The time that the host takes for a launch: the page shows the file."""

from benchmarks import report
from benchmarks.gpu import host


def test_the_page_shows_the_committed_times():
    (block,) = host.BLOCK.finditer(host.DOCUMENT.read_text())
    assert block["body"] == host.body(report.load("gpu-host"))
