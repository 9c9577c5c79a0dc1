"""A short run of the fuzz with a seed that stays, and what it does with a failure."""

import pytest
import run
import torch
from fuzz_cases import draw

from deform_attn import checks
from deform_attn.backends import grid_sample


def run_cases(numbers):
    for number in numbers:
        run.run_case(number)


def test_the_first_cases_of_a_seed_pass():
    run_cases(range(24))


@pytest.mark.parametrize(
    "number",
    [
        700018,  # grad_output NaN, moved
        136395049,  # grad_output NaN, differentiated twice
        1565998043,  # grad_output NaN, zeros without memory
        700099,  # zeros without memory, moved
    ],
)
def test_right_calls_that_torch_itself_does_not_compute_alike_pass(number):
    run.run_case(number)


def test_a_case_is_the_same_each_time():
    for number in range(8):
        first, second = draw(number), draw(number)
        assert str(first) == str(second)
        for name, tensor in first.tensors.items():
            torch.testing.assert_close(tensor, second.tensors[name], rtol=0, atol=0, equal_nan=True)


def test_height_and_width_in_the_wrong_order_are_found(monkeypatch):
    right = grid_sample._grid

    def turned(locations, maps, *modes):
        return right(locations, maps._replace(H=maps.W, W=maps.H), *modes)

    monkeypatch.setattr(grid_sample, "_grid", turned)
    with pytest.raises(AssertionError, match="grid_sample: "):
        run_cases(range(100))


def test_a_check_that_is_gone_is_found(monkeypatch):
    monkeypatch.setattr(checks, "_options", lambda interpolation, padding_mode: None)
    with pytest.raises((AssertionError, RuntimeError), match=r"interpolation|padding_mode"):
        run_cases(range(0, 400, 4))


def test_a_failing_batch_names_the_case_and_how_to_repeat_it(monkeypatch):
    monkeypatch.setattr(run, "__file__", "missing.py")
    with pytest.raises(SystemExit, match="repeat it: make fuzz SEED=5 CASES=1"):
        run.fuzz(seed=5, seconds=10, cases=1)
