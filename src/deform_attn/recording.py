"""Recording: where a call looks and how much each point counts, and what every attention inside a model looked at."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deform_attn import checks, module_checks, reference
from deform_attn.shape_checks import Pairs

_REFERENCES = ("reference_points", "refer_bbox")  # what forwards call them, the latter in ultralytics


class Sampling(NamedTuple):
    """Where a module looked and how much each point counted.

    `locations [N, Q, M, L, P, 2]` as (x, y), [0, 1] spanning the map, and `weights [N, Q, M, L, P]`, which add up to 1
    over (L, P). If the levels' point counts differ, both are flat: `[N, Q, M, T, 2]` and `[N, Q, M, T]`.
    """

    locations: Tensor
    weights: Tensor


def sampling_of(
    spatial_shapes: Pairs | Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    num_points: Sequence[int],
    offset_scale: float = 0.5,
) -> Sampling:
    """Return where `deformable_attention` looks for the same arguments, and how much each point counts.

    `reference_points [N, Q, L or 1, 2 or 4]`, of which the level axis may be left out, `sampling_offsets
    [N, Q, M, T, 2]` and `attention_logits [N, Q, M, T]`.
    """
    reference_points = checks.references_of(reference_points, sampling_offsets, len(num_points))
    points = reference_points, sampling_offsets, attention_logits
    locations, weights = reference.sampling(spatial_shapes, *points, num_points, offset_scale)
    if len(set(num_points)) == 1:
        grid = (len(num_points), num_points[0])
        locations, weights = locations.unflatten(3, grid), weights.unflatten(3, grid)
    return Sampling(locations, weights)


@dataclass(frozen=True)
class Record:
    """One call of one module.

    `name` is the module's dotted name inside the model. `locations` and `weights` are as in `Sampling`, detached.
    `reference_points` are as the module received them. `spatial_shapes` are the sizes (H, W) of its maps, and
    `num_points` is how many points a head has on each level.
    """

    name: str
    locations: Tensor
    weights: Tensor
    reference_points: Tensor
    spatial_shapes: tuple[tuple[int, int], ...]
    num_points: tuple[int, ...]


@contextmanager
def record(model: nn.Module) -> Iterator[list[Record]]:
    """Collect locations and weights of every deformable attention inside `model` while the block runs.

    The outputs stay as they are; each call costs its two query projections once more. A module is recorded if it has a
    method `compute_sampling` that takes the arguments of `forward` and returns `(Sampling, spatial_shapes,
    num_points)`.

    Args:
        model: any module that contains (or is) a deformable attention.

    Yields:
        A list that receives a `Record` for each call, in the order of the calls.

    Raises:
        TypeError: `model` is not a module.
        ValueError: nothing inside the model can be recorded.

    Example:
        >>> import torch
        >>> from deform_attn import DeformableAttention, record
        >>> attention = DeformableAttention(embed_dim=32, num_heads=4, num_points=3)
        >>> with record(attention) as records:
        ...     output = attention(torch.randn(2, 5, 32), torch.rand(2, 5, 2), torch.randn(2, 32, 12, 18))
        >>> records[0].locations.shape, records[0].weights.shape
        (torch.Size([2, 5, 4, 1, 3, 2]), torch.Size([2, 5, 4, 1, 3]))
    """
    names = module_checks.recordable(model)
    records: list[Record] = []
    with ExitStack() as stack:
        for module, name in names.items():
            hook = RecordingHook(name, records)
            stack.enter_context(module.register_forward_hook(hook, with_kwargs=True))
            stack.callback(hook.close)
        yield records


class RecordingHook:
    """What `record` hangs on a module: it appends a `Record` for each call, and computes itself what that holds."""

    def __init__(self, name: str, records: list[Record]) -> None:
        self._name = name
        self._records: list[Record] | None = records

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        """Record a call, as torch calls a forward hook."""
        if self._records is None:
            return
        with torch.no_grad():
            (locations, weights), shapes, num_points = module.compute_sampling(*args, **kwargs)
        arguments = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
        references = next(arguments[name] for name in _REFERENCES if name in arguments).detach()
        self._records.append(Record(self._name, locations, weights, references, shapes, tuple(num_points)))

    def close(self) -> None:
        """End the recording, also by the hooks of a copy that was made of the model inside the block."""
        self._records = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "RecordingHook":
        return self  # a copy of the model keeps its hooks, and is recorded where the model is
