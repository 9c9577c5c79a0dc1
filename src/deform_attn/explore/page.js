"use strict";
// Everything is drawn from the numbers in #scene; packing.py says how they are rounded.
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

// The numbers.

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

// What is shown: what is pinned, else what is pointed at.

let pinned = null, hovered = null, zoomed = false, drawn = [], unit = 1, scale = 1;
const shown = () => pinned || hovered;

function colour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1), i = Math.min(Math.floor(at), RAMP.length - 2);
  return `rgb(${RAMP[i].map((low, c) => Math.round(low + (RAMP[i + 1][c] - low) * (at - i))).join(" ")})`;
}

const radius = (share) => scale * (2.5 + 5.5 * Math.sqrt(Math.max(share, 0))); // on the screen
const isOnView = ({ x, y }) => x >= -MARGIN && x <= width + MARGIN && y >= -MARGIN && y <= height + MARGIN;
const percent = (share) => (share > 0 && share < 0.01 ? "below 1" : Math.round(100 * share)) + " %";
const rounded = (number) => (number >= 0.1 ? number.toFixed(2) : number.toPrecision(2));

function render() {
  const target = shown();
  let all = [], crosses = "";
  for (const layer of target ? shownLayers() : []) {
    const query = queryOf(layer, target);
    if (query < 0) continue;
    all = all.concat(pointsOf(layer, query));
    crosses += referenceOf(layer, query);
  }
  const strongest = Math.max(1e-12, ...all.map((point) => point.weight));
  const [head, level] = [selects.h.value, selects.v.value];
  const wanted = all.filter((one) => (head === "all" || one.head === Number(head)) && (level === "all" || one.level === Number(level)));
  drawn = wanted.filter(isOnView).sort((a, b) => a.weight - b.weight);
  $("points").innerHTML = drawn.map((one) => {
    const share = one.weight / strongest, size = radius(share) * unit;
    return `<path class="point" d="${shapeOf(one.level)}" fill="${colour(share)}" vector-effect="non-scaling-stroke"` +
      ` data-layer="${scene.layers.indexOf(one.layer)}" data-head="${one.head}" data-level="${one.level}"` +
      ` data-weight="${one.weight}" transform="translate(${one.x} ${one.y}) scale(${size})"></path>`;
  }).join("");
  $("reference").innerHTML = crosses;
  for (const id of ["boxes", "names"]) {
    $(id).classList.toggle("busy", Boolean(target));
    $(id).classList.toggle("pinned", Boolean(pinned));
    for (const one of $(id).children) one.classList.toggle("shown", isTarget(target, Number(one.dataset.detection)));
  }
  for (const button of found.querySelectorAll("button")) {
    const index = Number(button.dataset.detection);
    button.classList.toggle("shown", isTarget(target, index));
    button.setAttribute("aria-pressed", String(Boolean(pinned) && pinned.detection === index));
  }
  $("unpin").hidden = $("zoom").hidden = !pinned;
  $("strongest").textContent = all.length ? rounded(strongest) : "strongest";
  tip.hidden = true;
  tell(target, wanted);
}

function isTarget(target, index) { // a position, too, may have picked the query of a detection
  if (!target) return false;
  if (target.detection !== undefined) return target.detection === index;
  return shownLayers().some((layer) => !layer.encoder) && target.query === scene.detections[index].query;
}

function referenceOf(layer, query) {
  const [levels, size] = layer.reference, { references } = unpack(layer), level = selects.v.value;
  const seen = new Set();
  for (let i = 0; i < levels; i++) {
    if (levels > 1 && level !== "all" && i !== Number(level)) continue;
    const at = (query * levels + i) * size, [x, y, w, h] = references.slice(at, at + size);
    if (!Number.isFinite(x) || !Number.isFinite(y)) continue;
    const around = size === 4 ? `<rect class="around" x="${x - w / 2}" y="${y - h / 2}" width="${Math.max(w, 0)}" height="${Math.max(h, 0)}"></rect>` : "";
    const cross = ["rim", "line"].map((name) => `<path class="${name}" d="M-9 0H9M0-9V9"></path>`).join("");
    seen.add(`${around}<g class="cross" data-layer="${scene.layers.indexOf(layer)}" transform="translate(${x} ${y}) scale(${unit})">${cross}</g>`);
  }
  return [...seen].join("");
}

