"""The option --each-value-once: every value of every parameter of a test runs, and what adds none does not."""

from types import SimpleNamespace

from selection import each_value_once


def case(test, **params):
    """Return what stands for a case of a test."""
    if not params:
        return SimpleNamespace(nodeid=f"test_file.py::{test}")
    return SimpleNamespace(nodeid=f"test_file.py::{test}[{params}]", callspec=SimpleNamespace(params=params))


def test_each_value_of_each_parameter_of_each_test_runs_once():
    twos = (["x"], ["y"], ("z",))
    product = [case("a", one=one, two=two) for one in (1, True, "1") for two in twos]
    plain = [case("b"), case("c", one=1)]
    kept, left = each_value_once([*product, *plain])
    assert kept == [product[i] for i in (0, 1, 2, 3, 6)] + plain
    assert left == [product[i] for i in (4, 5, 7, 8)]
