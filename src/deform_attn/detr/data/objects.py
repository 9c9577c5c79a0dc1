"""What a data set shows: its objects by picture and by category, and what is too little or too much to learn from."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from deform_attn.detr.data.base import DetectionData, listed
from deform_attn.detr.errors import DataError, quoted


class Shown(NamedTuple):
    """How many objects each picture and each category has, by their ids; `crowds`, which count as none, by category."""

    pictures: dict[int, int]
    categories: dict[int, int]
    crowds: Counter[int]
    names: dict[int, str]

    def without_objects(self) -> list[int]:
        """Return the ids of the categories of which there is no object."""
        return [category for category, count in self.categories.items() if not count]

    def listed(self, categories: list[int]) -> str:
        """Return `categories` in words, those that share their name with their id."""
        common = Counter(self.names.values())
        named = [(one, self.names[one]) for one in categories]
        return listed([f"{quoted(name)} (id {one})" if common[name] > 1 else quoted(name) for one, name in named])


def shown_in(ground_truth: Mapping[str, Any]) -> Shown:
    """Return what the COCO dict `ground_truth` shows."""
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    shown = Shown({image["id"]: 0 for image in ground_truth["images"]}, dict.fromkeys(names, 0), Counter(), names)
    for annotation in ground_truth["annotations"]:
        if annotation["iscrowd"]:
            shown.crowds[annotation["category_id"]] += 1
        else:
            shown.pictures[annotation["image_id"]] += 1
            shown.categories[annotation["category_id"]] += 1
    return shown


def require_objects(data: DetectionData, name: str, advice: str) -> Shown:
    """Return what `data`, called `name`, shows.

    Raises:
        DataError: no object; the message ends with `advice`.
    """
    shown = shown_in(data.ground_truth())
    if not any(shown.categories.values()):
        raise DataError(f"{name}: none of the {len(data)} images has an object to find; {advice}")
    return shown


def remarks_on(train: Shown, validation: Shown | None, num_queries: int, cure: str) -> list[str]:
    """Return a line for each thing that a detector with `num_queries` cannot learn, or that cannot be validated.

    Args:
        train: what it learns from.
        validation: what its metrics are computed on, if anything.
        num_queries: how many objects of a picture it can find.
        cure: what to do where there are more.
    """
    lines = []
    for name, shown in (("training", train), ("validation", validation)):
        if shown is not None and (full := [count for count in shown.pictures.values() if count > num_queries]):
            lines.append(
                f"{len(full)} of {len(shown.pictures)} {name} images have more objects than the detector has queries "
                f"({num_queries}), up to {max(full)}; it cannot find all of them: {cure.format(max(full))}"
            )
    unseen = train.without_objects()
    crowds = [category for category in unseen if train.crowds[category]]
    rest = [category for category in unseen if not train.crowds[category]]
    if crowds:
        lines.append(
            f"all training annotations of {train.listed(crowds)} have iscrowd = 1, so the detector does not learn "
            "them; write iscrowd = 0 where a box holds a single object"
        )
    if rest:
        lines.append(
            f"no training image has an object of {train.listed(rest)}, so the detector does not learn them; annotate "
            "some, unless the category only groups others"
        )
    if validation is not None:
        missing = [one for one in validation.without_objects() if train.categories.get(one)]
        if missing:
            lines.append(f"no validation image has an object of {validation.listed(missing)}; no metric includes them")
    return lines
