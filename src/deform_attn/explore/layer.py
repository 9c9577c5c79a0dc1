"""A layer: what one deformable attention did in one picture, in pixels of that picture."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deform_attn import encoder_reference_points
from deform_attn.recording import Record

_ROUNDED = 0.03  # what centres in bfloat16, computed in a few steps, differ by, as a share


@dataclass(frozen=True)
class Layer:
    """One record, of one picture.

    `name` is for readers ("decoder 2", counted from 0), `module` the dotted name inside the model. An encoder's
    queries are the pixels of its maps, level after level. `locations [Q, M, T, 2]` are (x, y) in pixels of the
    picture, `weights [Q, M, T]`, `references [Q, L or 1, 2 or 4]` points (x, y) or boxes (cx, cy, w, h) in its pixels;
    `spatial_shapes` are L pairs (H, W), and `num_points` the L point counts of a head, T in sum, level after level. The
    tensors are float32 or wider, on the CPU.
    """

    name: str
    module: str
    is_encoder: bool
    locations: Tensor
    weights: Tensor
    references: Tensor
    spatial_shapes: tuple[tuple[int, int], ...]
    num_points: tuple[int, ...]

    @property
    def num_heads(self) -> int:
        """How many heads there are."""
        return self.locations.shape[1]

    def points_of(self, level: int) -> slice:
        """Return which of a head's T points lie on `level`."""
        first = sum(self.num_points[:level])
        return slice(first, first + self.num_points[level])

    def queries_of(self, level: int) -> range:
        """Return which queries of an encoder are the pixels of `level`."""
        sizes = [height * width for height, width in self.spatial_shapes]
        return range(sum(sizes[:level]), sum(sizes[: level + 1]))

    def nearest(self, position: tuple[float, float], among: range) -> int:
        """Return the query whose reference point is nearest to `position` (x, y), of equals the first.

        Raises:
            ValueError: there is none, or no reference point is a number.
        """
        points = self.references[among.start : among.stop, 0, :2].double()
        distances = (points - points.new_tensor(position)).square().sum(-1)  # [k]
        distances = distances.where(distances.isfinite(), math.inf)
        if not distances.isfinite().any():
            raise ValueError(f"{self.name}: has no query with a reference point there; choose another layer or level")
        return among.start + int(distances.argmin())


def read_layer(record: Record, name: str, *, picture: int, frame: tuple[float, float]) -> Layer:
    """Return what `record` says about one picture of its batch.

    Args:
        record: of one call.
        name: for readers.
        picture: which of the batch, from 0.
        frame: (H, W) of what the locations are fractions of, in pixels of the picture.

    Raises:
        ValueError: the batch has no such picture, the record contradicts itself, or a weight is no number.
    """
    where = f"records ({record.name or 'the model'})"
    images, queries, heads = record.locations.shape[:3]
    if not 0 <= picture < images:
        raise ValueError(f"picture: expected a number below {images}, the batch that was recorded, got {picture}")
    points = sum(record.num_points)
    weights = _exact(record.weights[picture]).reshape(queries, heads, -1)  # [Q, M, T]
    if weights.shape[-1] != points or len(record.num_points) != len(record.spatial_shapes):
        raise ValueError(
            f"{where}: expected {points} points a head on {len(record.spatial_shapes)} levels, as num_points "
            f"{record.num_points} says, got {weights.shape[-1]}; record the model anew"
        )
    if not weights.isfinite().all():
        raise ValueError(f"{where}: a weight is no finite number; look for NaN in the model's inputs and parameters")
    size = weights.new_tensor([frame[1], frame[0]])
    locations = _exact(record.locations[picture]).reshape(queries, heads, -1, 2) * size  # [Q, M, T, 2]
    # One entry may stand for all pictures, and one for all levels.
    references = _exact(record.reference_points[picture if record.reference_points.shape[0] > 1 else 0])
    references = references if references.ndim == 3 else references[:, None]  # [Q, L or 1, 2 or 4]
    references = references * size.repeat(references.shape[-1] // 2)
    return Layer(
        name,
        record.name,
        is_of_encoder(record),
        locations,
        weights,
        references,
        record.spatial_shapes,
        record.num_points,
    )


def is_of_encoder(record: Record) -> bool:
    """Return whether the queries of `record` are the pixels of its maps: as many, with those centres as references.

    A decoder may happen to have as many. Beside padding, a level's centres are stretched by a factor in each direction.
    """
    sizes = [height * width for height, width in record.spatial_shapes]
    if record.locations.shape[1] != sum(sizes):
        return False
    points = _exact(record.reference_points).flatten(2)[..., :2]  # [N or 1, Q, 2], of several levels on the first
    factors = points / encoder_reference_points(record.spatial_shapes)[:, :, 0]
    are_centres = torch.ones(len(points), dtype=torch.bool)
    for part in factors.split(sizes, dim=1):
        if part.numel():
            low, high = part.aminmax(dim=1)  # [N or 1, 2]
            are_centres &= (high - low < _ROUNDED * high).all(-1)
    return bool(are_centres.any())  # a picture that is all padding has no factor


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().to(torch.promote_types(tensor.dtype, torch.float32))
