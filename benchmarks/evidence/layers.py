"""The attention of one encoder layer over one map, dense and deformable."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from deform_attn import MultiScaleDeformableAttention, encoder_reference_points, use_backend

WIDTH, HEADS, POINTS = 256, 8, 4
STRIDE = 8

Attention = Callable[[Tensor], Tensor]


class Dense(nn.Module):
    """Every pixel attends to every pixel, by torch's scaled_dot_product_attention in the way that `kind` names."""

    def __init__(self, kind: SDPBackend) -> None:
        super().__init__()
        self.kind = kind
        self.inward = nn.Linear(WIDTH, 3 * WIDTH)
        self.outward = nn.Linear(WIDTH, WIDTH)

    def forward(self, features: Tensor) -> Tensor:
        """Return `[N, S, C]` from `[N, S, C]`."""
        # [3, N, M, S, D]
        query, key, value = self.inward(features).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        with sdpa_kernel(self.kind):
            read = F.scaled_dot_product_attention(query, key, value)  # [N, M, S, D]
        output: Tensor = self.outward(read.transpose(1, 2).flatten(2))
        return output


class Deformable(nn.Module):
    """Every pixel attends to `POINTS` places a head, a few pixels around itself and different for each."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.shapes = [(side // STRIDE, side // STRIDE)]
        self.attention = MultiScaleDeformableAttention(WIDTH, num_heads=HEADS, num_levels=1, num_points=POINTS)
        nn.init.normal_(self.attention.sampling_offsets.weight, std=0.05)
        nn.init.normal_(self.attention.attention_weights.weight, std=0.05)
        self.register_buffer("references", encoder_reference_points(self.shapes))

    def forward(self, features: Tensor) -> Tensor:
        """Return `[N, S, C]` from `[N, S, C]`."""
        output: Tensor = self.attention(features, self.references, features, self.shapes)
        return output


class DeformableByGridSample(Deformable):
    """The same through torch's grid_sample, as models without kernels of their own compute it."""

    def forward(self, features: Tensor) -> Tensor:
        """Return `[N, S, C]` from `[N, S, C]`."""
        with use_backend("grid_sample"):
            return super().forward(features)


KINDS: dict[str, Callable[[int], nn.Module]] = {
    "deformable": Deformable,
    "dense": lambda side: Dense(SDPBackend.FLASH_ATTENTION),
    "dense, whole matrix": lambda side: Dense(SDPBackend.MATH),
    "deformable, grid_sample": DeformableByGridSample,
}
"""By name, from the picture's side. The second never holds a row of weights whole; the third holds all rows."""


def build(kind: str, side: int) -> tuple[nn.Module, Tensor]:
    """Return the attention of `kind`, the same at each call, and the features `[1, S, C]` of a picture of `side`."""
    torch.manual_seed(0)
    return KINDS[kind](side), torch.randn(1, (side // STRIDE) ** 2, WIDTH)


def call(kind: str, side: int, trains: bool) -> Callable[[], tuple[Tensor, ...]]:
    """Return a call: the output without gradients, or the gradients of features and parameters of its sum."""
    attention, features = build(kind, side)
    if not trains:
        return lambda: (attention(features),)
    leaves = [features.requires_grad_(), *attention.parameters()]
    return partial(_gradients, attention, features, leaves)


def _gradients(attention: nn.Module, features: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(attention(features).sum(), leaves)