function tell(target, points) {
  if (!target) {
    $("status").textContent = "Nothing is pointed at.";
    return;
  }
  const layers = shownLayers(), parts = [];
  if (target.detection !== undefined) {
    parts.push(`${scene.detections[target.detection].caption}${layers[0].encoder ? ", from the middle of its box" : ""}`);
  } else if (layers[0].encoder) {
    parts.push(`From (${target.x.toFixed(0)}, ${target.y.toFixed(0)})`);
  } else {
    const same = scene.detections.filter((one) => one.query === target.query).map((one) => one.caption);
    parts.push(`Nearest to (${target.x.toFixed(0)}, ${target.y.toFixed(0)}): query ${target.query}${same.length ? `, ${same.join(", ")}` : ""}`);
  }
  const outside = points.filter((one) => !isOnView(one));
  let text = `${points.length} points`;
  if (outside.length) {
    const share = total(outside.map((one) => one.weight)) / (total(points.map((one) => one.weight)) || 1);
    text += `, ${outside.length} of them further out (${percent(share)} of the weight)`;
  }
  parts.push(text);
  $("status").textContent = `${pinned ? "Pinned: " : ""}${parts.join(" · ")}`;
}

// The picture.

function svgPoint(event) {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(view.getScreenCTM().inverse());
  return positionAt(Math.min(Math.max(point.x, 0), width), Math.min(Math.max(point.y, 0), height));
}

function targetAt(event) {
  const part = event.target.closest("[data-detection]");
  return part ? { detection: Number(part.dataset.detection) } : svgPoint(event);
}

function measure() { // again, since sizes on the screen do not depend on the picture's
  unit = 1 / (view.getScreenCTM()?.a || 1);
  scale = Math.min(Math.max(view.clientWidth / 700, 0.7), 1); // of markers: smaller on a phone
  drawNames();
  render();
}

function drawBoxes() {
  $("boxes").innerHTML = scene.detections.map(({ box: [left, top, right, bottom] }, i) => {
    const sides = `d="M${left} ${top}H${right}V${bottom}H${left}z"`;
    return `<g data-detection="${i}">${["rim", "box", "hit"].map((name) => `<path class="${name}" ${sides}></path>`).join("")}</g>`;
  }).reverse().join(""); // the first on top
}

function drawNames() {
  const pen = document.createElement("canvas").getContext("2d"), taken = [];
  pen.font = '600 12px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
  $("names").replaceChildren();
  scene.detections.forEach(({ box: [left, top, right, bottom], caption: words }, i) => {
    const caption = words.length > 30 ? `${words.slice(0, 29)}…` : words; // the list has the rest
    const w = (pen.measureText(caption).width + 10) * unit, h = 18 * unit;
    const spots = [[left, top - h], [right - w, top - h], [left, bottom], [right - w, bottom], [left, top], [left, bottom - h]];
    const free = spots.find(([x, y]) => x >= -MARGIN && x + w <= width + MARGIN && y >= -MARGIN && y + h <= height + MARGIN &&
      !taken.some(([a, b, c, d]) => x < c && x + w > a && y < d && y + h > b));
    if (!free) return; // its box and the list still name it
    const [x, y] = free;
    taken.push([x, y, x + w, y + h]);
    $("names").insertAdjacentHTML("beforeend", `<g data-detection="${i}" transform="translate(${x} ${y}) scale(${unit})">` +
      `<rect class="hit" y="-4" width="${w / unit}" height="26"></rect><rect class="chip" width="${w / unit}" height="18" rx="2"></rect>` +
      '<text x="5" y="13.2"></text></g>');
    $("names").lastElementChild.querySelector("text").textContent = caption;
  });
}

