// An image on a map: OpenLayers over plain pixels. Pixels are shown as pixels and never warped.

import { $, length, round } from "./parts.js";

const TILE = 512;
const CLOSEST = 1 / 24;
const HALO = new ol.style.Style({ stroke: new ol.style.Stroke({ color: "#000", width: 5 }) });
const LINE = new ol.style.Style({ stroke: new ol.style.Stroke({ color: "#fff", width: 2 }) });

export class ImageView {
  /** `asked` gives the query of a layer's tiles; `clicked` and `moved` are told about places. */
  constructor(asked, clicked, moved) {
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
    this.grid = new ol.tilegrid.TileGrid({ origin: [0, 0], resolutions, tileSize: TILE, extent });
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
    const { levels } = this.facts;
    const query = new URLSearchParams(this.asked(layer));
    this[layer].setSource(new ol.source.TileImage({
      projection: this.projection, tileGrid: this.grid, transition: 0, interpolate: layer === "source",
      tileUrlFunction: ([z, x, y]) => `tile/${layer}/${levels - 1 - z}/${x}/${y}?${query}`,
    }));
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
    return [x.toFixed(1), (-y).toFixed(1), (-Math.log2(view.getResolution())).toFixed(2)];
  }

  pixel([x, y]) {
    const [height, width] = this.facts.shape;
    const [column, row] = [Math.floor(x), Math.floor(-y)];
    return column >= 0 && row >= 0 && column < width && row < height ? { x: column, y: row } : null;
  }

  point(coordinate) {
    const place = this.facts && this.pixel(coordinate);
    $("where").textContent = place ? `x ${place.x}  y ${place.y}` : "";
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
