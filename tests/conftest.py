"""Fixtures: every backend, child processes, a browser, one thread; an option for each value of parameters once."""

import os

import pytest
import torch

from browser import Browser
from children import Children
from every_backend import BACKENDS, DEVICE, call_on, compare_sizes_in_a_tensor, kind_of_call, on_one_thread
from selection import each_value_once

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

    The sizes are passed as they are, and once for each kind of call of a test also in a tensor, which must not change a
    bit.

    Where the backend declares that it does not support the call, it must refuse it when it is asked for by name; that
    is checked, and the rest of the test is skipped.
    """

    compared = set()

    def call(entry_point, *tensors, **options):
        output = call_on(backend, entry_point, *tensors, **options)
        if output is None:
            pytest.skip(f"{backend} refused this call, as it declares")
        kind = kind_of_call(output, entry_point, *tensors, **options)
        if kind not in compared:
            compared.add(kind)
            compare_sizes_in_a_tensor(output, backend, entry_point, *tensors, **options)
        return output

    return call


@pytest.fixture
def elsewhere():
    """Return a device other than the CPU: what DEFORM_ATTN_TEST_DEVICE names, or else one that is pretended."""
    if DEVICE.type != "cpu":
        yield DEVICE
        return
    pytest.importorskip("accelerate")
    from second_device import second_device

    with second_device() as device:
        yield device


@pytest.fixture(scope="session")
def children():
    """Return what runs code in processes of their own that have torch already."""
    made = Children()
    yield made
    made.close()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A browser; starting one takes longer than all that is done in it."""
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def one_thread():
    """Run on one thread: where operations are thousands and tiny, torch's threads would mostly wait for one another."""
    with on_one_thread():
        yield


def pytest_addoption(parser):
    parser.addoption(
        "--each-value-once",
        action="store_true",
        help="of the cases of a test, run those that bring a value of a parameter which none before them has",
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("each_value_once"):
        kept, left = each_value_once(items)
        config.hook.pytest_deselected(items=left)
        items[:] = kept
