// Elements are made here and nowhere else: whatever is given as a child becomes text.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name === "onclick") element.addEventListener("click", value);
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export function make(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function draw(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

// Replaces what is shown, and gives the focus back to what has the same key.
export function show(place, ...children) {
  const key = place.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  place.replaceChildren(...children.flat());
  if (key === undefined) return;
  for (const element of place.querySelectorAll("[data-key]")) {
    if (element.dataset.key === key) element.focus({ preventScroll: true });
  }
}

export function section(title, id) {
  const body = make("div", {});
  const element = make("section", { "aria-labelledby": id }, make("h2", { id }, title), body);
  return { element, body };
}

// Cells that begin with a number are set to the right.
export function table(caption, head, rows, empty) {
  if (rows.length === 0) return make("p", { class: "soft" }, empty);
  const numeric = head.map((_, column) => rows.every((row) => typeof row[column] === "string" && /^(\d[\d.]*( ?(B|[KMGT]iB|ms|s|%))?)?$/.test(row[column])));
  const kind = (column) => (numeric[column] ? { class: "number" } : {});
  return make("table", { "aria-label": caption },
    make("thead", {}, make("tr", {}, head.map((name, column) => make("th", { scope: "col", ...kind(column) }, name)))),
    make("tbody", {}, rows.map((row) => make("tr", {}, row.map((cell, column) => make("td", kind(column), cell))))));
}

export function tile(name, value, more) {
  return make("div", { class: "tile" }, make("span", { class: "soft" }, name), make("b", {}, value), make("span", { class: "soft" }, more ?? ""));
}

export function legend(entries) {
  return make("ul", { class: "legend" }, entries.map(([kind, name]) =>
    make("li", {}, draw("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, draw("rect", { width: 10, height: 10, class: kind })), name)));
}

export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
  return `${unit === 0 ? bytes : bytes.toFixed(1)} ${units[unit]}`;
}

export function seconds(time) {
  if (time < 0.0995) return `${Math.round(time * 1000)} ms`;
  return time < 99.5 ? `${time.toFixed(1)} s` : `${Math.round(time)} s`;
}

export const share = (part, whole) => `${whole > 0 ? Math.round((part / whole) * 100) : 100} %`;
export const short = (digest) => digest.replace(/^sha256:/, "").slice(0, 12);

// A bar of parts, each with a class and a number.
export function bar(parts, whole, label) {
  let left = 0;
  const rects = parts.map(([kind, much]) => {
    const width = whole > 0 ? Math.min(100 - left, (much / whole) * 100) : 0;
    const rect = draw("rect", { x: left, width, height: 8, class: kind });
    left += width;
    return rect;
  });
  return draw("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", height: 10, role: "img", "aria-label": label, class: "bar" },
    draw("rect", { width: 100, height: 8, class: "empty" }), rects);
}
