// The page of `maskloom view`: keeps what is shown, and tells the views.

import { ImageView } from "./image.js";
import { List } from "./list.js";
import { $, area, fetched, make, number, settled, share } from "./parts.js";
import { VolumeView, presets } from "./volume.js";

const state = { id: null, facts: null, view: null, hidden: new Set(), low: null, high: null, bands: "", outline: false, byClass: false };

function asked(layer) {
  const query = { image: state.id, v: state.facts.version };
  if (layer === "mask") {
    query.hidden = [...state.hidden].sort((a, b) => a - b).join(",");
    if (state.outline) query.outline = 1;
    if (state.byClass && state.facts.objects) query.by = "class";
  }
  if (state.bands) query.bands = state.bands;
  if (layer === "source" && state.low !== null) { query.low = state.low; query.high = state.high; }
  return query;
}

const moved = settled((place) => {
  if (state.id) history.replaceState(null, "", `#${encodeURIComponent(state.id)}/${place.join("/")}`);
}, 150);
const images = new ImageView(asked, clicked, moved, broken);
const volumes = new VolumeView(asked, clicked, moved);
const list = new List((id) => open(id));
list.step = (step) => go(step);
list.resorted = neighbours;

// ---- opening

let ticket = 0;

async function open(id, place = null, bands = "") {
  ticket += 1;
  const own = ticket;
  const other = id !== state.id;
  const stop = waiting(id);
  window.maskloom.opening = true;
  try {
    const facts = await fetched("api/image", { image: id, ...(bands && { bands }), ...list.query() });
    if (own !== ticket) return;
    Object.assign(state, { id, facts, bands });
    if (other) Object.assign(state, { low: null, high: null, hidden: new Set((facts.classes ?? []).filter((each) => each.background).map((each) => each.id)) });
    show(place);
  } catch (error) {
    if (own === ticket) problem(error);
  } finally {
    stop();
    if (own === ticket) window.maskloom.opening = false;
  }
}

/** Show that the server prepares an image, once that takes a moment. */
function waiting(id) {
  const box = $("wait");
  const begin = setTimeout(() => {
    box.hidden = false;
    box.firstElementChild.textContent = "Opening the image";
    box.lastElementChild.removeAttribute("value");
  }, 300);
  const ask = setInterval(async () => {
    const { done } = await fetched("api/progress", { image: id }).catch(() => ({}));
    if (done === null || done === undefined) return;
    box.firstElementChild.textContent = `Reading it once: ${Math.round(100 * done)} %`;
    box.lastElementChild.value = done;
  }, 400);
  return () => { clearTimeout(begin); clearInterval(ask); box.hidden = true; };
}

/** Say where the image is in the list. */
function around({ place, count, before, after }) {
  Object.assign(state.facts, { place, count, before, after });
  $("count").textContent = `${place + 1} of ${count}`;
  $("before").disabled = !before;
  $("after").disabled = !after;
  list.mark(state.id, place);
}

/** Ask for the place again: the list is another one now. */
async function neighbours() {
  if (!state.id) return;
  const facts = await fetched("api/image", { image: state.id, ...(state.bands && { bands: state.bands }), ...list.query() });
  if (facts.image_id === state.id) around(facts);
}

const REASONS = { failed: "This image failed", unprocessed: "This image was not processed", unreadable: "This image cannot be read" };

function show(place) {
  const { facts } = state;
  const failed = facts.status !== "ok";
  const volume = !failed && facts.planes.length > 0;
  document.title = `${facts.image_id} – maskloom view`;
  $("name").textContent = facts.image_id;
  $("name").title = facts.image_id;
  around(facts);
  $("map").hidden = failed || volume;
  $("planes").hidden = !volume;
  $("stage").classList.toggle("volume", volume);
  for (const id of ["clicked", "about", "zoom"]) $(id).hidden = failed;
  $("mask-part").hidden = failed || !facts.layers.includes("mask");
  $("contrast-part").hidden = failed || !facts.layers.includes("source");
  $("grid-part").hidden = failed || volume || !facts.grid;
  $("grid").hidden = failed || volume;
  $("notes").hidden = failed || !facts.notes.length;
  $("scale").hidden = failed || volume;
  $("failed").hidden = !failed;
  $("where").textContent = "";
  $("problem").hidden = true;
  if (failed) {
    state.view = null;
    $("failed").replaceChildren(make("b", { text: REASONS[facts.status] }), make("p", { text: facts.reason }),
      make("p", { class: "hint", text: facts.kind ?? "" }));
    history.replaceState(null, "", `#${encodeURIComponent(facts.image_id)}`);
    return;
  }
  $("notes").replaceChildren(...facts.notes.map((text) => make("p", { text })));
  state.view = volume ? volumes : images;
  $("by-class-line").hidden = !facts.objects || facts.classes.length < 2;
  legend();
  contrast();
  about();
  $("clicked").replaceChildren(make("h3", { text: volume ? "At a voxel" : "At a pixel" }), make("p", { class: "hint", text: volume ? "Click a plane." : "Click the image." }));
  if (!volume) images.map.updateSize();
  state.view.open(facts, place);
  opacity();
}

