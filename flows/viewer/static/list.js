// The list of images: only the rows in view are in the page, so that a million images scroll well.

import { $, fetched, make, settled } from "./parts.js";

const HEIGHT = 48;
const PAGE = 100;

export class List {
  constructor(chosen) {
    this.chosen = chosen;
    this.pages = new Map();
    this.total = 0;
    this.search = "";
    this.order = "name";
    $("rows").addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw()).observe($("rows"));
    $("rows").addEventListener("keydown", (event) => this.key(event));
    $("search").addEventListener("input", settled(() => this.changed(), 200));
    $("order").addEventListener("change", () => this.changed());
  }

  /** What the server must know to name the images before and after one. */
  query() { return { search: this.search, order: this.order }; }

  async changed() {
    [this.search, this.order] = [$("search").value, $("order").value];
    $("rows").scrollTop = 0;
    await this.load();
    this.resorted?.();
  }

  async load(refresh = false) {
    this.pages.clear();
    const first = await this.page(0, refresh);
    this.total = first.total;
    const parts = [this.search ? `${first.total} found` : `${first.total} image${first.total === 1 ? "" : "s"}`];
    if (first.failed && !this.search) parts.push(`${first.failed} failed`);
    if (first.unprocessed && !this.search) parts.push(`${first.unprocessed} not processed`);
    $("found").textContent = parts.join(", ");
    $("tall").style.height = `${this.total * HEIGHT}px`;
    this.draw();
    return first;
  }

  page(number, refresh = false) {
    if (!this.pages.has(number)) {
      const query = { start: number * PAGE, count: PAGE, ...this.query() };
      if (refresh) query.refresh = 1;
      this.pages.set(number, fetched("api/images", query));
    }
    return this.pages.get(number);
  }

  /** Mark an image as the one that is shown, and scroll to it. */
  mark(image_id, place) {
    this.image_id = image_id;
    const rows = $("rows");
    const top = place * HEIGHT;
    if (place < this.total && (top < rows.scrollTop || top + HEIGHT > rows.scrollTop + rows.clientHeight)) {
      rows.scrollTop = Math.max(0, top - rows.clientHeight / 2);
    }
    this.draw();
  }

  async draw() {
    const rows = $("rows");
    const first = Math.max(0, Math.floor(rows.scrollTop / HEIGHT) - 4);
    const last = Math.min(this.total, Math.ceil((rows.scrollTop + rows.clientHeight) / HEIGHT) + 4);
    this.drawing = [first, last, this.search].join();
    const ticket = this.drawing;
    const pages = [];
    for (let page = Math.floor(first / PAGE); page * PAGE < last; page += 1) pages.push(page);
    const loaded = new Map(await Promise.all(pages.map(async (page) => [page, (await this.page(page)).images])));
    if (ticket !== this.drawing) return;
    const shown = [];
    for (let at = first; at < last; at += 1) {
      const image = loaded.get(Math.floor(at / PAGE))?.[at % PAGE];
      if (image) shown.push(this.row(image, at));
    }
    $("tall").replaceChildren(...shown);
    const marked = shown.find((row) => row.getAttribute("aria-selected") === "true");
    if (marked) $("rows").setAttribute("aria-activedescendant", marked.id); else $("rows").removeAttribute("aria-activedescendant");
  }

  row(image, at) {
    const failed = image.status !== "ok";
    const below = failed
      ? make("span", { class: "bad", text: image.status === "failed" ? `failed: ${image.error_type}` : "not processed" })
      : make("span", { class: "shares", "aria-hidden": "true" }, ...image.shares.map(([colour, part]) => {
        const bar = make("i");
        bar.style.width = `${100 * part}%`;
        bar.style.background = colour;
        return bar;
      }));
    const row = make("div", {
      class: "row", id: `row-${at}`, role: "option", title: failed ? image.error : image.image_id,
      "aria-selected": String(image.image_id === this.image_id), "aria-posinset": at + 1, "aria-setsize": this.total,
      onclick: () => this.chosen(image.image_id),
    }, make("b", { text: image.image_id }), below);
    row.style.top = `${at * HEIGHT}px`;
    return row;
  }

  key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const end = { Home: 0, End: this.total - 1 }[event.key];
    if (step) this.step?.(step);
    else if (end !== undefined) this.at(end).then((image) => image && this.chosen(image.image_id));
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  async at(place) { return (await this.page(Math.floor(place / PAGE))).images[place % PAGE]; }
}
