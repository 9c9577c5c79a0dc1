"""Workers: threads that each take a share of the pictures, instead of a share of every operation.

On a CPU they meet once a batch, where torch's own threads meet a thousand times; the operations of a small model are
short, and when other programs want the cores, too, most of that time goes into waiting for one another.
"""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def worker_threads(count: int) -> Iterator[Executor]:
    """Give an executor of `count` threads, among which torch's own threads are divided meanwhile."""
    before = torch.get_num_threads()
    each = max(1, before // count)
    torch.set_num_threads(each)
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(each,)) as executor:
            yield executor
    finally:
        torch.set_num_threads(before)


def share(items: Sequence[T], count: int) -> list[Sequence[T]]:
    """Return `items` in at most `count` parts, none empty and equal in size up to one."""
    bounds = [len(items) * i // count for i in range(count + 1)]
    return [items[start:stop] for start, stop in itertools.pairwise(bounds) if stop > start]


def replicate(model: Module, count: int) -> list[Module]:
    """Return `model` and `count - 1` copies that share its parameters' values, but neither gradients nor buffers."""
    replicas = [model]
    for _ in range(count - 1):
        replica = copy.deepcopy(model)
        for parameter, shared in zip(replica.parameters(), model.parameters(), strict=True):
            parameter.data = shared.data
            parameter.grad = None
        replicas.append(replica)
    return replicas


def add_gradients(
    executor: Executor, replicas: Sequence[Module], parts: Sequence[Sequence[int]], loss: Callable[..., Tensor]
) -> Tensor:
    """Add the gradients of the mean loss to the first replica's parameters.

    Args:
        executor: where the parts are computed, all at once.
        replicas: as `replicate` made them, one for each part or more.
        parts: the pictures, by number.
        loss: `loss(replica, part)` returns `[k]`, of which the first entry is the one to differentiate.

    Returns:
        The means `[k]`, detached; a part counts by its length.
    """
    total = sum(len(part) for part in parts)

    def work(replica: nn.Module, part: Sequence[int]) -> Tensor:
        losses = loss(replica, part) * (len(part) / total)
        losses[0].backward()
        return losses.detach()

    futures = [executor.submit(work, *pair) for pair in zip(replicas, parts, strict=False)]
    wait(futures)
    losses = torch.stack([future.result() for future in futures]).sum(0)
    for replica in replicas[1 : len(parts)]:
        for parameter, other in zip(replicas[0].parameters(), replica.parameters(), strict=True):
            if other.grad is not None:
                parameter.grad = other.grad if parameter.grad is None else parameter.grad.add_(other.grad)
                other.grad = None
    return losses
