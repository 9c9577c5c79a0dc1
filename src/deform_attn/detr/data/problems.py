"""Problems with single records of a data set: raised at once, or noted while the rest goes on."""

from collections.abc import Iterator
from contextlib import contextmanager

from deform_attn.detr.errors import DataError


class Problems:
    """What is wrong with the records of one data set.

    With `skip` it is noted, and whoever checks leaves the record out; without it is raised.

    Example:
        >>> problems = Problems(skip=True)
        >>> with problems.noted():
        ...     raise DataError("boxes.json: annotation 3: bbox [1, 2, 0, 4] has no area")
        >>> problems.messages
        ('boxes.json: annotation 3: bbox [1, 2, 0, 4] has no area',)
    """

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self._found: list[tuple[str, int | None]] = []  # message, id of the image that it leaves out
        self._lost: dict[int, int] = {}  # by image left out: how many annotations went with it

    @contextmanager
    def noted(self, image_id: int | None = None) -> Iterator[None]:
        """Around the check of a record: raise the DataError that it raises or, with `skip`, note it.

        `image_id` says that the record is this image, so that its annotations go with it.
        """
        try:
            yield
        except DataError as error:
            if not self.skip:
                raise
            self._found.append((str(error), image_id))
            if image_id is not None:
                self._lost[image_id] = 0

    def lost_with(self, image_id: int) -> bool:
        """Return whether this image was left out, and if so count one more annotation that goes with it."""
        if image_id not in self._lost:
            return False
        self._lost[image_id] += 1
        return True

    @property
    def messages(self) -> tuple[str, ...]:
        """What was noted, a line for each record, in the order of the checks."""
        return tuple(message + self._also(image_id) for message, image_id in self._found)

    def _also(self, image_id: int | None) -> str:
        """Return what is to be added about an image that was left out."""
        count = 0 if image_id is None else self._lost[image_id]
        return f"; with it {count} annotation{'s' if count > 1 else ''}" if count else ""
