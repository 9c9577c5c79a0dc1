// The controls: choices, legend, list, keys and pointer; and the start.

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
  } else if (arrow && document.activeElement.closest("#found button")) { // elsewhere arrows scroll the page
    const buttons = [...found.querySelectorAll("button")], next = buttons.indexOf(document.activeElement) + arrow[0] + arrow[1];
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
let byMouse = true; // the last press; not every browser says so of a click
view.addEventListener("pointerdown", (event) => {
  byMouse = event.pointerType === "mouse";
});
view.addEventListener("click", (event) => {
  if (pinned && !byMouse && showTip(event)) return; // a finger cannot point without a click
  pin(targetAt(event));
  showTip(event);
});
document.addEventListener("keydown", onKey);
