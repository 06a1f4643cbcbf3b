"use strict";
/** Functions that the HTML report and the page of the service share: elements, the theme, and drawing of maps and marks. */
const wildcat = (() => {
  // --- elements ---
  const find = (selector, within = document) => within.querySelector(selector);
  const findAll = (selector, within = document) => [...within.querySelectorAll(selector)];
  const create = (tag, className = "", text = "") => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text) element.textContent = text; // never innerHTML: class and file names come from users
    return element;
  };
  const createSvg = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const decodeBase64 = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  // --- light and dark theme: follows the system until the button is pressed ---
  const root = document.documentElement, themeButton = find("#theme");
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const storage = (action) => {
    try {
      return action(localStorage);
    } catch { // a browser may refuse storage to a page opened from disk
      return null;
    }
  };
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
  const labelTheme = () => { themeButton.textContent = isDark() ? "Light" : "Dark"; };
  const storedTheme = storage((store) => store.getItem("wildcat-theme"));
  if (storedTheme === "dark" || storedTheme === "light") root.dataset.theme = storedTheme;
  themeButton.hidden = false;
  themeButton.setAttribute("aria-label", "Switch between light and dark");
  themeButton.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    storage((store) => store.setItem("wildcat-theme", root.dataset.theme));
    labelTheme();
  });
  systemDark.addEventListener("change", labelTheme);
  labelTheme();

  // --- maps ---
  /** Weights of four neighbours at a fraction t between the middle two: Keys' cubic (a = -1/2), as Pillow's BICUBIC. */
  const cubic = (t) => [
    ((-0.5 * t + 1) * t - 0.5) * t, (1.5 * t - 2.5) * t * t + 1, ((-1.5 * t + 2) * t + 0.5) * t, (0.5 * t - 0.5) * t * t,
  ];
  /** Bilinear weights, as `torch.nn.functional.interpolate(mode="bilinear")`. */
  const linear = (t) => [0, 1 - t, t, 0];
  /** Resize a map of (rows, columns) cells to (height, width) pixels; cell centres are aligned, edges are replicated. */
  const resizeMap = (cells, [rows, columns], height, width, weightsAt) => {
    const clamp = (i, n) => Math.min(Math.max(i, 0), n - 1);
    const wide = new Float32Array(rows * width), resized = new Float32Array(height * width);
    for (let x = 0; x < width; x++) {
      const position = ((x + 0.5) * columns) / width - 0.5, left = Math.floor(position), weights = weightsAt(position - left);
      for (let y = 0; y < rows; y++) {
        for (let k = 0; k < 4; k++) wide[y * width + x] += weights[k] * cells[y * columns + clamp(left - 1 + k, columns)];
      }
    }
    for (let y = 0; y < height; y++) {
      const position = ((y + 0.5) * rows) / height - 0.5, top = Math.floor(position), weights = weightsAt(position - top);
      for (let x = 0; x < width; x++) {
        for (let k = 0; k < 4; k++) resized[y * width + x] += weights[k] * wide[clamp(top - 1 + k, rows) * width + x];
      }
    }
    return resized;
  };
  /** A map value in [0, 255] -> [r, g, b, alpha] in a colour map of 256 RGB triples; low values are transparent. */
  const heatColor = (value, colors, strength) => {
    const level = Math.min(255, Math.max(0, Math.round(value))), share = level / 255;
    const alpha = 255 * strength * share * share * (3 - 2 * share);
    return [colors[3 * level], colors[3 * level + 1], colors[3 * level + 2], alpha];
  };
  /** Fill a canvas with `colorOf(pixel index)` -> [r, g, b, alpha]; returns the canvas. */
  const paint = (canvas, colorOf) => {
    const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
    for (let i = 0; i < canvas.width * canvas.height; i++) image.data.set(colorOf(i), 4 * i);
    context.putImageData(image, 0, 0);
    return canvas;
  };

  // --- marks: SVG elements in pixels of the original image ---
  /** Circles of a point from the outside in: [share of the radius, colour]. */
  const pointRings = [[1.15, "#18181b"], [1, "#fff"], [0.66, "#e69f00"]];
  const drawPoint = ([cx, cy], radius) => {
    const group = createSvg("g", { class: "mark-point" });
    for (const [share, fill] of pointRings) group.append(createSvg("circle", { cx, cy, r: radius * share, fill }));
    return group;
  };
  const drawBox = ([x1, y1, x2, y2], className) => {
    const group = createSvg("g", { class: className });
    for (const layer of ["under", "over"]) {
      group.append(createSvg("rect", { class: layer, x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1) }));
    }
    return group;
  };
  /** A legend entry: a swatch of a CSS colour and the class name. */
  const legendEntry = (name, fill) => {
    const entry = create("span"), swatch = createSvg("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" });
    swatch.append(createSvg("rect", { width: 12, height: 12, rx: 2, fill }));
    entry.append(swatch, name);
    return entry;
  };

  return {
    find, findAll, create, createSvg, decodeBase64, root,
    cubic, linear, resizeMap, heatColor, paint, pointRings, drawPoint, drawBox, legendEntry,
  };
})();
