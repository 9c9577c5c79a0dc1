"""Cases of the fuzz: a right call of one of the two entry points, drawn from a number."""

import random
from dataclasses import dataclass, field
from typing import Any

import layouts
import torch
from torch import Tensor

import cases
from deform_attn import deformable_attention, multi_scale_deformable_attention

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
NOT_FINITE = [float("nan"), float("inf"), -float("inf")]
SPECIAL = [*NOT_FINITE, 0.0, 1e-40, -1e-40]


@dataclass
class Call:
    """The arguments of one call: `tensors` by name, and the others. `counts` are the points of each level."""

    fused: bool
    spatial_shapes: Any
    counts: list[int]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, *tensors: Tensor, **options: Any) -> Tensor:
        """Call the entry point with these tensors in place of its own, and further options."""
        value, *others = tensors or self.tensors.values()
        return self.entry_point(value, self.spatial_shapes, *others, **{**self.options, **options})

    @property
    def entry_point(self):
        return deformable_attention if self.fused else multi_scale_deformable_attention

    def __str__(self) -> str:
        options = {name: list(o.shape) if isinstance(o, Tensor) else o for name, o in self.options.items()}
        lines = [f"{self.entry_point.__name__}, {self.spatial_shapes}, {options}"]
        lines += [f"{name}: {x.dtype}, {list(x.shape)}, strides {x.stride()}" for name, x in self.tensors.items()]
        return "\n  ".join(lines)


class Draw:
    """What is drawn for one case, from its number."""

    def __init__(self, number: int) -> None:
        self.choose = random.Random(number)
        self.generator = torch.Generator().manual_seed(number)
        choose = self.choose
        self.large = choose.random() < 0.1
        sides = [1, 1, 2, 3, 5, 7, 8] + [0] * choose.randint(0, 1) + [31, 64] * self.large
        self.L, self.M, self.N = choose.randint(1, 4), choose.randint(1, 4), choose.choice([0, 1, 1, 2, 3])
        self.Q, self.D = (
            choose.choice([0, 1, 2, 5, 9] + [200] * self.large),
            choose.choice([0, 1, 2, 3, 5, 8, 13, 16, 40]),
        )
        self.shapes = [(choose.choice(sides), choose.choice(sides)) for _ in range(self.L)]
        self.equal = choose.random() < 0.5
        self.counts = [choose.randint(0, 5)] * self.L if self.equal else [choose.randint(0, 5) for _ in range(self.L)]
        self.S, self.T = sum(H * W for H, W in self.shapes), sum(self.counts)
        self.dtype = choose.choice(DTYPES)
        self.poisoned = set(choose.sample(range(3), choose.randint(1, 3))) if choose.random() < 0.3 else set()
        levels = [level for level, P in enumerate(self.counts) for _ in range(P)]
        self.level_of_point = torch.tensor(levels, dtype=torch.long)
        self.sizes = torch.tensor([self.shapes[level][::-1] for level in levels], dtype=torch.float64).reshape(-1, 2)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self.generator)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=self.generator)

    def poison(self, which: int, tensor: Tensor, numbers: list[float] = SPECIAL) -> Tensor:
        """Return `tensor` with some special numbers, if this one of the tensors is to have them."""
        if which not in self.poisoned:
            return tensor
        special = torch.tensor(numbers, dtype=torch.float64)
        drawn = special[torch.randint(len(numbers), tensor.shape, generator=self.generator)]
        return torch.where(self.uniform(0, 1, *tensor.shape) < 0.05, drawn, tensor)

    def dtype_of_points(self) -> torch.dtype:
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        return self.choose.choice([wide, wide, wide, self.dtype, self.choose.choice(DTYPES)])

    def weights(self) -> Tensor:
        return (2 * self.normal(self.N, self.Q, self.M, self.T)).to(self.dtype_of_points())

    def points(self, draw, pixels_of) -> Tensor:
        """Return offsets or locations `[N, Q, M, T, 2]`, none where two right results may differ."""
        drawn = lambda: self.poison(1, draw(self.N, self.Q, self.M, self.T, 2))  # noqa: E731
        return cases.draw_off_kinks(drawn, pixels_of, self.sizes, self.dtype_of_points())


def draw(number: int) -> Call:
    """Draw a call with nothing wrong in it."""
    it = Draw(number)
    choose = it.choose
    call = Call(choose.random() < 0.5, it.shapes, it.counts)
    call.tensors["value"] = it.poison(0, it.normal(it.N, it.S, it.M, it.D)).to(it.dtype)
    _attention(it, call) if call.fused else _sampling(it, call)
    call.options["interpolation"] = choose.choice(["bilinear", "bilinear", "nearest"])
    call.options["padding_mode"] = choose.choice(["zeros", "zeros", "border"])
    _lay_out_points(it, call)
    for name, tensor in call.tensors.items():
        call.tensors[name] = choose.choice(layouts.SAME_NUMBERS)(tensor)
    if choose.random() < 0.1:
        name = choose.choice(["value", list(call.tensors)[-1]])
        call.tensors[name] = choose.choice(layouts.OTHER_NUMBERS)(call.tensors[name])
    if choose.random() < 0.2:
        call.spatial_shapes = torch.tensor(it.shapes)
    return call


def _sampling(it: Draw, call: Call) -> None:
    locations = it.points(lambda *shape: it.uniform(-0.4, 1.4, *shape), lambda at: at * it.sizes)
    call.tensors |= {"sampling_locations": locations, "attention_weights": it.weights()}


def _attention(it: Draw, call: Call) -> None:
    levels = it.choose.choice([(it.L,), (1,), ()])
    references = it.uniform(-0.2, 1.2, it.N, it.Q, *levels, 2)
    boxes, scale = it.choose.random() < 0.5, it.choose.choice([0.5, 1, 1.25])
    if boxes:
        references = torch.cat([references, it.uniform(0.1, 1.1, *references.shape)], dim=-1)
    references = it.poison(2, references, NOT_FINITE).to(it.dtype_of_points())
    at = (references if levels else references[:, :, None]).double().expand(-1, -1, it.L, -1)
    at = at[:, :, it.level_of_point][:, :, None]  # [N, Q, 1, T, 2 or 4]
    counts = torch.tensor(it.counts)[it.level_of_point][:, None]

    def pixels_of(offsets: Tensor) -> Tensor:
        if boxes:
            return (at[..., :2] + offsets / counts * at[..., 2:] * scale) * it.sizes
        return at * it.sizes + offsets

    offsets = it.points(lambda *shape: 2 * it.normal(*shape), pixels_of)
    call.tensors |= {"reference_points": references, "sampling_offsets": offsets, "attention_logits": it.weights()}
    if boxes:
        call.options["offset_scale"] = scale
    if it.choose.random() < 0.4:
        mask = it.uniform(0, 1, it.N, it.S) < 0.3
        call.options["padding_mask"] = it.choose.choice(layouts.SAME_NUMBERS)(mask)


def _lay_out_points(it: Draw, call: Call) -> None:
    """Give the points an axis of levels, or say their counts."""
    if it.equal and it.choose.random() < 0.6:
        for name in ["sampling_offsets"] if call.fused else ["sampling_locations", "attention_weights"]:
            x = call.tensors[name]
            call.tensors[name] = x.reshape(*x.shape[:3], it.L, it.counts[0], *x.shape[4:])
    else:
        call.options["num_points"] = it.counts[0] if it.equal and it.choose.random() < 0.5 else list(it.counts)
