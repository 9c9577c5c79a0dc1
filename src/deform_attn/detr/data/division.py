"""A division: what of the data in a folder is learnt from, and what is evaluated on."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from deform_attn.detr.data.base import DetectionData, check_categories
from deform_attn.detr.data.coco import CocoFolder
from deform_attn.detr.data.holdout import hold_out
from deform_attn.detr.data.splits import Split, find_split, looked_for, required_split

OnRemark = Callable[[str], object]
"""Takes a line that the user should see."""


class Division(NamedTuple):
    """The data to learn from, and those to evaluate on, if there are any."""

    train: DetectionData
    validation: DetectionData | None


def divide(
    folder: str | os.PathLike[str], share: float, read: Callable[[Split], CocoFolder], on_remark: OnRemark
) -> Division:
    """Return the training split of `folder`, and its validation split, or a `share` held out where there is none.

    Args:
        folder: see `find_split`.
        share: of the training split, see `hold_out`; 0 for none.
        read: reads a split.
        on_remark: takes what was left out, what may not be meant, and how the data are divided.

    Raises:
        DataError: there is no training split, it cannot be read or divided, or the splits have other categories.
    """
    whole = read(required_split(folder, "train"))
    split, held_share = _validation_split(folder, share, on_remark)
    validation = None if split is None else read(split)
    if validation is not None:
        check_categories(validation, whole.categories, str(validation.annotations), str(whole.annotations))
    _pass_remarks(whole, on_remark)
    if validation is not None:
        _pass_remarks(validation, on_remark)
    elif held_share:
        train, held = hold_out(whole, held_share)
        on_remark(f"{folder}: {len(held)} of {len(whole)} images are held out to validate on")
        return Division(train, held)
    else:
        on_remark(
            f"{folder}: there is no val split, so there are no metrics; looked for {looked_for('val')}; "
            "--hold-out 0.1 validates on a tenth of the images"
        )
    return Division(whole, validation)


def held_out(
    folder: str | os.PathLike[str], share: float, read: Callable[[Split], CocoFolder], on_remark: OnRemark
) -> DetectionData:
    """Return what `divide` gives to evaluate on, without a look at a training split that is not needed.

    Raises:
        DataError: there is nothing, or it cannot be read.
    """
    split, held_share = _validation_split(folder, share, on_remark)
    data = read(split or required_split(folder, "train" if held_share else "val"))
    _pass_remarks(data, on_remark)
    return hold_out(data, held_share)[1] if held_share else data


def _validation_split(folder: str | os.PathLike[str], share: float, on_remark: OnRemark) -> tuple[Split | None, float]:
    """Return the validation split and 0; where there is none, the share of the training split that takes its place."""
    split = find_split(Path(folder), "val")
    if split is None:
        return None, share
    if share:
        on_remark(f"{folder}: there is a val split, so no image of the train split is held out")
    return split, 0.0


def _pass_remarks(data: CocoFolder, on_remark: OnRemark) -> None:
    for reason in data.skipped:
        on_remark(f"skipped: {reason}")
    for remark in data.remarks:
        on_remark(remark)
