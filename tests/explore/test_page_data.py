"""The data of a page: as exact as it says, a regular part where all of it is too much, and harmless text."""

import math
import os
import re

import numpy as np
import pytest
import torch
from explore_cases import QUERIES, SHAPES, SIZE, data_of, decoded, recorded, small_scene
from PIL import Image

from deform_attn import encoder_reference_points
from deform_attn.explore import Detection, Scene, write_page
from deform_attn.explore.packing import keep_pixels, keep_queries, query_bytes
from deform_attn.explore.page import MOST_BYTES, kept_of, page
from deform_attn.recording import Record

BOUND = 1.01 / 65_534  # of the picture's side, as packing.py says; a hundredth more for float32


def test_the_numbers_on_the_page_are_those_of_the_records_within_the_stated_error():
    scene = small_scene()
    data = data_of(page(scene))
    assert [layer["name"] for layer in data["layers"]] == [
        "encoder 0", "encoder 1", "decoder 0", "decoder 1", "decoder 2",
    ]  # fmt: skip
    assert data["layers"][3]["module"] == "layers.3"
    seen = 0
    for i, entry in enumerate(scene.records):
        locations, weights, queries = decoded(data, i)
        assert queries.tolist() == list(range(entry.locations.shape[1]))
        exact = entry.locations[0].double().reshape(locations.shape).numpy()
        inside = (exact > -0.5) & (exact < 1.5)
        error = np.abs(locations / np.array(SIZE[::-1]) - exact)
        assert error[inside].max() < BOUND < 0.1 / 1000
        # Further out they stay out: at the border of the grid.
        assert np.abs(locations / np.array(SIZE[::-1]) - exact.clip(-0.5, 1.5)).max() < BOUND
        expected = entry.weights[0].reshape(weights.shape).numpy()
        assert np.abs(weights - expected).max() < expected.max() / 65_535
        seen += inside.sum()
    assert seen > 1000


def test_points_that_are_no_number_are_nowhere_and_infinite_ones_at_the_border():
    entry = recorded()[2]
    entry.locations[0, 0, 0, 0, 0] = torch.tensor([math.nan, 0.5])
    entry.locations[0, 0, 0, 0, 1] = torch.tensor([math.inf, -math.inf])
    locations, _, _ = decoded(data_of(page(small_scene(records=[entry]))), 0)
    assert np.isnan(locations[0, 0, 0]).all()
    np.testing.assert_allclose(locations[0, 0, 1], [1.5 * SIZE[1], -0.5 * SIZE[0]])
    assert np.isfinite(locations).sum() == locations.size - 2


def large_encoder(layers):
    """Return records as of an encoder for a picture of 800 x 1333 pixels: 22,223 queries, 8 heads, 16 points each."""
    shapes = ((100, 167), (50, 84), (25, 42), (13, 21))
    queries = sum(height * width for height, width in shapes)
    locations = torch.rand(1, queries, 8, 4, 4, 2)
    weights = torch.rand(1, queries, 8, 4, 4)
    references = encoder_reference_points(shapes)
    return [Record(f"encoder.{i}", locations, weights, references, shapes, (4, 4, 4, 4)) for i in range(layers)]


def test_a_large_encoder_is_thinned_out_to_the_stated_size_on_a_regular_grid(tmp_path):
    scene = Scene(torch.rand(3, 80, 133), large_encoder(6))
    write_page(scene, tmp_path / "page.html")
    data = data_of((tmp_path / "page.html").read_text(encoding="utf-8"))
    packed = sum(len(layer[name]) for layer in data["layers"] for name in ("locations", "weights", "references"))
    assert 0.8 * MOST_BYTES < packed < MOST_BYTES
    assert (tmp_path / "page.html").stat().st_size < 1.1 * MOST_BYTES
    for layer in data["layers"]:
        kept = set(decoded(data, 0)[2].tolist())
        start = 0
        for (height, width), step in zip(layer["shapes"], layer["steps"], strict=True):
            rows, columns = np.unravel_index(
                [q - start for q in sorted(kept) if start <= q < start + height * width], (height, width)
            )
            for found, side in ((np.unique(rows), height), (np.unique(columns), width)):
                assert set(np.diff(found)) <= {step}
                assert len(found) == math.ceil(side / step)
                assert abs(found[0] - (side - 1 - found[-1])) <= 1  # as far from one border as from the other
            assert len(rows) == math.ceil(height / step) * math.ceil(width / step)
            start += height * width
        assert layer["steps"][0] > layer["steps"][3] == 1