function problem(error) {
  const box = $("problem");
  box.textContent = `${error.message ?? error}`;
  box.hidden = false;
}

function go(step) {
  const id = step > 0 ? state.facts?.after : state.facts?.before;
  if (id) open(id);
}

// ---- the mask

function draw(layer) {
  if (!state.view) return;
  if (state.view === images) images.draw(layer); else volumes.redraw(layer);
}

function legend() {
  const { classes, objects, nodata } = state.facts;
  const rows = classes.map((each, index) => {
    const swatch = make("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.background = each.colour;
    const box = make("input", { type: "checkbox", checked: !state.hidden.has(each.id), onchange: () => toggle(each.id), "data-class": each.id });
    const label = make("label", { title: index < 9 ? `Key ${index + 1}` : "" }, box, swatch, make("span", { class: "text", text: each.name.replaceAll("_", " ") }));
    return make("tr", {}, make("td", {}, label), make("td", { class: "number", text: area(each.area, each.unit) }), make("td", { class: "number", text: share(each.fraction) }));
  });
  if (nodata > 0) rows.push(make("tr", {}, make("td", { text: "no data" }), make("td"), make("td", { class: "number", text: share(nodata) })));
  $("legend").tBodies[0].replaceChildren(...rows);
  if (objects && !state.byClass) {
    for (const swatch of $("legend").querySelectorAll(".swatch")) swatch.hidden = true;
    $("legend").tBodies[0].append(make("tr", {}, make("td", { class: "hint", colspan: 3, text: "Each object has a colour of its own." })));
  }
}

function toggle(id) {
  if (!state.hidden.delete(id)) state.hidden.add(id);
  const box = document.querySelector(`[data-class="${id}"]`);
  if (box) box.checked = !state.hidden.has(id);
  draw("mask");
}

function fainter(step) {
  $("opacity").value = Number($("opacity").value) + step;
  opacity();
}

function opacity() {
  // Lines are thin: they are twice as strong as areas.
  const strength = Math.min(1, $("opacity").value / (state.outline ? 50 : 100));
  const value = $("mask-on").checked ? strength : 0;
  $("opacity-out").textContent = `${$("opacity").value} %`;
  images.mask.setOpacity(value);
  volumes.opacity = value;
  if (state.view === volumes) volumes.draw();
}

// ---- the source

function contrast() {
  const { facts } = state;
  const choices = presets(facts);
  const own = state.low === null ? "0" : "own";
  $("preset").replaceChildren(...choices.map(([name], i) => make("option", { value: i, text: name })), make("option", { value: "own", text: "Own" }));
  $("preset").value = own;
  const [low, high] = facts.span;
  const range = Math.max(high - low, 1e-9);
  Object.assign($("level"), { min: low, max: high });
  Object.assign($("width"), { min: range / 500, max: 1.5 * range });
  sliders(state.low === null ? facts.limits[0] : [state.low, state.high]);
  const numbers = Array.from({ length: facts.bands }, (_, i) => i + 1);
  const pick = (chosen, index) => make("label", {}, ["R", "G", "B"][index] ?? "Band", make("select", { onchange: chooseBands },
    ...numbers.map((each) => make("option", { value: each, text: each, selected: each === chosen }))));
  const many = facts.bands > 3 || facts.bands === 2;
  $("bands").replaceChildren(...(many ? facts.shown.map((each, i) => pick(each, facts.shown.length === 3 ? i : 3)) : []));
}

function chooseBands() {
  const chosen = [...$("bands").querySelectorAll("select")].map((each) => each.value).join(",");
  Object.assign(state, { low: null, high: null });
  open(state.id, state.view.place().map(Number), chosen);
}

function sliders([low, high]) {
  $("level").value = (low + high) / 2;
  $("width").value = high - low;
  $("level-out").textContent = number((low + high) / 2, 3);
  $("width-out").textContent = number(high - low, 3);
  $("low").value = Number(low.toPrecision(6));
  $("high").value = Number(high.toPrecision(6));
}

function setLimits(pair) {
  [state.low, state.high] = pair ?? [null, null];
  sliders(pair ?? state.facts.limits[0]);
  draw("source");
}

$("preset").addEventListener("change", () => {
  if ($("preset").value !== "own") setLimits(presets(state.facts)[Number($("preset").value)][1]);
});
const drawSource = settled(() => draw("source"), 60);
for (const id of ["level", "width"]) {
  $(id).addEventListener("input", () => {
    const [level, width] = [Number($("level").value), Number($("width").value)];
    [state.low, state.high] = [level - width / 2, level + width / 2];
    sliders([state.low, state.high]);
    $("preset").value = "own";
    drawSource();
  });
}

for (const id of ["low", "high"]) {
  $(id).addEventListener("change", () => {
    const [low, high] = [$("low").valueAsNumber, $("high").valueAsNumber];
    const wrong = !(low < high);
    $(id).setCustomValidity(wrong ? "Black must be below white." : "");
    if (wrong) { $(id).reportValidity(); return; }
    for (const each of ["low", "high"]) $(each).setCustomValidity("");
    [state.low, state.high] = [low, high];
    $("preset").value = "own";
    sliders([low, high]);
    drawSource();
  });
}

function about() {
  const { facts } = state;
  const size = facts.shape.slice().reverse().map((each) => number(each, 12)).join(" × ");
  const rows = [
    ["Size", `${size} ${facts.planes.length ? "voxels" : "px"}`],
    ["Bands", facts.dtype ? `${facts.bands} · ${facts.dtype}` : null],
    ["CRS", facts.grid?.name ?? facts.crs],
    ["Segmenter", facts.segmenter.replaceAll("_", " ")],
    ["File", facts.uri.split("/").at(-1)],
  ].filter(([, value]) => value);
  $("about").replaceChildren(make("h3", { text: "Image" }),
    make("dl", {}, ...rows.flatMap(([name, value]) => [make("dt", { text: name }), make("dd", { text: value, title: name === "File" ? facts.uri : null })])));
}

/** A tile that did not come: say why, once an image. */
async function broken(address) {
  if (state.broken === state.id) return;
  state.broken = state.id;
  await fetched(...address.split("?")).catch((error) => problem(error));
}

// ---- a pixel

let asking = null;

async function clicked(place) {
  asking?.abort();
  asking = new AbortController();
  const begin = setTimeout(() => $("clicked").querySelector(".hint")?.replaceChildren("Looking it up …"), 250);
  try {
    const query = { image: state.id, ...place };
    if (state.bands) query.bands = state.bands;
    answer(await fetched("api/at", query, asking.signal));
  } catch (error) {
    if (error.name !== "AbortError") problem(error);
  } finally { clearTimeout(begin); }
}

const HEADED = new Set(["class_name", "class_id", "object_id", "area", "area_unit", "pixel_count", "score", "longitude", "latitude", "touches_edge", "perimeter", "equivalent_diameter", "feret_diameter_max", "surface"]);
const NAMES = { equivalent_diameter: "diameter", feret_diameter_max: "longest", touches_edge: "at the border" };

function answer(found) {
  const { facts } = state;
  const volume = facts.planes.length > 0;
  const rows = [[volume ? "Voxel" : "Pixel", found.position.slice().reverse().join(", ")]];
  if (found.lonlat) rows.push(["Lon, lat", found.lonlat.map((each) => each.toFixed(6)).join(", ")]);
  if (found.values.length) rows.push([found.values.length > 1 ? "Values" : "Value", found.values.map((each) => number(each)).join(", ")]);
  const parts = [make("h3", { text: volume ? "At a voxel" : "At a pixel" })];
  const object = found.object;
  const name = found.class ?? (found.label === null ? "no data" : facts.objects && found.label === 0 ? "background" : `label ${found.label}`);
  const line = make("p", { class: "answer" });
  const known = facts.classes.find((each) => each.name === found.class);
  if (known) {
    const swatch = make("span", { class: "swatch" });
    swatch.style.background = known.colour;
    line.append(swatch);
  }
  line.append(name.replaceAll("_", " "));
  parts.push(line);
  if (object) {
    rows.push(["Object", number(object.object_id, 15)], ["Area", area(object.area, object.area_unit)], [volume ? "Voxels" : "Pixels", number(object.pixel_count, 15)]);
    if (object.score !== undefined) rows.push(["Score", number(object.score, 3)]);
    const unit = { m2: "m", mm2: "mm", mm3: "mm", px: "px" }[object.area_unit] ?? "";
    for (const key of ["equivalent_diameter", "feret_diameter_max", "perimeter", "surface"]) {
      if (object[key] !== undefined) rows.push([NAMES[key] ?? key, `${number(object[key])}${key === "perimeter" ? " px" : key === "surface" ? "" : ` ${unit}`}`]);
    }
    if (object.touches_edge) rows.push(["at the border", "yes"]);
    for (const [key, value] of Object.entries(object)) {
      if (!HEADED.has(key) && /^(mean|std)_\d+$/.test(key)) rows.push([key.replace("_", " "), number(value)]);
    }
  }
  parts.push(make("dl", {}, ...rows.flatMap(([key, value]) => [make("dt", { text: key[0].toUpperCase() + key.slice(1) }), make("dd", { text: value })])));
  $("clicked").replaceChildren(...parts);
  state.view.outlineOf(found.outline);
}

// ---- keys and buttons

$("before").addEventListener("click", () => go(-1));
$("after").addEventListener("click", () => go(1));
$("closer").addEventListener("click", () => state.view?.zoomBy(1));
$("farther").addEventListener("click", () => state.view?.zoomBy(-1));
$("fit").addEventListener("click", () => state.view?.fit());
$("mask-on").addEventListener("change", opacity);
$("opacity").addEventListener("input", opacity);
$("outline").addEventListener("change", () => { state.outline = $("outline").checked; opacity(); draw("mask"); });
$("by-class").addEventListener("change", () => { state.byClass = $("by-class").checked; legend(); draw("mask"); });
$("grid-on").addEventListener("change", () => images.setGrid($("grid-on").checked));
$("show-help").addEventListener("click", () => $("help").showModal());
$("toggle-list").addEventListener("click", () => document.body.classList.toggle("no-list"));

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=search], input[type=number], select, dialog, dialog *");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const sliding = event.target.matches("input[type=range]");
  const actions = {
    n: () => go(1), p: () => go(-1), "+": () => state.view?.zoomBy(1), "=": () => state.view?.zoomBy(1),
    "-": () => state.view?.zoomBy(-1), 0: () => state.view?.fit(), "?": () => $("help").showModal(),
    "/": () => { document.body.classList.remove("no-list"); $("search").focus(); }, l: () => $("toggle-list").click(),
    o: () => $("outline").click(), g: () => { if (state.facts?.grid) $("grid-on").click(); },
    "[": () => fainter(-10), "]": () => fainter(10),
  };
  if (event.target.id !== "map" && !sliding && event.target.id !== "rows") Object.assign(actions, { ArrowRight: () => go(1), ArrowLeft: () => go(-1) });
  if (!event.target.matches("button, input[type=checkbox]")) actions[" "] = () => { $("mask-on").checked = !$("mask-on").checked; opacity(); };
  for (let i = 1; i < 10; i += 1) actions[i] = () => { const each = state.facts?.classes?.[i - 1]; if (each) toggle(each.id); };
  const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

// ---- the address: #id/x/y/zoom, of volumes #id/x/y/z/zoom

function fromAddress() {
  const [id, ...place] = location.hash.slice(1).split("/");
  const numbers = place.map(Number);
  return [id ? decodeURIComponent(id) : null, [3, 4].includes(numbers.length) && numbers.every(Number.isFinite) ? numbers : null];
}

addEventListener("hashchange", () => {
  const [id, place] = fromAddress();
  if (id && id !== state.id) open(id, place); else if (place) state.view?.go(...place);
});

window.maskloom = { state, images, volumes, open };
const first = await list.load(true).catch((error) => { problem(error); return null; });
const [id, place] = fromAddress();
if (first) await open(id ?? first.images.find((each) => each.status === "ok")?.image_id ?? first.images[0].image_id, place);
