"""torch.jit.trace of patched modules and models: saved, loaded, and right for other numbers and other sizes."""

import io
import warnings

import pytest
import torch
from doubles import calls, loading
from doubles.recorded import CALLS

from deform_attn import patch
from tolerances import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")


def trace(module, arguments):
    """Return a module as it is read from the file that its trace was saved to."""
    with torch.no_grad():
        traced = torch.jit.trace(module, arguments)
    content = io.BytesIO()
    torch.jit.save(traced, content)
    return torch.jit.load(io.BytesIO(content.getvalue()))


class ByName(torch.nn.Module):
    """A module that takes its tensors by name, as patched ones are called; a list is one argument, not traced."""

    def __init__(self, module, arguments):
        super().__init__()
        self.module = module
        self.names = [name for name, given in arguments.items() if isinstance(given, torch.Tensor)]
        self.others = {name: given for name, given in arguments.items() if name not in self.names}

    def forward(self, *tensors):
        return self.module(**dict(zip(self.names, tensors, strict=True)), **self.others)


@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.parametrize(("family", "name"), [pair for pair in CALLS if pair[1] != "discrete"])
def test_the_patched_attentions_of_research_code_are_recorded(family, name, monkeypatch):
    call = calls.FAMILIES[family][2][name]
    module = loading.redrawn(monkeypatch, family, call, loading.uncompiled)
    patch(module)
    wrapped = ByName(module, call.tensors | call.others)
    arguments = tuple((call.tensors | call.others)[name] for name in wrapped.names)
    loaded = trace(wrapped, arguments)
    others = [tensor * 0.7 if tensor.is_floating_point() else tensor for tensor in arguments]
    assert_close(loaded(*others), wrapped(*others).detach(), torch.float64)


class Detections(torch.nn.Module):
    """A detector of transformers that takes its tensors by position and returns logits and boxes."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors):
        output = self.model(**dict(zip(self.names, tensors, strict=True)))
        return output.logits, output.pred_boxes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deformable_detr", "deformable_detr, boxes", "rt_detr_v2", "rt_detr_v2, discrete"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of code of transformers
def test_a_patched_model_of_transformers_is_free_in_batch_and_in_the_sizes_of_pictures(name):
    interop_cases = pytest.importorskip("interop_cases")

    model, inputs = interop_cases.build(name), interop_cases.CASES[name].inputs()
    patch(model)
    wrapped = Detections(model, list(inputs))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        loaded = trace(wrapped, tuple(inputs.values()))
    assert [str(each.message) for each in seen if "deform_attn" in each.filename] == []
    more = [torch.cat([tensor, tensor[:1]]) for tensor in inputs.values()]
    for arguments in (more, [torch.cat([tensor, tensor[..., :32]], -1) for tensor in inputs.values()]):
        with torch.no_grad():
            for actual, expected in zip(loaded(*arguments), wrapped(*arguments), strict=True):
                torch.testing.assert_close(actual, expected)
