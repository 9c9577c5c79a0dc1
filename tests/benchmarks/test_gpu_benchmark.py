"""The benchmark of a GPU, run where there is none, on a call and a model that are tiny."""

import importlib.metadata
import importlib.util
import json
import sys
import types
from dataclasses import replace

import pytest
import torch
from test_end_to_end import CASE

import every_backend
from benchmarks import sources
from benchmarks.cases import TINY
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import clock, ops, results, rivals, setting, whole
from benchmarks.measure import DisagreementError
from deform_attn import multi_scale_deformable_attention
from second_device import DEVICE, Elsewhere, second_device

CPU = torch.device("cpu")
TRITON = importlib.util.find_spec("triton")
SMALL = replace(CASE, pixels=(192, 256))  # it is judged at half the size
COMPETITORS = ["ours", "ours fused", *(rival.name for rival in rivals.RIVALS)]


@pytest.fixture
def tiny(monkeypatch):
    """Return a function that runs the command on a tiny case and model, three rounds each."""
    monkeypatch.setattr(gpu, "CASES", {"tiny": TINY})
    monkeypatch.setattr(gpu, "MODELS", {"small": SMALL})
    monkeypatch.setattr(clock, "BATCH", 1e-4)
    monkeypatch.setattr(torch, "compile", lambda op, **_: op)
    measured = []
    monkeypatch.setattr(ops, "timed", lambda calls, device, _: measured.append(calls) or clock.timed(calls, device, 2))
    monkeypatch.setattr(whole, "timed", lambda calls, device, _: clock.timed(calls, device, 1))

    def run(out, *arguments):
        measured.clear()
        gpu.main(["--device", "cpu", "--out", str(out), *arguments])
        return len(measured)

    return run


def test_a_run_adds_a_row_for_each_competitor_and_pass_with_the_command_that_repeats_it(tiny, tmp_path, capsys):
    out = tmp_path / "gpu.json"
    assert tiny(out, "--parts", "op") == 9
    rows = json.loads(out.read_text())["rows"]
    for dtype in gpu.DTYPES:
        for what in ops.PASSES:
            found = [row for row in rows if (row["dtype"], row["pass"]) == (dtype, what)]
            assert [row["competitor"] for row in found] == COMPETITORS
            for row in found:
                command = f"python -m benchmarks.gpu --parts op --cases tiny --dtypes {dtype} --passes {what}"
                assert row["command"] == f"{command} --device cpu"
                assert row["competitor"] not in ops.OURS or (
                    0 < row["host"] <= row["milliseconds"] and row["bytes a second"] > 0 and 0 < row["host share"] <= 1
                )
                assert ("absent" in row) == ("milliseconds" not in row)
    absent = {row["absent"] for row in rows if row["competitor"] == "msda-triton" and row["pass"] == "forward"}
    assert absent == {"not installed: msda_triton"}
    lines = out.with_suffix(".md").read_text().splitlines()
    assert len(lines) == 2 + len(rows)
    assert len({line.count(" | ") for line in lines}) == 1
    assert capsys.readouterr().out.endswith("nothing is left\n")


def test_what_a_file_holds_is_not_measured_again_and_time_that_is_over_leaves_the_rest(tiny, tmp_path, capsys):
    out, part = tmp_path / "gpu.json", ["--parts", "op", "--dtypes", "float32"]
    assert tiny(out, *part, "--passes", "forward") == 1
    assert tiny(out, *part, "--minutes", "0") == 0
    assert "2 parts are left; run the same command again" in capsys.readouterr().out
    assert tiny(out, *part) == 2
    before = json.loads(out.read_text())["rows"]
    assert tiny(out, *part, "--passes", "forward", "--again") == 1
    assert len(json.loads(out.read_text())["rows"]) == len(before) == 3 * len(COMPETITORS)


def test_rows_of_another_device_are_not_mixed_in(tmp_path):
    out = tmp_path / "gpu.json"
    results.Result(out, {"device": "one"}).replace({"what": "x"}, [])
    with pytest.raises(SystemExit, match="measured with device 'one', now it is 'other'; choose another --out"):
        results.Result(out, {"device": "other"})


def test_a_result_holds_the_card_its_driver_the_versions_and_the_state_of_the_sources(tiny, tmp_path, monkeypatch):
    out = tmp_path / "gpu.json"
    tiny(out, "--parts", "op", "--dtypes", "float32", "--passes", "forward")
    found = json.loads(out.read_text())
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert found["versions"]["triton"] == ("none" if TRITON is None else importlib.metadata.version("triton"))
    assert found["commit"] == sources.commit()
    assert (found["device"], found["card"], found["driver"]) == ("CPU", {}, "none")
    monkeypatch.setattr(setting, "commit", lambda: "another")
    with pytest.raises(SystemExit, match=f"measured with commit '{found['commit']}', now it is 'another'"):
        tiny(out, "--parts", "op")


def test_the_driver_of_a_card_is_what_the_system_says(monkeypatch, tmp_path):
    cuda, rocm = torch.device("cuda"), tmp_path / "version"
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(setting.shutil, "which", lambda name: None)
    assert setting.driver(cuda) == "unknown"
    monkeypatch.setattr(setting.shutil, "which", lambda name: f"/usr/bin/{name}")
    said = types.SimpleNamespace(stdout="550.54.15\n550.54.15\n")
    monkeypatch.setattr(setting.subprocess, "run", lambda command, **_: said)
    assert setting.driver(cuda) == "550.54.15"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(setting, "_AMD_DRIVER", rocm)
    assert setting.driver(cuda) == "unknown"
    rocm.write_text("6.12.12\n")
    assert setting.driver(cuda) == "6.12.12"


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    out = tmp_path / "gpu.json"
    key = {"what": "x", "dtype": "float32", "pass": "forward", "command": "c"}
    result = results.Result(out, {})
    result.replace(key, [{"competitor": "ours", "absent": "a | b"}])
    before = out.read_bytes()

    def full(self, text):
        raise OSError("no space left")

    monkeypatch.setattr(type(out), "write_text", full)
    with pytest.raises(OSError, match="no space"):
        result.replace(key, [])
    assert out.read_bytes() == before


