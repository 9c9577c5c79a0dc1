"""Positions: sine encodings of coordinates, and the small perceptron that turns boxes into query positions."""

import math

import torch
from torch import Tensor, nn


def sine_encoding(coordinates: Tensor, width: int, periods: float, temperature: float) -> Tensor:
    """Encode each coordinate by sines and cosines of geometrically falling frequencies (Vaswani et al. 2017).

    The highest frequency makes `periods` waves from 0 to 1, the lowest almost `temperature` times fewer. DETR's values,
    1 and 10000, leave neighbours on a map of ten pixels nearly alike: small maps want more periods and less spread.

    Args:
        coordinates: `[..., k]`, fractions of the picture.
        width: channels of each coordinate, even.
        periods: waves of the highest frequency across the picture.
        temperature: ratio between the highest and the lowest frequency.

    Returns:
        `[..., k * width]`, per coordinate sine and cosine of each frequency in turn.
    """
    count = width // 2
    steps = torch.arange(count, dtype=coordinates.dtype, device=coordinates.device)
    frequencies = 2 * math.pi * periods * temperature ** (-steps / count)
    angles = coordinates[..., None] * frequencies  # [..., k, count]
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-3)  # [..., k * width]


class MLP(nn.Sequential):
    """Linear layers with a ReLU between: `in_dim -> hidden_dim -> ... -> out_dim`, `num_layers` in all."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        sizes = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        layers: list[nn.Module] = []
        for i in range(num_layers):
            layers += [nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU(inplace=True)]
        super().__init__(*layers[:-1])
