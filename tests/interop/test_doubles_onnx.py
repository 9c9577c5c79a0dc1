"""The doubles patched and written as files of ONNX: the original's module in each form, beside some of its kin."""

import pytest
import torch
from doubles import calls, loading

from deform_attn import patch
from deform_attn.backends.native import registration

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

from deform_attn.export import forms, to_onnx  # noqa: E402
from deform_attn.export.onnxruntime import session_options  # noqa: E402
from deform_attn.export.verification import TOLERANCES, difference  # noqa: E402

# With points there is a mask. A form does not see the family, so that each has a few; the nodes see unequal counts.
FAMILIES = {
    "gridsample": [("deformable_detr", "points"), ("vit_adapter", "boxes"), ("rtdetrv2_decoder", "boxes")],
    "gather": [("deformable_detr", "boxes"), ("mask2former", "points"), ("grounding_dino", "points")],
    "native": [("deformable_detr", "points"), ("dinov3_segmentor", "boxes"), ("mmcv", "points")],
    "tensorrt": [("deformable_detr", "points"), ("deimv2_adapter", "boxes"), ("deimv2_decoder", "boxes")],
    "mmdeploy": [("deformable_detr", "boxes"), ("vit_adapter", "points"), ("detrex", "points")],
}


class Kin(torch.nn.Module):
    """Doubles beside each other, which see the same queries and the same maps, each in its own layout."""

    def __init__(self, doubles):
        super().__init__()
        self.names = list(doubles)
        self.doubles = torch.nn.ModuleList(doubles.values())

    def forward(self, query, points, boxes, maps, sizes):
        references = {"points": points[:, :, None].expand(-1, -1, calls.LEVELS, -1), "boxes": boxes}
        features = torch.cat([x.flatten(2) for x in maps], 2).transpose(1, 2)  # [N, S, C]
        mask = features[..., 0] > 0.7
        found = {}
        for (family, kind), double in zip(self.names, self.doubles, strict=True):
            reads = read_as(family), references[kind], mask if kind == "points" else None
            found[f"{family}_{kind}"] = reads[0](double, query, *reads[1:], features, maps, sizes)
        return found


def original(double, query, references, mask, features, maps, sizes):
    if references.shape[-1] == 4:
        references = references.expand(-1, -1, calls.LEVELS, -1)
    pixels = sizes.prod(1)
    return double(query, references, features, sizes, pixels.cumsum(0) - pixels, mask)


def openmmlab(double, query, references, mask, features, maps, sizes):
    pixels = sizes.prod(1)
    given = {"reference_points": references, "key_padding_mask": mask, "spatial_shapes": sizes}
    given["level_start_index"] = pixels.cumsum(0) - pixels
    return double(query.transpose(0, 1), value=features.transpose(0, 1), **given).transpose(0, 1)


def rtdetrv2(double, query, references, mask, features, maps, sizes):
    return double(query, references, features, [x.shape[2:] for x in maps], value_mask=features[..., 0] < 0.7)


def deimv2(double, query, references, mask, features, maps, sizes):
    value = [x.flatten(2).unflatten(1, (calls.M, -1)) for x in maps]  # L of [N, M, D, H*W]
    return double(query, references, value, [x.shape[2:] for x in maps])


def read_as(family):
    """Return the function that gives a family's double its arguments."""
    of_maps = {"rtdetrv2_decoder": rtdetrv2, "deimv2_decoder": deimv2}
    return of_maps.get(family, openmmlab if family in ("mmcv", "detrex", "grounding_dino") else original)


def draw(shapes, batch, queries):
    """Return the arguments of `Kin` for maps of these sizes."""
    generator = torch.Generator().manual_seed(batch)
    points, extents = (torch.rand(batch, queries, 2, generator=generator) for _ in range(2))
    boxes = torch.cat((points, 0.2 + extents / 2), -1)[:, :, None]  # [N, Q, 1, 4]
    maps = [torch.rand(batch, calls.C, *shape, generator=generator) for shape in shapes]
    return torch.randn(batch, queries, calls.C, generator=generator), points, boxes, maps, torch.tensor(shapes)


@pytest.mark.slow
@pytest.mark.parametrize("form", FAMILIES)
def test_patched_doubles_give_the_same_as_a_file_for_other_batches_queries_and_sizes(form, monkeypatch, tmp_path):
    import onnxruntime

    if not forms.FORMS[form].is_plain and registration.unavailable_reasons():
        pytest.skip("the CPU kernels are not built")
    doubles = {}
    for family, kind in FAMILIES[form]:
        call = calls.FAMILIES[family][2][kind]
        doubles[family, kind] = loading.redrawn(monkeypatch, family, call, loading.uncompiled).float()
    model = Kin(doubles)
    report = patch(model)
    assert (len(report.replaced), report.left) == (len(doubles), [])
    file = tmp_path / "kin.onnx"
    exported = to_onnx(model, draw(((4, 6), (3, 5)), 2, 9), file, form=form)
    sides = [size for name in ("maps_0", "maps_1") for size in exported.inputs[name][2:]]
    assert all(isinstance(size, str) for size in (*exported.inputs["query"][:2], *sides))
    session = onnxruntime.InferenceSession(file, session_options(), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    for shapes, batch, queries in ((((5, 3), (2, 7)), 3, 4), (((1, 4), (6, 2)), 1, 1)):
        query, points, boxes, maps, sizes = draw(shapes, batch, queries)
        with torch.no_grad():
            expected = model(query, points, boxes, maps, sizes)
        given = [tensor.numpy() for tensor in (query, points, boxes, *maps, sizes)]
        found = session.run(None, dict(zip(names, given, strict=True)))
        wrong = {
            name: difference(torch.from_numpy(actual), expected[name])
            for name, actual in zip(expected, found, strict=True)
        }
        assert {name: error for name, error in wrong.items() if not error <= TOLERANCES[torch.float32]} == {}
