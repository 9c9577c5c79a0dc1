"""Cases: named inputs of both entry points, drawn from a seed, and what the oracle says of them."""

import functools
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

import oracle

KINK_DISTANCE = 0.01  # pixels; far above a float32 coordinate's error, far below a pixel


@dataclass(frozen=True)
class Case:
    """Sizes and options of one named input; the letters are those of the conventions."""

    name: str
    spatial_shapes: tuple[tuple[int, int], ...]
    num_points: tuple[int, ...]  # one count per level
    batch: int = 2
    queries: int = 11
    heads: int = 3
    channels: int = 5
    coordinates: int = 2  # of a reference: 2 for points, 4 for boxes
    reference_levels: str = "each"  # "each", "one" or "left out"
    masked: bool = False
    flat: bool = False
    offset_scale: float = 0.5

    @property
    def sequence(self) -> int:
        return sum(height * width for height, width in self.spatial_shapes)


@dataclass(frozen=True)
class Inputs:
    """The tensors of one case in one dtype, and the keyword arguments that go with them."""

    value: Tensor
    spatial_shapes: list[tuple[int, int]]
    reference_points: Tensor
    sampling_offsets: Tensor
    attention_logits: Tensor
    padding_mask: Tensor | None
    sampling_locations: Tensor
    attention_weights: Tensor
    num_points: list[int] | None
    offset_scale: float

    @property
    def fused_tensors(self) -> list[Tensor]:
        return [self.value, self.reference_points, self.sampling_offsets, self.attention_logits]

    @property
    def classic_tensors(self) -> list[Tensor]:
        return [self.value, self.sampling_locations, self.attention_weights]

    @property
    def fused_options(self) -> dict:
        return {
            "num_points": self.num_points,
            "padding_mask": self.padding_mask,
            "offset_scale": self.offset_scale,
        }

    @property
    def classic_options(self) -> dict:
        return {"num_points": self.num_points}


FUSED_NAMES = ["value", "reference_points", "sampling_offsets", "attention_logits"]
CLASSIC_NAMES = ["value", "sampling_locations", "attention_weights"]

CASES = [
    Case("one level as in the paper", ((5, 7),), (4,), queries=6, reference_levels="left out"),
    Case("encoder", ((9, 13), (5, 7), (3, 2)), (4, 4, 4), masked=True),
    Case("decoder points", ((6, 11), (4, 3)), (3, 3), reference_levels="one"),
    Case("decoder boxes", ((8, 5), (3, 4), (2, 1)), (4, 4, 4), coordinates=4, masked=True),
    Case("boxes on one reference level", ((4, 9), (5, 3)), (2, 2), coordinates=4, reference_levels="one"),
    Case("boxes without a reference level", ((7, 4), (2, 3)), (3, 3), coordinates=4, reference_levels="left out"),
    Case("another offset scale", ((3, 8), (6, 2)), (5, 5), coordinates=4, offset_scale=1.25),
    Case("one point", ((5, 8), (3, 4)), (1, 1), batch=4, queries=6, masked=True),
    Case("points counted per level", ((6, 5), (4, 7), (2, 3)), (3, 1, 2), flat=True, reference_levels="one"),
    Case("boxes with points per level", ((5, 6), (7, 3), (2, 4)), (1, 4, 2), flat=True, coordinates=4, masked=True),
    Case("flat with equal counts", ((4, 5), (3, 7)), (2, 2), flat=True),
    Case("a level without points", ((4, 6), (5, 3), (2, 7)), (2, 0, 4), flat=True),
    Case("one-pixel level", ((6, 4), (1, 1)), (3, 3)),
    Case("one-pixel level with boxes", ((1, 1), (3, 5)), (2, 2), coordinates=4),
    Case("a row and a column", ((1, 9), (8, 1)), (4, 4), masked=True),
    Case("empty levels", ((3, 5), (0, 4), (2, 7), (6, 0)), (2, 2, 2, 2), masked=True),
    Case("empty level with boxes", ((0, 3), (4, 7)), (3, 1), flat=True, coordinates=4, reference_levels="one"),
    Case("one channel, one head", ((5, 4), (2, 6)), (3, 3), batch=1, heads=1, channels=1),
    Case("many channels", ((4, 5), (2, 3)), (2, 2), batch=1, queries=5, heads=2, channels=37),
]

# Small enough for a Jacobian by finite differences.
SMALL_CASES = [
    Case("small points", ((3, 2), (2, 4)), (1, 1), batch=1, queries=2, heads=2, channels=2, masked=True),
    Case("small boxes", ((2, 3), (3, 1)), (2, 1), 2, 2, 1, 2, 4, "one", flat=True, offset_scale=0.75),
    Case("small one-pixel and empty", ((1, 1), (0, 2), (2, 3)), (1, 1, 1), 1, 2, 1, 1, reference_levels="left out"),
]

