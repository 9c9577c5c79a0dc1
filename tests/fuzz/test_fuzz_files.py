"""A short run of the fuzz of files for ONNX Runtime, with a seed that stays, and what it does with a failure."""

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import node_files
import run
import torch

from deform_attn.backends.native import registration

pytestmark = pytest.mark.skipif(registration._library is None, reason="the CPU kernels are not built")


def run_files(numbers):
    for number in numbers:
        run.run_file(number)


def test_the_first_files_of_a_seed_pass():
    run_files(range(40))


@pytest.mark.slow
def test_files_of_twenty_seconds_pass_in_processes_of_their_own():
    assert run.fuzz(seed=1_000_000, seconds=20, cases=None, files=True) > 10


def test_right_and_wrong_files_are_drawn_and_both_ends_are_met():
    files = [node_files.draw(number) for number in range(60)]
    assert 15 < sum(not file.faults for file in files) < 45
    taken = []
    for file in files[:30]:
        try:
            node_files.run(file)
        except node_files.FAILURES:
            assert file.faults
            taken.append(False)
        else:
            taken.append(True)
    assert 5 < sum(taken) < 25


def test_a_wrong_bit_is_found(monkeypatch):
    right = node_files.run

    def wrong(file):
        output = right(file).copy()
        output.flat[:1] += 1
        return output

    monkeypatch.setattr(node_files, "run", wrong)
    with pytest.raises(AssertionError):
        run_files(range(0, 30, 3))


def test_a_right_file_that_is_refused_is_found(monkeypatch):
    def refuse(file):
        raise node_files.FAILURES[0]("Status Message: expected another")

    monkeypatch.setattr(node_files, "run", refuse)
    with pytest.raises(AssertionError, match="expected another"):
        run.run_file(0)


def test_a_file_is_the_same_each_time():
    for number in range(8):
        first, second = node_files.draw(number), node_files.draw(number)
        assert str(first) == str(second)
        for name, array in first.arrays.items():
            torch.testing.assert_close(
                torch.from_numpy(array), torch.from_numpy(second.arrays[name]), rtol=0, atol=0, equal_nan=True
            )
