"""Captions: where the names of boxes go so that none of them covers another."""

from collections.abc import Iterator, Sequence

Rectangle = tuple[float, float, float, float]  # left, top, right, bottom; y grows downwards

# What a spot costs, per unit of the caption's area: to cover its own box (and what is seen in it), to cover another
# box, and to be away from its box by the caption's height.
_OWN_BOX, _OTHER_BOX, _AWAY = 2.0, 1.0, 3.0
_DISTANCES = (0, 1, 2, 3)  # in heights of the caption


def place_captions(
    boxes: Sequence[Rectangle], sizes: Sequence[tuple[float, float]], frame: Rectangle
) -> list[Rectangle | None]:
    """Return a place for each box's caption: inside `frame`, on no other caption, close to its box, off other boxes.

    Args:
        boxes: the boxes; earlier ones choose first.
        sizes: width and height of each caption, in the unit of the boxes.
        frame: what the captions must stay in.

    Returns:
        For each box a rectangle of its caption's size, or None where every spot around it is taken.
    """
    placed: list[Rectangle | None] = []
    for box, size in zip(boxes, sizes, strict=True):
        free = [
            (_AWAY * distance * size[0] * size[1] + _covering(spot, box, boxes), spot)
            for distance, spot in _spots(box, size)
            if _inside(spot, frame) and not any(other and intersection(spot, other) for other in placed)
        ]
        placed.append(min(free, key=lambda priced: priced[0])[1] if free else None)  # of equals the first
    return placed


def intersection(first: Rectangle, second: Rectangle) -> float:
    """Return the area that two rectangles share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0.0, width) * max(0.0, height)


def _spots(box: Rectangle, size: tuple[float, float]) -> Iterator[tuple[int, Rectangle]]:
    """Yield (distance, rectangle) around and inside `box`, the usual spot, above and flush left, first."""
    left, top, right, bottom = box
    width, height = size
    for distance in _DISTANCES:
        gap = distance * height
        columns = (left, right - width, (left + right - width) / 2)
        rows = (top, bottom - height, (top + bottom - height) / 2)
        spots = [(x, top - height - gap) for x in columns] + [(x, bottom + gap) for x in columns]
        spots += [(right + gap, y) for y in rows] + [(left - width - gap, y) for y in rows]
        if distance == 0:
            spots += [(x, y) for x in columns[:2] for y in rows[:2]]
        for x, y in spots:
            yield distance, (x, y, x + width, y + height)


def _covering(spot: Rectangle, own: Rectangle, boxes: Sequence[Rectangle]) -> float:
    others = sum(intersection(spot, box) for box in boxes if box != own)
    return _OWN_BOX * intersection(spot, own) + _OTHER_BOX * others


def _inside(spot: Rectangle, frame: Rectangle) -> bool:
    return spot[0] >= frame[0] and spot[1] >= frame[1] and spot[2] <= frame[2] and spot[3] <= frame[3]
