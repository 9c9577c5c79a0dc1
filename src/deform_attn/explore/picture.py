"""A picture as the page and the figure need it: its size, its pixels, and all of it as text."""

import base64
import io
from typing import TYPE_CHECKING, Any, Union

from torch import Tensor

from deform_attn.explore.extra import explore_extra

if TYPE_CHECKING:
    from PIL.Image import Image

_LONGEST = 2000  # pixels of the longer side on the page; more would not be seen
_LARGE = 400_000  # bytes of a PNG, above which a JPEG takes its place


def picture_size(image: Union["Image", Tensor]) -> tuple[int, int]:
    """Return (H, W).

    Raises:
        TypeError, ValueError: it is neither a Pillow image nor `[3, H, W]`.
    """
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise ValueError(f"image: expected [3, H, W], got {list(image.shape)}; take one picture out of its batch")
        return image.shape[1], image.shape[2]
    if not hasattr(image, "convert"):
        kind = type(image).__name__
        raise TypeError(
            f"image: expected a Pillow image or a tensor [3, H, W], got {kind}; open it with PIL.Image.open"
        )
    return image.height, image.width


def picture_pixels(image: Union["Image", Tensor]) -> Any:
    """Return the picture as a numpy array `[H, W, 3]` of bytes."""
    with explore_extra():
        import numpy as np

    if isinstance(image, Tensor):
        return image.detach().cpu().float().nan_to_num().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    return np.asarray(image.convert("RGB"))


def picture_uri(image: Union["Image", Tensor]) -> str:
    """Return the picture as a `data:` address, a large one as a JPEG of at most 2000 pixels a side."""
    with explore_extra():
        from PIL import Image

    # A large Pillow image would be held three times on the way through numpy.
    picture = Image.fromarray(picture_pixels(image)) if isinstance(image, Tensor) else image.convert("RGB")
    picture.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    kind, content = "png", io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    if content.tell() > _LARGE:
        kind, content = "jpeg", io.BytesIO()
        picture.save(content, "JPEG", quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
