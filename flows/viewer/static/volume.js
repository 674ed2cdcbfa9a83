// A volume as three planes in step, on plain canvases.

import { $, make, number } from "./parts.js";

const LETTERS = [["left", "columns", "first"], ["right", "columns", "last"], ["top", "rows", "first"], ["bottom", "rows", "last"]];
const KEPT = 48;

export class VolumeView {
  constructor(asked, clicked, moved) {
    this.asked = asked;
    this.clicked = clicked;
    this.moved = moved;
    this.pictures = new Map();
    new ResizeObserver(() => this.draw()).observe($("planes"));
  }

  /** Show a volume, at a voxel [x, y, z] if one is given. */
  open(facts, place) {
    this.facts = facts;
    this.at = facts.shape.map((n) => Math.floor(n / 2));
    this.zoom = 1;
    if (place) this.aimAt(place);
    this.pictures.clear();
    this.panes = facts.planes.map((plane, index) => this.pane(plane, index));
    const words = make("div", { class: "words" },
      make("h3", { text: "Three planes through one voxel" }),
      make("p", { text: "Click or drag: move the crosshair. Wheel: next plane. Ctrl and wheel: zoom." }),
      make("p", { text: facts.planes[0].rows.first ? "As radiologists look at it: the patient's right is on the left." : "The file does not say how it lies in the body." }));
    $("planes").replaceChildren(...this.panes.map((each) => each.box), words);
    this.refresh();
  }

  aimAt([x, y, z, zoom = 0]) {
    [z, y, x].forEach((value, axis) => { this.at[axis] = Math.min(this.facts.shape[axis] - 1, Math.max(0, Math.round(value))); });
    this.zoom = Math.min(32, Math.max(1, 2 ** zoom));
  }

  go(...place) {
    this.aimAt(place);
    this.refresh();
  }

