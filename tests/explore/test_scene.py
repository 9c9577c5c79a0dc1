"""A scene: which query looks, and what is refused."""

import dataclasses
import math

import pytest
import torch
from explore_cases import DETECTIONS, SHAPES, SIZE, recorded, small_scene

from deform_attn import encoder_reference_points
from deform_attn.explore import Detection, Scene


def test_layers_are_named_by_their_kind_and_place():
    scene = small_scene()
    assert [(layer.name, layer.module) for layer in scene.layers] == [
        ("encoder 0", "layers.0"), ("encoder 1", "layers.1"), ("decoder 0", "layers.2"), ("decoder 1", "layers.3"),
        ("decoder 2", "layers.4"),
    ]  # fmt: skip
    assert scene.layer().name == "decoder 2"
    assert scene.layer("encoder 1") is scene.layer("layers.1") is scene.layer(1)
    assert scene.layer(-1).num_points == (3, 1)
    assert small_scene(records=scene.records[:2], detections=[]).layer().name == "encoder 1"


def test_a_decoder_with_as_many_queries_as_its_maps_have_pixels_is_one():
    for entry, sizes in zip(recorded()[2:], (((1, 3), (1, 2)), ((2, 2), (1, 1)), ((5, 1), (0, 2))), strict=True):
        assert entry.locations.shape[1] == sum(height * width for height, width in sizes)
        scene = small_scene(records=[dataclasses.replace(entry, spatial_shapes=sizes)])
        assert scene.layers[0].name == "decoder 0"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_encoder_is_one_beside_padding_and_in_half_precision_too(dtype):
    entry = recorded(pictures=3)[0]
    ratios = torch.tensor([[[0.9, 1.0], [1.0, 1.0]], [[0.57, 0.71], [0.6, 0.75]], [[math.nan] * 2] * 2])
    by_level = encoder_reference_points(SHAPES, ratios, dtype=dtype)  # [3, S, 2, 2]
    for points in (by_level, by_level[:, :, :1], by_level[:, :, 1]):
        scene = small_scene(records=[dataclasses.replace(entry, reference_points=points)], picture=1, detections=[])
        assert scene.layers[0].name == "encoder 0"


def test_a_position_picks_the_nearest_pixel_of_an_encoder_and_the_nearest_reference_of_the_last_decoder_layer():
    scene = small_scene()
    for x, y in ((0.0, 0.0), (100.0, 61.0), (185.5, 119.0), (33.3, 77.7)):
        for level, (H, W) in enumerate(SHAPES):
            row, column = min(int(y / SIZE[0] * H), H - 1), min(int(x / SIZE[1] * W), W - 1)
            expected = (0, SHAPES[0][0] * SHAPES[0][1])[level] + row * W + column
            assert scene.query(scene.layers[1], position=(x, y), pixel_level=level) == expected
        centres = scene.records[-1].reference_points[0, :, :2].tolist()
        distances = [math.hypot(cx * SIZE[1] - x, cy * SIZE[0] - y) for cx, cy in centres]
        for layer in scene.layers[2:]:
            assert scene.query(layer, position=(x, y)) == distances.index(min(distances))


def test_a_detection_picks_its_query_and_in_an_encoder_the_pixel_in_the_middle_of_its_box():
    scene = small_scene()
    assert scene.query(scene.layers[3], detection=1) == DETECTIONS[1].query
    expected = scene.query(scene.layers[0], position=(140, 70), pixel_level=1)
    assert scene.query(scene.layers[0], detection=1, pixel_level=1) == expected


def test_locations_are_in_pixels_of_the_picture_also_where_the_input_was_padded():
    scene = small_scene(frame=(128, 200))
    expected = scene.records[0].locations[0].flatten(2, 3) * torch.tensor([200, 128])
    torch.testing.assert_close(scene.layers[0].locations, expected)
    references = scene.records[3].reference_points[0] * torch.tensor([200, 128, 200, 128])
    torch.testing.assert_close(scene.layers[3].references[:, 0], references)


