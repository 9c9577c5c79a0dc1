"""A learner: a model with its criterion and its optimiser, and the processes among which it shares out its steps."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deform_attn.detr.config.detector import TrainConfig
from deform_attn.detr.errors import ConfigError, DivergenceError
from deform_attn.detr.model.deformable_detr import DeformableDetr, Output
from deform_attn.detr.training.batches import Part
from deform_attn.detr.training.criterion import Criterion
from deform_attn.detr.training.optimizer import build_optimizer, load_named_state, named_state, set_learning_rate
from deform_attn.detr.training.processes import Processes

LOSSES = ("loss", "class", "box", "giou")
"""What a step reports: the total, and its terms before they are weighted."""


class _Network(nn.Module):
    """The model's forward pass. accelerate puts mixed precision into this module and leaves the model as it is."""

    def __init__(self, model: DeformableDetr) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, padding_mask: Tensor) -> Output:
        output: Output = self.model(images, padding_mask)
        return output


class Learner:
    """Trains `model`, in place, as `config` says, on the device that `processes` give it."""

    def __init__(self, model: DeformableDetr, config: TrainConfig, processes: Processes) -> None:
        self.model, self.config, self.processes = model.to(processes.device), config, processes
        self.criterion = Criterion(config.loss)
        self.optimizer, self.names = build_optimizer(model, config)
        accelerator = processes.accelerator
        self._network = accelerator.prepare_model(_Network(model), device_placement=False)
        self._stepper = accelerator.prepare_optimizer(self.optimizer, device_placement=False)

    def step(self, parts: Iterator[Part], rate: float) -> Tensor:
        """Train on the next of `parts` at the learning rate `rate`.

        Several processes take the same step as one would with all their pictures in one batch: DistributedDataParallel
        averages the gradients, so that the losses are divided by the mean number of objects of a process.

        Returns:
            The mean of LOSSES over the processes, float32 `[4]` on the CPU.

        Raises:
            ConfigError: batch normalisation is asked to learn from single values.
            DivergenceError: the training has diverged.
        """
        processes, accelerator = self.processes, self.processes.accelerator
        with processes.together(1) as objects:
            part = next(parts)
            objects[0] = part.objects
        with processes.together(len(LOSSES)) as sums:
            torch.manual_seed(part.seed)
            images, padding_mask = (t.to(processes.device) for t in (part.batch.images, part.batch.padding_mask))
            output = self._predict(images, padding_mask)
            count = max(float(objects), 1.0) / processes.count
            losses = self.criterion(output, part.batch.samples, count)
            total = losses.total if part.counts else 0 * losses.total
            if part.counts:
                sums += torch.stack([losses.total, losses.classes, losses.boxes, losses.giou]).detach().cpu()
        means = (sums / processes.count).float()
        if not means.isfinite().all():
            raise DivergenceError("the loss is not finite; a smaller learning rate may help (--lr)")
        set_learning_rate(self.optimizer, rate)
        self._stepper.zero_grad()
        accelerator.backward(total)
        accelerator.unscale_gradients(self._stepper)
        # None: torch decides, which never takes `foreach` on a CPU, and MPS does not have it.
        foreach = True if processes.device.type == "cpu" else None
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm, foreach=foreach)
        self._stepper.step()
        return means

    def _predict(self, images: Tensor, padding_mask: Tensor) -> Output:
        try:
            output: Output = self._network(images, padding_mask)
        except ValueError as error:  # torch's
            if "Expected more than 1 value per channel" not in str(error):
                raise
            raise ConfigError(
                f"batch normalisation cannot learn from a batch of {len(images)} as small as "
                f"{images.shape[-2]} x {images.shape[-1]} pixels; choose larger images (--max-size), "
                "another --batch-size, or norm = 'group' or 'frozen' in the table [model.backbone]"
            ) from error
        return output

    def state(self) -> dict[str, Tensor]:
        """Return the optimiser's tensors by name."""
        return named_state(self.optimizer, self.names)

    def scaler_state(self) -> dict[str, float]:
        """Return the state of float16's gradient scaler; nothing without one."""
        scaler = self.processes.accelerator.scaler
        return {} if scaler is None else {name: float(value) for name, value in scaler.state_dict().items()}

    def load_state(self, tensors: Mapping[str, Tensor], scaler: Mapping[str, float]) -> None:
        """Put back what `state` and `scaler_state` returned.

        Raises:
            CheckpointError: the tensors belong to another model or optimiser.
        """
        load_named_state(self.optimizer, self.names, tensors)
        if scaler:
            whole = ("growth_interval", "_growth_tracker")
            state: dict[str, Any] = {name: int(v) if name in whole else v for name, v in scaler.items()}
            self.processes.accelerator.scaler.load_state_dict(state)
