"""A scene: a picture, what was found in it, and where each layer looked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Union

from torch import Tensor

from deform_attn.explore.detection import Detection
from deform_attn.explore.layer import Layer, is_of_encoder, read_layer
from deform_attn.explore.picture import picture_size
from deform_attn.recording import Record

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Scene:
    """What `write_page` and `plot_sampling` show.

    A record is an encoder's if its queries are the pixels of its maps, in their order, with their centres as reference
    points. The others are of a decoder.

    Args:
        image: what the model saw: a Pillow image, or RGB `[3, H, W]` in [0, 1].
        records: what `deform_attn.record` collected while the model looked at it, at least one.
        detections: what was found, in the order to list it.
        frame: (H, W) of what the maps span, in pixels of `image`. It is larger if the model's input was padded at the
            right and the bottom. Default: the image's own.
        picture: which picture of the recorded batch it is, from 0.

    Raises:
        ValueError, TypeError: what does not fit together; the message names the argument.

    Example:
        >>> import torch
        >>> from deform_attn import MultiScaleDeformableAttention, record
        >>> from deform_attn.explore import Detection, Scene
        >>> attention = MultiScaleDeformableAttention(embed_dim=32, num_heads=4, num_levels=2, num_points=3)
        >>> maps = [torch.randn(1, 32, 12, 18), torch.randn(1, 32, 6, 9)]
        >>> with record(attention) as records:
        ...     output = attention(torch.randn(1, 5, 32), torch.rand(1, 5, 2), maps)
        >>> scene = Scene(torch.rand(3, 96, 144), records, [Detection(query=2, box=(10, 20, 60, 80), label="tree")])
        >>> [layer.name for layer in scene.layers]
        ['decoder 0']
    """

    image: Union["Image", Tensor]
    records: Sequence[Record] = field(repr=False)
    detections: Sequence[Detection] = ()
    frame: tuple[float, float] | None = None
    picture: int = 0
    layers: tuple[Layer, ...] = field(init=False, repr=False)
    """One for each record."""

    def __post_init__(self) -> None:
        if not self.records:
            raise ValueError(
                "records: expected at least one, got none; run the model inside `with record(model) as records:`"
            )
        frame = self.size if self.frame is None else self.frame
        if len(frame) != 2 or not all(math.isfinite(side) and side > 0 for side in frame):
            raise ValueError(f"frame: expected (H, W) in pixels, above zero, got {self.frame}; leave it out")
        layers: list[Layer] = []
        for record in self.records:
            kind = "encoder" if is_of_encoder(record) else "decoder"
            number = sum(layer.name.startswith(kind) for layer in layers)
            layers.append(read_layer(record, f"{kind} {number}", picture=self.picture, frame=frame))
        object.__setattr__(self, "layers", tuple(layers))
        object.__setattr__(self, "detections", tuple(self.detections))
        queries = min((len(layer.locations) for layer in layers if not layer.is_encoder), default=None)
        for detection in self.detections:
            if queries is not None and detection.query >= queries:
                raise ValueError(
                    f"detections: expected queries below {queries}, which the decoder has, got {detection.query}; "
                    "count from 0 and within one picture"
                )

    @property
    def size(self) -> tuple[int, int]:
        """The picture's (H, W)."""
        return picture_size(self.image)

    def layer(self, which: int | str | None = None) -> Layer:
        """Return a layer by its name ("decoder 2"), its module's dotted name, or its place among the records.

        By default it is the last of the decoder, or of the encoder if there is no decoder.

        Raises:
            ValueError: there is no such layer.
        """
        if which is None:
            return ([layer for layer in self.layers if not layer.is_encoder] or self.layers)[-1]
        if isinstance(which, int):
            if -len(self.layers) <= which < len(self.layers):
                return self.layers[which]
        else:
            for layer in self.layers:
                if which in (layer.name, layer.module):
                    return layer
        names = ", ".join(layer.name for layer in self.layers)
        raise ValueError(f"layer: expected one of {names}, or its place among them, got {which!r}")

    def query(
        self,
        layer: Layer,
        *,
        detection: int | None = None,
        position: tuple[float, float] | None = None,
        pixel_level: int = 0,
    ) -> int:
        """Return which query of `layer` looks for a detection, or from a position in the picture.

        In a decoder's layer it is the detection's own; from a position, that whose reference point in the last decoder
        layer is nearest. In an encoder's layer it is the pixel of one level nearest to the position, or to the
        middle of the detection's box.

        Args:
            layer: one of `layers`.
            detection: its place in `detections`.
            position: (x, y) in pixels of the picture.
            pixel_level: the level whose pixels look, in an encoder's layer.

        Raises:
            ValueError: not just one of `detection` and `position` is given, or there is no such detection or level.
        """
        if (detection is None) == (position is None):
            raise ValueError("detection, position: expected one of the two, got both or neither; leave one out")
        if detection is not None:
            if not 0 <= detection < len(self.detections):
                known = f"a number below {len(self.detections)}" if self.detections else "none, since nothing was found"
                raise ValueError(f"detection: expected {known}, got {detection}; pass a position instead")
            if not layer.is_encoder:
                return self.detections[detection].query
            position = self.detections[detection].centre
        assert position is not None
        if not layer.is_encoder:
            last = [other for other in self.layers if not other.is_encoder][-1]
            return last.nearest(position, range(min(len(last.locations), len(layer.locations))))
        if not 0 <= pixel_level < len(layer.spatial_shapes):
            raise ValueError(f"pixel_level: expected a number below {len(layer.spatial_shapes)}, got {pixel_level}")
        return layer.nearest(position, layer.queries_of(pixel_level))
