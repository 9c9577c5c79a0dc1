"""A compiled kernel with all that a launch hands it but addresses.

Triton's own way to launch a kernel, `kernel[grid](*args)`, looks for a profiler's hooks, makes a dict for them, and
asks the driver about the address of each tensor, at every launch. What it calls in the end is called here at once.
"""

from collections.abc import Sequence
from typing import Any

from deform_attn.backends.triton import toolchain

Grid = tuple[int, int, int]
Addresses = Sequence[int | None]


class Compiled:
    """A kernel, compiled and loaded, its grid, and its arguments behind the addresses."""

    def __init__(self, kernel: Any, grid: Grid, others: tuple[Any, ...], device: int | None) -> None:
        from triton import knobs
        from triton.runtime import driver

        self._kernel, self._grid, self._others, self._device = kernel, grid, others, device
        self._driver, self._runtime = driver, knobs.runtime
        self._is_known = toolchain.knows_launcher()
        if self._is_known:
            self._run, self._function, self._packed = kernel.run, kernel.function, kernel.packed_metadata

    def launch(self, addresses: Addresses) -> None:
        """Launch it on the current device, which is that of the addresses, in the current stream."""
        if not self._is_known or self._is_watched():
            self._kernel[self._grid](*addresses, *self._others)
            return
        stream = self._driver.active.get_current_stream(self._device)
        # Neither metadata for hooks, nor hooks.
        self._run(
            *self._grid, stream, self._function, self._packed, None, None, None, *addresses, *self._others
        )  # fmt: skip

    def _is_watched(self) -> bool:
        """Return whether somebody, such as a profiler, is to be called before or after launches."""
        before, after = self._runtime.launch_enter_hook, self._runtime.launch_exit_hook
        return bool(before.calls or after.calls)
