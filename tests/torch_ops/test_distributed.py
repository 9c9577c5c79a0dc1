"""DistributedDataParallel: two processes with half a batch each have the gradients of one with all of it."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from deform_attn import MultiScaleDeformableAttention

SHAPES = [(6, 9), (3, 5)]


def build():
    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(8, num_heads=2, num_levels=2, num_points=3).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def draw():
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    return normal(4, 5, 8), normal(4, 5, 2).sigmoid(), normal(4, 6 * 9 + 3 * 5, 8)


def loss_of(module, query, references, features, shapes=SHAPES):
    return module(query, references, features, shapes).sin().mean()


def work(rank, store, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    module = DistributedDataParallel(build())
    half = [tensor[2 * rank : 2 * rank + 2] for tensor in draw()]
    loss_of(module, *half).backward()
    torch.save([p.grad for p in module.parameters()], f"{folder}/{rank}.pt")
    module.zero_grad()
    compiled = torch.compile(module, backend="aot_eager")  # where the op takes the sizes as a tensor
    loss_of(compiled, *half, torch.tensor(SHAPES)).backward()
    torch.save([p.grad for p in module.parameters()], f"{folder}/{rank} with sizes in a tensor.pt")
    dist.barrier()
    # Without taking the module down: torch 2.13 was seen to wait for ever there, in its own threads.
    os._exit(0)


# One process imports what both need; a signal ends those that wait for ever.
BOTH = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch._dynamo
from test_distributed import work
folder, processes = sys.argv[1], []
for rank in range(2):
    processes.append(os.fork())
    if processes[-1] == 0:
        signal.alarm(120)
        work(rank, folder + "/store", folder)
sys.exit(sum(os.waitpid(process, 0)[1] != 0 for process in processes))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked from one")
def test_two_processes_have_the_gradients_of_one_with_the_joined_batch(children, tmp_path):
    done = children.run(BOTH, str(tmp_path), GLOO_SOCKET_IFNAME="lo")
    assert done.returncode == 0, done.stderr
    module = build()
    loss_of(module, *draw()).backward()
    assert any((p.grad != 0).any() for p in module.parameters())
    for name in ("0", "1", "0 with sizes in a tensor", "1 with sizes in a tensor"):
        grads = torch.load(tmp_path / f"{name}.pt")
        for actual, parameter in zip(grads, module.parameters(), strict=True):
            torch.testing.assert_close(actual, parameter.grad, rtol=1e-12, atol=1e-12)
