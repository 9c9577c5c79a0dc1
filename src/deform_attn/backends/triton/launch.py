"""A launch: a call of the kernels without its tensors, prepared once, and made with any others of the same metadata."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from deform_attn.backends.base import Tensors
from deform_attn.backends.triton import toolchain
from deform_attn.backends.triton.compiled import Addresses, Compiled
from deform_attn.backends.triton.layout import Call, flat_sizes, is_by_table, strides_of, table_of
from deform_attn.backends.triton.tiles import groups_of, is_wide, power_of_two, tile_of

MOST_IMAGES = 65535  # of a grid of programs along its second and third axis
CAREFUL = True  # see kernels/backward.py
_MOST_STRIPS = 2**17  # pixels; see rows.py

_NOTHING = nullcontext()

_compiled: dict[tuple[Any, ...], Any] = {}  # kernels, by all that they depend on


@cache
def _kernels() -> tuple[Any, Any]:
    from deform_attn.backends.triton.kernels.backward import backward_kernel
    from deform_attn.backends.triton.kernels.forward import forward_kernel

    return forward_kernel, backward_kernel


class Launch:
    """The numbers and constants of a launch, by the names that kernels/forward.py has for them."""

    def __init__(self, call: Call) -> None:
        value, sizes, points, weights, references, mask = call[:6]
        N, S, M, D = value.shape
        _, Q, _, T, _ = points.shape
        self.device = value.device
        self.dtype = value.dtype
        self.shape = N, Q, M * D
        self.interpreted = toolchain.is_interpreting() and self.device.type == "cpu"
        self.sum_dtype = torch.float64 if call.is_double else torch.float32
        self._index = self.device.index if self.device.type == "cuda" else None
        self._sizes = () if isinstance(sizes, Tensor) else sizes
        self._has_table = is_by_table(sizes)
        self._numbers = Q, S, *strides_of(call), call.scale, *flat_sizes(sizes)
        strips = Q == S and S <= _MOST_STRIPS
        border, nearest = call.padding_mode == "border", call.interpolation == "nearest"
        fused = 0 if references is None else references.shape[3]
        pairs = value.dtype == torch.bfloat16 and D % 2 == 0 and not call.is_double
        wide = is_wide(value, points, weights, references) or Q * M * max(D, 2 * T) >= 2**31
        self._form = (
            M,
            D,
            call.counts,
            fused,
            nearest,
            border,
            mask is not None,
            self._has_table,
            strips,
            wide,
            pairs,
        )
        self._points = T, power_of_two(T)
        self._groups = groups_of(call.counts)
        self._reference_levels = 0 if references is None else references.shape[2]
        rows = Q if self.interpreted else N * Q * M
        older = self.device.type == "cuda" and torch.cuda.get_device_capability(self.device) < (9, 0)
        crowded = fused > 0 and value.dtype.itemsize > 2  # in half precision all numbers find a register
        tiles = [tile_of(D, rows, strips, crowded, backward, self.interpreted, older) for backward in (False, True)]
        self._tiles = tiles
        dtypes = value.dtype, points.dtype, weights.dtype, None if references is None else references.dtype
        table_dtype = sizes.dtype if isinstance(sizes, Tensor) else torch.int64
        self._ready: dict[tuple[Any, ...], Compiled] = {}
        # All that a compiled kernel depends on, but for addresses and wishes.
        self._device_form = self.device, self._form, *tiles, dtypes, table_dtype
        self._grids = [(_count_of_tiles(tile.B, Q, S, sizes, len(call.counts), strips), M, N) for tile in tiles]

    def forward(self, tensors: Tensors, sizes: Tensor | None = None, known: Addresses = ()) -> Tensor:
        """Return the output `[N, Q, M*D]` of value, points, weights, references and mask.

        Their addresses may be `known` already.
        """
        value = tensors[0]
        assert value is not None
        output = value.new_empty(*self.shape)  # torch takes twice the time for a tuple
        self._launch(0, (*tensors, self._table(sizes)), (output,), (), known)
        return output

    def backward(
        self,
        grad_output: Tensor,
        tensors: Tensors,
        wanted: Sequence[bool],
        sizes: Tensor | None = None,
    ) -> list[Tensor | None]:
        """Return the gradients of value, points, weights and references, None where they are not wanted.

        `grad_output` is contiguous and in value's dtype.
        """
        value, points, weights, references, mask = tensors
        assert value is not None
        assert points is not None
        assert weights is not None
        want_value, want_points, want_weights, want_references = wanted
        grad_value = value.new_zeros(*value.shape, dtype=self.sum_dtype) if want_value else None
        grad_points = points.new_empty(*points.shape) if want_points else None
        grad_weights = weights.new_empty(*weights.shape) if want_weights else None
        by_head = None
        if want_references and references is not None:
            N, Q, M = points.shape[:3]
            by_head = references.new_empty(N, Q, M, *references.shape[2:], dtype=self.sum_dtype)
        given = grad_output, value, points, weights, references, mask, self._table(sizes)
        want = want_value, want_points, want_weights, by_head is not None
        self._launch(1, given, (grad_value, grad_points, grad_weights, by_head), want)
        return [
            None if grad_value is None else grad_value.to(self.dtype),
            grad_points,
            grad_weights,
            None if by_head is None or references is None else by_head.sum(2).to(references.dtype),
        ]

    def prepare(self, tensors: Tensors, sizes: Tensor | None, wanted: Sequence[bool]) -> None:
        """Compile the forward kernel for such tensors, and, where gradients are wanted, the backward one."""
        value, points, weights = tensors[:3]
        assert value is not None
        nothing = value.new_empty(0)
        table = self._table(sizes)
        with on_device(self.device):
            self._compiled(0, (*tensors, table, nothing), ())
            if any(wanted):
                want_value, want_points, want_weights, want_references = wanted
                made = (
                    nothing.to(self.sum_dtype) if want_value else None,
                    nothing.to(points.dtype) if want_points and points is not None else None,
                    nothing.to(weights.dtype) if want_weights and weights is not None else None,
                    nothing.to(self.sum_dtype) if want_references else None,
                )
                self._compiled(1, (nothing, *tensors, table, *made), tuple(wanted))

    def _launch(
        self, backward: int, given: Tensors, made: Tensors, want: tuple[bool, ...], known: Addresses = ()
    ) -> None:
        """Launch a kernel with the tensors that were given and made; the addresses of the first may be known."""
        if self.interpreted:
            _kernels()[backward][self._grids[backward]](*given, *made, *self._others(backward, want))
            return
        addresses = [*known]
        for tensor in (*given[len(known) :], *made):
            addresses.append(None if tensor is None else tensor.data_ptr())
        bits = 0
        for address in addresses:
            if address:
                bits |= address
        # Triton compiles code of its own for addresses that are no multiples of 16.
        odd = () if bits % 16 == 0 else tuple([address is not None and address % 16 != 0 for address in addresses])
        ready = self._ready.get((backward, want, odd))
        if ready is not None and (self._index is None or self._index == torch.cuda.current_device()):
            ready.launch(addresses)
            return
        with on_device(self.device):
            if ready is None:
                kernel = self._compiled(backward, (*given, *made), want)
                ready = Compiled(kernel, self._grids[backward], self._others(backward, want), self.device.index)
                self._ready[backward, want, odd] = ready
            ready.launch(addresses)

    def _others(self, backward: int, want: tuple[bool, ...]) -> tuple[Any, ...]:
        """Return the arguments of a kernel behind the tensors."""
        tile, sums = self._tiles[backward], floats()[self.sum_dtype]
        return (*self._numbers, *self._form, *self._wish(want), *self._points, tile.B, tile.BD, sums)

    def _wish(self, want: tuple[bool, ...]) -> tuple[Any, ...]:
        """Return the constants of the backward kernel that say which gradients of the four tensors are wanted."""
        if not want:
            return ()
        *others, references = want
        return (*others, self._reference_levels if references else 0, CAREFUL, self._groups)

    def _compiled(self, backward: int, tensors: Tensors, want: tuple[bool, ...]) -> Any:
        """Return a kernel compiled for such tensors on the current device."""
        aligned = tuple([None if tensor is None else tensor.data_ptr() % 16 == 0 for tensor in tensors])
        key = self._device_form, backward, self._wish(want), aligned
        kernel = _compiled.get(key)
        if kernel is None:
            toolchain.require()
            args = (*tensors, *self._others(backward, want))
            kernel = toolchain.compiled(_kernels()[backward], args, self._tiles[backward].num_warps)
            _compiled[key] = kernel
        return kernel

    def _table(self, sizes: Tensor | None) -> Tensor | None:
        if not self._has_table:
            return None
        return table_of(self._sizes if sizes is None else sizes, self.device)


def on_device(device: torch.device) -> Any:
    """Return a context in which a device is the current one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return _NOTHING
    return torch.cuda.device(device)


@cache
def floats() -> dict[torch.dtype, Any]:
    """Return Triton's names of the dtypes of sums."""
    import triton.language as tl

    return {torch.float32: tl.float32, torch.float64: tl.float64}


def _count_of_tiles(B: int, Q: int, S: int, sizes: Any, levels: int, strips: bool) -> int:
    """Return how many tiles of B rows the queries have; in strips each level begins with a tile of its own."""
    if not strips:
        return -(-Q // B)
    if isinstance(sizes, Tensor):
        return -(-S // B) + levels  # at most
    return sum(-(-H * W // B) for H, W in zip(sizes[::2], sizes[1::2], strict=True))
