"""The judge of a right call: every backend and mode against the oracle, or, for large calls, reference.py."""

import random

import torch
from fuzz_cases import Call
from torch import Tensor

import oracle
from deform_attn import explain
from every_backend import BACKENDS
from tolerances import TOLERANCES

SMALL = 3000  # channels of all points read, up to which the oracle is asked


def judge(call: Call, number: int) -> None:
    """Fail unless every backend that can run the call gives the right output and gradients, in every mode."""
    choose, generator = random.Random(number), torch.Generator().manual_seed(number)
    N, _, M, D = call.tensors["value"].shape
    Q = list(call.tensors.values())[-1].shape[1]
    grad_output = torch.randn(N, Q, M * D, generator=generator, dtype=torch.float64).to(call.tensors["value"].dtype)
    # With border a point may be clamped to a centre, where roundings decide which neighbours of weight 0 get the NaN.
    # And torch takes zeros without memory times NaN for 0, so that what is composed of its operations does, too.
    zeros = any(tensor._is_zerotensor() for tensor in call.tensors.values())
    poisonable = grad_output.numel() and call.options["padding_mode"] == "zeros" and not zeros
    if choose.random() < 0.1 and poisonable:
        grad_output.view(-1)[0] = float("nan")
    small = N * Q * M * D * sum(call.counts) <= SMALL
    expected = of_the_oracle(call, grad_output) if small else results(wide(call), grad_output.double(), "reference")
    supported = explain(call.tensors["value"], call.spatial_shapes, *list(call.tensors.values())[1:], **call.options)
    for backend in BACKENDS:
        if not supported.reasons[backend]:
            compare(backend, call, results(call, grad_output, backend), expected)
    for _ in range(2):  # the second one is remembered
        compare("default", call, results(call, grad_output, None), expected)
    another = with_another_option(call, choose)
    others = results(wide(another), grad_output.double(), "reference")
    compare("another option", another, results(another, grad_output, None), others)
    for name, mode in (("no_grad", torch.no_grad), ("inference_mode", torch.inference_mode)):
        with mode():
            compare(name, call, [call(*fresh(call))], expected)
    if choose.random() < 0.3:
        compare("two backward passes", call, results(call, grad_output, None, retain=True), expected)
    if choose.random() < 0.2:
        compare("torch.func.vjp", call, functional(call, grad_output), expected)
    smooth = call.tensors["value"].dtype in (torch.float32, torch.float64) and finite([grad_output, *expected])
    if choose.random() < 0.2 and smooth:
        forward_mode(call, grad_output, expected, generator)
    if choose.random() < 0.15:
        mapped(call, expected)
    if choose.random() < 0.1:
        under_autocast(call)
    if choose.random() < 0.15 and small:
        twice_differentiated(call, grad_output, generator)
    if choose.random() < 0.005:
        compiled = torch.compile(lambda *tensors: call(*tensors), backend="aot_eager")
        compare("torch.compile", call, [compiled(*fresh(call))], expected)
        torch.compiler.reset()


def with_another_option(call: Call, choose: random.Random) -> Call:
    """Return a call that differs from a remembered one in an option alone, and so must not be taken for it."""
    name, values = choose.choice([("interpolation", ("bilinear", "nearest")), ("padding_mode", ("zeros", "border"))])
    other = values[call.options[name] == values[0]]
    return Call(call.fused, call.spatial_shapes, call.counts, call.tensors, {**call.options, name: other})


def fresh(call: Call) -> list[Tensor]:
    return [tensor.detach() for tensor in call.tensors.values()]


def leaves(call: Call) -> list[Tensor]:
    return [tensor.requires_grad_() for tensor in fresh(call)]


def wide(call: Call) -> Call:
    tensors = {name: tensor.double() for name, tensor in call.tensors.items()}
    return Call(call.fused, call.spatial_shapes, call.counts, tensors, call.options)


def results(call: Call, grad_output: Tensor, backend: str | None, retain: bool = False) -> list[Tensor]:
    """Return the output and the gradients of all tensors."""
    tensors = leaves(call)
    output = call(*tensors, backend=backend)
    if retain:
        torch.autograd.grad(output, tensors, grad_output, retain_graph=True)
    return [output.detach(), *torch.autograd.grad(output, tensors, grad_output)]


def of_the_oracle(call: Call, grad_output: Tensor) -> list[Tensor]:
    tensors = [torch.zeros(x.shape) if x._is_zerotensor() else x for x in call.tensors.values()]  # lists need memory
    value, *points = [tensor.double() for tensor in tensors]
    N, _, M, _ = value.shape
    Q, T, pairs = points[-1].shape[1], sum(call.counts), [tuple(map(int, pair)) for pair in call.spatial_shapes]
    if not value.numel() * Q:  # the oracle's lists have no sizes of their own
        return [grad_output.new_zeros(grad_output.shape), *[torch.zeros_like(tensor) for tensor in (value, *points)]]
    modes = call.options["interpolation"], call.options["padding_mode"]
    *first, points_at, weights = points
    lists = [points_at.reshape(N, Q, M, T, 2).tolist(), weights.reshape(N, Q, M, T).tolist()]
    if call.fused:
        mask = call.options.get("padding_mask")
        rest = None if mask is None else mask.tolist(), call.options.get("offset_scale", 0.5), *modes
        args = value.tolist(), pairs, first[0].tolist(), *lists, call.counts
        output = oracle.deformable_attention(*args, *rest)
        grads = list(oracle.deformable_attention_gradients(*args, grad_output.tolist(), *rest))
        by_level = torch.tensor(grads[1], dtype=torch.float64)  # [N, Q, L, 2 or 4]
        grads[1] = by_level if first[0].shape == by_level.shape else by_level.sum(2).reshape(first[0].shape)
    else:
        args = value.tolist(), pairs, *lists, call.counts
        output = oracle.multi_scale_deformable_attention(*args, *modes)
        grads = oracle.multi_scale_deformable_attention_gradients(*args, grad_output.tolist(), *modes)
    grads = [
        torch.as_tensor(g, dtype=torch.float64).reshape(x.shape) for g, x in zip(grads, (value, *points), strict=True)
    ]
    return [torch.tensor(output, dtype=torch.float64), *grads]