def test_a_wrong_result_of_ours_is_refused_and_a_wrong_rival_is_not_timed(monkeypatch):
    def off(case, device):
        return lambda *tensors: 1.01 * case.op()(*tensors)

    def refusing(case, device):
        def op(*tensors):
            raise ValueError("no\nsuch thing")

        return op

    wrong = [rivals.Rival("wrong", off), rivals.Rival("refusing", refusing)]
    for what in ("forward", "backward"):
        rows = {row["competitor"]: row for row in ops.rows_of(TINY, what, CPU, wrong, rounds=1)}
        assert rows["wrong"] == {"competitor": "wrong", "absent": "wrong: relative error 1.0e-02"}
        assert rows["refusing"] == {"competitor": "refusing", "absent": "refuses: no such thing"}
    right = type(TINY).op
    monkeypatch.setattr(type(TINY), "op", lambda case: lambda *tensors: 1.01 * right(case)(*tensors))
    for what in ops.PASSES:
        with pytest.raises(DisagreementError, match=f"ours is wrong on tiny in torch.float32, {what}"):
            list(ops.rows_of(TINY, what, CPU, [], rounds=1))
    assert not torch.are_deterministic_algorithms_enabled()


def test_rivals_are_called_as_their_packages_ask(monkeypatch):
    calls = {}

    def function_called(name):
        def function(value, shapes, *others):
            calls[name] = [tensor.dtype for tensor in others if isinstance(tensor, torch.Tensor)]
            locations, weights = [t for t in others if isinstance(t, torch.Tensor) and t.dim() > 1]
            pairs = [tuple(size) for size in shapes.tolist()]
            output = multi_scale_deformable_attention(value, pairs, locations, weights.to(locations.dtype))
            return output.unflatten(-1, value.shape[2:]) if name.startswith("triton") else output

        return function

    for path, name in (
        ("torch_ms_deform_attn", "ms_deform_attn"),
        ("deformops.registry", "msda"),
        ("msda_triton.frontend", "triton_multiscale_deformable_attention"),
    ):
        module = types.ModuleType(path)
        setattr(module, name, function_called(name))
        monkeypatch.setitem(sys.modules, path.split(".")[0], types.ModuleType(path.split(".")[0]))
        monkeypatch.setitem(sys.modules, path, module)
    monkeypatch.setattr(rivals.importlib.util, "find_spec", lambda name: name)
    for dtype, narrow in ((torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)):
        rows = list(ops.rows_of(replace(TINY, dtype=dtype), "backward", CPU, rivals.RIVALS[2:], rounds=1))
        assert [row for row in rows if "absent" in row] == []
        assert calls["msda"] == [torch.int64, torch.float32, narrow]
        assert calls["ms_deform_attn"] == [torch.int64, torch.float32, torch.float32]
        assert calls["triton_multiscale_deformable_attention"] == [torch.float32, torch.float32]
    uneven = replace(TINY, num_points=(1, 2))
    assert [rival.absent(uneven) is None for rival in rivals.RIVALS] == [True, True, False, False, False]


def test_whole_models_are_judged_and_timed_stock_and_patched(tiny, tmp_path, monkeypatch):
    out = tmp_path / "gpu.json"
    tiny(out, "--parts", "models")
    rows = json.loads(out.read_text())["rows"]
    assert [(row["dtype"], row["pass"], row["competitor"]) for row in rows] == [
        (dtype, what, name) for dtype in ("float32", "bfloat16") for what in whole.PASSES for name in ("ours", "stock")
    ]
    assert all(row["relative error"] < 1e-9 for row in rows)
    monkeypatch.setitem(whole.end_to_end.TOLERANCES, "inference", -1.0)
    with pytest.raises(DisagreementError, match="deformable_detr, inference: patched and stock differ"):
        list(whole.rows_of(SMALL, "inference", torch.float32, CPU))


def test_a_model_and_what_it_is_given_are_on_the_device():
    with second_device() as device:
        case = whole.OnDevice.of(CASE, device)
        given = case.batch()["pixel_values"], case.targets()["labels"][0]["boxes"], next(case.model().parameters())
        assert all(isinstance(tensor, Elsewhere) for tensor in given)


def test_calls_of_the_suites_run_on_the_device_that_is_named(monkeypatch):
    seen = []

    def entry_point(value, *others, backend, **options):
        seen.append(value.device)
        return multi_scale_deformable_attention(value, *others, backend=backend, **options)

    value, locations, weights = (tensor.double().requires_grad_() for tensor in TINY.inputs()[:3])
    arguments = value, TINY.spatial_shapes, locations, weights
    expected = every_backend.call_on("reference", entry_point, *arguments)
    monkeypatch.setattr(every_backend, "DEVICE", DEVICE)
    with second_device():
        output = every_backend.call_on("reference", entry_point, *arguments)
        assert output.device == CPU
        torch.testing.assert_close(output, expected)
        (grad,) = torch.autograd.grad(output.sum(), value)
        assert grad.device == CPU
    assert seen == [CPU, DEVICE]
