// Small parts that all scripts of the page use.

export const $ = (id) => document.getElementById(id);

/** An element with attributes (`class`, `text`, `on…` functions, others) and children. */
export function make(tag, about = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(about)) {
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** JSON of an address of the server; an error holds its reason. */
export async function fetched(path, query = {}, signal = undefined) {
  const answer = await fetch(`${path}?${new URLSearchParams(query)}`, { signal });
  if (!answer.ok) {
    const text = await answer.text();
    let reason = text;
    try { reason = JSON.parse(text).error; } catch { /* it is plain text */ }
    throw new Error(reason || `the server answered ${answer.status}`);
  }
  return answer.json();
}

/** A number in at most `digits` significant digits, with thin spaces between thousands. */
export function number(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.floor(Math.log10(Math.abs(value)));
  if (size < -4) return value.toExponential(2);
  const rounded = Number(value.toPrecision(Math.max(digits, Math.min(size + 1, 15))));
  const [whole, part] = String(rounded).split(".");
  const grouped = whole.replace(/\B(?=(\d{3})+(?!\d))/g, "\u202f");
  return part ? `${grouped}.${part}` : grouped;
}

const AREAS = {
  m2: [[1e6, "km²"], [1e4, "ha"], [1, "m²"]],
  mm2: [[1e6, "m²"], [100, "cm²"], [1, "mm²"], [1e-6, "µm²"]],
  mm3: [[1e6, "l"], [1e3, "ml"], [1, "mm³"], [1e-9, "µm³"]],
  px: [[1, "px"]],
};
const LENGTHS = {
  m: [[1e3, "km"], [1, "m"], [1e-2, "cm"]],
  mm: [[1e3, "m"], [10, "cm"], [1, "mm"], [1e-3, "µm"], [1e-6, "nm"]],
  px: [[1, "px"]],
};

function inUnit(value, units, digits) {
  const [size, name] = units.find(([each]) => Math.abs(value) >= each) ?? units.at(-1);
  // Pixels are counted, all else is measured.
  const shown = name === "px" ? value : Number((value / size).toPrecision(4));
  return `${number(shown, digits)}\u00a0${name}`;
}

/** An area of the tables in the unit that reads best. */
export const area = (value, unit) => inUnit(value, AREAS[unit] ?? [[1, unit]], 3);
/** A length in the unit that reads best. */
export const length = (value, unit) => inUnit(value, LENGTHS[unit] ?? [[1, unit]], 3);

/** A share in per cent. */
export const share = (value) =>
  value === null ? "–" : value > 0 && value < 0.001 ? "< 0.1 %" : `${(100 * value).toFixed(1)} %`;

/** The greatest 1, 2 or 5 times a power of ten below a number. */
export function round(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return [5, 2, 1].find((each) => each * power <= most) * power;
}

/** A function that runs `later` once calls have stopped for some milliseconds. */
export function settled(later, milliseconds) {
  let timer = 0;
  return (...given) => { clearTimeout(timer); timer = setTimeout(() => later(...given), milliseconds); };
}
