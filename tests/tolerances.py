"""Tolerances: how far a result may be from the oracle, one entry per dtype, each with its reason."""

from dataclasses import dataclass

import torch

FINITE_DIFFERENCES = "finite differences"
CUT_OFF = "bfloat16 cut off"


@dataclass(frozen=True)
class Tolerance:
    """|actual - expected| <= relative * |expected| + absolute * max(1, largest finite |expected|).

    The inputs of the tests are of order 1. The absolute part covers cancellation: the error of a sum is that of its
    largest terms, however small the sum is.
    """

    relative: float
    absolute: float
    reason: str


TOLERANCES = {
    torch.float64: Tolerance(
        1e-12, 1e-12, "unit roundoff 1.1e-16 times some hundred operations and a map about ten pixels wide"
    ),
    torch.float32: Tolerance(
        1e-5, 1e-5, "unit roundoff 6e-8; a coordinate is wrong by about ten of them, slopes and sums multiply it by ten"
    ),
    torch.bfloat16: Tolerance(
        2**-8, 1e-5, "computed in float32 (absolute part as there), then rounded once: half a step is 2^-8 relative"
    ),
    torch.float16: Tolerance(
        2**-11, 1e-5, "computed in float32 (absolute part as there), then rounded once: half a step is 2^-11 relative"
    ),
    CUT_OFF: Tolerance(
        2**-7,
        1e-5,
        "Triton's interpreter cuts numbers off to bfloat16, where a GPU rounds them: a step is 2^-7 relative",
    ),
    FINITE_DIFFERENCES: Tolerance(
        1e-6, 1e-6, "central differences with step 1e-6 in float64: rounding leaves 1e-16 / 1e-6, times sums of terms"
    ),
}


def assert_close(actual, expected, dtype, tolerance=None):
    """Fail unless `actual` has this dtype, the shape of `expected`, and is as near to it as the table asks.

    NaN agrees with NaN only and an infinity with the same infinity only. `tolerance` is another key of the table.
    """
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert actual.dtype == dtype, f"the dtype is {actual.dtype}, expected {dtype}"
    entry = TOLERANCES[dtype if tolerance is None else tolerance]
    magnitudes = expected[expected.isfinite()].abs()
    scale = max(1.0, magnitudes.max().item()) if magnitudes.numel() else 1.0
    torch.testing.assert_close(
        actual.detach().to(torch.float64), expected, rtol=entry.relative, atol=entry.absolute * scale, equal_nan=True
    )
