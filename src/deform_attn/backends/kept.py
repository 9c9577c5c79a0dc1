"""What was found out about calls, kept by what they look like; a limited number, so that it fills no memory."""

from typing import TypeVar

Key = TypeVar("Key")
Result = TypeVar("Result")

MOST = 1024  # each takes about two kilobytes


class Kept(dict[Key, Result]):
    """A dict that forgets everything once it is full: sizes that keep changing; those still in use come back.

    As safe among threads as a dict is. Read it as one; `keep` is the one way to write.
    """

    __slots__ = ("most",)  # and no dict of its own, so that it is read as fast as a dict

    def __init__(self) -> None:
        super().__init__()
        self.most = MOST

    def keep(self, key: Key, result: Result) -> Result:
        """Keep a result, and return it."""
        if len(self) >= self.most:
            self.clear()
        self[key] = result
        return result
