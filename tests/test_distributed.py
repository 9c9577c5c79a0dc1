"""DistributedDataParallel: two processes with half a batch each have the gradients of one with all of it."""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from deform_attn import MultiScaleDeformableAttention

SHAPES = [(6, 9), (3, 5)]


def build():
    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(8, 2, 2, 3).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def draw():
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    return normal(4, 5, 8), normal(4, 5, 2).sigmoid(), normal(4, 6 * 9 + 3 * 5, 8)


def loss_of(module, query, references, features):
    return module(query, references, features, SHAPES).sin().mean()


def work(rank, store, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        module = DistributedDataParallel(build())
        half = [tensor[2 * rank : 2 * rank + 2] for tensor in draw()]
        loss_of(module, *half).backward()
        torch.save([p.grad for p in module.parameters()], f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_have_the_gradients_of_one_with_the_joined_batch(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.spawn(work, args=(tmp_path / "store", tmp_path), nprocs=2)
    module = build()
    loss_of(module, *draw()).backward()
    assert any((p.grad != 0).any() for p in module.parameters())
    for rank in range(2):
        grads = torch.load(tmp_path / f"{rank}.pt")
        for actual, parameter in zip(grads, module.parameters(), strict=True):
            torch.testing.assert_close(actual, parameter.grad, rtol=1e-12, atol=1e-12)