function showTip(event) { // of the point that the pointer is nearest to
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(view.getScreenCTM().inverse());
  let best = null, least = (14 * unit) ** 2;
  for (const one of drawn) {
    const distance = (one.x - at.x) ** 2 + (one.y - at.y) ** 2;
    if (distance <= least) [best, least] = [one, distance];
  }
  tip.hidden = !best;
  if (!best) return;
  tip.textContent = `${best.layer.name}, head ${best.head}, level ${best.level}: weight ${rounded(best.weight)} at (${best.x.toFixed(1)}, ${best.y.toFixed(1)})`;
  const frame = view.getBoundingClientRect(), [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
  tip.style.left = `${Math.max(4, Math.min(x + 14, frame.width - tip.offsetWidth - 4))}px`;
  tip.style.top = `${y > tip.offsetHeight + 20 ? y - tip.offsetHeight - 12 : y + 18}px`;
}

function hover(target) {
  hovered = target;
  if (!pinned) render();
}

function pin(target) {
  pinned = hovered = target;
  render();
  if (zoomed && target.detection !== undefined) zoom(true); // a position that was clicked is in view
}

function unpin() {
  pinned = hovered = null;
  zoom(false);
}

function zoom(on) { // to the points of what is pinned; the proportions stay
  const full = [-MARGIN, -MARGIN, width + 2 * MARGIN, height + 2 * MARGIN];
  zoomed = on && Boolean(pinned);
  $("zoom").setAttribute("aria-pressed", String(zoomed));
  let frame = full;
  if (zoomed) {
    const box = pinned.detection === undefined ? [pinned.x, pinned.y, pinned.x, pinned.y] : scene.detections[pinned.detection].box;
    const xs = [box[0], box[2], ...drawn.map((one) => one.x)], ys = [box[1], box[3], ...drawn.map((one) => one.y)];
    const [left, top] = [Math.min(...xs), Math.min(...ys)], [w, h] = [Math.max(...xs) - left, Math.max(...ys) - top];
    const part = Math.min(Math.max((1.25 * w) / full[2], (1.25 * h) / full[3], 0.1), 1);
    const start = (low, side, i) => Math.min(Math.max(low + side / 2 - (part * full[i + 2]) / 2, full[i]), full[i] + (1 - part) * full[i + 2]);
    frame = [start(left, w, 0), start(top, h, 1), part * full[2], part * full[3]];
  }
  view.setAttribute("viewBox", frame.join(" "));
  measure();
}

// The controls.

function fill(select, options, value) {
  select.replaceChildren(...options.map(([key, text, title]) => Object.assign(new Option(text, key), { title: title || "" })));
  if (options.some(([key]) => String(key) === value)) select.value = value;
}

function fillLayers() {
  for (const [kind, encoder] of [["decoder", false], ["encoder", true]]) {
    const layers = scene.layers.filter((layer) => layer.encoder === encoder);
    if (!layers.length) continue;
    const group = Object.assign(document.createElement("optgroup"), { label: kind });
    if (layers.length > 1) group.append(new Option(`all of the ${kind}`, kind));
    for (const layer of layers) {
      group.append(Object.assign(new Option(layer.name, scene.layers.indexOf(layer)), { title: layer.module }));
    }
    selects.l.append(group);
  }
  selects.l.value = String(scene.layers.indexOf((decoders.length ? decoders : scene.layers).at(-1)));
}

function adapt() { // heads and levels to the layers that are chosen
  const layers = shownLayers(), numbersTo = (count) => [...Array(count).keys()];
  const heads = Math.max(...layers.map((layer) => layer.heads));
  const shapes = layers.reduce((most, layer) => (layer.shapes.length > most.length ? layer.shapes : most), []);
  const sizes = shapes.map(([rows, columns]) => `${rows} × ${columns} pixels`);
  fill(selects.h, [["all", "all heads"], ...numbersTo(heads).map((i) => [i, `head ${i}`])], selects.h.value);
  fill(selects.v, [["all", "all levels"], ...sizes.map((size, i) => [i, `level ${i}`, size])], selects.v.value);
  fill(selects.p, sizes.map((size, i) => [i, `level ${i}`, size]), selects.p.value);
  selects.p.disabled = !layers[0].encoder;
  $("boxes").classList.toggle("pixels", layers[0].encoder);
  $("from-label").hidden = !scene.layers.some((layer) => layer.encoder);
  selects.l.title = layers.map((layer) => layer.module).join(", ");
  $("thinned").textContent = thinned(layers[0]);
  drawLegend(shapes, layers.some((layer) => layer.reference[1] === 4));
}

function thinned(layer) {
  if (layer.steps.every((step) => step === 1)) return "";
  const nth = (step) => (step === 1 ? "every" : `every ${step}${step % 10 === 2 && step % 100 !== 12 ? "nd" : step % 10 === 3 && step % 100 !== 13 ? "rd" : step % 10 === 1 && step % 100 !== 11 ? "st" : "th"}`);
  if (!layer.encoder) return `Kept on this page: the queries of what was found, and ${nth(layer.steps[0])} of all ${layer.total}.`;
  return `Kept on this page: ${layer.steps.map((step, i) => `${nth(step)} pixel of level ${i}`).join(", ")}.`;
}

function drawLegend(shapes, withBox) {
  const icon = (inside) => `<svg viewBox="-11 -11 22 22" aria-hidden="true">${inside}</svg>`;
  const stops = RAMP.map((_, i) => i / (RAMP.length - 1));
  const dots = [0, 0.25, 0.5, 0.75, 1].map((share, i) => `<g transform="translate(${10 + 45 * i} 11) scale(${radius(share)})">` +
    `<path class="point" d="${SHAPES[0]}" fill="${colour(share)}" vector-effect="non-scaling-stroke"></path></g>`);
  const rows = shapes.map(([h, w], i) => icon(`<path class="point" d="${shapeOf(i)}" transform="scale(6.5)" fill="${colour(0.45)}" vector-effect="non-scaling-stroke"></path>`) +
    `<span>level ${i}: ${h} × ${w}</span>`);
  rows.push(icon('<g class="cross"><path class="rim" d="M-9 0H9M0-9V9"></path><path d="M-9 0H9M0-9V9"></path></g>') + "<span>reference point</span>");
  if (withBox) rows.push(icon('<rect class="around" x="-9" y="-7" width="18" height="14"></rect>') + "<span>reference box</span>");
  if (scene.detections.length) rows.push(icon('<rect x="-9" y="-7" width="18" height="14" fill="none" stroke="#1590d0" stroke-width="2.5"></rect>') + "<span>found</span>");
  $("legend").innerHTML = '<div>Attention weight: size and colour</div><div class="ramp"><span>0</span>' +
    `<svg viewBox="0 0 200 22" aria-hidden="true"><defs><linearGradient id="ramp">${stops.map((at) => `<stop offset="${at}" stop-color="${colour(at)}"></stop>`).join("")}</linearGradient></defs>` +
    `<rect x="0" y="8" width="200" height="6" rx="3" fill="url(#ramp)"></rect>${dots.join("")}</svg><span id="strongest"></span></div>` +
    `<ul>${rows.map((row) => `<li>${row}</li>`).join("")}</ul>`;
}

function change(select, step) {
  const options = [...select.options];
  if (select.disabled || options.length < 2) return;
  select.selectedIndex = (select.selectedIndex + step + options.length) % options.length;
  changed();
}

function changed() {
  adapt();
  render();
  if (zoomed) zoom(true);
}

function listDetections() {
  found.innerHTML = scene.detections.length ? "" : '<p class="none">Nothing was found. Any position in the picture can still be pointed at.</p>';
  scene.detections.forEach((one, i) => {
    const button = Object.assign(document.createElement("button"), { type: "button", title: `query ${one.query}` });
    button.dataset.detection = i;
    button.append(...[["", one.label || `query ${one.query}`], ["score", one.score === null ? "" : one.score.toFixed(2)]].map(([name, text]) =>
      Object.assign(document.createElement("span"), { className: name, textContent: text })));
    button.setAttribute("aria-label", `${one.caption}, ${i + 1} of ${scene.detections.length}`);
    button.addEventListener("focus", () => hover({ detection: i }));
    button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && hover({ detection: i }));
    button.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hover(null));
    button.addEventListener("click", () => (pinned && pinned.detection === i ? unpin() : pin({ detection: i })));
    found.append(button);
  });
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") return unpin();
  if (event.target.closest("select")) return; // letters and arrows choose there
  const select = selects[event.key.toLowerCase()];
  if (select) return change(select, event.shiftKey ? -1 : 1);
  if (event.key.toLowerCase() === "z") return zoom(!zoomed);
  const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (document.activeElement === view) {
    if (arrow) moveBy(...arrow.map((one) => one * Math.max(width, height) / (event.shiftKey ? 400 : 40)));
    else if ((event.key === "Enter" || event.key === " ") && shown()) pin(shown());
    else return;
    event.preventDefault();
  } else if (arrow && (document.activeElement.closest("#found") || document.activeElement === document.body)) {
    const buttons = [...found.querySelectorAll("button")], at = buttons.indexOf(document.activeElement);
    const next = at < 0 ? (arrow[0] + arrow[1] > 0 ? 0 : buttons.length - 1) : at + arrow[0] + arrow[1];
    if (!buttons.length) return;
    buttons[(next + buttons.length) % buttons.length].focus();
    event.preventDefault();
  }
}

