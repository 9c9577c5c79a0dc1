"""Fixtures: every backend by name, and one thread."""

import os

import pytest
import torch

from every_backend import BACKENDS, call_on, compare_sizes_in_a_tensor, on_one_thread

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores. A test that makes a claim about threads sets their number itself.
    torch.set_num_threads(1)


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Return the name of each backend in turn."""
    return request.param


@pytest.fixture
def run(backend):
    """Return a function that calls an entry point on this backend.

    The sizes are passed as they are, and once more in a tensor, which must not change a bit.

    Where the backend declares that it does not support the call, it must refuse it when it is asked for by name; that
    is checked, and the rest of the test is skipped.
    """

    def call(entry_point, *tensors, **options):
        output = call_on(backend, entry_point, *tensors, **options)
        if output is None:
            pytest.skip(f"{backend} refused this call, as it declares")
        compare_sizes_in_a_tensor(output, backend, entry_point, *tensors, **options)
        return output

    return call


@pytest.fixture
def one_thread():
    """Run on one thread: where operations are thousands and tiny, torch's threads would mostly wait for one another."""
    with on_one_thread():
        yield
