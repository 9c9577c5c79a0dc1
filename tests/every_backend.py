"""Every backend: their names, and a call that either runs on one or is refused by it as it declared."""

import pytest

from deform_attn import explain
from deform_attn.backends import registry

BACKENDS = [backend.name for backend in registry.BACKENDS]


def call_on(backend, entry_point, *tensors, **options):
    """Call an entry point on this backend; return None where it declares the call unsupported and refuses it."""
    reasons = explain(*tensors, **options).reasons[backend]
    if not reasons:
        return entry_point(*tensors, backend=backend, **options)
    with pytest.raises(ValueError, match=backend):
        entry_point(*tensors, backend=backend, **options)
    return None
