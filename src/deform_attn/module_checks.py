"""Every error that a user can cause with a module: in its sizes, and in what its projections are given."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]  # public, but torch does not list it

from deform_attn import tracing
from deform_attn.messages import dtype_text, fail, shape_text, shown
from deform_attn.shape_checks import Pairs, sizes_of, spatial_shapes_of
from deform_attn.tensor_checks import FLOAT_DTYPES, dense, float_tensor, is_under_autocast, same_device
from deform_attn.whole_numbers import MOST, MOST_NUMBERS, is_int, is_list

_MOST_LEVELS = 2**16  # far more than any model has; each has a count of points of its own


def sizes(embed_dim: int, num_heads: int, **others: int) -> None:
    """Judge the sizes that a module is built with."""
    for name, size in {"embed_dim": embed_dim, "num_heads": num_heads, **others}.items():
        if not is_int(size):
            fail(name, "an int >= 1", shown(size), "Pass a plain int.", TypeError)
        if size < 1:
            fail(name, "an int >= 1", shown(size), "Pass a positive number.")
        if size > MOST:
            fail(name, "an int below 2^31", shown(size), "Pass a smaller number.")
    if others.get("num_levels", 1) >= _MOST_LEVELS:
        fail("num_levels", "an int below 2^16", shown(others["num_levels"]), "Pass the number of feature maps.")
    if embed_dim % num_heads:
        fail("embed_dim", f"a multiple of num_heads = {num_heads}", str(embed_dim), "Change one of the two.")


def projections(embed_dim: int, value_dim: int, channels: int) -> None:
    """Judge whether a memory can hold the matrices to `embed_dim` from `value_dim`, and from it to `channels`."""
    if embed_dim * max(embed_dim, value_dim, channels) > MOST_NUMBERS // 4:  # of float32
        got = f"embed_dim = {embed_dim} with value_dim = {value_dim} and {channels} numbers for the points"
        fail("embed_dim", "projections of at most 2^45 numbers", got, "No memory holds so many; pass smaller sizes.")


def flag(name: str, option: Any) -> None:
    """Judge something that is true or false."""
    if not isinstance(option, bool):
        fail(name, "True or False", shown(option), "Pass a plain bool.", TypeError)


def like_weight(name: str, tensor: Tensor, weight: Tensor) -> None:
    """Judge that a tensor has the device and, where autocast does not see to that, the dtype of a module's `weight`."""
    same_device("the module", weight, name, tensor)
    if tensor.dtype != weight.dtype and not is_under_autocast(tensor):
        fix = f"Use {name}.to(torch.{dtype_text(weight)}), convert the module, or run under torch.autocast."
        fail(name, f"the module's dtype {dtype_text(weight)}", dtype_text(tensor), fix, TypeError)


def place(device: Any, dtype: Any) -> None:
    """Judge the device and dtype that a result is to have, None where they follow from the arguments."""
    if device is not None:
        try:
            torch.device(device)
        except (RuntimeError, TypeError):
            fail("device", 'a torch.device or its name, such as "cpu"', shown(device), "Leave it out for the CPU.")
    if dtype is not None and dtype not in FLOAT_DTYPES:
        names = ", ".join(map(str, FLOAT_DTYPES))
        fail("dtype", f"one of {names}", shown(dtype), "Leave it out for float32.", TypeError)


def axes(name: str, tensor: Any, letters: str, sizes: dict[str, int]) -> None:
    """Judge a tensor given to a module: `letters` such as "N Q C" name its axes, `sizes` fix some of them."""
    if is_tracing():
        with tracing.paused():
            return axes(name, tensor, letters, sizes)
    float_tensor(name, tensor)
    named = letters.split()
    fits = tensor.ndim == len(named) and all(
        sizes.get(axis, size) == size for axis, size in zip(named, tensor.shape, strict=True)
    )
    if not fits:
        # Written only now: under torch.compile, a size that is printed is a size that cannot change any more.
        expected = "[" + ", ".join(f"{axis} = {sizes[axis]}" if axis in sizes else axis for axis in named) + "]"
        fail(name, expected, shape_text(tensor.shape), "Compare the axes with the module's docstring.")


