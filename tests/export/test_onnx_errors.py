"""Errors of `to_onnx`: one clear line, and no file, or the older one."""

import pytest
import torch

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

from deform_attn import MultiScaleDeformableAttention, multi_scale_deformable_attention  # noqa: E402
from deform_attn.export import extra, to_onnx, verification  # noqa: E402

VALUE, LOCATIONS, WEIGHTS = torch.rand(2, 6, 1, 2), torch.rand(2, 3, 1, 1, 2, 2), torch.rand(2, 3, 1, 1, 2)
EXAMPLE = VALUE, LOCATIONS, WEIGHTS


class Call(torch.nn.Module):
    """The classic op with some options."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, value, locations, weights):
        return multi_scale_deformable_attention(value, [(2, 3)], locations, weights, **self.options)


class Frozen(torch.nn.Module):
    """The classic op, with sizes that its code turns into numbers."""

    def forward(self, features, locations, weights):
        H, W = (int(side) for side in features.shape[2:])
        value = features.flatten(2).transpose(1, 2)[:, :, None]
        return multi_scale_deformable_attention(value[:, : H * W], [(H, W)], locations, weights)


class HiddenFrozen(torch.nn.Module):
    """The same, where it is the size of a map inside."""

    def forward(self, images, locations, weights):
        features = images[..., ::2, ::2]
        return Frozen()(features, locations, weights)


IMAGES = torch.rand(2, 3, 4, 6), LOCATIONS, WEIGHTS
WRONG = [
    ({"model": Call}, TypeError, "model: expected a torch.nn.Module, got type"),
    ({"example": [*EXAMPLE]}, TypeError, "example: expected a tuple, got list"),
    ({"verify": 3}, TypeError, "verify: expected a tuple, got int"),
    ({"path": "model.pt2"}, ValueError, "path: expected a name that ends in .onnx"),
    (
        {"form": "onnx"},
        ValueError,
        "form: expected one of 'gridsample', 'gather', 'native', 'tensorrt', 'mmdeploy', got 'onnx'",
    ),
    ({"form": None}, ValueError, "form: expected one of"),
    ({"dynamic": 1}, TypeError, "dynamic: expected True, False, "),
    ({"dynamic": {"values": (0,)}}, ValueError, "dynamic: expected names among ['value', 'locations', 'weights'], got"),
    (
        {"dynamic": {"value": (4,)}},
        ValueError,
        "dynamic: expected axes of value, counted from 0, got [4], but it h",
    ),
    ({"dynamic": {"value": (1,)}}, ValueError, "dynamic: expected a model that leaves axis 1 of value free, got one"),
    (
        {"example": tuple(each[:1] for each in EXAMPLE)},
        ValueError,
        "example: expected a size of 2 or more in axis 0",
    ),
    (
        {"model": Frozen(), "example": IMAGES},
        ValueError,
        "dynamic: expected a model that leaves axis 2 of features free, got one that fixes it to 4. Pass dynamic=False",
    ),
    (
        {"model": HiddenFrozen(), "example": IMAGES},
        ValueError,
        "dynamic: expected a model that takes inputs of [(3, 3, 5, 7), (3, 4, 1, 1, 3, 2), (3, 4, 1, 1, 3)], got o",
    ),
    ({"plugin_version": 3}, ValueError, "plugin_version: expected 1 or 2, got 3"),
    ({"half_node": None}, TypeError, "half_node: expected True or False"),
    ({"plugin_version": 2}, ValueError, "form: expected 'tensorrt' with plugin_version or half_node, got 'grid"),
    (
        {"model": torch.nn.Linear(2, 2), "example": (VALUE,)},
        ValueError,
        "model: expected a model that calls",
    ),
    (
        {"model": Call(interpolation="nearest"), "form": "tensorrt"},
        ValueError,
        "interpolation 'nearest', got 'tens",
    ),
    ({"model": Call(padding_mode="border"), "form": "mmdeploy"}, ValueError, "padding_mode 'border', got 'mmdeploy'"),
    (
        {"example": tuple(each.double() for each in EXAMPLE), "form": "tensorrt"},
        ValueError,
        "form: expected one that can express tensors of float64, got 'tensorrt'. Use 'gridsample' or 'gather'.",
    ),
]


@pytest.mark.parametrize(("changes", "kind", "message"), WRONG, ids=[message[:40] for *_, message in WRONG])
def test_what_cannot_be_written_is_one_line_before_any_file(changes, kind, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {"model": Call(), "example": EXAMPLE, "path": "model.onnx"} | changes
    with pytest.raises(kind) as error:
        to_onnx(**arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_from_its_model_leaves_the_older_one_and_the_models_mode(tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "TOLERANCES", {torch.float32: -1.0})
    file = tmp_path / "model.onnx"
    file.write_text("older")
    model = Call().train()
    with pytest.raises(ValueError, match=r"^verify: expected output within .* of the model's, .*, got .*\. No file is"):
        to_onnx(model, EXAMPLE, file)
    assert file.read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert model.training


def test_a_difference_is_seen_in_a_number_in_a_shape_and_in_nan():
    tensor = torch.tensor([1.0, -4.0])
    assert verification.difference(tensor, tensor) == 0
    assert verification.difference(tensor + torch.tensor([0, 2]), tensor) == 0.5
    assert verification.difference(tensor[:1], tensor) == torch.inf
    assert verification.difference(torch.tensor([1]), torch.tensor([2])) == torch.inf
    nan = torch.tensor([torch.nan, -4.0])
    assert verification.difference(nan, nan) == 0
    assert not verification.difference(nan, tensor) <= 1


def test_another_example_has_other_sizes_and_sizes_that_add_up():
    example = torch.rand(2, 7, 3), [torch.rand(2, 64)], torch.tensor([[2, 2], [1, 3]]), torch.rand(2, 64) < 0.5
    features, (images,), sizes, mask = verification.other_example(
        example, [("n", "s", 3), ("n", "2*w"), (2, 2), ("n", "w")]
    )
    assert features.shape == (3, 17, 3)
    assert sizes.tolist() == [[3, 3], [2, 4]]
    assert (images.shape, mask.shape) == ((3, 192), (3, 96))
    assert torch.equal(mask[0, ::3], example[3][0, ::2])
    with pytest.raises(ValueError, match="verify: expected an example whose sizes follow from one another"):
        verification.other_example((torch.rand(2, 6),), [("n", "2*w")])


def test_what_is_not_installed_is_said_with_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"onnx.*pip install 'deform-attn\[onnx\]'"):
        to_onnx(Call(), EXAMPLE, "model.onnx")
    assert extra.onnx_extra.__doc__


def test_a_tuple_to_verify_is_what_is_run(tmp_path):
    torch.manual_seed(0)
    attention = MultiScaleDeformableAttention(8, num_heads=2, num_levels=1, num_points=2)
    query, points, features = torch.randn(2, 3, 8), torch.rand(2, 3, 2), torch.randn(2, 8, 4, 5)
    other = query[:, :2], points[:, :2], [features[..., :3]]
    exported = to_onnx(attention, (query, points, [features]), tmp_path / "attention.onnx", verify=other)
    assert exported.tried == {"query": (2, 2, 8), "reference_points": (2, 2, 2), "features_0": (2, 8, 4, 3)}


def test_a_file_that_onnx_runtime_cannot_run_is_refused_unless_it_is_not_to_be_run(tmp_path):
    double, path = tuple(tensor.double() for tensor in EXAMPLE), tmp_path / "model.onnx"
    with pytest.raises(ValueError, match=r"^verify: .* can run, got from ONNX Runtime: .*GridSample.*verify=False"):
        to_onnx(Call(), double, path)
    assert not path.exists()
    to_onnx(Call(), double, path, verify=False)
    assert path.exists()
