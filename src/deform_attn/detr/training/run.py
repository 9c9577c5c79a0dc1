"""A run: a training on a folder of images, from its settings to its checkpoint."""

import os
from dataclasses import dataclass

import torch

from deform_attn.detr.checkpoints import starting
from deform_attn.detr.checkpoints.starting import Start
from deform_attn.detr.config.detector import TrainConfig
from deform_attn.detr.config.run import Settings
from deform_attn.detr.data.base import DetectionData
from deform_attn.detr.data.coco import CocoFolder
from deform_attn.detr.data.division import OnRemark, divide
from deform_attn.detr.data.objects import remarks_on, require_objects
from deform_attn.detr.data.splits import Split
from deform_attn.detr.device import choose_device
from deform_attn.detr.errors import ConfigError
from deform_attn.detr.model.detector import Detector
from deform_attn.detr.training.engine import History, OnEpoch, OnStep, fit


@dataclass(frozen=True)
class Run:
    """A training before its first step: its detector, its settings and its data.

    `validation` is None if there are no images to validate on. `start` is None without starting weights.
    """

    detector: Detector
    config: TrainConfig
    data: DetectionData
    validation: DetectionData | None
    start: Start | None

    def train(
        self,
        out: str | os.PathLike[str],
        *,
        resume: bool = False,
        overwrite: bool = False,
        on_step: OnStep | None = None,
        on_epoch: OnEpoch | None = None,
        tensorboard: bool = False,
        device: str | torch.device | None = None,
    ) -> History:
        """Train into the directory `out` and return the history; arguments and errors are those of `fit`."""
        return fit(
            self.detector,
            self.data,
            self.config,
            out,
            validation=self.validation,
            resume=resume,
            overwrite=overwrite,
            on_step=on_step,
            on_epoch=on_epoch,
            tensorboard=tensorboard,
            device=device,
        )


def prepare(settings: Settings, *, skip_bad: bool = False, on_remark: OnRemark | None = None) -> Run:
    """Return a run with the data of the folder `settings.data.dir` and a detector of their categories.

    Args:
        settings: the settings of the run.
        skip_bad: leave out records that cannot be used.
        on_remark: called with one line per remark: what is left out, is probably a mistake, or cannot be learnt or
            validated.

    Raises:
        ConfigError: `settings` have no folder, or a backbone that does not fit the rest.
        DataError: the data cannot be used, or contain no object.
        CheckpointError: the starting weights cannot be loaded, or do not fit the categories.
    """
    folder, say = settings.data.dir, on_remark or (lambda line: None)
    if folder is None:
        raise ConfigError("data: dir is missing; name the folder of the images and their annotations")
    before = None if settings.start is None else starting.load(settings.start)
    max_size = settings.data.max_size or (before.max_size if before else None)

    def read(split: Split) -> CocoFolder:
        return CocoFolder(*split, max_size=max_size, max_pixels=settings.data.max_pixels, skip_bad=skip_bad)

    data, validation = divide(folder, settings.data.hold_out, read, say)
    cure = "train with --queries {} (num_queries in the config file)"
    start = None
    with torch.random.fork_rng(devices=[]):  # the model is made on the CPU, whatever the machine has
        torch.default_generator.manual_seed(settings.train.seed)
        if before is None:
            model = starting.new_model(settings.model_for(len(data.categories)))
        else:
            start = starting.fit_categories(before, data.categories)
            model = start.detector.model
            cure = f"the starting weights fix that number; leave out --from, and {cure}"
    learnt = require_objects(data, f"{folder}, training split", "hold out less (--hold-out)")
    held = None
    if validation is not None:
        held = require_objects(validation, f"{folder}, validation split", "hold out more (--hold-out)")
    for remark in remarks_on(learnt, held, model.config.transformer.num_queries, cure):
        say(f"{folder}: {remark}")
    return Run(Detector(model, data.categories, max_size), settings.train, data, validation, start)


def train_folder(
    settings: Settings,
    out: str | os.PathLike[str],
    *,
    skip_bad: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    on_remark: OnRemark | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
    device: str | torch.device | None = None,
) -> History:
    """Train on a folder of images as `deform-attn train` does: `prepare` a run and train it into `out`.

    Args:
        settings: the settings of the run.
        out: the checkpoint's directory.
        skip_bad: leave out records that cannot be used.
        resume: continue from the checkpoint in `out`, or begin if there is none.
        overwrite: begin even if there is a checkpoint in `out`, and replace it.
        on_remark: as in `prepare`.
        on_step: called after every step.
        on_epoch: called after every epoch, see `fit`.
        device: where to train: "cpu", "cuda", "cuda:1" or "mps". Default: cuda if available, otherwise cpu.

    Returns:
        The history, as `fit` does.

    Raises:
        UserError: the errors of `prepare` and `fit`.

    Example:
        >>> settings = Settings.from_layers({"data": {"dir": "trees"}, "train": {"epochs": 100}})
        >>> history = train_folder(settings, "runs/trees", on_remark=print)  # doctest: +SKIP
    """
    chosen = choose_device(device)
    run = prepare(settings, skip_bad=skip_bad, on_remark=on_remark)
    return run.train(out, resume=resume, overwrite=overwrite, on_step=on_step, on_epoch=on_epoch, device=chosen)
