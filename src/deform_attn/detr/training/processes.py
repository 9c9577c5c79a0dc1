"""The processes that train together, started by `accelerate launch` or `torchrun`; without them this one alone."""

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from deform_attn.detr.config.detector import Precision
from deform_attn.detr.errors import ConfigError, ProcessError
from deform_attn.detr.extra import detr_extra
from deform_attn.detr.model.backbone import TransformersBackbone
from deform_attn.detr.model.deformable_detr import DeformableDetr

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

_MIXED: dict[Precision, str] = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
"""What accelerate calls them."""


class Processes:
    """What one of `count` processes, the one of number `rank`, knows of the others.

    Args:
        accelerator: through which they talk.
        device: where this process trains.
    """

    def __init__(self, accelerator: "Accelerator", device: torch.device) -> None:
        self.accelerator, self.device = accelerator, device
        self.count: int = accelerator.num_processes
        self.rank: int = accelerator.process_index
        self.is_main: bool = accelerator.is_main_process

    @contextmanager
    def together(self, count: int = 0) -> Iterator[Tensor]:
        """Run a block on every process; if it fails on one, it fails on all, so that none waits for it for ever.

        Gives zeros `[count]`, float64, which become the sum over the processes of what the block has written to them.

        Raises:
            ProcessError: it failed on another process.
            KeyboardInterrupt: Ctrl-C stopped it on another process.
        """
        message = torch.zeros(2 + count, dtype=torch.float64)
        failures = message[:2]  # by Ctrl-C, by anything else
        failures[1] = 1
        try:
            yield message[2:]
            failures[1] = 0
        except KeyboardInterrupt:
            failures[:] = torch.tensor([1, 0])
            raise
        finally:
            if self.count > 1:
                message.copy_(self.accelerator.reduce(message.to(self.device), "sum"))
        if failures[0] > 0:
            raise KeyboardInterrupt
        if failures[1] > 0:
            raise ProcessError("another process of this training has failed; its own message says why")

    def gather(self, values: Sequence[T]) -> list[T]:
        """Return the values of all processes, those of the first one first."""
        with detr_extra():
            from accelerate.utils import gather_object

        gathered: list[T] = gather_object(list(values))
        return gathered

    def share(self, value: T) -> T:
        """Return the main process's value."""
        with detr_extra():
            from accelerate.utils import broadcast_object_list

        values: list[T] = broadcast_object_list([value])
        return values[0]


@contextmanager
def start_processes(
    model: DeformableDetr,
    precision: Precision,
    accelerator: "Accelerator | None" = None,
    device: torch.device | None = None,
) -> Iterator[Processes]:
    """Give the processes that train `model`.

    Args:
        model: what they train.
        precision: of the training.
        accelerator: through which they talk. Default: a new one for this block, which finds unused parameters if the
            backbone may have some.
        device: where a process on its own trains; of several each has a device of its own of that type. Default: where
            the model is; of several processes each its own GPU, if there are any.

    Raises:
        ConfigError: precision, device and accelerator do not go together.
    """
    with detr_extra():
        from accelerate.state import AcceleratorState, is_initialized

    if accelerator is not None:
        yield _checked(accelerator, model, precision, device)
        return
    ours, apart = not is_initialized(), not _in_group()
    try:
        new = _new_accelerator(model, precision, device)
        if apart and _in_group():
            atexit.register(_leave_group)
        yield _checked(new, model, precision, device)
    finally:
        if ours:  # accelerate remembers its settings; the next training in this process may have others
            AcceleratorState._reset_state(reset_partial_state=True)


def _new_accelerator(model: DeformableDetr, precision: Precision, device: torch.device | None) -> "Accelerator":
    with detr_extra():
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

    launched = int(os.environ.get("LOCAL_RANK", -1)) >= 0
    if device is None:
        device = model.mean.device
        if launched:  # if accelerate is not told of CPUs, it joins no processes on them
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # A backbone from transformers may have stages beyond those asked for.
    spare = isinstance(model.backbone, TransformersBackbone)
    try:
        return Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=_MIXED[precision],
            device_placement=False,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=spare)],
        )
    except ValueError as error:  # of another precision than an accelerator that is there, or unknown to the device
        raise ConfigError(f"precision: {precision!r} is refused by accelerate ({error}); choose 'float32'") from error


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _leave_group() -> None:
    """Close the connections: one that is open when the interpreter goes may abort the process, its work all done."""
    if _in_group():
        dist.destroy_process_group()


def _checked(accelerator: Any, model: DeformableDetr, precision: Precision, device: torch.device | None) -> Processes:
    """Return the processes that `accelerator` joins, if it can train the way this library does."""
    kind = str(accelerator.distributed_type.value)
    if kind not in ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU"):
        raise ConfigError(f"accelerator: {kind} splits the model; launch with plain data parallelism")
    if accelerator.num_processes == 1 and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError(
            "accelerator: it does not join the launched processes; create it after the launch, or with cpu=True"
        )
    if accelerator.mixed_precision != _MIXED[precision]:
        raise ConfigError(
            f"accelerator: its mixed_precision is {accelerator.mixed_precision!r}, "
            f"TrainConfig.precision {precision!r} needs {_MIXED[precision]!r}; choose the same for both"
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise ConfigError("accelerator: gradient_accumulation_steps must be 1; choose TrainConfig.batch_size instead")
    if accelerator.num_processes == 1:
        here = model.mean.device if device is None else device
    elif device is not None and (device.type != accelerator.device.type or device.index is not None):
        raise ConfigError(
            f"device: each of {accelerator.num_processes} processes has a device of its own, here "
            f"{accelerator.device}, got {str(device)!r}; leave out device (--device)"
        )
    else:
        here = accelerator.device
    if here.type != accelerator.device.type:
        cure = "move the model" if device is None else "create the accelerator for that device"
        raise ConfigError(f"accelerator: is for {accelerator.device.type}, the model is on {here.type}; {cure}")
    if precision == "float16" and here.type != "cuda":
        raise ConfigError(f"precision: 'float16' needs a CUDA GPU, the device is {here.type}; choose 'bfloat16'")
    return Processes(accelerator, here)