def feature_maps(features: Any, levels: int, channels: int, batch: int) -> None:
    """Judge a list of feature maps given to a module."""
    expected = f"a tensor [N, S, C = {channels}], or a list of {levels} maps [N, C = {channels}, H, W]"
    if not is_list(features):
        fail("features", expected, type(features).__name__, "Pass the maps in a list.", TypeError)
    if len(features) != levels:
        fail("features", expected, f"{len(features)} maps", f"Give one map for each of the {levels} levels.")
    for i, feature in enumerate(features):
        axes(f"features[{i}]", feature, "N C H W", {"N": batch, "C": channels})
        same_device("features[0]", features[0], f"features[{i}]", feature)


def flat_shapes(features: Tensor, spatial_shapes: Any, levels: int) -> Pairs | Tensor:
    """Judge the spatial_shapes given to a module beside flat features `[N, S, C]`."""
    if spatial_shapes is None:
        fail(
            "spatial_shapes",
            "pairs (H, W) beside flat features [N, S, C]",
            "None",
            "Pass them, or features as a list of maps [N, C, H, W].",
        )
    shapes = sizes_of(spatial_shapes, features)
    if len(shapes) != levels:
        fix = "Give one pair for each level, or build the module with another num_levels."
        fail("spatial_shapes", f"{levels} pairs (H, W), one for each level", str(len(shapes)), fix)
    return shapes


def redundant_shapes(spatial_shapes: Any, shapes: tuple[tuple[int, int], ...]) -> None:
    """Judge spatial_shapes given beside a list of maps, which have them already."""
    if spatial_shapes is not None and spatial_shapes_of(spatial_shapes) != shapes:
        got = str(list(spatial_shapes_of(spatial_shapes)))
        fail("spatial_shapes", f"the sizes of the maps, {list(shapes)}", got, "Leave it out beside a list of maps.")


def flat_mask(padding_mask: Any, shapes: Pairs | Tensor, query: Tensor) -> Any:
    """Return a module's padding mask as `[N, S]`, flattened if it came as a list of masks `[N, H, W]` beside maps."""
    if not is_list(padding_mask):
        return padding_mask  # judged with the rest of the call
    if is_tracing():
        with tracing.paused():
            _masks(padding_mask, spatial_shapes_of(shapes), query.shape[0])
    else:
        _masks(padding_mask, shapes, query.shape[0])
    return torch.cat([mask.flatten(1) for mask in padding_mask], dim=1)


def _masks(padding_mask: Sequence[Any], shapes: Pairs | Tensor, batch: int) -> None:
    """Judge a list of masks beside the sizes of the maps."""
    if isinstance(shapes, Tensor):
        fix = "Flatten the masks of the maps and concatenate them."
        fail("padding_mask", "a bool tensor [N, S] beside sizes in a tensor", "a list", fix, TypeError)
    for i, mask in enumerate(padding_mask):
        if isinstance(mask, Tensor):
            dense(f"padding_mask[{i}]", mask)
            if mask.dtype != torch.bool:
                fail(
                    f"padding_mask[{i}]", "dtype bool", dtype_text(mask), "Use .bool(); True marks padding.", TypeError
                )
            same_device("padding_mask[0]", padding_mask[0], f"padding_mask[{i}]", mask)
    got = [list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__ for mask in padding_mask]
    if got != [[batch, H, W] for H, W in shapes]:
        sizes = f"N = {batch} and (H, W) = {list(shapes)}"
        expected = f"a bool tensor [N, S], or a list of bool masks [N, H, W] with {sizes}"
        fail("padding_mask", expected, str(got), "Give one mask for each map; True marks padding.")


def recordable(model: Any) -> dict[nn.Module, str]:
    """Return the modules inside a model that can be recorded, with their names, where there are some."""
    if not isinstance(model, nn.Module):
        fail("model", "a torch.nn.Module", type(model).__name__, "Pass the built model.", TypeError)
    names = {
        module: name for name, module in model.named_modules() if callable(getattr(module, "compute_sampling", None))
    }
    if not names:
        fix = "Give the model, or a part of it, that has one."
        fail("model", "a module with a deformable attention inside", f"{type(model).__name__} without one", fix)
    return names