  pane(plane, index) {
    const canvas = make("canvas", { tabindex: 0, role: "img", "aria-label": `${plane.name} plane` });
    const title = make("div", { class: "title" });
    const slider = make("input", { type: "range", min: 0, max: this.facts.shape[plane.across] - 1, "aria-label": `Plane, ${plane.name}` });
    const letters = LETTERS.filter(([, side, end]) => plane[side][end])
      .map(([place, side, end]) => make("span", { class: `letter ${place}`, text: plane[side][end], "aria-hidden": "true" }));
    const box = make("div", { class: "plane" }, canvas, title, ...letters, slider);
    const pane = { plane, index, canvas, title, slider, box };
    slider.addEventListener("input", () => this.move(plane.across, Number(slider.value)));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (event.ctrlKey) { this.zoomBy(-Math.sign(event.deltaY) / 4); return; }
      this.move(plane.across, this.at[plane.across] + Math.sign(event.deltaY));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); this.aim(pane, event); });
    canvas.addEventListener("pointermove", (event) => { if (event.buttons & 1) this.aim(pane, event); });
    canvas.addEventListener("pointerup", () => this.clicked(this.voxel()));
    canvas.addEventListener("keydown", (event) => this.key(pane, event));
    return pane;
  }

  voxel() { return Object.fromEntries(["z", "y", "x"].map((axis, i) => [axis, this.at[i]])); }

  key({ plane }, event) {
    const steps = { ArrowLeft: ["columns", -1], ArrowRight: ["columns", 1], ArrowUp: ["rows", -1], ArrowDown: ["rows", 1] };
    if (event.key in steps) {
      const [side, step] = steps[event.key];
      this.move(plane[side].axis, this.at[plane[side].axis] + (plane[side].flipped ? -step : step));
    } else if (event.key === "PageUp" || event.key === "PageDown") {
      this.move(plane.across, this.at[plane.across] + (event.key === "PageUp" ? 1 : -1));
    } else if (event.key === "Enter") this.clicked(this.voxel());
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  move(axis, value) {
    this.at[axis] = Math.min(this.facts.shape[axis] - 1, Math.max(0, value));
    this.refresh();
  }

  zoomBy(steps) {
    this.zoom = Math.min(32, Math.max(1, this.zoom * 2 ** steps));
    this.refresh();
  }

  fit() { this.zoom = 1; this.refresh(); }

  place() { return [this.at[2], this.at[1], this.at[0], Number(Math.log2(this.zoom).toFixed(4))]; }

  /** Forget the pictures of a layer and ask for them again. */
  redraw(layer) {
    for (const key of this.pictures.keys()) if (key.startsWith(layer)) this.pictures.delete(key);
    this.refresh();
  }

  refresh() {
    this.draw();
    this.moved(this.place());
  }

  /** The picture of a plane; drawn once it is here. */
  picture(layer, pane, index) {
    const key = `${layer}/${pane.index}/${index}`;
    let found = this.pictures.get(key);
    if (!found) {
      found = new Image();
      found.onload = () => this.draw();
      found.src = `plane/${key}?${new URLSearchParams(this.asked(layer))}`;
    }
    this.pictures.delete(key);
    this.pictures.set(key, found);
    while (this.pictures.size > 6 * KEPT) this.pictures.delete(this.pictures.keys().next().value);
    return found;
  }

  /** Screen pixels per mm: one for all planes. */
  scale() {
    const fits = this.panes.map(({ canvas, plane }) => Math.min(
      (canvas.clientWidth - 40) / (plane.columns.length * plane.columns.size),
      (canvas.clientHeight - 72) / (plane.rows.length * plane.rows.size)));
    return Math.max(1e-9, Math.min(...fits)) * this.zoom;
  }

  /** Where a plane is drawn on its canvas. The crosshair stays in view when zoomed in. */
  frame({ canvas, plane }) {
    const scale = this.scale();
    const side = (about, room) => {
      const long = about.length * about.size * scale;
      const at = ((about.flipped ? about.length - 1 - this.at[about.axis] : this.at[about.axis]) + 0.5) * about.size * scale;
      const start = long <= room ? (room - long) / 2 : Math.min(0, Math.max(room - long, room / 2 - at));
      return { start, long, at: start + at, step: about.size * scale };
    };
    return { x: side(plane.columns, canvas.clientWidth), y: side(plane.rows, canvas.clientHeight - 32) };
  }

  aim(pane, event) {
    const box = pane.canvas.getBoundingClientRect();
    const { x, y } = this.frame(pane);
    const places = [[pane.plane.columns, x, event.clientX - box.left], [pane.plane.rows, y, event.clientY - box.top]];
    for (const [about, side, where] of places) {
      const index = Math.min(about.length - 1, Math.max(0, Math.floor((where - side.start) / side.step)));
      this.at[about.axis] = about.flipped ? about.length - 1 - index : index;
    }
    this.refresh();
  }

  draw() {
    if (!this.panes || $("planes").hidden) return;
    for (const pane of this.panes) this.drawPane(pane);
  }

  drawPane(pane) {
    const { canvas, plane, title, slider } = pane;
    const index = this.at[plane.across];
    title.textContent = `${plane.name}  ${index + 1} / ${this.facts.shape[plane.across]}`;
    slider.value = index;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const { x, y } = this.frame(pane);
    for (const layer of this.facts.layers) {
      const found = this.picture(layer, pane, index);
      // Keep the last picture until the next one is here: no flicker.
      if (found.complete && found.naturalWidth) pane[layer] = found;
    }
    pen.clearRect(0, 0, width, height);
    pen.imageSmoothingEnabled = x.step < 3;
    if (pane.source) pen.drawImage(pane.source, x.start, y.start, x.long, y.long);
    pen.imageSmoothingEnabled = false;
    pen.globalAlpha = this.opacity ?? 0.5;
    if (pane.mask && pen.globalAlpha) pen.drawImage(pane.mask, x.start, y.start, x.long, y.long);
    pen.globalAlpha = 1;
    pen.strokeStyle = "rgb(255 209 102 / .8)";
    pen.lineWidth = 1;
    pen.beginPath();
    for (const [gap, side] of [[8, x], [8, y]]) {
      const ends = [[side.start, side.at - gap], [side.at + gap, side.start + side.long]];
      for (const [a, b] of ends) {
        if (b <= a) continue;
        if (side === x) { pen.moveTo(a, Math.round(y.at) + 0.5); pen.lineTo(b, Math.round(y.at) + 0.5); }
        else { pen.moveTo(Math.round(x.at) + 0.5, a); pen.lineTo(Math.round(x.at) + 0.5, b); }
      }
    }
    pen.stroke();
    for (const step of [1, -1]) {
      const near = index + step;
      if (near >= 0 && near < this.facts.shape[plane.across]) for (const layer of this.facts.layers) this.picture(layer, pane, near);
    }
  }

  outlineOf() { /* the crosshair shows the place */ }
}

/** Window and level that radiologists use, for values in Hounsfield units. */
export function presets(facts) {
  const [low, high] = facts.span;
  const found = [["Automatic", null]];
  if (facts.planes.length && !facts.dtype.startsWith("uint") && low <= -200 && high >= 200) {
    found.push(["Brain", [0, 80]], ["Soft tissue", [-160, 240]], ["Lung", [-1350, 150]], ["Bone", [-450, 1050]]);
  }
  if (facts.dtype === "uint8") found.push(["As stored", [0, 255]]);
  found.push([`All values, ${number(low)} to ${number(high)}`, high > low ? [low, high] : [low - 0.5, low + 0.5]]);
  return found;
}
