"""`export` to a file of ONNX, and `predict --onnx`: the predictions of the checkpoint, by ONNX Runtime alone."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_cases import error_line, write_checkpoint
from PIL import Image

from deform_attn.cli import main
from deform_attn.detr.errors import DataError
from deform_attn.detr.model.deformable_detr import DeformableDetr
from deform_attn.detr.prediction.onnx_file import read_onnx
from deform_attn.detr.prediction.onnx_model import METADATA, write_onnx
from deform_attn.detr.prediction.predict import predict

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

PAGE = Path(__file__).parents[2] / "docs" / "onnx.md"
pytestmark = pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")  # by torch, in its exporter


@pytest.fixture
def pictures(tmp_path):
    """Return a folder with pictures of three sizes, one of which is smaller than the coarsest level's stride."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    numbers = np.random.default_rng(0)
    for name, size in (("a.jpg", (48, 64)), ("b.png", (48, 64)), ("c.webp", (90, 70)), ("d.png", (20, 31))):
        Image.fromarray(numbers.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder


def predictions(out):
    return json.loads((out / "predictions.json").read_text())


def check_same(actual, expected):
    """Compare two COCO files with scores: the same but for rounding."""
    assert (actual["images"], actual["categories"]) == (expected["images"], expected["categories"])
    assert len(actual["annotations"]) == len(expected["annotations"]) > 0
    for one, other in zip(actual["annotations"], expected["annotations"], strict=True):
        numbers = [[*each.pop("bbox"), each.pop("area"), each.pop("score")] for each in (one, other)]
        np.testing.assert_allclose(*numbers, rtol=1e-4, atol=1e-3)
        assert one == other


@pytest.mark.slow
def test_a_file_predicts_what_its_checkpoint_does_and_builds_no_model(tmp_path, pictures, capsys, monkeypatch):
    write_checkpoint(tmp_path / "run")
    file = tmp_path / "model.onnx"
    assert main(["export", str(tmp_path / "run"), "--out", str(file)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert (
        f"wrote {file}, {file.stat().st_size / 1e6:.1f} MB: form gridsample, any number of images, any size\n"
        in printed.out
    )
    assert "checked: ONNX Runtime differs from the model by at most" in printed.out
    options = ["--threshold", "0", "--out"]
    assert main(["predict", str(tmp_path / "run"), str(pictures), *options, str(tmp_path / "expected")]) == 0
    monkeypatch.setattr(DeformableDetr, "__init__", None)  # whoever builds a model fails
    command = printed.out.splitlines()[-1].split()
    assert command == ["deform-attn", "predict", "--onnx", str(file), "IMAGE", "--out", "FOLDER"]
    given = [{"IMAGE": str(pictures), "FOLDER": str(tmp_path / "out")}.get(word, word) for word in command[1:]]
    assert main([*given, "--threshold", "0"]) == 0
    check_same(predictions(tmp_path / "out"), predictions(tmp_path / "expected"))
    for path in sorted((tmp_path / "expected").glob("*.png")):
        actual, expected = (
            np.asarray(Image.open(folder / path.name)).astype(int) for folder in (tmp_path / "out", path.parent)
        )
        assert (np.abs(actual - expected).max(-1) > 8).mean() < 0.01  # a line may lie a pixel further

    # The program of docs/onnx.md, which needs neither torch nor us.
    (program,) = re.findall(r"^```py\n(import json\n.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    file.rename("detector.onnx")
    (pictures / "a.jpg").rename("image.jpg")
    capsys.readouterr()
    exec(compile(program.replace("> 0.3", "> 0"), "docs/onnx.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    truth = predictions(tmp_path / "expected")
    (image,) = [one["id"] for one in truth["images"] if one["file_name"] == "a.jpg"]
    best = max((one for one in truth["annotations"] if one["image_id"] == image), key=lambda one: one["score"])
    name, score, corners = max((line.split(" ", 2) for line in lines), key=lambda parts: float(parts[1]))
    assert name == next(one["name"] for one in truth["categories"] if one["id"] == best["category_id"])
    np.testing.assert_allclose(float(score), best["score"], rtol=1e-4)
    x, y, w, h = best["bbox"]
    found = np.array([float(number) for number in re.findall(r"[-\d.]+(?:e-\d+)?(?=[,)\]])", corners)])
    np.testing.assert_allclose(found.clip(0, (64, 48, 64, 48)), [x, y, x + w, y + h], atol=1e-2)


@pytest.mark.slow
def test_an_export_says_each_stage_and_nothing_of_other_packages(tmp_path, children):
    """In a process of its own, where torch has yet to look for operators of torchvision."""
    write_checkpoint(tmp_path / "run")
    arguments = ["export", "run", "--out", "model.onnx", "--form", "native", "--batch", "1", "--size", "64x96"]
    done = children.run("import sys\nfrom deform_attn.cli import main\nsys.exit(main())", *arguments, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    first, *stages, wrote, checked, _, use = done.stdout.splitlines()
    assert first == "exporting run to model.onnx"
    assert stages == [
        "tracing the model with torch.export ...",
        "writing the graph ...",
        "checking against PyTorch: ONNX Runtime runs the file ...",
    ]
    assert wrote.startswith("wrote model.onnx, 0.")
    assert wrote.endswith(" MB: form native, 1 image per call, 64 x 96 pixels")
    assert checked.endswith(" on 1 image of 64 x 96 pixels")
    assert use == "    deform-attn predict --onnx model.onnx IMAGE --out FOLDER"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a detector and its file, for two pictures of 64 x 96."""
    folder = tmp_path_factory.mktemp("exported")
    detector = write_checkpoint(folder / "run")
    write_onnx(detector, folder / "model.onnx", batch=2, size=(64, 96))
    return detector, folder / "model.onnx"


@pytest.mark.slow
def test_a_file_of_a_fixed_batch_and_size_takes_any_number_of_pictures_that_fit(exported, tmp_path, pictures):
    detector, file = exported
    given = [pictures / name for name in ("a.jpg", "b.png", "d.png")]
    read = read_onnx(file)
    assert (read.categories, read.max_size) == (detector.categories, 60)
    expected = predict(detector, given, tmp_path / "expected", threshold=0).coco
    check_same(predict(read, given, tmp_path / "out", threshold=0).coco, expected)


@pytest.mark.slow
def test_pictures_beyond_a_fixed_size_are_scaled_to_fit_or_refused_where_another_size_is_asked_for(
    exported, tmp_path, pictures
):
    _, file = exported
    read = read_onnx(file)
    Image.new("RGB", (300, 400)).save(pictures / "large.png")
    predict(read, [pictures / "large.png"], tmp_path / "out", threshold=0)
    with pytest.raises(DataError, match=r"model.onnx: takes images of 64 x 96 pixels .*, got one of 80 x 60; scale"):
        predict(read, [pictures / "large.png"], tmp_path / "out", max_size=80)


@pytest.mark.slow
def test_a_smaller_fixed_size_than_that_of_the_training_bounds_the_pictures(tmp_path, exported, monkeypatch):
    _, file = exported
    model = onnx.load(file)
    for each in model.metadata_props:
        if each.key == METADATA:
            each.value = json.dumps(json.loads(each.value) | {"max_size": None})
    onnx.save(model, tmp_path / "any.onnx")
    assert read_onnx(tmp_path / "any.onnx").max_size == 64


@pytest.mark.slow
def test_files_that_are_no_detector_are_one_line_each(tmp_path, exported, pictures, capsys):
    _, file = exported
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "stranger.onnx")
    (tmp_path / "text.onnx").write_text("no graph")
    node = onnx.helper.make_node("MultiscaleDeformableAttnPlugin_TRT", ["x"], ["y"], domain="trt.plugins")
    ends = [onnx.helper.make_tensor_value_info(name, 1, [2]) for name in "xy"]
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("trt.plugins", 1)]
    plugin = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", ends[:1], ends[1:]), opset_imports=opsets, ir_version=8
    )
    onnx.save(plugin, tmp_path / "plugin.onnx")
    for name, said in {
        "stranger.onnx": f"not a detector of deform-attn (no {METADATA} in its metadata); pass a file of",
        "text.onnx": "ONNX Runtime does not run it (",
        "plugin.onnx": "ONNX Runtime does not run it (",
        "missing.onnx": "no such file; pass a file of `deform-attn export",
    }.items():
        given = tmp_path / name
        assert main(["predict", "--onnx", str(given), str(pictures), "--out", str(tmp_path / "out")]) == 1
        assert error_line(capsys).startswith(f"deform-attn: error: {given}: {said}"), name
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_name_of_a_file_says_that_it_is_one_of_onnx(exported, tmp_path, pictures, capsys):
    _, file = exported
    out = tmp_path / "out"
    assert main(["predict", str(file), str(pictures / "a.jpg"), "--out", str(out), "--threshold", "0"]) == 0
    assert predictions(out)["annotations"]
    file.rename(tmp_path / "model")
    assert (
        main(["predict", "--onnx", str(tmp_path / "model"), str(pictures / "a.jpg"), "--out", str(tmp_path / "b")]) == 0
    )
    (tmp_path / "model").rename(file)


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "run", "--out", "model.pt2", "--form", "gather"],
        ["export", "run", "--out", "model.onnx", "--form", "coreml"],
        ["predict", "model.onnx", "a.png", "--out", "out", "--device", "cpu"],
        ["predict", "--onnx", "model.onnx", "--out", "out"],
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: deform-attn" in capsys.readouterr().err


@pytest.mark.slow
def test_without_the_extra_it_is_said_how_to_install_it(tmp_path, exported, pictures, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    _, file = exported
    assert main(["predict", str(file), str(pictures), "--out", str(tmp_path / "out")]) == 1
    assert "pip install 'deform-attn[onnx]'" in error_line(capsys)


@pytest.mark.slow
def test_a_form_of_nodes_says_that_it_was_checked_as_a_graph_and_predicts_on_our_kernels(tmp_path, pictures, capsys):
    write_checkpoint(tmp_path / "run")
    file = tmp_path / "model.onnx"
    options = ["--form", "tensorrt", "--batch", "2", "--size", "64x96"]
    assert main(["export", str(tmp_path / "run"), "--out", str(file), *options]) == 0
    assert "checked: the graph and its nodes" in capsys.readouterr().out
    assert "MultiscaleDeformableAttnPlugin_TRT" in {node.op_type for node in onnx.load(file).graph.node}
    detect = [str(pictures), "--threshold", "0", "--max-size", "64", "--out"]
    assert main(["predict", str(file), *detect, str(tmp_path / "out")]) == 0
    assert main(["predict", str(tmp_path / "run"), *detect, str(tmp_path / "expected")]) == 0
    check_same(predictions(tmp_path / "out"), predictions(tmp_path / "expected"))
