"""The gradient of value under torch.use_deterministic_algorithms: bit for bit the same in every run.

Beside the gradient it takes at most 48 bytes for each point of a part, keys of 32 bits and their order among them, and
32 bytes for each pixel and head. A call is cut into parts of at most 2^25 points, one after the other.
"""

from typing import Any

import torch
from torch import Tensor

from deform_attn.backends.triton import toolchain
from deform_attn.backends.triton.launch import floats, on_device
from deform_attn.backends.triton.layout import Call, flat_sizes, strides_of, table_of
from deform_attn.backends.triton.tiles import is_wide, power_of_two

MOST_POINTS = 2**25
_ROWS = 32  # a program


def grad_value(grad_output: Tensor, call: Call) -> Tensor:
    """Return the gradient of value, `[N, S, M, D]`, of a call in which nothing is empty but perhaps levels."""
    toolchain.require()
    N, S, M, _ = call.value.shape
    Q, T = call.points.shape[1], call.points.shape[3]
    images = max(1, min(N, MOST_POINTS // (Q * M * T), (2**31 - 2) // (4 * M * S) if S else N))
    queries = Q if Q * M * T <= MOST_POINTS else max(1, MOST_POINTS // (M * T))
    in_parts = queries < Q
    sums = torch.float64 if call.is_double else torch.float32
    new = call.value.new_zeros if in_parts else call.value.new_empty
    grad = new(call.value.shape, dtype=sums if in_parts else call.value.dtype)
    for n in range(0, N, images):
        for q in range(0, Q, queries):
            part = _part(call, slice(n, n + images), slice(q, q + queries))
            pull = grad_output[n : n + images, q : q + queries].contiguous()
            with on_device(call.value.device):
                _add(pull, part, grad[n : n + images], in_parts)
    return grad.to(call.value.dtype)


def _part(call: Call, images: slice, queries: slice) -> Call:
    return call._replace(
        value=call.value[images],
        points=call.points[images, queries],
        weights=call.weights[images, queries],
        references=None if call.references is None else call.references[images, queries],
        mask=None if call.mask is None else call.mask[images],
    )


def _add(pull: Tensor, call: Call, grad: Tensor, add: bool) -> None:
    """Write the gradient of one part into `grad`, or add to it."""
    value, _, points, weights, references, mask = call[:6]
    N, S, M, D = value.shape
    Q, T = points.shape[1], points.shape[3]
    fused = 0 if references is None else references.shape[3]
    nearest, border = call.interpolation == "nearest", call.padding_mode == "border"
    table = table_of(call.sizes, value.device)
    sums = torch.float64 if call.is_double else torch.float32
    interpreted = value.device.type == "cpu"
    wide = is_wide(value, points, weights, references) or Q * M * max(D, 2 * T) >= 2**31
    cells = 4 * N * M * S
    keys = torch.empty(N * Q * M * T, dtype=torch.int32 if cells < 2**31 else torch.int64, device=value.device)
    shares = None if references is None else torch.empty(weights.shape, dtype=sums, device=value.device)
    B = power_of_two(Q) if interpreted else _ROWS
    numbers = *strides_of(call), call.scale, *flat_sizes(call.sizes)
    form = call.counts, fused, nearest, border
    _run(
        "key_kernel",
        (-(-Q // B), M, N),
        (points, weights, references, table, keys, shares, N, Q, S, *numbers, M, *form),
        (table is not None, wide, T, power_of_two(T), B, floats()[sums]),
        interpreted,
    )
    ordered, order = torch.sort(keys, stable=True)
    del keys
    every = torch.arange(cells + 1, dtype=ordered.dtype, device=value.device)
    bounds = torch.searchsorted(ordered, every, out_int32=ordered.numel() < 2**31)
    del ordered, every
    if shares is not None:
        call = call._replace(weights=shares)
        numbers = *strides_of(call), call.scale, *flat_sizes(call.sizes)
    BD = max(4, power_of_two(D))
    B = power_of_two(S) if interpreted else max(1, min(_ROWS, 1024 // BD))
    _run(
        "gather_kernel",
        (-(-S // B), M, N),
        (order, bounds, pull, points, call.weights, references, mask, table, grad, Q, S, *numbers, M, D, *form),
        (mask is not None, table is not None, wide, add, T, B, BD, floats()[sums]),
        interpreted,
    )


def _run(
    name: str, grid: tuple[int, int, int], args: tuple[Any, ...], form: tuple[Any, ...], interpreted: bool
) -> None:
    from deform_attn.backends.triton.kernels import deterministic as kernels

    kernel = getattr(kernels, name)
    launch = kernel if interpreted else toolchain.compiled(kernel, (*args, *form), num_warps=4)
    launch[grid](*args, *form)
