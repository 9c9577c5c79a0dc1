"""The backends in order of preference, and who runs a call."""

import warnings
from dataclasses import dataclass

import torch

from deform_attn.backends.base import Backend, SlowBackendWarning
from deform_attn.backends.grid_sample import GRID_SAMPLE
from deform_attn.backends.native.backend import NATIVE
from deform_attn.backends.reference import REFERENCE
from deform_attn.backends.triton.backend import TRITON
from deform_attn.checks import Inputs, backend_name
from deform_attn.torch_names import REMEMBERED
from deform_attn.torch_ops import autocast, autograd, flops, vmap

# Imported for what they register with torch around the ops.
_AROUND_THE_OPS = (autocast, autograd, flops, vmap)

BACKENDS: tuple[Backend, ...] = (NATIVE, TRITON, GRID_SAMPLE, REFERENCE)

# The backend with kernels for a type of device, whose absence is worth a warning.
_BEST_ON = {"cpu": NATIVE, "cuda": TRITON}


@dataclass(frozen=True)
class Explanation:
    """Which backend runs, and why each other one does not; `str()` gives a table.

    `backend` is the name of the one that runs, or None where the required one cannot or where no call was given.
    `reasons` maps each name, in order of preference, to what prevents it from running; an empty list means that it
    can. `notes` says what else is slower here than it could be.
    """

    backend: str | None
    reasons: dict[str, list[str]]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = []
        for backend in BACKENDS:
            reasons = self.reasons[backend.name]
            mark = "->" if backend.name == self.backend else "  "
            verdict = "no: " + "; ".join(reasons) if reasons else "yes"
            rows.append(f"{mark} {backend.name:<12} {verdict}")
            rows.append(f"{'':16}{backend.summary}")
        return "\n".join([*rows, *(f"note: {note}" for note in self.notes)])


def get(name: str) -> Backend:
    """Return the backend called `name`, or raise the ValueError that lists the names."""
    backend_name(name, [backend.name for backend in BACKENDS])
    return next(backend for backend in BACKENDS if backend.name == name)


def reasons_against(backend: Backend, inputs: Inputs | None) -> list[str]:
    """Return what keeps `backend` from running `inputs`, or, without them, from running at all."""
    reasons = backend.unavailable_reasons()
    return reasons if reasons or inputs is None else backend.unsupported_reasons(inputs)


def _runs_unasked(backend: Backend, inputs: Inputs) -> bool:
    return not reasons_against(backend, inputs) and not backend.only_by_name(inputs)


def select(inputs: Inputs, name: str | None = None) -> Backend:
    """Return the backend that runs `inputs`: the one called `name`, or else the first that can.

    Raises:
        ValueError: `name` is unknown, or the backend of that name cannot run this call.
    """
    if name is None:
        # The last one, reference, has never anything against a call.
        chosen = next(backend for backend in BACKENDS if _runs_unasked(backend, inputs))
        _warn_if_slow(inputs.value.device.type, chosen)
        return chosen
    backend = get(name)
    reasons = reasons_against(backend, inputs) or backend.prepare(inputs)
    if reasons:
        message = (
            f"backend: {name!r} cannot run this call: {'; '.join(reasons)}. Leave backend out to take one that can."
        )
        raise ValueError(message)
    return backend


def explanation(inputs: Inputs | None, name: str | None) -> Explanation:
    """Return who runs `inputs` (or, without them, what is available), given that `name` was asked for."""
    reasons = {backend.name: reasons_against(backend, inputs) for backend in BACKENDS}
    unasked = [backend.name for backend in BACKENDS if inputs is None or not backend.only_by_name(inputs)]
    candidates = [name] if name is not None else unasked
    chosen = next((candidate for candidate in candidates if not reasons[candidate]), None)
    notes = [f"no call is remembered: {REMEMBERED.verdict}"] if REMEMBERED.missing else []
    if inputs is None or chosen is None:
        return Explanation(None, reasons, tuple(notes))
    return Explanation(chosen, reasons, (*get(chosen).notes(inputs), *notes))


_warned: set[str] = set()


def _warn_if_slow(device: str, chosen: Backend) -> None:
    """Say once that a device's kernels are missing. Where they are there but cannot run a call, `explain` tells why."""
    best = _BEST_ON.get(device)
    if best is None or chosen is best or device in _warned or torch.compiler.is_compiling():
        return
    if reasons := best.unavailable_reasons():
        _warned.add(device)
        message = f"deform_attn runs the slow backend {chosen.name!r} on the {device.upper()}: {'; '.join(reasons)}."
        warnings.warn(message, SlowBackendWarning, stacklevel=5)  # the line that calls an entry point
