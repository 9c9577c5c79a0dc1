"""What the tests of the explorer share: a small model with an encoder and a decoder, its records, and a page's data."""

import base64
import json
import re

import numpy as np
import torch
from torch import nn

from deform_attn import MultiScaleDeformableAttention, encoder_reference_points, record
from deform_attn.explore import Detection, Scene

SHAPES = [(7, 11), (4, 6)]
SIZE = (120, 190)  # (H, W) of the picture
QUERIES = 5


class Model(nn.Module):
    """Two encoder layers, then three decoder layers; the last has other point counts on each level."""

    def __init__(self):
        super().__init__()
        counts = [2, 2, 3, 3, [3, 1]]
        self.layers = nn.ModuleList(
            MultiScaleDeformableAttention(24, num_heads=3, num_levels=2, num_points=count) for count in counts
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.25)

    def forward(self, features, query, points, boxes):
        centres = encoder_reference_points(SHAPES).expand(len(features), -1, -1, -1)
        for layer in self.layers[:2]:
            features = features + layer(features, centres, features, SHAPES)
        for layer, references in zip(self.layers[2:], (points, boxes, boxes), strict=True):
            query = query + layer(query, references, features, SHAPES)
        return query


def recorded(pictures=1):
    """Return the records of one call."""
    torch.manual_seed(0)
    model = Model()
    boxes = torch.cat((torch.rand(pictures, QUERIES, 2), 0.1 + 0.3 * torch.rand(pictures, QUERIES, 2)), dim=-1)
    with record(model) as records:
        features = torch.randn(pictures, sum(H * W for H, W in SHAPES), 24)
        model(features, torch.randn(pictures, QUERIES, 24), torch.rand(pictures, QUERIES, 2), boxes)
    return records


DETECTIONS = (
    Detection(3, (20.0, 15.0, 70.0, 60.0), "tree", 0.91),
    Detection(1, (110.0, 40.0, 170.0, 100.0), "bush", 0.62),
    Detection(4, (90.0, 70.0, 105.0, 84.0), "ball", 0.4),
)


def small_scene(**options):
    """Return a scene of that model, whose picture is bright at the right and at the bottom."""
    image = torch.stack(torch.broadcast_tensors(torch.linspace(0, 1, SIZE[1]), torch.linspace(0, 1, SIZE[0])[:, None]))
    options = {"image": torch.cat((image, image[:1] * 0)), "records": recorded(), "detections": DETECTIONS} | options
    return Scene(**options)


def expected_points(entry, query, frame=SIZE, picture=0):
    """Return (head, level, x, y, weight) of each point of a query, from the record alone, one after the other."""
    levels = [level for level, count in enumerate(entry.num_points) for _ in range(count)]
    heads = entry.locations.shape[2]
    locations = entry.locations[picture, query].double().reshape(heads, -1, 2)
    weights = entry.weights[picture, query].double().reshape(heads, -1)
    return [
        (head, level, float(x) * frame[1], float(y) * frame[0], float(weights[head, t]))
        for head in range(heads)
        for t, (level, (x, y)) in enumerate(zip(levels, locations[head], strict=True))
    ]


def data_of(page):
    """Return what the script of a page reads."""
    (text,) = re.findall(r'<script type="application/json" id="scene">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def decoded(data, layer):
    """Return (locations [K, M, T, 2], weights [K, M, T], queries [K]) of a layer of a page, in pixels."""
    entry = data["layers"][layer]

    def read(name, kind):
        return np.frombuffer(base64.b64decode(entry[name]), kind)

    shape = (-1, entry["heads"], sum(entry["counts"]))
    steps = read("locations", "<u2").astype(float).reshape(*shape, 2)
    locations = (steps / data["steps"] * 2 - 0.5) * np.array([data["width"], data["height"]])
    locations[steps == data["nowhere"]] = np.nan
    return locations, read("weights", "<u2").reshape(shape) / 65535 * entry["largest"], read("queries", "<u4")
