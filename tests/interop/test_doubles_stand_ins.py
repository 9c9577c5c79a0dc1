"""The stand-ins: doubles that import them, and their own functions and classes, compute the recorded numbers."""

import importlib
import sys
import warnings

import pytest
import torch
from doubles import calls, loading
from doubles.calls import FAMILIES, outputs_and_gradients
from doubles.recorded import assert_recorded, recorded
from torch.nn import functional as F

IMPORTING = ["deformable_detr", "dino", "maskdino", "mask2former", "vit_adapter", "dinov3_ops"]
ON_A_GPU = ["grounding_dino", "detrex", "mmcv"]  # whose modules call the extension there and nowhere else


@pytest.fixture
def stand_ins(monkeypatch):
    """Return the package; the doubles of a test import what stands in anew, and nothing stays imported after it."""
    for name in loading.EXTENSIONS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for each name that stands in
        yield importlib.import_module("deform_attn.stand_ins")
    for name in loading.EXTENSIONS:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("family", IMPORTING)
def test_a_double_that_imports_the_stand_in_computes_the_recorded_numbers(family, stand_ins, monkeypatch):
    for name, call in FAMILIES[family][2].items():
        module = loading.redrawn(monkeypatch, family, call, None)
        monkeypatch.setattr(F, "grid_sample", None)  # the doubles' own op
        assert_recorded(outputs_and_gradients(module, call), family, name)


def test_the_segmentor_of_dinov3_gets_its_backward_pass_from_the_stand_in(stand_ins, monkeypatch):
    for name, call in FAMILIES["dinov3_segmentor"][2].items():
        module = loading.redrawn(monkeypatch, "dinov3_segmentor", call, None)
        assert_recorded(outputs_and_gradients(module, call), "dinov3_segmentor", name)
    monkeypatch.setitem(sys.modules, "MultiScaleDeformableAttention", None)  # an import of it fails
    monkeypatch.delitem(sys.modules, "doubles.dinov3_segmentor")
    without = importlib.import_module("doubles.dinov3_segmentor").MSDeformAttn(**call.options)
    with pytest.raises(RuntimeError, match="the compiled extension is needed"):
        outputs_and_gradients(calls.redraw(without), call)


def of_op(function, *, edges=False):
    """Return by name what the classic op with its six arguments computes, and its gradients."""
    value, shapes, starts, locations, weights = calls.op(edges=edges)
    tensors = {"value": value, "locations": locations, "weights": weights}
    for tensor in tensors.values():
        tensor.requires_grad_()
    output = function(value, shapes, starts, locations, weights, 64)
    (output * calls.numbers(7, *output.shape)).sum().backward()
    return {"output": output.detach()} | {name: tensor.grad for name, tensor in tensors.items()}


@pytest.mark.parametrize("family", ON_A_GPU)
def test_the_function_that_a_double_runs_on_a_gpu_computes_what_the_kernel_did(family, stand_ins, monkeypatch):
    double = loading.load(monkeypatch, FAMILIES[family][0], None)
    monkeypatch.setattr(F, "grid_sample", None)
    for name in ("points", "edges"):
        found = of_op(double.MultiScaleDeformableAttnFunction.apply, edges=name == "edges")
        assert_recorded(found, "op", name)


def test_the_functions_of_the_stand_ins_compute_what_the_kernel_did(stand_ins):
    original = importlib.import_module("deform_attn.stand_ins.original")
    openmmlab = importlib.import_module("deform_attn.stand_ins.mmcv")
    functions = [original.MSDeformAttnFunction.apply, openmmlab.MultiScaleDeformableAttnFunction.apply]
    for core in (original.ms_deform_attn_core_pytorch, openmmlab.multi_scale_deformable_attn_pytorch):
        functions.append(
            lambda value, shapes, starts, locations, weights, step, core=core: core(value, shapes, locations, weights)
        )
    for function in functions:
        for name in ("points", "edges"):
            assert_recorded(of_op(function, edges=name == "edges"), "op", name)


def test_the_aggregation_of_the_stand_ins_computes_what_the_kernel_of_sparse4d_did(stand_ins):
    function = importlib.import_module("deform_attn.stand_ins.sparse4d").deformable_aggregation_function
    assert_recorded(calls.aggregated(function), "sparse4d", "aggregation", torch.float32)


@pytest.mark.parametrize(
    ("name", "kind", "families"),
    [
        ("original", "MSDeformAttn", ["deformable_detr", "dino", "maskdino", "mask2former", "dinov3_ops"]),
        ("mmcv", "MultiScaleDeformableAttention", ["mmcv"]),
    ],
)
def test_the_classes_of_the_stand_ins_start_as_the_real_ones_and_compute_the_recorded_numbers(
    name, kind, families, stand_ins
):
    module_of = getattr(importlib.import_module(f"deform_attn.stand_ins.{name}"), kind)
    for family in families:
        for called, call in FAMILIES[family][2].items():
            module = module_of(**call.options)
            torch.testing.assert_close(module.sampling_offsets.bias, torch.tensor(recorded(family)["start"]))
            assert_recorded(outputs_and_gradients(calls.redraw(module).eval(), call), family, called)
