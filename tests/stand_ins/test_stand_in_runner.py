"""`python -m deform_attn.stand_ins`: a script and the processes that it starts have the stand-ins."""

import json
import os
import subprocess
import sys

import pytest

from deform_attn.stand_ins import __main__ as runner

RUNNER = [sys.executable, "-m", "deform_attn.stand_ins"]


def run(*command, folder, **variables):
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", **variables}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return result.returncode, result.stdout, result.stderr


SCRIPT = """
import json, multiprocessing, subprocess, sys

ASK = "import MultiScaleDeformableAttention as e; print(e.ms_deform_attn_forward.__module__)"

def ask(number):
    import MultiScaleDeformableAttention as extension
    return extension.ms_deform_attn_forward.__module__

if __name__ == "__main__":
    found = {"argv": sys.argv[1:], "name": sys.path[0], "spec": __spec__ is None, "utf8": sys.flags.utf8_mode}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found["spawn"] = pool.map(ask, [1])
    found["subprocess"] = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True).stdout.strip()
    found["here"] = ask(1)
    print(json.dumps(found))
    sys.exit(3)
"""


def test_a_script_runs_as_it_always_does_and_its_processes_have_the_stand_ins(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "script.py").write_text(SCRIPT)
    command = sys.executable, "-X", "utf8", "-m", "deform_attn.stand_ins", "inner/script.py", "--epochs", "-m"
    code, out, err = run(*command, folder=tmp_path)
    assert code == 3, err
    ours = "deform_attn.stand_ins.ops"
    assert json.loads(out) == {
        "argv": ["--epochs", "-m"],
        "name": str(tmp_path / "inner"),
        "spec": True,
        "utf8": 1,
        "spawn": [ours],
        "subprocess": ours,
        "here": ours,
    }


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (["-m", "deform_attn.stand_ins"], []),
        (["-mdeform_attn.stand_ins"], []),
        (["-m", "deform_attn.stand_ins.__main__"], []),
        (["-X", "utf8", "-um", "deform_attn.stand_ins"], ["-X", "utf8", "-u"]),
        (["-W", "ignore", "-Bumdeform_attn.stand_ins"], ["-W", "ignore", "-Bu"]),
    ],
)
def test_options_of_python_are_kept_in_whatever_word_they_stand(monkeypatch, options, kept):
    script = ["train.py", "-m", "deform_attn.stand_ins"]
    monkeypatch.setattr(sys, "orig_argv", ["python", *options, *script])
    monkeypatch.setattr(sys, "argv", ["__main__.py", *script])
    assert runner.command() == [sys.executable, *kept, *script]


RANK = """
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
import MultiScaleDeformableAttention as extension

class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *call):
        ctx.save_for_backward(*call)
        return extension.ms_deform_attn_forward(*call, 64)
    @staticmethod
    def backward(ctx, grad_output):
        grads = extension.ms_deform_attn_backward(*ctx.saved_tensors, grad_output, 64)
        return grads[0], None, None, grads[1], grads[2]

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.ones(1, 14, 2, 4))
    def forward(self, locations):
        sizes, starts = torch.tensor([[3, 2], [2, 4]]), torch.tensor([0, 6])
        return Function.apply(self.value, sizes, starts, locations, torch.ones(1, 3, 2, 2, 5))

class Data(torch.utils.data.Dataset):
    def __len__(self): return 2
    def __getitem__(self, i):
        import MultiScaleDeformableAttention
        return torch.full((3, 2, 2, 5, 2), 0.5)

if __name__ == "__main__":
    dist.init_process_group("gloo")
    model = DistributedDataParallel(Model())
    for locations in DataLoader(Data(), batch_size=1, num_workers=1, multiprocessing_context="spawn"):
        model(locations).sum().backward()
    print(dist.get_world_size(), model.module.value.grad.sum().item())
    dist.destroy_process_group()
"""


@pytest.mark.parametrize("way", ["below", pytest.param("above", marks=pytest.mark.slow)])
def test_torchrun_may_start_the_runner_or_be_started_by_it(tmp_path, way):
    (tmp_path / "train.py").write_text(RANK)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "1", "--master-port", "0", "--standalone"]
    if way == "above":
        command = [*RUNNER, *torchrun, "train.py"]
    else:
        command = [sys.executable, *torchrun, "-m", "deform_attn.stand_ins", "train.py"]
    code, out, err = run(*command, folder=tmp_path, GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    assert code == 0, err
    assert out.split() == ["1", str(2 * 3 * 2 * 2 * 5 * 4.0)]  # of both steps: each point passes on 1 per channel


def test_a_call_without_a_script_or_with_an_option_that_keeps_the_stand_ins_out_is_refused(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["deform_attn.stand_ins"])
    with pytest.raises(SystemExit, match=r"^usage: python -m deform_attn\.stand_ins SCRIPT"):
        runner.main()
    monkeypatch.setattr(sys, "argv", ["deform_attn.stand_ins", "--help"])
    runner.main()
    printed = capsys.readouterr().out
    assert printed.startswith("usage: python -m deform_attn.stand_ins SCRIPT")
    assert "MultiScaleDeformableAttention, groundingdino._C, detrex._C, mmcv._ext" in printed
    code, _, err = run(sys.executable, "-I", "-m", "deform_attn.stand_ins", "script.py", folder=tmp_path)
    assert (code, err.startswith("python: expected it without -E, -I and -S")) == (1, True)
