"""What the modules share: the projections of the published module, and the op from raw offsets and logits."""

from typing import Any

import torch
from torch import Tensor, nn

from deform_attn.functional import deformable_attention
from deform_attn.messages import fail
from deform_attn.modules import projections
from deform_attn.recording import Sampling, sampling_of
from deform_attn.shape_checks import Pairs, spatial_shapes_of
from deform_attn.stand_ins.level_starts import judged_sizes


class Attention(nn.Module):
    """The four projections, C channels of the queries, V of value, M heads, P points on each of L levels."""

    def __init__(self, C: int, V: int, M: int, L: int, P: int) -> None:
        super().__init__()
        self._heads, self._grid = M, (L, P)
        self.sampling_offsets = nn.Linear(C, M * L * P * 2)
        self.attention_weights = nn.Linear(C, M * L * P)
        self.value_proj = nn.Linear(C, V)
        self.output_proj = nn.Linear(V, C)

    def _draw(self) -> None:
        """Draw the parameters anew, as the published modules do."""
        L, P = self._grid
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(projections.directional_offsets(self._heads, [P] * L).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        projections.reset(self.value_proj, self.output_proj)

    def _attend(
        self, query: Tensor, features: Tensor, references: Any, sizes: Any, starts: Any, mask: Tensor | None
    ) -> Tensor:
        """Return `[N, Q, C]` for `query [N, Q, C]` and `features [N, S, C]`."""
        offsets, logits = self._offsets_and_logits(query)
        value = self.value_proj(features).unflatten(-1, (self._heads, -1))  # [N, S, M, D]
        heads = deformable_attention(value, sizes_of(sizes, starts), references, offsets, logits, padding_mask=mask)
        output: Tensor = self.output_proj(heads)
        return output

    def _sampling(self, query: Tensor, references: Tensor, sizes: Any) -> tuple[Sampling, Pairs, tuple[int, ...]]:
        """Return where `_attend` looks, the sizes of the maps, and the points on each, as `record` asks for them."""
        shapes = spatial_shapes_of(sizes)
        L, P = self._grid
        offsets, logits = self._offsets_and_logits(query)
        return sampling_of(shapes, references, offsets.flatten(3, 4), logits, (P,) * L), shapes, (P,) * L

    def _offsets_and_logits(self, query: Tensor) -> tuple[Tensor, Tensor]:
        offsets = self.sampling_offsets(query).unflatten(-1, (self._heads, *self._grid, 2))  # [N, Q, M, L, P, 2]
        return offsets, self.attention_weights(query).unflatten(-1, (self._heads, -1))  # [N, Q, M, T]


def sizes_of(spatial_shapes: Any, level_start_index: Any) -> Any:
    """Return the sizes as the op takes them; starts of the levels that are left out are not judged."""
    return spatial_shapes if level_start_index is None else judged_sizes(spatial_shapes, level_start_index)


def heads_fit(channels: str, C: int, heads: str, M: int) -> None:
    """Judge that the arguments called so share C channels among M heads."""
    if C % M:
        fail(channels, f"a multiple of {heads} = {M}", str(C), "Change one of the two.")
