import json
from pathlib import Path

import pytest

from deform_attn.detr.checkpoints.checkpoint import load_model
from deform_attn.detr.data.batch import collate
from deform_attn.detr.data.digits import DigitScenes
from deform_attn.detr.demo import run_demo
from deform_attn.detr.errors import OccupiedError
from deform_attn.detr.training.progress import progress_bar


def test_the_demo_writes_a_checkpoint_metrics_and_pictures_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_demo(tmp_path / "run", epochs=1, scenes=4, test_scenes=3)
    names = ["checkpoint", "detections.png", "metrics.json", "scene.png"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == names
    assert sorted(path.name for path in result.files) == names
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written["metrics"]["AP50"] == result.metrics["AP50"]
    assert written["metrics"]["AP>96"] is None
    detector = load_model(tmp_path / "run" / "checkpoint")
    assert len(detector.model.detect(collate([DigitScenes("test", 1)[0]]))[0].scores) == 100
    assert capsys.readouterr() == ("", "")
    with progress_bar() as shown:
        again = run_demo(tmp_path / "run", epochs=1, scenes=4, test_scenes=3, resume=True, on_step=shown.on_step)
    assert shown.steps == 0
    assert (again.metrics["AP50"], again.history) == (result.metrics["AP50"], result.history)
    with pytest.raises(OccupiedError, match="overwrite=True"):
        run_demo(tmp_path / "run", epochs=1, scenes=4, test_scenes=3)
    other = run_demo(tmp_path / "run", epochs=1, scenes=6, test_scenes=3, overwrite=True)
    assert len(other.history) == 1
