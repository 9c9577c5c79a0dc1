"""Patched models of transformers: what their page shows is what was recorded."""

import numpy as np
import pytest
import torch
from explore_cases import data_of, decoded

import interop_cases
from deform_attn import patch, record
from deform_attn.explore import Detection, Scene, plot_sampling
from deform_attn.explore.page import page
from interop_cases import CASES

pytestmark = pytest.mark.filterwarnings("ignore:You'd better set embed_dim")

LAYERS = {
    "deformable_detr": ["encoder 0", "decoder 0", "decoder 1"],
    "rt_detr": ["decoder 0", "decoder 1"],
    "rt_detr_v2": ["decoder 0", "decoder 1"],
    "d_fine": ["decoder 0", "decoder 1"],
    "mask2former": None,  # encoders only
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_page_of_a_patched_model_shows_what_was_recorded(name):
    model = interop_cases.build(name).eval()
    patch(model)
    inputs = CASES[name].inputs()
    with torch.no_grad(), record(model) as records:
        interop_cases.run(model, inputs)
    height, width = inputs["pixel_values"].shape[-2:]
    has_decoder = any("decoder" in one for one in LAYERS[name] or [])
    detections = [Detection(2, (10, 20, 60, 50), "one")] if has_decoder else []
    scene = Scene(torch.rand(3, height, width), records, detections, picture=1)
    names = [layer.name for layer in scene.layers]
    assert names == (LAYERS[name] or [f"encoder {i}" for i in range(len(records))])
    data = data_of(page(scene))
    for i, entry in enumerate(records):
        assert data["layers"][i]["module"] == entry.name
        assert data["layers"][i]["counts"] == list(entry.num_points)
        locations, weights, _ = decoded(data, i)
        exact = entry.locations[1].double().reshape(locations.shape).numpy().clip(-0.5, 1.5)
        assert np.abs(locations / np.array([width, height]) - exact).max() < 0.1 / 1000
        np.testing.assert_allclose(weights, entry.weights[1].reshape(weights.shape).numpy(), atol=1e-4)
    level = len(records[-1].num_points) - 1
    target = {"detection": 0} if detections else {"position": (80, 40)}
    figure = plot_sampling(scene, **target, level=level)
    count = sum(len(one.get_offsets()) for one in figure.axes[0].collections if hasattr(one, "get_sizes"))
    assert count == interop_cases.HEADS * records[-1].num_points[level]
