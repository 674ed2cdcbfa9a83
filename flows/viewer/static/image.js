// An image on a map: OpenLayers over plain pixels. Pixels are shown as pixels and never warped.

import { $, length, number, round } from "./parts.js";

const TILE = 512;
const CLOSEST = 1 / 24;
const HALO = new ol.style.Style({ stroke: new ol.style.Stroke({ color: "#000", width: 5 }) });
const LINE = new ol.style.Style({ stroke: new ol.style.Stroke({ color: "#fff", width: 2 }) });

export class ImageView {
  /** `asked` gives the query of a layer's tiles; `clicked` and `moved` are told about places,
   *  `broken` about tiles that did not come. */
  constructor(asked, clicked, moved, broken) {
    this.broken = broken;
    this.grid = false;
    this.asked = asked;
    this.clicked = clicked;
    this.moved = moved;
    this.outline = new ol.source.Vector();
    this.source = new ol.layer.Tile({ preload: 1 });
    this.mask = new ol.layer.Tile({ preload: 1 });
    const drawn = new ol.layer.Vector({ source: this.outline, style: [HALO, LINE] });
    this.map = new ol.Map({ target: "map", layers: [this.source, this.mask, drawn], controls: [], maxTilesLoading: 8, pixelRatio: 1 });
    // Seen from afar means are smooth; seen closely a pixel is a square.
    this.source.on("prerender", (event) => {
      event.context.imageSmoothingEnabled = event.frameState.viewState.resolution > 1;
    });
    this.map.on("click", (event) => {
      const place = this.pixel(event.coordinate);
      if (place) this.clicked(place);
    });
    this.map.on("pointermove", (event) => this.point(event.coordinate));
    this.map.getViewport().addEventListener("pointerleave", () => { $("where").textContent = ""; });
    this.map.on("postrender", () => this.drawGrid());
    $("map").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !this.facts) return;
      const place = this.pixel(this.map.getView().getCenter());
      if (place) this.clicked(place);
    });
    this.map.on("moveend", () => { this.drawScale(); if (this.facts) this.moved(this.place()); });
  }

  /** Show an image, at a place [x, y, zoom] if one is given. */
  open(facts, place) {
    this.facts = facts;
    this.outline.clear();
    const [height, width] = facts.shape;
    const extent = [0, -height, width, 0];
    this.projection = new ol.proj.Projection({ code: `pixels-${width}-${height}`, units: "pixels", extent });
    const resolutions = Array.from({ length: facts.levels }, (_, i) => 2 ** (facts.levels - 1 - i));
    this.tiles = new ol.tilegrid.TileGrid({ origin: [0, 0], resolutions, tileSize: TILE, extent });
    const view = new ol.View({
      projection: this.projection, center: [width / 2, -height / 2], resolution: resolutions[0],
      minResolution: CLOSEST, maxResolution: 4 * resolutions[0], extent, constrainOnlyCenter: true,
      showFullExtent: true, enableRotation: false, smoothResolutionConstraint: false,
    });
    this.map.setView(view);
    this.draw("source");
    this.draw("mask");
    if (place) this.go(...place); else this.fit();
  }

  /** Ask for the tiles of a layer again. */
  draw(layer) {
    const { levels, layers } = this.facts;
    if (!layers.includes(layer)) { this[layer].setSource(null); return; }
    const query = new URLSearchParams(this.asked(layer));
    const source = new ol.source.TileImage({
      projection: this.projection, tileGrid: this.tiles, transition: 0, interpolate: layer === "source",
      tileUrlFunction: ([z, x, y]) => `tile/${layer}/${levels - 1 - z}/${x}/${y}?${query}`,
    });
    source.on("tileloaderror", ({ tile }) => this.broken(tile.key));
    this[layer].setSource(source);
  }

  fit() {
    const [height, width] = this.facts.shape;
    this.map.getView().fit([0, -height, width, 0], { padding: [16, 16, 16, 16], minResolution: 1 / 8 });
  }

  go(x, y, zoom) {
    this.map.getView().setCenter([x, -y]);
    this.map.getView().setResolution(2 ** -zoom);
  }

  zoomBy(steps) {
    this.map.getView().animate({ resolution: this.map.getView().getResolution() / 2 ** steps, duration: 160 });
  }

  /** The place in the address: x, y and the zoom, 0 for one screen pixel per image pixel. */
  place() {
    const view = this.map.getView();
    const [x, y] = view.getCenter();
    return [Number(x.toFixed(2)), Number((-y).toFixed(2)), Number((-Math.log2(view.getResolution())).toFixed(4))];
  }

  pixel([x, y]) {
    const [height, width] = this.facts.shape;
    const [column, row] = [Math.floor(x), Math.floor(-y)];
    return column >= 0 && row >= 0 && column < width && row < height ? { x: column, y: row } : null;
  }

  point(coordinate) {
    const place = this.facts && this.pixel(coordinate);
    const there = place && this.facts.grid ? `  ·  ${inWords(onGround(this.facts.grid.affine, [coordinate[0], -coordinate[1]]), this.facts.grid.unit)}` : "";
    $("where").textContent = place ? `x ${place.x}  y ${place.y}${there}` : "";
  }

  setGrid(on) {
    this.grid = on;
    this.map.render();
  }

  /** Lines of round coordinates of the CRS, with their numbers at the left and the lower side. */
  drawGrid() {
    const canvas = $("grid");
    const [width, height] = this.map.getSize() ?? [0, 0];
    Object.assign(canvas, { width, height });
    if (!this.grid || !this.facts?.grid || !width) return;
    const { affine, unit } = this.facts.grid;
    const view = this.map.getView();
    const [x, y] = view.getCenter();
    const each = view.getResolution();
    // From pixels of the screen to those of the image, and to the ground, and back.
    const [a, b, c, d, e, f] = affine;
    const [left, top] = [x - width / 2 * each, -y - height / 2 * each];
    const toGround = [a * each, b * each, a * left + b * top + c, d * each, e * each, d * left + e * top + f];
    const toScreen = inverse(toGround);
    const corners = [[0, 0], [width, 0], [0, height], [width, height]].map((place) => onGround(toGround, place));
    const pen = canvas.getContext("2d");
    const named = [];
    pen.save();
    pen.beginPath();
    pen.rect(-left / each, -top / each, this.facts.shape[1] / each, this.facts.shape[0] / each);
    pen.clip();
    for (const axis of [0, 1]) {
      const values = corners.map((place) => place[axis]);
      const [first, last] = [Math.min(...values), Math.max(...values)];
      const step = round((last - first) / (axis ? height : width) * 180);
      const other = corners.map((place) => place[1 - axis]);
      for (let i = Math.ceil(first / step); i * step <= last; i += 1) {
        const ends = [Math.min(...other), Math.max(...other)].map((value) => onGround(toScreen, axis ? [value, i * step] : [i * step, value]));
        line(pen, ends);
        const along = axis ? (8 - ends[0][0]) / (ends[1][0] - ends[0][0]) : (height - 52 - ends[0][1]) / (ends[1][1] - ends[0][1]);
        const at = [0, 1].map((k) => ends[0][k] + along * (ends[1][k] - ends[0][k]));
        const hidden = !at.every(Number.isFinite) || (axis && (at[1] < 20 || at[1] > height - 70)) || (!axis && (at[0] < 70 || at[0] > width - 60));
        if (!hidden) named.push([at, coordinate(i * step, unit, step)]);
      }
    }
    pen.restore();
    pen.font = "11px system-ui, sans-serif";
    for (const [at, text] of named) words(pen, at, text);
  }

  /** Draw the outline of an object; none: remove it. */
  outlineOf(rings) {
    this.outline.clear();
    for (const ring of rings ?? []) {
      this.outline.addFeature(new ol.Feature(new ol.geom.LineString(ring.map(([x, y]) => [x, -y]))));
    }
  }

  drawScale() {
    if (!this.facts) return;
    const { unit, steps } = this.facts.scale;
    const view = this.map.getView();
    const fraction = Math.min(1, Math.max(0, -view.getCenter()[1] / this.facts.shape[0]));
    const at = fraction * (steps.length - 1);
    const [low, high] = [steps[Math.floor(at)], steps[Math.ceil(at)]];
    const line = $("scale");
    line.hidden = low === null || high === null;
    if (line.hidden) return;
    const each = (low + (high - low) * (at % 1)) * view.getResolution();
    const long = round(150 * each);
    line.firstElementChild.style.width = `${long / each}px`;
    line.firstElementChild.textContent = length(long, unit);
  }
}

