"""The optimiser: AdamW, its groups of parameters, its learning rate at each step, and its state by name."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from deform_attn.detr.config.detector import TrainConfig
from deform_attn.detr.errors import CheckpointError
from deform_attn.detr.model.deformable_detr import DeformableDetr


def build_optimizer(model: DeformableDetr, config: TrainConfig) -> tuple[torch.optim.AdamW, list[str]]:
    """Return AdamW and the names of its parameters in its order."""
    groups: dict[float, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        factor = config.backbone_lr_factor if name.startswith("backbone.") else 1.0
        factor = config.offsets_lr_factor if "sampling_offsets" in name else factor
        groups.setdefault(factor, []).append((name, parameter))
    optimizer = torch.optim.AdamW(
        [{"params": [p for _, p in group], "lr_factor": factor} for factor, group in groups.items()],
        lr=config.lr,
        weight_decay=config.weight_decay,
        fused=True,
    )
    return optimizer, [name for group in groups.values() for name, _ in group]


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Return the learning rate of `step` (from 0): a linear warm-up, over half of the steps at most, and a cosine."""
    warmup = min(1.0, (step + 1) / max(min(config.warmup_steps, total_steps // 2), 1))
    return config.lr * warmup * 0.5 * (1 + math.cos(math.pi * step / total_steps))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group `rate` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]


def named_state(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the optimiser's tensors as `{parameter}.{key}`; `names` are its parameters' in its own order."""
    states = optimizer.state_dict()["state"]
    return {f"{names[i]}.{key}": tensor for i, state in states.items() for key, tensor in state.items()}


def _damaged(how: str) -> str:
    return f"training.safetensors: damaged, {how}; start a new training from the weights (--from)"


def load_named_state(optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `named_state` returned.

    Raises:
        CheckpointError: the tensors belong to another model or optimiser.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition(".")
        if owner not in names:
            raise CheckpointError(_damaged(f"the model has no parameter for {name}"))
        index = names.index(owner)
        if tensor.dim() > 0:
            if tensor.shape != parameters[index].shape:
                raise CheckpointError(_damaged(f"{name} has another shape than its parameter"))
            # The fused optimiser walks through both in memory order, which channels_last changes.
            tensor = torch.empty_like(parameters[index]).copy_(tensor)
        state.setdefault(index, {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
