"""The canonical cases, those beyond them, and the series of sizes; each gives the same tensors at each call."""

from dataclasses import replace

import torch

from deform_attn.timing import DEC300, ENC640, ENC800, Case

RTDETR = Case("rtdetr", ((80, 80), (40, 40), (20, 20)), queries=300, num_points=(4, 4, 4))
BEV = Case("bev", ((200, 200),), queries=40_000, num_points=(4,))

CANONICAL = (ENC800, ENC640, DEC300, RTDETR, BEV)

# One thing changed at a time, on enc640. Other head sizes keep about 256 channels in all.
BEYOND = (
    replace(ENC640, name="enc640-d64", heads=4, channels=64),
    replace(ENC640, name="enc640-d30", channels=30),
    replace(ENC640, name="enc640-d16", heads=16, channels=16),
    replace(ENC640, name="enc640-p8", num_points=(8, 8, 8, 8)),
    replace(ENC640, name="enc640-p1", num_points=(1, 1, 1, 1)),
    Case("enc640-p363", ENC640.spatial_shapes[:3], num_points=(3, 6, 3)),
    replace(ENC640, name="enc640-float64", dtype=torch.float64),
    replace(ENC640, name="enc640-bfloat16", dtype=torch.bfloat16),
    replace(ENC640, name="enc640-float16", dtype=torch.float16),
    replace(ENC640, name="enc640-batch2", batch=2),
    replace(ENC640, name="enc640-batch8", batch=8),
)

CASES = {case.name: case for case in CANONICAL + BEYOND}

# So little that the call costs more than its kernel.
TINY = Case("tiny", ((4, 6), (2, 3)), queries=2, num_points=(2, 2), heads=2, channels=8)

# More queries on the same maps: what a call needs beside its output may not grow with them.
MEMORY = (replace(ENC640, name="enc640-q10000", queries=10_000), replace(ENC640, name="enc640-q40000", queries=40_000))


def map_size_series() -> tuple[Case, ...]:
    """Return cases of 10,000 queries on one map, H*W twice as large each time, from 8,400 pixels (8.6 MB) on."""
    sizes = [(84, 100), (84, 200), (168, 200), (168, 400), (336, 400)]
    return tuple(Case(f"map-{H}x{W}", ((H, W),), queries=10_000, num_points=(16,)) for H, W in sizes)


def query_series() -> tuple[Case, ...]:
    """Return cases on the maps of enc640, with twice as many queries each time, from 500 on."""
    return tuple(replace(ENC640, name=f"queries-{Q}", queries=Q) for Q in (500, 1000, 2000, 4000, 8000, 16000))
