"""The GPU kernels in Triton's interpreter against reference.py in float64: a row of a table for each claim.

A launch takes a second or so here, so the rows are chosen: every value of every column, and the pairs that share code.
"""

import dataclasses

import pytest
import torch
from interpreted import ENTRY_POINTS, INTERPRETED

from cases import Case, case_id, grad_output_of, inputs_of, named
from deform_attn import explain
from tolerances import CUT_OFF, assert_close

pytestmark = INTERPRETED

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
TINY = {"batch": 1, "queries": 5, "heads": 2}


def small(name, **changes):
    return dataclasses.replace(named(name), **{**TINY, **changes})


# Channels that fill 16 bytes, and more than a warp has; maps that are queried by their own pixels.
SIXTEEN = Case("sixteen channels", ((5, 7), (3, 2)), (4, 4), channels=16, **TINY)
WIDE = Case("wide heads", ((4, 5),), (3,), channels=130, batch=1, queries=3, heads=1)
PIXELS = Case("queries of pixels", ((9, 13), (3, 5)), (2, 1), batch=1, queries=132, heads=1, channels=4, flat=True)
NINE = Case("nine levels", tuple((2, n) for n in range(1, 10)), (1,) * 9, batch=1, queries=3, heads=1, channels=4)

# (entry point, case, dtype, interpolation, padding mode, sizes in a tensor)
ROWS = [
    ("classic", small("one level as in the paper", batch=2), F32, "bilinear", "zeros", False),
    ("fused", small("one level as in the paper", batch=2), F32, "bilinear", "zeros", False),
    ("classic", small("encoder"), F32, "bilinear", "border", True),
    ("fused", small("encoder"), F32, "bilinear", "border", False),
    ("fused", small("encoder", batch=2, heads=1), F32, "bilinear", "zeros", True),
    ("fused", small("encoder"), F32, "nearest", "zeros", True),
    ("classic", small("encoder"), F32, "nearest", "border", False),
    ("fused", small("decoder points"), F32, "bilinear", "zeros", True),
    ("fused", small("decoder points"), F32, "nearest", "border", False),
    ("fused", small("decoder boxes"), F32, "bilinear", "zeros", False),
    ("fused", small("decoder boxes"), F32, "bilinear", "border", True),
    ("fused", small("decoder boxes"), F32, "nearest", "border", True),
    ("fused", small("boxes on one reference level"), F32, "bilinear", "zeros", True),
    ("fused", small("boxes without a reference level"), F32, "bilinear", "border", False),
    ("fused", small("another offset scale"), F32, "bilinear", "zeros", False),
    ("fused", small("one point"), F32, "bilinear", "zeros", False),
    ("classic", small("points counted per level"), F32, "bilinear", "zeros", False),
    ("fused", small("points counted per level"), F32, "bilinear", "border", True),
    ("fused", small("boxes with points per level"), F32, "bilinear", "zeros", True),
    ("classic", small("flat with equal counts"), F32, "bilinear", "border", False),
    ("classic", small("a level without points"), F32, "bilinear", "zeros", True),
    ("fused", small("a level without points"), F32, "bilinear", "zeros", False),
    ("classic", small("one-pixel level"), F32, "bilinear", "border", False),
    ("fused", small("one-pixel level with boxes"), F32, "bilinear", "zeros", False),
    ("fused", small("a row and a column"), F32, "bilinear", "zeros", False),
    ("classic", small("a row and a column"), F32, "nearest", "zeros", True),
    ("classic", small("empty levels"), F32, "bilinear", "zeros", True),
    ("fused", small("empty levels"), F32, "bilinear", "border", False),
    ("fused", small("empty level with boxes"), F32, "bilinear", "zeros", True),
    ("classic", small("one channel, one head", heads=1), F32, "bilinear", "zeros", False),
    ("fused", small("many channels"), F32, "bilinear", "zeros", False),
    ("classic", SIXTEEN, F32, "bilinear", "zeros", False),
    ("classic", WIDE, F32, "bilinear", "zeros", False),
    ("classic", PIXELS, F32, "bilinear", "zeros", False),
    ("fused", PIXELS, F32, "bilinear", "border", True),
    ("classic", NINE, F32, "bilinear", "zeros", False),
    ("fused", NINE, F32, "bilinear", "zeros", True),
    ("classic", SIXTEEN, F16, "bilinear", "zeros", False),
    ("fused", SIXTEEN, F16, "bilinear", "border", True),
    ("fused", small("decoder boxes"), F16, "nearest", "zeros", False),
    ("classic", SIXTEEN, BF16, "bilinear", "zeros", True),
    ("fused", SIXTEEN, BF16, "bilinear", "zeros", False),
    ("fused", small("encoder"), BF16, "bilinear", "border", False),  # an odd number of channels
    ("classic", small("encoder", channels=6), BF16, "nearest", "zeros", False),
    ("classic", small("encoder"), F64, "bilinear", "zeros", False),
    ("fused", small("encoder"), F64, "bilinear", "border", True),
    ("fused", small("decoder boxes"), F64, "bilinear", "zeros", False),
    ("classic", small("decoder points"), F64, "nearest", "zeros", True),
]


