"""How many examples a property draws: the same in every run, so that a red run points at a change.

HYPOTHESIS_PROFILE=fresh draws new ones, and twice as many: what is drawn again in every run finds nothing new.
"""

import os

from hypothesis import settings


def draws(count):
    """Return the settings of a property that `count` examples are drawn of."""
    fresh = os.environ.get("HYPOTHESIS_PROFILE", "same") == "fresh"
    return settings(max_examples=2 * count if fresh else count, deadline=None, derandomize=not fresh)
