"""The verb `demo`: train on handwritten digits and show what was learnt."""

import argparse
from pathlib import Path

from deform_attn.cli.common import add_device, add_restart, positive, say_finished, say_if_anew
from deform_attn.detr.config.detector import TrainConfig

NAME, SUMMARY = "demo", "train a small detector on handwritten digits and show what it learnt"


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    verb.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo"),
        metavar="FOLDER",
        help="folder to write to (default: %(default)s)",
    )
    verb.add_argument(
        "--epochs",
        type=positive,
        metavar="N",
        help=f"epochs of 2,000 new scenes each (default: {TrainConfig().epochs})",
    )
    verb.add_argument(
        "--seed", type=int, default=0, metavar="N", help="random seed of scenes and weights (default: %(default)s)"
    )
    add_device(verb)
    add_restart(verb)


def run(options: argparse.Namespace) -> None:
    """Run the demo and print its metrics and its files."""
    from deform_attn.detr.demo import CHECKPOINT, SCENE, run_demo
    from deform_attn.detr.device import choose_device
    from deform_attn.detr.evaluation.metrics import format_metrics
    from deform_attn.detr.training.progress import progress_bar

    device = choose_device(options.device)
    say_if_anew(options.resume, options.out / CHECKPOINT)
    with progress_bar() as shown:
        result = run_demo(
            options.out,
            epochs=options.epochs,
            seed=options.seed,
            resume=options.resume,
            overwrite=options.overwrite,
            on_step=shown.on_step,
            on_epoch=shown.on_epoch,
            device=device,
        )
    if not shown.steps:
        say_finished(options.out / CHECKPOINT, len(result.history), "--overwrite trains again")
    attention = options.out / "attention.png"
    _draw_attention(options.out / CHECKPOINT, options.out / SCENE, attention)
    print("On 200 test scenes, of digits and parts of photographs not seen in training (AP<16: below 16 x 16 pixels)")
    print(format_metrics(result.metrics))
    seconds = [epoch["seconds"] for epoch in result.history]
    count, mean = len(seconds), sum(seconds) / len(seconds)
    epochs = f"1 epoch of {mean:.0f} s" if count == 1 else f"{count} epochs of {mean:.0f} s on average"
    print(f"{epochs}, {result.seconds:.0f} s for this run")
    for file in (*result.files, attention):
        print(f"wrote {file}")


def _draw_attention(checkpoint: Path, picture: Path, path: Path) -> None:
    """Draw where the query with the best score in `picture` looks, in the last decoder layer."""
    from deform_attn.cli.explore import read_scene
    from deform_attn.detr.files import atomic_path
    from deform_attn.explore import plot_sampling

    figure = plot_sampling(read_scene(checkpoint, picture, threshold=0.0), detection=0, zoom=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