# Small enough for second derivatives by finite differences.
TINY_CASES = [
    Case("tiny points", ((2, 3), (2, 1)), (1, 1), 1, 1, 1, 2, reference_levels="left out", masked=True),
    Case("tiny boxes", ((3, 2),), (2,), 1, 2, 1, 1, coordinates=4, offset_scale=0.75),
]

# (case, interpolation, padding_mode): every small case and every pair of modes that has derivatives of its own, each
# with one of the others.
DERIVATIVES = [
    ("small points", "bilinear", "zeros"),
    ("small boxes", "bilinear", "border"),
    ("small one-pixel and empty", "bilinear", "zeros"),
    ("small boxes", "nearest", "zeros"),
]


def case_id(case: Case) -> str:
    return case.name.replace(" ", "-").replace(",", "")


def named(name: str) -> Case:
    """Return the case of this name."""
    (case,) = [case for case in CASES + SMALL_CASES + TINY_CASES if case.name == name]
    return case


def level_sizes(case: Case) -> Tensor:
    """Return (W, H) of the level of each point, `[T, 2]`."""
    levels = oracle.level_of_each_point(case.num_points)
    return torch.tensor([case.spatial_shapes[level][::-1] for level in levels], dtype=torch.float64).reshape(-1, 2)


def on_a_kink(pixels: Tensor, sizes: Tensor) -> Tensor:
    """Tell which of `pixels [..., T, 2]` lie so near to a pixel's centre or edge that dtypes could disagree there."""
    to_half_integer = (2 * pixels - (2 * pixels).round()).abs() / 2
    return (to_half_integer < KINK_DISTANCE) & (sizes > 0).all(-1, keepdim=True)


def draw_off_kinks(draw, pixels_of, sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """Draw `[N, Q, M, T, 2]`, rounded to `dtype`, and draw again wherever `pixels_of` it lies on a kink."""
    drawn = draw().to(dtype)
    while (again := on_a_kink(pixels_of(drawn.double()), sizes)).any():
        drawn = torch.where(again, draw().to(dtype), drawn)
    return drawn


@functools.cache
def inputs_of(case: Case, dtype: torch.dtype) -> Inputs:
    """Draw the inputs of one case; the same for the same case and dtype. Do not write into them."""
    generator = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))
    n, q, m, total = case.batch, case.queries, case.heads, sum(case.num_points)
    level_count = len(case.spatial_shapes)

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=generator)

    levels = {"each": (level_count,), "one": (1,), "left out": ()}[case.reference_levels]
    reference_points = uniform(0, 1, n, q, *levels, 2)
    if case.coordinates == 4:
        reference_points = torch.cat([reference_points, uniform(0.2, 0.9, n, q, *levels, 2)], dim=-1)
    reference_points = reference_points.to(dtype)

    # The reference of each point: [N, Q, 1, T, 2 or 4]
    references = reference_points.double() if levels else reference_points.double().unsqueeze(2)
    references = references.expand(n, q, level_count, case.coordinates)
    references = references[:, :, oracle.level_of_each_point(case.num_points)].unsqueeze(2)
    counts = torch.tensor([c for c in case.num_points for _ in range(c)], dtype=torch.float64).reshape(-1, 1)
    sizes = level_sizes(case)

    def pixels_of_offsets(offsets):
        if case.coordinates == 2:
            return references * sizes + offsets
        return (references[..., :2] + offsets / counts * references[..., 2:] * case.offset_scale) * sizes

    shape = (n, q, m, total, 2)
    sampling_offsets = draw_off_kinks(lambda: 2 * normal(*shape), pixels_of_offsets, sizes, dtype)
    sampling_locations = draw_off_kinks(lambda: uniform(-0.4, 1.4, *shape), lambda at: at * sizes, sizes, dtype)
    attention_logits = normal(n, q, m, total).to(dtype)
    attention_weights = torch.softmax(normal(n, q, m, total), -1).to(dtype)
    if not case.flat:
        per_level = (n, q, m, level_count, case.num_points[0])
        sampling_offsets = sampling_offsets.reshape(*per_level, 2)
        sampling_locations = sampling_locations.reshape(*per_level, 2)
        attention_weights = attention_weights.reshape(per_level)
    padding_mask = None
    if case.masked:
        padding_mask = uniform(0, 1, n, case.sequence) < 0.3
        padding_mask[0, 0] = True
    return Inputs(
        value=normal(n, case.sequence, m, case.channels).to(dtype),
        spatial_shapes=list(case.spatial_shapes),
        reference_points=reference_points,
        sampling_offsets=sampling_offsets,
        attention_logits=attention_logits,
        padding_mask=padding_mask,
        sampling_locations=sampling_locations,
        attention_weights=attention_weights,
        num_points=list(case.num_points) if case.flat else None,
        offset_scale=case.offset_scale,
    )


