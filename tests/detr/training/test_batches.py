import os
import signal
from pathlib import Path

import pytest
import torch
from patches import Assorted, Patches, detector

from deform_attn.detr.config.detector import TrainConfig
from deform_attn.detr.data.batch import Sample
from deform_attn.detr.errors import DataError, ProcessError
from deform_attn.detr.training.batches import Part, count_steps, epoch_parts
from deform_attn.detr.training.engine import fit

# Torch advises against more workers than this process may use cores.
several = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Noisy(Assorted):
    """Pictures with noise from torch's global generator, brighter in every epoch."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        image = sample.image + 0.1 * len(self.epochs) + 0.01 * torch.rand_like(sample.image)
        return Sample(image, sample.boxes, sample.labels, sample.image_id, sample.original_size)


def draw(config: TrainConfig, epoch: int = 0, **options: int) -> list[Part]:
    data = Noisy(7)
    for i in range(epoch + 1):
        data.set_epoch(i)
    with torch.random.fork_rng():
        return list(epoch_parts(data, config, epoch, **options))


def ids(part: Part) -> list[int]:
    return [sample.image_id for sample in part.batch.samples]


def same(first: Part, second: Part) -> bool:
    tensors = [
        [part.batch.images, part.batch.padding_mask, *(t for s in part.batch.samples for t in (s.boxes, s.labels))]
        for part in (first, second)
    ]
    rest = [(ids(p), p.seed, p.counts, [s.original_size for s in p.batch.samples]) for p in (first, second)]
    return rest[0] == rest[1] and all(torch.equal(*pair) for pair in zip(*tensors, strict=True))


@several
@pytest.mark.parametrize("workers", [1, 2])
def test_the_batches_do_not_depend_on_the_number_of_workers(workers: int) -> None:
    for epoch in range(2):
        expected = draw(TrainConfig(batch_size=2), epoch)
        actual = draw(TrainConfig(batch_size=2, workers=workers), epoch)
        assert [same(*pair) for pair in zip(actual, expected, strict=True)] == [True] * 4
    assert not same(expected[0], draw(TrainConfig(batch_size=2, seed=1), 1)[0])


def test_a_training_with_a_worker_has_the_losses_of_one_without(tmp_path: Path) -> None:
    histories = [
        fit(detector(), Noisy(5), TrainConfig(epochs=2, batch_size=2, workers=workers), tmp_path / str(workers))
        for workers in (0, 1)
    ]
    assert [r["loss"] for r in histories[0]] == [r["loss"] for r in histories[1]]


def test_every_picture_comes_once_and_an_epoch_begun_later_ends_the_same() -> None:
    config = TrainConfig(batch_size=2)
    parts = draw(config)
    assert sorted(i for part in parts for i in ids(part)) == list(range(7))
    assert [same(*pair) for pair in zip(draw(config, first_step=2), parts[2:], strict=True)] == [True, True]
    assert [ids(part) for part in draw(config, 1)] != [ids(part) for part in parts]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("processes", [2, 3])
def test_the_parts_of_all_processes_are_the_batches_of_one(batch_size: int, processes: int) -> None:
    joined = draw(TrainConfig(batch_size=batch_size * processes))
    shares = [draw(TrainConfig(batch_size=batch_size), rank=rank, processes=processes) for rank in range(processes)]
    for whole, *parts in zip(joined, *shares, strict=True):
        assert [i for part in parts if part.counts for i in ids(part)] == ids(whole)
        assert sum(part.objects for part in parts) == whole.objects
        assert all(len(ids(part)) == 1 for part in parts if not part.counts)
        assert len({part.seed for part in parts}) == processes
        sizes = [len(ids(part)) for part in parts if part.counts]
        assert max(sizes) - min(sizes) <= 1
    assert len(joined) == count_steps(Patches(7), TrainConfig(batch_size=batch_size), processes)


def test_pictures_in_a_part_are_those_of_the_batch_without_their_padding() -> None:
    for part in draw(TrainConfig(batch_size=4)):
        for i, sample in enumerate(part.batch.samples):
            height, width = sample.original_size
            assert torch.equal(sample.image, part.batch.images[i, :, :height, :width])
            assert int((~part.batch.padding_mask[i]).sum()) == height * width


class Broken(Patches):
    def __getitem__(self, index: int) -> Sample:
        raise DataError(f"picture {index} is broken")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_data_arrives_as_it_is_from_a_worker_too(workers: int) -> None:
    config = TrainConfig(workers=workers)
    with pytest.raises(DataError, match=r"^picture \d is broken$"):
        list(epoch_parts(Broken(3), config, 0))


class Deadly(Patches):
    def __getitem__(self, index: int) -> Sample:
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory is short
        return super().__getitem__(index)


def test_a_worker_that_is_killed_is_one_line() -> None:
    with pytest.raises(ProcessError, match=r"^a worker that prepares batches has died \(.*\); .* use fewer workers .+"):
        list(epoch_parts(Deadly(3), TrainConfig(workers=1), 0))
