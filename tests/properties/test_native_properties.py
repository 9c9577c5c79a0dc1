"""Properties of the CPU kernels: random sizes, dtypes, modes and pixels that are not finite, against reference.py."""

import os

import torch
from hypothesis import given
from hypothesis import strategies as st

from against_reference import DTYPES, classic, compare, fused, poisoned, spread_locations
from draws import draws

SIDE = st.one_of(st.integers(1, 9), st.integers(0, 40))
# The lower instruction sets run these tests, too (see test_native_library.py), but fewer draws.
DRAWS = draws(30 if "DEFORM_ATTN_ISA" in os.environ else 75)


@st.composite
def sizes(draw):
    shapes = draw(st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=4))
    counts = [draw(st.integers(0, 9)) for _ in shapes]
    N, Q, M = draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 4))
    D = draw(st.one_of(st.integers(1, 70), st.sampled_from([16, 32, 64, 128, 100])))
    return shapes, counts, N, Q, M, D


MODES = st.tuples(st.sampled_from(["bilinear", "nearest"]), st.sampled_from(["zeros", "border"]))


@DRAWS
@given(
    sizes=sizes(),
    dtype=st.sampled_from(DTYPES),
    modes=MODES,
    bad=st.sampled_from([None, None, "value", "locations", "both"]),
    seed=st.integers(0, 2**31),
)
def test_native_classic_calls_agree_with_the_reference(sizes, dtype, modes, bad, seed):
    shapes, counts, N, Q, M, D = sizes
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(N, sum(H * W for H, W in shapes), M, D, generator=generator).to(dtype)
    locations = spread_locations(generator, N, Q, M, shapes, counts)
    weights = torch.randn(N, Q, M, sum(counts), generator=generator)
    if bad in ("value", "both"):
        value = poisoned(value, generator, 0.01)
    if bad in ("locations", "both"):
        locations = poisoned(locations, generator, 0.01)
    options = {"num_points": counts, "interpolation": modes[0], "padding_mode": modes[1]}
    compare(classic(shapes), (value, locations, weights), dtype, **options)


@DRAWS
@given(
    sizes=sizes(),
    dtype=st.sampled_from(DTYPES),
    points_dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]),
    modes=MODES,
    box=st.booleans(),
    one_level=st.booleans(),
    masked=st.booleans(),
    bad=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_native_calls_from_raw_offsets_agree_with_the_reference(
    sizes, dtype, points_dtype, modes, box, one_level, masked, bad, seed
):
    shapes, counts, N, Q, M, D = sizes
    generator = torch.Generator().manual_seed(seed)
    S, T = sum(H * W for H, W in shapes), sum(counts)
    value = torch.randn(N, S, M, D, generator=generator).to(dtype)
    references = torch.rand(N, Q, 1 if one_level else len(shapes), 4 if box else 2, generator=generator)
    # Sixteenths, so that narrow dtypes hold them and none lies close to a centre without lying on it.
    offsets = torch.randint(-64, 64, (N, Q, M, T, 2), generator=generator).to(points_dtype) / 16
    logits = (torch.randint(-64, 64, (N, Q, M, T), generator=generator) / 16).to(points_dtype)
    mask = torch.rand(N, S, generator=generator) < 0.3 if masked else None
    if bad:
        value = poisoned(value, generator, 0.01)
    options = {"num_points": counts, "padding_mask": mask, "interpolation": modes[0], "padding_mode": modes[1]}
    compare(fused(shapes), (value, references, offsets, logits), dtype, **options)
