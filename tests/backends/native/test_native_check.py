"""deform_attn_check: what it says of calls whose arguments nobody has judged, field by field."""

import ctypes
import importlib.util
import re
from pathlib import Path

import pytest

from deform_attn.backends.native import registration

pytestmark = pytest.mark.skipif(registration._library is None, reason="the CPU kernels are not built")
HEADER = (Path(__file__).parents[3] / "native" / "include" / "deform_attn.h").read_text()
N, M, D, Q, LEVELS = 2, 3, 5, 7, [(4, 6, 3), (2, 3, 2)]  # (H, W, P)
S, T, L = sum(H * W for H, W, _ in LEVELS), sum(P for _, _, P in LEVELS), len(LEVELS)
GRADIENTS = ["grad_value", "grad_points", "grad_weights", "grad_reference_points"]
FLOAT32, FLOAT64, BFLOAT16, FLOAT16 = range(4)


def without_comments(text):
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def enumerated(name):
    """Return the names of an enum of the header, in order, without their prefix."""
    body = re.search(rf"enum {name} \{{(.*?)\}};", without_comments(HEADER), re.DOTALL).group(1)
    return [word.strip().removeprefix("DEFORM_ATTN_") for word in body.split(",")]


def fields():
    """Return (name, whether it is a double) of each field of a call, in the header's order."""
    body = re.search(r"typedef struct \{(.*?)\} deform_attn_call;", without_comments(HEADER), re.DOTALL).group(1)
    declared = []
    for declaration in filter(None, map(str.strip, body.split(";"))):
        kind, *names = re.match(r"(.*?)(\w+(?:, \w+)*)$", declaration, re.DOTALL).groups()
        declared += [(name, kind.strip() == "double") for name in names[0].split(", ")]
    return declared


FIELDS = fields()
STATUSES = enumerated("deform_attn_status")


class CCall(ctypes.Structure):
    """A deform_attn_call, made of the header."""

    _fields_ = [(name, ctypes.c_double if is_double else ctypes.c_int64) for name, is_double in FIELDS]


def check(call):
    function = ctypes.CDLL(importlib.util.find_spec("deform_attn._native").origin).deform_attn_check
    function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_int32
    return STATUSES[function(None if call is None else ctypes.addressof(call))]


def levels_of(rows):
    table = (ctypes.c_int64 * (4 * len(rows)))(*[number for row in rows for number in row])
    return table, ctypes.addressof(table)


def level_rows():
    first, rows = 0, []
    for H, W, P in LEVELS:
        rows.append([H, W, first, P])
        first += H * W
    return rows


# The arrays are never read, only judged by their addresses.
TABLE, LEVELS_AT = levels_of(level_rows())
SOMEWHERE = 4096


def a_call(backward=False, raw=True, **changes):
    call = CCall(N=N, S=S, M=M, D=D, Q=Q, T=T, L=L, threads=2, levels=LEVELS_AT)
    call.value = call.points = call.weights = SOMEWHERE
    call.value_stride_n, call.value_stride_s, call.value_stride_m = S * M * D, M * D, D
    call.points_stride_n, call.points_stride_q = Q * M * T * 2, M * T * 2
    call.weights_stride_n, call.weights_stride_q = Q * M * T, M * T
    if raw:
        call.reference_points = call.mask = SOMEWHERE
        call.reference_size, call.reference_levels = 4, L
        call.reference_stride_n, call.reference_stride_q, call.reference_stride_l = Q * L * 4, L * 4, 4
        call.mask_stride_n, call.offset_scale = S, 0.5
    if backward:
        call.grad_output = SOMEWHERE
        call.grad_output_stride_n, call.grad_output_stride_q = Q * M * D, M * D
        for name in GRADIENTS[: 4 if raw else 3]:
            setattr(call, name, SOMEWHERE)
    else:
        call.output = SOMEWHERE
    for name, number in changes.items():
        assert name in dict(FIELDS)
        setattr(call, name, number)
    return call


def test_every_field_of_the_header_takes_eight_bytes():
    size = ctypes.CDLL(importlib.util.find_spec("deform_attn._native").origin).deform_attn_call_size
    size.restype = ctypes.c_int64
    assert size() == 8 * len(FIELDS) == ctypes.sizeof(CCall)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("raw", [False, True])
def test_a_right_call_passes(backward, raw):
    assert check(a_call(backward, raw)) == "OK"


RIGHT = {
    "an array read again by a stride of 0": {"value_stride_n": 0, "points_stride_q": 0, "mask_stride_n": 0},
    "references of one level for all": {"reference_levels": 1, "reference_stride_l": 0},
    "one reference, expanded over the levels": {"reference_stride_l": 0},
    "no mask": {"mask": 0},
    "float64": {"value_dtype": FLOAT64, "compute_dtype": FLOAT64},
    "bfloat16 with float16 points": {"value_dtype": BFLOAT16, "points_dtype": FLOAT16},
    "nearest and border": {"nearest": 1, "border": 1},
    "no images, and no arrays": {"N": 0, "value": 0, "points": 0, "weights": 0, "output": 0},
    "no queries, and no points": {"Q": 0, "points": 0, "weights": 0, "output": 0},
    "no channels, and no value": {"D": 0, "value": 0, "output": 0},
}


