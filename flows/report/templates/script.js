"use strict";
(() => {
  const $ = id => document.getElementById(id);
  document.documentElement.classList.add("js");

  const copy = async (text, button) => {
    const before = button.textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      button.textContent = document.execCommand("copy") ? "Copied" : "Select and copy by hand";
      area.remove();
    }
    setTimeout(() => { button.textContent = before; }, 1600);
  };
  document.addEventListener("click", event => {
    const button = event.target.closest("[data-copy],[data-text]");
    if (!button) return;
    if (button.dataset.text) copy(button.dataset.text, button);
    else copy(button.parentNode.querySelector("pre").textContent, button);
  });

  // Other colours of the classes: those of the page are variables, masks are painted anew.
  let repaint = () => {};
  const isSafe = () => document.documentElement.classList.contains("safe");
  $("safe").onclick = () => {
    $("safe").setAttribute("aria-pressed", document.documentElement.classList.toggle("safe"));
    repaint();
  };

  if (!$("rows")) return;
  const parse = id => { const found = JSON.parse($(id).textContent); $(id).remove(); return found; };
  const data = parse("rows"), pairs = parse("pairs");
  let thumbs = null;
  const thumb = i => (thumbs ??= parse("thumbs"))[i];
  const n = data.id.length, classes = data.classes, webp = "data:image/webp;base64,";
  const share = (i, c) => data.shares[c][i] / 10000;
  const percent = x => `${(100 * x).toFixed(1)}%`;

  const bar = i => {
    if (data.failed[i] || data.shares.length === 0 || data.shares[0][i] < 0) return "";
    let at = 0;
    const parts = [];
    classes.forEach((_, c) => {
      const to = at + 100 * share(i, c);
      if (to - at > 0.05) parts.push(`var(--c${c}) ${at.toFixed(1)}% ${to.toFixed(1)}%`);
      at = to;
    });
    return parts.length ? `linear-gradient(90deg,${parts.join(",")})` : "";
  };
  const flag = i => data.failed[i] ? ["failed", `failed: ${data.type[i]}`]
    : data.odd[i] >= data.limit ? ["odd", `odd: ${data.odd[i].toFixed(1)}`]
    : data.warning[i] ? ["odd", "has a warning"] : ["", data.size[i]];
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const card = (i, position) => {
    const item = make("li"), button = make("button", "card"), pic = make("span", "pic");
    button.type = "button";
    button.dataset.i = i;
    button.dataset.at = position;
    button.tabIndex = position === focused ? 0 : -1;
    item.setAttribute("aria-posinset", position + 1);
    item.setAttribute("aria-setsize", found.length);
    const src = thumb(i);
    if (src) {
      const image = make("img", data.tiny[i] ? "tiny" : "");
      image.alt = "";
      image.src = webp + src;
      pic.append(image);
    } else pic.textContent = data.failed[i] ? "no mask" : "no picture";
    const shares = make("span", "shares"), gradient = bar(i), name = make("span", "name");
    if (gradient) shares.style.background = gradient;
    name.append(make("bdi", "", data.id[i]));
    const [kind, text] = flag(i);
    button.append(pic, shares, name, make("span", `flag ${kind}`, text));
    item.append(button);
    return item;
  };

  // The grid holds the rows that can be seen, and room for the others.
  const box = $("window"), grid = $("grid"), form = $("controls"), first = grid.innerHTML;
  const HEIGHT = 232, GAP = 14, NARROWEST = 172, BEYOND = 2;
  let found = [...Array(n).keys()], focused = 0, drawn = "";
  const across = () => Math.max(1, Math.floor((box.clientWidth - 8 + GAP) / (NARROWEST + GAP)));
  const draw = force => {
    const columns = across(), rows = Math.ceil(found.length / columns);
    const top = Math.max(0, Math.floor(box.scrollTop / HEIGHT) - BEYOND);
    const end = Math.min(rows, Math.ceil((box.scrollTop + box.clientHeight) / HEIGHT) + BEYOND);
    const now = `${columns} ${top} ${end}`;
    if (!force && now === drawn) return;
    drawn = now;
    const active = grid.contains(document.activeElement) ? document.activeElement.dataset.at : null;
    grid.style.paddingTop = `${top * HEIGHT}px`;
    grid.style.paddingBottom = `${Math.max(0, rows - end) * HEIGHT}px`;
    grid.replaceChildren(...found.slice(top * columns, end * columns).map((i, k) => card(i, top * columns + k)));
    if (active !== null) grid.querySelector(`[data-at="${active}"]`)?.focus({preventScroll: true});
  };
  const focus = position => {
    const to = Math.max(0, Math.min(found.length - 1, position)), y = Math.floor(to / across()) * HEIGHT;
    document.activeElement?.blur();
    focused = to;
    if (y < box.scrollTop) box.scrollTop = y;
    if (y + HEIGHT > box.scrollTop + box.clientHeight) box.scrollTop = y + HEIGHT - box.clientHeight + 8;
    draw(true);
    grid.querySelector(`[data-at="${to}"]`)?.focus({preventScroll: true});
  };
  grid.addEventListener("keydown", event => {
    const steps = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across(), ArrowDown: across()};
    const to = event.key === "Home" ? 0 : event.key === "End" ? found.length - 1
      : event.key in steps ? focused + steps[event.key] : null;
    if (to === null) return;
    event.preventDefault();
    focus(to);
  });
  grid.addEventListener("focusin", event => {
    if (event.target.dataset.at !== undefined) focused = Number(event.target.dataset.at);
  });

  const down = column => (a, b) => column[b] - column[a] || a - b;
  const sorters = {
    look: (a, b) => data.rank[a] - data.rank[b],
    name: (a, b) => data.id[a] < data.id[b] ? -1 : 1,
    date: (a, b) => (data.date[a] || "9999") < (data.date[b] || "9999") ? -1 : data.date[a] === data.date[b] ? a - b : 1,
    size: down(data.pixels), seconds: down(data.seconds), odd: down(data.odd), nodata: down(data.nodata),
    score: (a, b) => (data.score[a] ?? 2) - (data.score[b] ?? 2) || a - b,
  };
  const kept = {
    all: () => true, done: i => !data.failed[i], failed: i => data.failed[i],
    odd: i => data.odd[i] >= data.limit, warned: i => Boolean(data.warning[i]),
  };
  const select = () => {
    const {sort, status, text, class: of, least} = form.elements, wanted = text.value.trim().toLowerCase();
    const low = Number(least.value) / 100, c = of.value === "" ? -1 : Number(of.value);
    found = [...Array(n).keys()].filter(i => kept[status.value](i)
      && (!wanted || data.id[i].toLowerCase().includes(wanted))
      && (c < 0 || share(i, c) >= low));
    found.sort(sort.value.startsWith("share") ? down(data.shares[Number(sort.value.slice(5))]) : sorters[sort.value]);
    $("shown").textContent = `${found.length.toLocaleString("en")} of ${n.toLocaleString("en")} images`;
    focused = 0;
    box.scrollTop = 0;
    draw(true);
  };
  form.addEventListener("input", select);
  form.addEventListener("submit", event => event.preventDefault());
  box.addEventListener("scroll", () => requestAnimationFrame(() => draw(false)), {passive: true});
  new ResizeObserver(() => draw(false)).observe(box);
  addEventListener("beforeprint", () => {
    grid.style.padding = "0";
    grid.innerHTML = first;
  });
  addEventListener("afterprint", () => draw(true));

  // The dialog.
  const view = $("view"), pair = $("pair"), under = $("under"), over = $("over"), side = $("side");
  let order = [], at = 0, opener = null;
  const link = (text, address) => {
    const anchor = make("a", "", text);
    anchor.href = address.split("/").map(encodeURIComponent).join("/");
    return anchor;
  };
  const show = i => {
    $("view-name").textContent = data.id[i];
    const [source, mask] = pairs[i] || [], small = thumb(i);
    under.classList.toggle("tiny", Boolean(data.tiny[i]));
    pair.classList.toggle("single", !mask);
    $("opacity-label").hidden = !mask;
    pair.hidden = false;
    $("note").textContent = "";
    under.onerror = null;
    under.alt = mask ? "Source" : "Source with its mask";
    if (mask) {
      under.src = webp + source;
      paint(webp + mask, i);
    } else {
      over.removeAttribute("src");
      const last = () => {
        under.onerror = null;
        if (small) under.src = webp + small; else { under.removeAttribute("src"); pair.hidden = true; }
        if (!data.failed[i]) $("note").textContent = "The large picture is in the folder previews of the output, which is not beside this page.";
      };
      if (data.failed[i] || !data.pictures) last();
      else {
        under.onerror = last;
        under.src = `previews/${data.id[i]}.png`.split("/").map(encodeURIComponent).join("/");
      }
    }
    const facts = make("dl");
    const say = (name, value) => { if (value) facts.append(make("dt", "", name), make("dd", "", value)); };
    say("size", data.size[i]);
    say("date", data.date[i]);
    if (!data.failed[i]) {
      say("without data", data.nodata[i] ? percent(data.nodata[i]) : "");
      say("odd by", data.odd[i] ? data.odd[i].toFixed(1) : "");
      say(data.score_name, data.score[i] === null ? "" : data.score[i].toFixed(2));
      say("objects", data.objects[i] ? data.objects[i].toLocaleString("en") : "");
    }
    say("time", data.seconds[i] ? `${data.seconds[i].toFixed(1)} s` : "");
    side.replaceChildren(facts);
    if (data.failed[i]) side.append(make("p", "bad", `Failed: ${data.type[i]}`));
    for (const text of [data.error[i], data.warning[i]]) if (text) side.append(make("p", "text", text));
    if (bar(i)) {
      const list = make("ul");
      classes.map((_, c) => c).filter(c => data.shares[c][i] > 0).sort((a, b) => data.shares[b][i] - data.shares[a][i]).forEach(c => {
        const item = make("li"), name = make("span"), swatch = make("span", "swatch");
        swatch.style.background = `var(--c${c})`;
        name.append(swatch, classes[c][0]);
        item.append(name, make("span", "", percent(share(i, c))));
        list.append(item);
      });
      side.append(list);
    }
    if (data.mask[i]) {
      const links = make("p");
      links.append(link("mask", data.mask[i]), " · ", link("preview", `previews/${data.id[i]}.png`));
      side.append(links);
    }
    side.append(make("p", "text soft", data.uri[i]));
    $("previous").disabled = at === 0;
    $("next").disabled = at === order.length - 1;
  };
  const safer = new Map(classes.map(([, usual, safe]) => [parseInt(usual.slice(1), 16), parseInt(safe.slice(1), 16)]));
  const paint = (address, i) => {
    over.src = address;
    if (!isSafe()) return;
    const image = new Image();
    image.onload = () => {
      const canvas = make("canvas");
      canvas.width = image.width;
      canvas.height = image.height;
      const context = canvas.getContext("2d");
      context.drawImage(image, 0, 0);
      const found = context.getImageData(0, 0, image.width, image.height), pixels = found.data;
      for (let p = 0; p < pixels.length; p += 4) {
        const to = safer.get(pixels[p] << 16 | pixels[p + 1] << 8 | pixels[p + 2]);
        if (to !== undefined) [pixels[p], pixels[p + 1], pixels[p + 2]] = [to >> 16, to >> 8 & 255, to & 255];
      }
      context.putImageData(found, 0, 0);
      if (order[at] === i && isSafe()) over.src = canvas.toDataURL();
    };
    image.src = address;
  };
  repaint = () => { if (view.open) show(order[at]); };
  const step = by => {
    if (at + by < 0 || at + by >= order.length) return;
    at += by;
    show(order[at]);
  };
  document.addEventListener("click", event => {
    const button = event.target.closest(".card");
    if (!button) return;
    const i = Number(button.dataset.i), inGrid = grid.contains(button);
    order = inGrid ? found : [...button.closest("ul").querySelectorAll(".card")].map(each => Number(each.dataset.i));
    at = order.indexOf(i);
    opener = button;
    show(i);
    view.showModal();
    ($("pair").classList.contains("single") ? $("close") : $("slide")).focus();
  });
  $("slide").oninput = event => pair.style.setProperty("--p", `${event.target.value}%`);
  const fade = () => { over.style.opacity = $("opacity").value / 100; };
  $("opacity").oninput = fade;
  fade();
  $("previous").onclick = () => step(-1);
  $("next").onclick = () => step(1);
  $("close").onclick = () => view.close();
  view.addEventListener("click", event => { if (event.target === view) view.close(); });
  view.addEventListener("keydown", event => {
    const arrows = event.target.type !== "range";
    const by = event.key === "PageDown" || (arrows && event.key === "ArrowRight") ? 1
      : event.key === "PageUp" || (arrows && event.key === "ArrowLeft") ? -1 : 0;
    if (!by) return;
    event.preventDefault();
    step(by);
  });
  view.addEventListener("close", () => {
    if (opener && opener.closest("#grid")) focus(Math.max(0, found.indexOf(order[at])));
    else opener?.focus();
  });
  select();
})();
