"""The batches of an epoch: which pictures each process sees at each step, made ahead by workers if wanted."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deform_attn.detr.config.detector import TrainConfig
from deform_attn.detr.data.base import DetectionData
from deform_attn.detr.data.batch import Batch, Sample, collate
from deform_attn.detr.errors import ProcessError, UserError, one_line


class Part(NamedTuple):
    """One process's part of a step: its `batch`, and the `seed` of whatever chance is left in training on it.

    If there are fewer pictures than processes, some process has one that does not count.
    """

    batch: Batch
    seed: int
    counts: bool

    @property
    def objects(self) -> int:
        """How many objects are to be found, as far as the pictures count."""
        return sum(len(sample.labels) for sample in self.batch.samples) if self.counts else 0


def count_steps(data: DetectionData, config: TrainConfig, processes: int) -> int:
    """Return how many steps an epoch has."""
    return math.ceil(len(data) / (config.batch_size * processes))


def epoch_parts(
    data: DetectionData, config: TrainConfig, epoch: int, *, first_step: int = 0, rank: int = 0, processes: int = 1
) -> Iterator[Part]:
    """Give the parts of process `rank` of the steps of `epoch` from `first_step` on (all from 0).

    They follow from `data`, `config.seed`, `epoch`, step and rank alone, not from the number of workers. Chance that
    `data` draws from torch's global generator does, too.

    Raises:
        UserError: what `data` raises.
    """
    steps = _Steps(data, config, epoch, rank, processes)
    remaining: Any = range(first_step, len(steps))
    # Each item is a whole batch, hence no batch_size. The default fork keeps workers cheap; they only touch the CPU.
    loader = DataLoader(steps, batch_size=None, sampler=remaining, num_workers=config.workers, collate_fn=_unchanged)
    batches = iter(loader)
    while True:
        try:
            packed = next(batches, None)
        except RuntimeError as error:  # torch's, of a worker that has died; its own errors arrive as values
            if config.workers == 0 or "DataLoader worker" not in str(error):
                raise
            raise ProcessError(
                f"a worker that prepares batches has died ({one_line(error)}); if memory or shared memory is short, "
                "use fewer workers (--workers)"
            ) from error
        if packed is None:
            return
        if isinstance(packed, UserError):
            raise packed
        yield packed.unpack()


class _Packed(NamedTuple):
    """A part in four tensors: a worker sends each through shared memory, at a price for each."""

    images: Tensor
    padding_mask: Tensor
    boxes: Tensor
    labels: Tensor
    counts: list[int]
    sizes: list[tuple[int, int]]
    image_ids: list[int]
    original_sizes: list[tuple[int, int]]
    seed: int
    is_counted: bool

    @classmethod
    def pack(cls, batch: Batch, seed: int, is_counted: bool) -> "_Packed":
        samples = batch.samples
        return cls(
            batch.images,
            batch.padding_mask,
            torch.cat([sample.boxes for sample in samples]),
            torch.cat([sample.labels for sample in samples]),
            [len(sample.labels) for sample in samples],
            [(sample.image.shape[1], sample.image.shape[2]) for sample in samples],
            [sample.image_id for sample in samples],
            [sample.original_size for sample in samples],
            seed,
            is_counted,
        )

    def unpack(self) -> Part:
        images = [image[:, :h, :w] for image, (h, w) in zip(self.images, self.sizes, strict=True)]
        boxes, labels = self.boxes.split(self.counts), self.labels.split(self.counts)
        fields = zip(images, boxes, labels, self.image_ids, self.original_sizes, strict=True)
        samples = tuple(Sample(*values) for values in fields)
        return Part(Batch(self.images, self.padding_mask, samples), self.seed, self.is_counted)


class _Steps(Dataset[_Packed | UserError]):
    """The steps of an epoch as torch's DataLoader wants them: item i is this process's part of step i."""

    def __init__(self, data: DetectionData, config: TrainConfig, epoch: int, rank: int, processes: int) -> None:
        self.data, self.rank, self.processes = data, rank, processes
        self.batch_size = config.batch_size * processes
        self.length = count_steps(data, config, processes)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        self.order = torch.randperm(len(data), generator=generator).tolist()
        seeds = torch.randint(2**62, (self.length, processes, 2), generator=generator)
        self.seeds: list[list[int]] = seeds[:, rank].tolist()  # for the data, for the model

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, step: int) -> _Packed | UserError:
        pictures = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        first, last = (len(pictures) * rank // self.processes for rank in (self.rank, self.rank + 1))
        mine = pictures[first:last] or pictures[:1]
        data_seed, seed = self.seeds[step]
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(data_seed)
                batch = collate([self.data[i] for i in mine])
        except UserError as error:  # as a value, because a worker's exception would arrive with its traceback as text
            return error
        return _Packed.pack(batch, seed, last > first)


def _unchanged(packed: Any) -> Any:
    return packed
