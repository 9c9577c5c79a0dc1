"""What the modules share: the projections of the published module, and the judging of their arguments."""

from typing import Any

import torch
from torch import nn

from deform_attn.messages import fail
from deform_attn.modules import projections
from deform_attn.stand_ins.level_starts import judged_sizes


class Attention(nn.Module):
    """The four projections, C channels of the queries, V of value, M heads, P points on each of L levels.

    What they compute, the adapters of interop say, which `patch` sets on modules with the same parts.
    """

    def __init__(self, C: int, V: int, M: int, L: int, P: int) -> None:
        super().__init__()
        self._heads, self._grid = M, (L, P)
        self.sampling_offsets = nn.Linear(C, M * L * P * 2)
        self.attention_weights = nn.Linear(C, M * L * P)
        self.value_proj = nn.Linear(C, V)
        self.output_proj = nn.Linear(V, C)

    def _draw(self) -> None:
        """Draw new parameters, as the published modules do."""
        L, P = self._grid
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(projections.directional_offsets(self._heads, [P] * L).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        projections.reset(self.value_proj, self.output_proj)


def sizes_of(spatial_shapes: Any, level_start_index: Any) -> Any:
    """Return the sizes as the op takes them; starts of the levels that are left out are not judged."""
    return spatial_shapes if level_start_index is None else judged_sizes(spatial_shapes, level_start_index)


def heads_fit(channels: str, C: int, heads: str, M: int) -> None:
    """Judge that the arguments called so share C channels among M heads."""
    if C % M:
        fail(channels, f"a multiple of {heads} = {M}", str(C), "Change one of the two.")
