"""Quiet: what other packages say of themselves during an export, by logger or kind and by text; the rest is shown."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from deform_attn.torch_names import EXPORT_LOGGER

LINES = {
    # A model without torchvision has none of its operators.
    EXPORT_LOGGER: "torchvision is not installed. Skipping ",
    # The node stays as it is, which is right, only not as short.
    "onnxscript.optimizer._constant_folding": "Skipping constant folding for op ",
}
"""By the logger: how a line begins that nobody who exports a model can act on."""


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block, leave out `LINES`, and what torch 2.13 says of its own code while it exports."""
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated", FutureWarning)
        for name, beginning in LINES.items():
            logger, keep = logging.getLogger(name), partial(_is_other, beginning)
            logger.addFilter(keep)
            stack.callback(logger.removeFilter, keep)
        yield


def _is_other(beginning: str, record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(beginning)