def oracle_fused(case, tensors, padding_mask=None, interpolation="bilinear", padding_mode="zeros"):
    """Ask the oracle for the fused op of `tensors` (value, references, offsets, logits), as a float64 tensor."""
    output = oracle.deformable_attention(
        *fused_lists(case, tensors),
        case.num_points,
        None if padding_mask is None else padding_mask.tolist(),
        case.offset_scale,
        interpolation,
        padding_mode,
    )
    return torch.tensor(output, dtype=torch.float64)


def oracle_classic(case, tensors, interpolation="bilinear", padding_mode="zeros"):
    """Ask the oracle for the classic op of `tensors` (value, locations, weights), as a float64 tensor."""
    output = oracle.multi_scale_deformable_attention(
        *classic_lists(case, tensors), case.num_points, interpolation, padding_mode
    )
    return torch.tensor(output, dtype=torch.float64)


def oracle_classic_gradients(case, tensors, grad_output, interpolation="bilinear", padding_mode="zeros"):
    """Ask the oracle for the gradients of the classic op, as float64 tensors in the shapes of `tensors`."""
    gradients = oracle.multi_scale_deformable_attention_gradients(
        *classic_lists(case, tensors), case.num_points, grad_output.tolist(), interpolation, padding_mode
    )
    return [
        torch.tensor(gradient, dtype=torch.float64).reshape(tensor.shape)
        for gradient, tensor in zip(gradients, tensors, strict=True)
    ]


def oracle_fused_gradients(
    case, tensors, grad_output, padding_mask=None, interpolation="bilinear", padding_mode="zeros"
):
    """Ask the oracle for the gradients of the fused op, as float64 tensors in the shapes of `tensors`."""
    gradients = oracle.deformable_attention_gradients(
        *fused_lists(case, tensors),
        case.num_points,
        grad_output.tolist(),
        None if padding_mask is None else padding_mask.tolist(),
        case.offset_scale,
        interpolation,
        padding_mode,
    )
    gradients = [torch.tensor(gradient, dtype=torch.float64) for gradient in gradients]
    if case.reference_levels == "one":
        gradients[1] = gradients[1].sum(2, keepdim=True)
    elif case.reference_levels == "left out":
        gradients[1] = gradients[1].sum(2)
    return [gradient.reshape(tensor.shape) for gradient, tensor in zip(gradients, tensors, strict=True)]


def fused_lists(case, tensors):
    value, reference_points, offsets, logits = tensors
    shape = (case.batch, case.queries, case.heads, sum(case.num_points), 2)
    references = reference_points.tolist()
    return value.tolist(), case.spatial_shapes, references, offsets.reshape(shape).tolist(), logits.tolist()


def classic_lists(case, tensors):
    value, locations, weights = tensors
    shape = (case.batch, case.queries, case.heads, sum(case.num_points))
    lists = locations.reshape(*shape, 2).tolist(), weights.reshape(shape).tolist()
    return value.tolist(), case.spatial_shapes, *lists


@functools.cache
def expected_fused(case, dtype, interpolation="bilinear", padding_mode="zeros"):
    """Return what the oracle says of the fused op on `inputs_of(case, dtype)`."""
    inputs = inputs_of(case, dtype)
    return oracle_fused(case, inputs.fused_tensors, inputs.padding_mask, interpolation, padding_mode)


@functools.cache
def expected_classic(case, dtype, interpolation="bilinear", padding_mode="zeros"):
    """Return what the oracle says of the classic op on `inputs_of(case, dtype)`."""
    return oracle_classic(case, inputs_of(case, dtype).classic_tensors, interpolation, padding_mode)


def grad_output_of(case, dtype):
    """Return the gradient that flows into the output, `[N, Q, M * D]`."""
    generator = torch.Generator().manual_seed(zlib.crc32(case.name.encode()) + 1)
    shape = (case.batch, case.queries, case.heads * case.channels)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


@functools.cache
def expected_fused_gradients(case, dtype, interpolation="bilinear", padding_mode="zeros"):
    """Return the oracle's gradients of the fused op on `inputs_of(case, dtype)` for `grad_output_of(case, dtype)`."""
    inputs, grad_output = inputs_of(case, dtype), grad_output_of(case, dtype)
    options = inputs.padding_mask, interpolation, padding_mode
    return oracle_fused_gradients(case, inputs.fused_tensors, grad_output, *options)


@functools.cache
def expected_classic_gradients(case, dtype, interpolation="bilinear", padding_mode="zeros"):
    """Return the oracle's gradients of the classic op on `inputs_of(case, dtype)` for `grad_output_of(case, dtype)`."""
    inputs, grad_output = inputs_of(case, dtype), grad_output_of(case, dtype)
    return oracle_classic_gradients(case, inputs.classic_tensors, grad_output, interpolation, padding_mode)
