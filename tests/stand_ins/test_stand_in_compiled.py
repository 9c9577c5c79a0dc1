"""torch.compile around the autograd functions of other projects: one graph, whatever the size of the images."""

import pytest
import torch
from callers import Filling, Original, call, draw, sizes_and_starts

# By torch itself: it makes an instance of the function that it traces, and inductor uses TorchScript.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]
CALLERS = [Original, Filling]


class Counted:
    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, examples):
        self.graphs += 1
        return graph.forward


def run(function, shapes, sizes):
    value, locations, weights = tensors = draw(shapes=shapes)
    output = function(value, *sizes, locations, weights)
    return output, torch.autograd.grad(output.sin().sum(), tensors)


@pytest.mark.parametrize("caller", CALLERS)
def test_it_is_one_graph_and_no_start_is_read_in_it(caller):
    counted = Counted()
    value, locations, weights = draw()
    sizes, starts = sizes_and_starts()
    compiled = torch.compile(lambda *args: caller.apply(*args, 64), fullgraph=True, backend=counted)
    wrong = compiled(value, sizes, starts + 1, locations, weights)
    assert counted.graphs == 1
    assert torch.equal(wrong, call(caller, (value, locations, weights)))


@pytest.mark.parametrize("caller", CALLERS)
def test_the_compiled_result_and_gradients_are_those_of_plain_calls_at_every_size(caller):
    def function(*args):
        return caller.apply(*args, 64)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for i, shapes in enumerate(([(6, 4), (3, 5)], [(7, 5), (4, 2)], [(9, 3), (2, 6)])):
        sizes = sizes_and_starts(shapes)
        output, grads = run(function, shapes, sizes)
        with torch._dynamo.config.patch(error_on_recompile=i >= 2):
            actual, actual_grads = run(compiled, shapes, sizes)
        assert torch.equal(actual, output)
        for one, other in zip(actual_grads, grads, strict=True):
            assert other.abs().max() > 0
            assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("caller", CALLERS)
def test_inductor_gives_the_same_result_and_gradients(caller):
    sizes = sizes_and_starts()
    compiled = torch.compile(lambda *args: caller.apply(*args, 64), fullgraph=True)
    output, grads = run(lambda *args: caller.apply(*args, 64), [(6, 4), (3, 5)], sizes)
    actual, actual_grads = run(compiled, [(6, 4), (3, 5)], sizes)
    torch.testing.assert_close(actual, output, rtol=1e-12, atol=1e-12)
    for one, other in zip(actual_grads, grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