function moveBy(x, y) {
  const target = shown();
  const [fromX, fromY] = !target ? [width / 2, height / 2] : target.detection === undefined ? [target.x, target.y] : middle(scene.detections[target.detection].box);
  const to = positionAt(Math.min(Math.max(fromX + x, 0), width), Math.min(Math.max(fromY + y, 0), height));
  if (pinned) pin(to);
  else hover(to);
}

Object.entries({ x: 0, y: 0, width, height, href: scene.picture }).forEach(([name, value]) => $("image").setAttribute(name, value));
fillLayers();
adapt();
drawBoxes();
listDetections();
if (scene.detections.length) hovered = { detection: 0 }; // so that the page explains itself
zoom(false);
new ResizeObserver(measure).observe(view);
Object.values(selects).forEach((select) => select.addEventListener("change", changed));
$("unpin").addEventListener("click", unpin);
$("zoom").addEventListener("click", () => zoom(!zoomed));
view.addEventListener("pointermove", (event) => {
  if (event.pointerType !== "mouse") return;
  if (pinned) showTip(event);
  else hover(targetAt(event));
});
view.addEventListener("pointerleave", () => {
  tip.hidden = true;
  hover(null);
});
view.addEventListener("click", (event) => {
  pin(targetAt(event));
  showTip(event);
});
document.addEventListener("keydown", onKey);