def row_id(row):
    entry_point, case, dtype, interpolation, padding_mode, by_tensor = row
    sizes = "tensor" if by_tensor else "pairs"
    return "-".join([entry_point, case_id(case), str(dtype)[6:], interpolation, padding_mode, sizes])


def call_of(entry_point, case, dtype, by_tensor):
    """Return the tensors with gradients of a call, and the function of them and of a backend."""
    inputs = inputs_of(case, dtype)
    tensors = inputs.fused_tensors if entry_point == "fused" else inputs.classic_tensors
    options = inputs.fused_options if entry_point == "fused" else inputs.classic_options

    def run(value, *others, backend, mask=None, **modes):
        given = {**options, **modes}
        if mask is not None:
            given["padding_mask"] = mask
        return ENTRY_POINTS[entry_point](value, case.spatial_shapes, *others, backend=backend, **given)

    return tensors, options.get("padding_mask"), run


def by_tensor_too(monkeypatch):
    """Let sizes reach the ops in a tensor, as they do in a graph; the entry points would read it on the CPU."""
    from deform_attn.torch_ops import schema

    arguments, op_of = schema.arguments, schema.op_of
    monkeypatch.setattr(schema, "arguments", lambda inputs: arguments(_in_a_tensor(inputs)))
    monkeypatch.setattr(schema, "op_of", lambda inputs: op_of(_in_a_tensor(inputs)))


def _in_a_tensor(inputs):
    sizes = inputs.spatial_shapes
    return inputs if isinstance(sizes, torch.Tensor) else inputs._replace(spatial_shapes=torch.tensor(sizes))


@pytest.mark.parametrize("row", ROWS, ids=map(row_id, ROWS))
def test_output_and_gradients_are_those_of_the_reference(row, bands, launches, monkeypatch):
    entry_point, case, dtype, interpolation, padding_mode, by_tensor = row
    modes = {"interpolation": interpolation, "padding_mode": padding_mode}
    tensors, mask, run = call_of(entry_point, case, dtype, by_tensor)
    wide = [tensor.double().requires_grad_() for tensor in tensors]
    pull = grad_output_of(case, dtype)
    expected = run(*wide, backend="reference", **modes)
    grads_expected = torch.autograd.grad(expected, wide, pull.double())
    actual = [bands.around(tensor).requires_grad_() for tensor in tensors]
    if by_tensor:
        by_tensor_too(monkeypatch)
    output = run(*actual, backend="triton", mask=bands.around(mask), **modes)
    grads = torch.autograd.grad(output, actual, bands.around(pull))
    assert launches == ["forward", "backward"]
    tolerance = CUT_OFF if dtype == BF16 else dtype
    assert_close(output, expected, dtype, tolerance)
    for grad, wanted in zip(grads, grads_expected, strict=True):
        assert_close(grad, wanted, dtype, tolerance)


def test_every_column_of_the_table_has_every_value():
    entry_points, cases, dtypes, interpolations, padding_modes, by_tensor = (
        set(column) for column in zip(*ROWS, strict=True)
    )
    assert entry_points == set(ENTRY_POINTS)
    assert dtypes == {F32, F64, F16, BF16}
    assert len(interpolations) == len(padding_modes) == len(by_tensor) == 2
    assert {case.coordinates for case in cases} == {2, 4}
    assert {case.masked for case in cases} == {True, False}


def test_the_interpreter_is_never_the_default():
    tensors = call_of("classic", small("encoder"), F32, False)[0]
    assert explain(tensors[0], named("encoder").spatial_shapes, *tensors[1:]).backend != "triton"
    assert explain(tensors[0], named("encoder").spatial_shapes, *tensors[1:], backend="triton").backend == "triton"
