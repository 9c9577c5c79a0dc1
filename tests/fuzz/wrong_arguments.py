"""Wrong arguments: a right call with one argument spoiled must be refused by that argument's name, each time alike."""

import random
import re
from typing import Any

import torch
from fuzz_cases import Call
from torch import Tensor

from deform_attn.backends import remembered

# For each argument that is no tensor, what it must not be.
OTHERS: dict[str, list[Any]] = {
    "spatial_shapes": [
        None,
        7,
        "7x7",
        [],
        [(2,)],
        [(2, 3, 4)],
        [(-1, -1)],
        [(2.0, 3.0)],
        [(True, 2)],
        torch.ones(2, 2),
    ],
    "num_points": [-1, 2.0, True, "2", [1.5], [], [-1, 1], [10**6]],
    "interpolation": ["bicubic", None, 0, ["bilinear"], b"bilinear"],
    "padding_mode": ["reflection", None, 1, ("zeros",), "ZEROS"],
    "backend": ["cuda", "", 3, ["native"]],
    "offset_scale": [float("nan"), float("inf"), None, "0.5", True, [0.5], torch.tensor(0.5)],
    "padding_mask": [0, "mask", [[True]]],
}
# What else a message may name: two arguments that do not fit one another, and each may be the wrong one.
PARTNERS = {
    "value": "spatial_shapes|sampling_offsets|sampling_locations|padding_mask|reference_points",
    "sampling_offsets": "num_points|attention_logits|reference_points",
    "sampling_locations": "num_points|attention_weights",
    "num_points": "sampling_offsets|sampling_locations",
    "padding_mask": "padding_mask",
}


def spoil_tensor(tensor: Tensor, choose: random.Random) -> Any:
    """Return what is no right argument in place of this tensor."""
    axis = choose.randrange(tensor.ndim)
    longer = list(tensor.shape)
    longer[axis] += choose.randint(1, 3)
    makers = [
        lambda: None,
        lambda: torch.zeros(tensor.shape).tolist(),  # not its own, which may be without memory
        lambda: tensor.long(),
        lambda: tensor.to(torch.complex64),
        lambda: tensor.new_zeros(longer),
        lambda: tensor[None],
        lambda: tensor.new_zeros(tensor.shape[1:]),
        lambda: tensor.new_zeros(()),
        lambda: tensor.to("meta"),
    ]
    return choose.choice(makers)()


def spoil(call: Call, choose: random.Random) -> tuple[str, Call]:
    """Return the name of an argument, and the call with that argument wrong."""
    names = [*call.tensors, "spatial_shapes", "num_points", "interpolation", "padding_mode", "backend"]
    names += ["offset_scale", "padding_mask"] if call.fused else []
    name = choose.choice(names)
    wrong = Call(call.fused, call.spatial_shapes, call.counts, dict(call.tensors), dict(call.options))
    if name in call.tensors:
        wrong.tensors[name] = spoil_tensor(call.tensors[name], choose)
    elif name == "padding_mask" and choose.random() < 0.5:
        N, S = call.tensors["value"].shape[:2]
        wrong.options[name] = choose.choice([torch.zeros(N, S), torch.zeros(N, S + 1).bool(), torch.zeros(S).bool()])
    elif name == "spatial_shapes":
        wrong.spatial_shapes = choose.choice(OTHERS[name])
    else:
        wrong.options[name] = choose.choice(OTHERS[name])
    return name, wrong


def refusal(call: Call) -> tuple[type[Exception], str] | None:
    """Return the type and the text of the refusal, or None where there is none; any other error comes through."""
    try:
        call()
    except (ValueError, TypeError) as error:
        return type(error), str(error)
    return None


def is_right_after_all(name: str, right: Call, wrong: Call) -> bool:
    """Return whether what was to spoil the call has left it right: some axes may have several sizes."""
    got, before = wrong.tensors.get(name), right.tensors.get(name)
    if not isinstance(got, Tensor) or got.dtype != before.dtype or got.is_meta:
        return False
    if name == "value":  # any number of channels
        return got.ndim == 4 and got.shape[:3] == before.shape[:3]
    if name != "reference_points":
        return False
    levels = len(right.spatial_shapes)
    level_axis = got.ndim == 3 or (got.ndim == 4 and got.shape[2] in (1, levels))
    return level_axis and got.shape[:2] == before.shape[:2] and got.shape[-1] in (2, 4)


def judge_refusal(right: Call, number: int) -> None:
    """Fail unless a spoiled call is refused by the argument's name, the same before and after the right one has run."""
    choose = random.Random(number)
    name, wrong = spoil(right, choose)
    if is_right_after_all(name, right, wrong):
        return
    remembered._calls.clear()
    cold = refusal(wrong)
    right()
    right()
    warm = refusal(wrong)
    what = f"{name} = {described(wrong, name)}"
    assert cold is not None, f"{what}: accepted"
    assert cold[0] in (ValueError, TypeError), f"{what}: {cold[0].__name__}, a kind of its own: {cold[1]}"
    named = f"{name}|{PARTNERS[name]}" if name in PARTNERS else name
    assert re.search(rf"\b({named})\b", cold[1]), f"{what}: the message does not name it: {cold[1]}"
    assert warm == cold, f"{what}: refused as {cold} at first, as {warm} once the right call has run"


def described(call: Call, name: str) -> str:
    value = call.tensors.get(name, call.spatial_shapes if name == "spatial_shapes" else call.options.get(name))
    return f"{value.dtype} {list(value.shape)} on {value.device}" if isinstance(value, Tensor) else f"{value!r:.60}"
