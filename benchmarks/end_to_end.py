"""Whole models, as they come against patched: inference, one training step, the encoder alone.

The sides stand in one process, with the same weights, and take turns. A model that can call a stand-in for its compiled
extension has a third side. `python -m benchmarks.run --only
end_to_end` runs it.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import DisagreementError, timed
from benchmarks.models import Batch, WholeModel
from deform_attn import patch
from deform_attn.timing import Call, relative_error

# Norm of the difference by norm of the stock model's output, or gradient: float32 rounding, grown by dozens of layers.
TOLERANCES = {"inference": 1e-4, "training": 1e-3, "encoder": 1e-4}
# What the attentions contribute to the output must be this many times larger, or nothing was compared.
MARGIN = 10

Sides = Mapping[str, nn.Module]  # "stock", "patched", and "stand-in" if there is one


def compare_patched(
    case: WholeModel, seconds: float, wait: float = 0, say: Callable[[str], None] = print
) -> dict[str, object]:
    """Judge and time `case`; return its `inference`, `training` and, if it has one, `encoder`, as plain JSON.

    Raises:
        DisagreementError: patched, or with the stand-in, it computes something else.
    """
    stock = case.model()
    sides = {"stock": stock, "patched": copy.deepcopy(stock)}
    attentions = [row.name for row in patch(sides["patched"]).replaced]
    if case.use_stand_in is not None:
        sides["stand-in"] = copy.deepcopy(stock)
        case.use_stand_in(sides["stand-in"])
    share = _share(case, stock.eval(), attentions)
    if not share > MARGIN * TOLERANCES["inference"]:
        raise DisagreementError(f"{case.name}: without its attentions the output differs by {share:.1e} only")
    result: dict[str, object] = {"attentions": len(attentions), "pixels": list(case.pixels), "share": _short(share)}
    for what, prepare in (("inference", inference), ("encoder", _encoder), ("training", training_step)):
        if what == "encoder" and case.encoder is None:
            continue
        calls, error = prepare(case, sides, attentions)
        if case.exact:
            with float64():
                _, error = prepare(smaller(case), in_float64(sides), attentions)
        if not error <= TOLERANCES[what]:
            others = " or ".join(side for side in sides if side != "stock")
            raise DisagreementError(f"{case.name}, {what}: {others} and stock differ by {error:.1e}")
        rows, busy = timed(calls, seconds, "patched", wait)
        result[what] = {"times": rows, "relative_error": _short(error), "busy_elsewhere": busy}
        say(f"  {case.name} {what}: {rows['stock']['ratio']}x, {busy} cores busy elsewhere")
    return result


def _short(number: float) -> float:
    return float(f"{number:.1e}")


def _share(case: WholeModel, model: nn.Module, attentions: Sequence[str]) -> float:
    """Return by how much the output of `model` differs when its `attentions` answer 0, as a fraction of it."""
    batch = case.batch()
    with torch.no_grad():
        whole = model(**batch)
        hooks = [
            model.get_submodule(name).register_forward_hook(lambda _, args, output: _silenced(output))
            for name in attentions
        ]
        without = model(**batch)
    for hook in hooks:
        hook.remove()
    return max(relative_error(without[name], whole[name]) for name in case.outputs)


def _silenced(output: Any) -> Any:
    return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)


def inference(case: WholeModel, sides: Sides, attentions: Sequence[str]) -> tuple[dict[str, Call], float]:
    """Return a forward pass of each side, and by how much their outputs differ."""
    batch = case.batch(_dtype(sides))

    def call_of(model: nn.Module) -> Call:
        def call() -> list[Tensor]:
            with torch.no_grad():
                output = model(**batch)
            return [output[name] for name in case.outputs]

        return call

    calls = {name: call_of(model.eval()) for name, model in sides.items()}
    return calls, _difference(calls)


def _encoder(case: WholeModel, sides: Sides, attentions: Sequence[str]) -> tuple[dict[str, Call], float]:
    """Time the encoder alone, on what it is given within the stock model."""
    given: list[tuple[tuple[Any, ...], Batch]] = []
    encoders = {name: model.eval().get_submodule(str(case.encoder)) for name, model in sides.items()}
    hook = encoders["stock"].register_forward_pre_hook(
        lambda _, args, kwargs: given.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        sides["stock"](**case.batch(_dtype(sides)))
    hook.remove()
    ((args, kwargs),) = given

    def call_of(encoder: nn.Module) -> Call:
        def call() -> list[Tensor]:
            with torch.no_grad():
                return [encoder(*args, **kwargs)[0]]

        return call

    calls = {name: call_of(encoder) for name, encoder in encoders.items()}
    return calls, _difference(calls)


def training_step(case: WholeModel, sides: Sides, attentions: Sequence[str]) -> tuple[dict[str, Call], float]:
    """Time one whole step: forward, loss, backward and AdamW, whose rate is 0, so that every step is the same one."""
    if case.training_pixels is not None:
        case = replace(case, pixels=case.training_pixels)
    batch = case.batch(_dtype(sides)) | case.targets(_dtype(sides))

    def call_of(model: nn.Module) -> Call:
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)

        def call() -> list[Tensor]:
            torch.manual_seed(3)  # of dropout and of denoising queries
            optimizer.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            return [loss.detach()]

        return call

    calls = {name: call_of(model) for name, model in sides.items()}
    error = _difference(calls)
    # Of the attentions: in front of them batch normalisation of untrained features makes gradients of 1e9.
    gradients = {
        side: torch.cat([grad.flatten() for name in attentions for grad in _gradients(model.get_submodule(name))])
        for side, model in sides.items()
    }
    stock = gradients.pop("stock")
    return calls, max(error, *(relative_error(ours, stock) for ours in gradients.values()))


def smaller(case: WholeModel) -> WholeModel:
    """Return `case` with a picture of half the height and width: in float64 a whole one needs too much memory."""
    return replace(case, pixels=(case.pixels[0] // 2, case.pixels[1] // 2), training_pixels=None)


def in_float64(sides: Sides) -> Sides:
    """Return copies of all sides in float64."""
    return {name: copy.deepcopy(model).double() for name, model in sides.items()}


@contextmanager
def float64() -> Iterator[None]:
    """Within, tensors are made in float64 where nobody says otherwise, as those of losses are."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _dtype(sides: Sides) -> torch.dtype:
    return next(sides["stock"].parameters()).dtype


def _gradients(module: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]


def _difference(calls: dict[str, Call]) -> float:
    stock = calls["stock"]()
    pairs = [pair for name in calls if name != "stock" for pair in zip(calls[name](), stock, strict=True)]
    return max(relative_error(ours, theirs) for ours, theirs in pairs)
