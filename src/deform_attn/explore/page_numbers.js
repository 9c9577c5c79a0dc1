"use strict";
// The numbers: what the page knows, from #scene, where packing.py has put them, and which query looks.
const scene = JSON.parse(document.getElementById("scene").textContent);
const $ = (id) => document.getElementById(id);
const [view, tip, found] = [$("view"), $("tip"), $("found")];
const selects = { l: $("layer"), h: $("head"), v: $("level"), p: $("from") };
const [width, height] = [scene.width, scene.height];
const MARGIN = scene.margin * Math.max(width, height); // beside the picture that is drawn, too
const RAMP = [[255, 251, 205], [254, 208, 105], [253, 141, 60], [223, 34, 30], [112, 0, 38]];
const SHAPES = [ // one a level, each of about the area of a circle of radius 1
  "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0-2 0z",
  "M-.9-.9h1.8v1.8h-1.8z",
  "M0-1.35L1.15.75h-2.3z",
  "M0-1.3L1.3 0L0 1.3L-1.3 0z",
  "M0 1.35L1.15-.75h-2.3z",
  "M0-1.2L1.14-.37L.7.97h-1.4L-1.14-.37z",
];
const shapeOf = (level) => SHAPES[level % SHAPES.length];

function numbers(text, Kind) {
  return new Kind(Uint8Array.from(atob(text), (one) => one.charCodeAt(0)).buffer);
}

function unpack(layer) {
  if (!layer.unpacked) {
    layer.unpacked = {
      queries: numbers(layer.queries, Uint32Array),
      locations: numbers(layer.locations, Uint16Array),
      weights: numbers(layer.weights, Uint16Array),
      references: numbers(layer.references, Float32Array),
    };
  }
  return layer.unpacked;
}

// A place on the grid of locations, in pixels of the picture.
const place = (step, side) => (step === scene.nowhere ? NaN : ((step / scene.steps) * 2 - 0.5) * side);
const decoders = scene.layers.filter((layer) => !layer.encoder);
const total = (counts) => counts.reduce((sum, count) => sum + count, 0);
const levelOf = (counts, point) => counts.findIndex((_, i) => point < total(counts.slice(0, i + 1)));

function nearest(layer, x, y, first, end) { // among the queries that are kept: its place in their list
  const { queries, references } = unpack(layer);
  const size = layer.reference[0] * layer.reference[1];
  let best = -1, least = Infinity;
  for (let i = 0; i < queries.length; i++) {
    const distance = (references[i * size] - x) ** 2 + (references[i * size + 1] - y) ** 2;
    if (queries[i] >= first && queries[i] < end && distance < least) [best, least] = [i, distance];
  }
  return best;
}

function queryOf(layer, target) { // its place in the list of those kept, or -1
  const detection = target.detection === undefined ? null : scene.detections[target.detection];
  if (!layer.encoder) {
    const chosen = detection ? detection.query : target.query;
    return unpack(layer).queries.indexOf(chosen);
  }
  const [x, y] = detection ? middle(detection.box) : [target.x, target.y];
  const sizes = layer.shapes.map(([rows, columns]) => rows * columns);
  const level = Math.min(Number(selects.p.value), sizes.length - 1);
  return nearest(layer, x, y, total(sizes.slice(0, level)), total(sizes.slice(0, level + 1)));
}

const middle = ([left, top, right, bottom]) => [(left + right) / 2, (top + bottom) / 2];

function positionAt(x, y) {
  const last = decoders[decoders.length - 1];
  const i = last ? nearest(last, x, y, 0, Infinity) : -1;
  return { x, y, query: i < 0 ? undefined : unpack(last).queries[i] };
}

function shownLayers() {
  const value = selects.l.value;
  if (value === "encoder" || value === "decoder") return scene.layers.filter((one) => one.encoder === (value === "encoder"));
  return [scene.layers[Number(value)]];
}

function pointsOf(layer, query) {
  const { locations, weights } = unpack(layer);
  const perHead = total(layer.counts), points = [];
  for (let head = 0; head < layer.heads; head++) {
    for (let t = 0; t < perHead; t++) {
      const i = (query * layer.heads + head) * perHead + t;
      const [x, y] = [place(locations[2 * i], width), place(locations[2 * i + 1], height)];
      points.push({ layer, head, level: levelOf(layer.counts, t), x, y, weight: (weights[i] / 65535) * layer.largest });
    }
  }
  return points;
}
