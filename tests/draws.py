"""How many examples a property draws: the same in every run, so that a red run points at a change.

HYPOTHESIS_PROFILE=fresh draws new ones.
"""

import os

from hypothesis import settings


def draws(count):
    """Return the settings of a property that `count` examples are drawn of."""
    derandomize = os.environ.get("HYPOTHESIS_PROFILE", "same") != "fresh"
    return settings(max_examples=count, deadline=None, derandomize=derandomize)
