"""What other packages say during an export: their known lines are left out, every other line is there."""

import logging
import warnings

import pytest

from deform_attn.export.quiet import LINES, quiet


@pytest.mark.parametrize("name", LINES)
def test_only_the_known_line_of_a_logger_is_left_out_and_only_within_the_block(name, caplog):
    caplog.set_level(logging.WARNING)
    logger = logging.getLogger(name)
    logger.addHandler(caplog.handler)  # torch's do not propagate
    try:
        with quiet():
            logger.warning("%sGelu.", LINES[name])
            logger.warning("the file is wrong")
        logger.warning("%sGelu.", LINES[name])
    finally:
        logger.removeHandler(caplog.handler)
    said = list(dict.fromkeys(caplog.messages))
    assert said == ["the file is wrong", f"{LINES[name]}Gelu."]


def test_a_warning_of_ones_own_is_shown():
    with quiet():
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated, use that", FutureWarning, stacklevel=1)
        with pytest.warns(UserWarning, match="the model is odd"):
            warnings.warn("the model is odd", UserWarning, stacklevel=1)
