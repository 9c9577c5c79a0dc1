"""The registration of the operators: which ONNX Runtime is refused, by name, and that a registered one has them all."""

import ctypes

import pytest

from deform_attn.backends.native import registration

pytestmark = pytest.mark.skipif(registration._library is None, reason="the CPU kernels are not built")

# Pointers that are returned are numbers, as None is none of a pointer's.
GET_TABLE = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_uint32)
GET_VERSION = ctypes.CFUNCTYPE(ctypes.c_size_t)
CREATE_STATUS = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_int32, ctypes.c_char_p)
CREATE_DOMAIN = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p))
TWO_POINTERS = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p)
RELEASE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Base(ctypes.Structure):
    """What a runtime gives to a library."""

    _fields_ = [("table", GET_TABLE), ("version", GET_VERSION)]


class Runtime:
    """A double of ONNX Runtime: a table of the functions that a registration calls, and what they were given."""

    def __init__(self, newest, version, fails_at=None):
        self.statuses, self.domains, self.operators, self.added, self.released = [], [], [], [], []
        self._fails_at = fails_at
        self._functions = {
            0: CREATE_STATUS(self._create_status),
            26: CREATE_DOMAIN(self._create_domain),
            27: TWO_POINTERS(lambda domain, op: self._count(self.operators, domain)),
            28: TWO_POINTERS(lambda options, domain: self._count(self.added, domain)),
            101: RELEASE(self.released.append),
        }
        self._table = (ctypes.c_void_p * 275)()
        for place, function in self._functions.items():
            self._table[place] = ctypes.cast(function, ctypes.c_void_p)
        address = ctypes.addressof(self._table)
        table = GET_TABLE(lambda asked: address if asked <= newest else 0)
        self._version = ctypes.create_string_buffer(version)
        self.base = Base(table, GET_VERSION(lambda: ctypes.addressof(self._version)))

    def _create_status(self, code, text):
        self.statuses.append(text.decode())
        return 12345

    def _create_domain(self, name, made):
        self.domains.append(name.decode())
        made[0] = len(self.domains)
        return 0

    def _count(self, calls, domain):
        calls.append(domain)
        return 54321 if len(self.operators) == self._fails_at else 0

    def register(self):
        function = ctypes.CDLL(registration.loaded().path).RegisterCustomOps
        function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_void_p]
        return function(1, ctypes.addressof(self.base))


def test_an_older_runtime_is_refused_by_name():
    runtime = Runtime(16, b"1.16.3")
    assert runtime.register() == 12345
    assert runtime.statuses == ["deform_attn: expected ONNX Runtime 1.17 or later, got 1.16.3. Install a newer one."]
    assert not runtime.domains


def test_every_operator_is_made_once_and_added_each_time():
    runtime = Runtime(29, b"1.32.0")
    assert runtime.register() is None
    assert runtime.domains == ["deform_attn", "trt.plugins", "nvidia", "trt", "custom_ops", "mmdeploy", ""]
    own, plugins = 3 * 4, 6 * 2  # of each name one for each type
    assert len(runtime.operators) == own + plugins
    assert runtime.register() is None
    assert len(runtime.domains) == 7
    assert runtime.added == [*range(1, 8)] * 2


def test_a_failure_of_the_runtime_is_handed_on_and_nothing_is_left():
    runtime = Runtime(17, b"1.17.0", fails_at=14)
    assert runtime.register() == 54321
    assert runtime.released == [1, 2]
    runtime._fails_at = None
    assert runtime.register() is None
    assert len(runtime.added) == 7