/** A place [x, y] through the six numbers of an affine. */
function onGround([a, b, c, d, e, f], [x, y]) { return [a * x + b * y + c, d * x + e * y + f]; }

function inverse([a, b, c, d, e, f]) {
  const size = a * e - b * d;
  return [e / size, -b / size, (b * f - c * e) / size, -d / size, a / size, (c * d - a * f) / size];
}

/** A coordinate with the digits that a step needs. */
function coordinate(value, unit, step) {
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return unit === "degree" ? `${value.toFixed(digits)}°` : number(Number(value.toFixed(digits)), 15);
}

function inWords([x, y], unit) {
  return unit === "degree" ? `${x.toFixed(5)}°, ${y.toFixed(5)}°` : `${number(Math.round(x * 10) / 10, 12)}, ${number(Math.round(y * 10) / 10, 12)}${unit === "m" ? " m" : ""}`;
}

function line(pen, [[x0, y0], [x1, y1]]) {
  for (const [colour, width] of [["rgb(0 0 0 / .4)", 2], ["rgb(255 255 255 / .75)", 1]]) {
    Object.assign(pen, { strokeStyle: colour, lineWidth: width });
    pen.beginPath();
    pen.moveTo(Math.round(x0) + 0.5, Math.round(y0) + 0.5);
    pen.lineTo(Math.round(x1) + 0.5, Math.round(y1) + 0.5);
    pen.stroke();
  }
}

function words(pen, [x, y], text) {
  const width = pen.measureText(text).width;
  pen.fillStyle = "rgb(20 22 24 / .78)";
  pen.fillRect(x - 1, y - 15, width + 8, 16);
  pen.fillStyle = "#fff";
  pen.fillText(text, x + 3, y - 3);
}