def test_any_picture_of_a_batch_can_be_shown():
    records = recorded(pictures=2)
    first, second = (small_scene(records=records, picture=i) for i in range(2))
    assert not torch.equal(first.layers[0].locations, second.layers[0].locations)
    expected = records[4].weights[1]
    assert torch.equal(second.layers[4].weights, expected)
    with pytest.raises(ValueError, match="picture: expected a number below 2, the batch that was recorded, got 2"):
        small_scene(records=records, picture=2)


def test_half_precision_is_read_as_it_is():
    entry = recorded()[2]
    half = dataclasses.replace(entry, locations=entry.locations.bfloat16(), weights=entry.weights.half())
    layer = small_scene(records=[half]).layers[0]
    assert layer.locations.dtype == layer.weights.dtype == torch.float32
    torch.testing.assert_close(layer.weights, entry.weights[0].flatten(2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"records": []}, "records: expected at least one, got none; run the model inside"),
        ({"image": torch.rand(1, 3, 5, 6)}, "image: expected \\[3, H, W\\], got \\[1, 3, 5, 6\\]"),
        ({"frame": (0, 5)}, "frame: expected \\(H, W\\) in pixels, above zero"),
        ({"detections": [Detection(5, (0, 0, 1, 1))]}, "detections: expected queries below 5"),
    ],
)
def test_what_does_not_fit_is_refused(options, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        small_scene(**options)


def test_an_image_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="image: expected a Pillow image or a tensor \\[3, H, W\\], got str"):
        Scene("picture.png", recorded())


def test_weights_that_are_no_numbers_are_refused():
    entry = recorded()[2]
    entry.weights[0, 1, 0] = math.nan
    with pytest.raises(ValueError, match=r"records \(layers.2\): a weight is no finite number"):
        small_scene(records=[entry])


def test_records_that_contradict_themselves_are_refused():
    entry = dataclasses.replace(recorded()[2], num_points=(2, 2))
    with pytest.raises(ValueError, match="expected 4 points a head on 2 levels"):
        small_scene(records=[entry])


@pytest.mark.parametrize(
    ("box", "said"), [((5, 0, 1, 1), "turn centre and size"), ((0, 0, math.nan, 1), "four finite numbers")]
)
def test_a_box_that_is_none_is_refused(box, said):
    with pytest.raises(ValueError, match=said):
        Detection(0, box)


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ({"query": 1.5}, TypeError, "Detection.query: expected a whole number from 0, got 1.5; count from"),
        ({"query": torch.arange(2)}, TypeError, "Detection.query: expected a whole number from 0, got tensor"),
        ({"box": None}, TypeError, "Detection.box: expected four finite numbers in pixels, got None"),
        ({"box": ("a", 0, 1, 1)}, TypeError, "Detection.box: expected four finite numbers in pixels, got \\('a', 0"),
        ({"score": torch.rand(2)}, TypeError, "Detection.score: expected a finite number or None, got tensor"),
        ({"score": torch.tensor(math.nan)}, ValueError, "Detection.score: expected a finite number or None, got nan"),
        ({"score": math.inf}, ValueError, "Detection.score: expected a finite number or None, got inf"),
    ],
)
def test_what_is_no_number_of_a_detection_is_refused(arguments, kind, said):
    with pytest.raises(kind, match=f"^{said}"):
        Detection(**{"query": 0, "box": (0, 0, 1, 1)} | arguments)


def test_a_choice_that_is_none_is_refused():
    scene = small_scene()
    with pytest.raises(ValueError, match=r"layer: expected one of encoder 0, .*, got 'decoder 7'"):
        scene.layer("decoder 7")
    with pytest.raises(ValueError, match="detection, position: expected one of the two"):
        scene.query(scene.layers[0])
    with pytest.raises(ValueError, match="detection: expected a number below 3, got 3"):
        scene.query(scene.layers[2], detection=3)
    with pytest.raises(ValueError, match="pixel_level: expected a number below 2, got 2"):
        scene.query(scene.layers[0], position=(1, 1), pixel_level=2)
    with pytest.raises(ValueError, match=r"Detection.query: expected a number from 0"):
        Detection(-1, (0, 0, 1, 1))
