// The drawing: on the picture, the points of what is pinned, else of what is pointed at.

let pinned = null, hovered = null, zoomed = false, drawn = [], unit = 1, scale = 1;
const LISTED = 10; // of the strongest points, in words
const shown = () => pinned || hovered;

function colour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1), i = Math.min(Math.floor(at), RAMP.length - 2);
  return `rgb(${RAMP[i].map((low, c) => Math.round(low + (RAMP[i + 1][c] - low) * (at - i))).join(" ")})`;
}

const radius = (share) => scale * (2.5 + 5.5 * Math.sqrt(Math.max(share, 0))); // on the screen
const isOnView = ({ x, y }) => x >= -MARGIN && x <= width + MARGIN && y >= -MARGIN && y <= height + MARGIN;
const percent = (share) => (share > 0 && share < 0.01 ? "below 1" : Math.round(100 * share)) + " %";
const named = (one) => `${one.layer.name}, head ${one.head}, level ${one.level}: weight ${rounded(one.weight)} at (${one.x.toFixed(1)}, ${one.y.toFixed(1)})`;
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
  $("listed").replaceChildren(...drawn.slice(-LISTED).reverse().map((one) => Object.assign(document.createElement("li"), { textContent: named(one) })));
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

function showTip(event) { // of the point that the pointer is nearest to; whether there is one
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(view.getScreenCTM().inverse());
  let best = null, least = (14 * unit) ** 2;
  for (const one of drawn) {
    const distance = (one.x - at.x) ** 2 + (one.y - at.y) ** 2;
    if (distance <= least) [best, least] = [one, distance];
  }
  tip.hidden = !best;
  if (!best) return false;
  tip.textContent = named(best);
  const frame = view.getBoundingClientRect(), [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
  tip.style.left = `${Math.max(4, Math.min(x + 14, frame.width - tip.offsetWidth - 4))}px`;
  tip.style.top = `${y > tip.offsetHeight + 20 ? y - tip.offsetHeight - 12 : y + 18}px`;
  return true;
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
  if ($("buttons").contains(document.activeElement)) view.focus({ preventScroll: true }); // they are hidden now
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
