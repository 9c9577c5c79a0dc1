"""Recording: where each deformable attention inside a model looked, and how much each point counted."""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deform_attn import module_checks


@dataclass(frozen=True)
class Record:
    """One call of one module.

    `name` is the module's dotted name inside the model, `locations` and `weights` are as in `Sampling` (detached),
    `reference_points` as the module received them, `spatial_shapes` the sizes (H, W) of its maps, `num_points` how many
    points a head has on each level.
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

    open_ = True  # a copy made of the model inside the block keeps its hooks

    def note(name: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        if not open_:
            return
        with torch.no_grad():
            (locations, weights), shapes, num_points = module.compute_sampling(*args, **kwargs)
        arguments = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
        reference_points = arguments["reference_points"]
        records.append(Record(name, locations, weights, reference_points.detach(), shapes, tuple(num_points)))

    with ExitStack() as hooks:
        for module, name in names.items():
            hooks.enter_context(module.register_forward_hook(partial(note, name), with_kwargs=True))
        try:
            yield records
        finally:
            open_ = False