@pytest.mark.parametrize("changes", RIGHT.values(), ids=RIGHT)
def test_an_unusual_call_passes(changes):
    assert check(a_call(**changes)) == "OK"


@pytest.mark.parametrize("wanted", [[], ["grad_value"], ["grad_points", "grad_reference_points"]])
def test_a_backward_call_may_want_some_gradients_only(wanted):
    assert check(a_call(True, **{name: 0 for name in GRADIENTS if name not in wanted})) == "OK"


def test_a_call_without_levels_passes():
    call = a_call(L=0, S=0, T=0, levels=0, value=0, points=0, weights=0, reference_points=0, mask=0, reference_levels=0)
    assert check(call) == "OK"


FAR = 2**56
WRONG = [
    ("WRONG_DTYPE", [{"value_dtype": -1}, {"value_dtype": 4}, {"points_dtype": 4}, {"weights_dtype": -1}]),
    ("WRONG_DTYPE", [{"reference_dtype": 4}, {"compute_dtype": FLOAT64}, {"compute_dtype": BFLOAT16}]),
    ("WRONG_DTYPE", [{"value_dtype": FLOAT64}]),
    ("WRONG_OPTION", [{"nearest": 2}, {"nearest": -1}, {"border": 2}, {"threads": -1}, {"threads": 2**20 + 1}]),
    ("WRONG_REFERENCES", [{"reference_size": 3}, {"reference_size": 0}, {"reference_levels": 3}]),
    ("WRONG_REFERENCES", [{"reference_levels": 0}, {"reference_levels": 1}]),
    ("WRONG_SIZES", [{name: -1} for name in "NSMDQTL"]),
    ("WRONG_SIZES", [{name: 2**61} for name in "NSMDQTL"]),
    ("WRONG_SIZES", [{"N": 2**32, "Q": 2**32}, {"N": 0, "M": 2**32, "T": 2**32}, {"S": S + 1}, {"T": T - 1}]),
    ("NULL_POINTER", [{name: 0} for name in ("levels", "value", "points", "weights", "output")]),
    ("MISALIGNED_POINTER", [{name: SOMEWHERE + 2} for name in ("value", "points", "weights", "reference_points")]),
    ("MISALIGNED_POINTER", [{"levels": LEVELS_AT + 4}, {"output": SOMEWHERE + 1}]),
    ("WRONG_STRIDES", [{name: -1} for name, _ in FIELDS if "_stride_" in name and not name.startswith("grad")]),
    ("WRONG_STRIDES", [{name: FAR} for name, _ in FIELDS if "_stride_" in name and not name.startswith("grad")]),
]  # fmt: skip


def taken(wrong, *backward):
    """Return those of the changes that are not refused with their status, and what came of them."""
    found = [(status, one, check(a_call(*backward, **one))) for status, many in wrong for one in many]
    assert found
    return [(status, one, got) for status, one, got in found if got != status]


def test_a_call_with_one_wrong_field_is_refused():
    assert taken(WRONG) == []


WRONG_BACKWARD = [
    ("NULL_POINTER", [{"grad_output": 0}, {"value": 0}]),
    ("MISALIGNED_POINTER", [{name: SOMEWHERE + 2} for name in ["grad_output", *GRADIENTS]]),
    ("WRONG_STRIDES", [{"grad_output_stride_n": -1}, {"grad_output_stride_q": -1}]),
    ("WRONG_STRIDES", [{"grad_output_stride_n": FAR}, {"grad_output_stride_q": FAR}]),
]  # fmt: skip


def test_a_backward_call_with_one_wrong_field_is_refused():
    assert taken(WRONG_BACKWARD, True) == []


def test_a_gradient_of_references_that_are_not_there_is_refused():
    assert check(a_call(True, raw=False, grad_reference_points=SOMEWHERE)) == "WRONG_REFERENCES"


@pytest.mark.parametrize("level", range(2))
@pytest.mark.parametrize("column", range(4))
@pytest.mark.parametrize("number", [-1, 2**62])
def test_a_table_of_levels_that_does_not_add_up_is_refused(level, column, number):
    rows = level_rows()
    rows[level][column] = number
    table, at = levels_of(rows)
    assert check(a_call(levels=at)) == "WRONG_SIZES"
    del table


def test_no_call_is_refused():
    assert check(None) == "NULL_POINTER"


JUDGED_BY_NOTHING = {"parallel_for", "offset_scale"}  # NULL is a plain call, and any number scales


def test_every_field_has_a_case_that_fails():
    cases = [one for _, many in WRONG + WRONG_BACKWARD for one in many]
    judged = {name for one in cases for name in one}
    assert {name for name, _ in FIELDS} - judged == JUDGED_BY_NOTHING | {"mask"}  # may be NULL, and of bytes