def test_the_queries_of_detections_are_kept_whatever_the_size():
    decoder = small_scene().layers[2]
    kept = keep_queries(decoder, {3, 4}, 3)
    assert {3, 4} <= set(kept.queries.tolist())
    assert len(kept.queries) <= 3
    assert keep_queries(decoder, {3}, QUERIES).queries.tolist() == list(range(QUERIES))
    with pytest.raises(ValueError, match="detections: expected at most 1 on one page, got 2"):
        keep_queries(decoder, {3, 4}, 1)


def test_an_encoder_that_not_even_fits_with_one_pixel_a_level_is_refused():
    layer = small_scene().layers[0]
    assert len(keep_pixels(layer, 2).queries) == 2
    with pytest.raises(ValueError, match="encoder 0: too many heads, points and layers for one page"):
        keep_pixels(layer, 1)


def test_what_is_kept_of_encoder_and_decoder_together_fits():
    scene = small_scene()
    for most in (60_000, 30_000, 15_000):
        kept = kept_of(scene, most)
        size = sum(len(one.queries) * query_bytes(layer) for one, layer in zip(kept, scene.layers, strict=True))
        assert size <= most
        assert kept[0].steps == kept[1].steps
        assert {3, 1, 4} <= set(kept[3].queries.tolist())
    assert all(one.steps == (1, 1) for one in kept_of(scene)[:2])


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_numbers_of_torch_and_numpy_in_a_detection_are_written_as_those_of_python(kind):
    box = (10.5, 2.0, 30.0, 40.25)
    given = Detection(kind(3), kind(box), "tree", kind(0.5))
    assert given == Detection(3, tuple(map(kind, box)), "tree", 0.5) == Detection(3, box, "tree", 0.5)
    assert given.caption == "tree 0.50"
    (written,) = data_of(page(small_scene(detections=[given])))["detections"]
    assert (written["query"], written["box"], written["score"]) == (3, list(box), 0.5)


LABEL = '</script><img src=x onerror="document.title=1"><!-- & "quoted"'


def test_a_label_cannot_end_the_script_or_begin_a_comment():
    text = page(small_scene(detections=[Detection(0, (1, 2, 30, 40), LABEL, 0.5)]), title=LABEL)
    assert data_of(text)["detections"][0]["label"] == LABEL
    assert text.count("</script>") == 2
    assert "<img" not in text
    assert "<!--" not in text
    assert "&lt;/script&gt;" in re.search("<title>(.*?)</title>", text).group(1)


def test_a_file_name_that_is_no_utf8_is_a_title_with_replacement_characters(tmp_path):
    name = os.fsdecode(b"b\xe4um.jpg")
    detections = [Detection(0, (1, 2, 30, 40), name)]
    write_page(small_scene(detections=detections), tmp_path / "page.html", title=name)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<title>b\N{REPLACEMENT CHARACTER}um.jpg</title>" in text
    assert data_of(text)["detections"][0]["label"] == name  # escaped, as all that is not ASCII there


def test_the_page_names_no_address():
    text = page(small_scene())
    assert not re.search("https?:|//[a-z]+[.]|@import|url\\((?!#ramp)", text)
    assert "default-src 'none'" in text


def test_a_large_picture_becomes_smaller_on_the_page_but_not_its_coordinates():
    noise = np.random.default_rng(0).integers(0, 256, (900, 3000, 3), dtype=np.uint8)
    data = data_of(page(small_scene(image=Image.fromarray(noise))))
    assert (data["width"], data["height"]) == (3000, 900)
    assert data["picture"].startswith("data:image/jpeg;base64,")
    assert len(data["picture"]) < 3_000_000
    assert data_of(page(small_scene()))["picture"].startswith("data:image/png;base64,")


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "sub" / "page.html"
    write_page(small_scene(), target)
    before = target.read_bytes()
    monkeypatch.setattr("deform_attn.explore.page.os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_page(small_scene(), target, title="other")
    assert target.read_bytes() == before
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]


def test_the_maps_of_the_cases_are_unequal():
    assert len({side for shape in (*SHAPES, SIZE) for side in shape}) == 6