def finite(tensors: list[Tensor]) -> bool:
    return all(tensor.isfinite().all() for tensor in tensors)


def compare(where: str, call: Call, actual: list[Tensor], expected: list[Tensor]) -> None:
    """Fail unless the output, and the gradients if there are any, are the expected ones and have the right dtypes.

    Of a number that is not finite, only that is compared: whether it is NaN may depend on the order of a sum.
    """
    names = ["output", *(f"gradient of {name}" for name in call.tensors)]
    dtypes = [call.tensors["value"].dtype, *(tensor.dtype for tensor in call.tensors.values())]
    for name, dtype, got, wanted in zip(names, dtypes, actual, expected, strict=False):
        assert got.dtype == dtype, f"{where}: {name} is {got.dtype}, expected {dtype}"
        close(f"{where}: {name}", got, wanted, dtype)


def close(what: str, got: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert got.shape == wanted.shape, f"{what}: shape {list(got.shape)}, expected {list(wanted.shape)}"
    got, wanted = got.detach().double(), wanted.double()
    assert torch.equal(got.isfinite(), wanted.isfinite()), f"{what}: not finite elsewhere than expected"
    got, wanted = got[got.isfinite()], wanted[wanted.isfinite()]
    if not got.numel():
        return
    entry, scale = TOLERANCES[dtype], max(1.0, wanted.abs().max().item())
    error = (got - wanted).abs() - entry.relative * wanted.abs() - entry.absolute * scale
    assert error.max() <= 0, f"{what}: off by {(got - wanted).abs().max():.3g} of {scale:.3g}"


def functional(call: Call, grad_output: Tensor) -> list[Tensor]:
    output, pull = torch.func.vjp(call, *fresh(call))
    return [output, *pull(grad_output)]


def forward_mode(call: Call, grad_output: Tensor, expected: list[Tensor], generator: torch.Generator) -> None:
    """Compare <grad_output, how the output moves> with <gradients, how the inputs move>."""
    # torch 2.13 cannot split a negative one that moves, nor move one whose numbers share their places in memory.
    tensors = [tensor.resolve_neg().clone() for tensor in fresh(call)]
    moves = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in tensors]
    _, moved = torch.func.jvp(call, tuple(tensors), tuple(moves))
    terms = [(grad * move.double()).flatten() for grad, move in zip(expected[1:], moves, strict=True)]
    actual = (moved.double() * grad_output.double()).sum()
    size = max(1.0, sum(term.abs().sum().item() for term in terms))
    narrow = any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in tensors)
    dtype = torch.bfloat16 if narrow else call.tensors["value"].dtype
    close("torch.func.jvp", actual / size, sum(term.sum() for term in terms) / size, dtype)


def mapped(call: Call, expected: list[Tensor]) -> None:
    """Compare the images of the batch, each mapped as a batch of one."""
    tensors = fresh(call)
    if not tensors[0].shape[0]:
        return
    mask = call.options.get("padding_mask")
    every = [*tensors, *([] if mask is None else [mask])]

    def one(*images: Tensor) -> Tensor:
        images = [image[None] for image in images]
        return call(*images[: len(tensors)], **({} if mask is None else {"padding_mask": images[-1]}))[0]

    compare("torch.vmap", call, [torch.vmap(one)(*every)], expected)


def under_autocast(call: Call) -> None:
    value, *others = fresh(call)
    cast = value if value.dtype == torch.float64 else value.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        output = call(value, *others)
    compare(
        "autocast", Call(call.fused, call.spatial_shapes, call.counts, {"value": cast}), [output], [call(cast, *others)]
    )


def twice_differentiated(call: Call, grad_output: Tensor, generator: torch.Generator) -> None:
    """Compare the second derivatives of the default backend with those of the reference, in float64."""
    double, answers = wide(call), []
    if not finite([grad_output, *fresh(double)]):
        return
    along = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in double.tensors.values()]
    for backend in (None, "reference"):
        tensors = leaves(double)
        grads = torch.autograd.grad(double(*tensors, backend=backend), tensors, grad_output.double(), create_graph=True)
        total = sum((grad * move).sum() for grad, move in zip(grads, along, strict=True))
        answers.append(torch.autograd.grad(total, tensors, allow_unused=True, materialize_grads=True))
    for name, got, wanted in zip(call.tensors, *answers, strict=True):
        close(f"second derivative of {name}", got, wanted, torch.float64)
