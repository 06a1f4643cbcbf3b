"use strict";
/** What the report and the page of the service share: their look, and how maps and boxes are drawn. */
const wildcat = (() => {
  const find = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (tag, className = "", content = "") => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (content) element.textContent = content; // never innerHTML: names come from files
    return element;
  };
  const drawing = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const remember = (name, value) => {
    try {
      if (value === undefined) return localStorage.getItem(name);
      localStorage.setItem(name, value);
    } catch { /* a page opened from disk may have no memory */ }
    return null;
  };

  // --- light and dark ---
  const root = document.documentElement, theme = find("#theme");
  const night = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : night.matches);
  const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  const kept = remember("wildcat-theme");
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  theme.hidden = false;
  theme.setAttribute("aria-label", "Switch between light and dark");
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember("wildcat-theme", root.dataset.theme);
    nameTheme();
  });
  night.addEventListener("change", nameTheme);
  nameTheme();

  // --- from cells to pixels ---
  /** Weights of four neighbours at a fraction between the middle two (Keys' cubic, a = -1/2). */
  const cubic = (t) => [
    ((-0.5 * t + 1) * t - 0.5) * t, (1.5 * t - 2.5) * t * t + 1, ((-1.5 * t + 2) * t + 0.5) * t, (0.5 * t - 0.5) * t * t,
  ];
  /** (rows, columns) of cells -> (height, width), cell centres to where they lie; the edge value holds beyond them. */
  const enlarge = (cells, [rows, columns], height, width, kernel) => {
    const clamp = (i, n) => Math.min(Math.max(i, 0), n - 1);
    const across = new Float32Array(rows * width), result = new Float32Array(height * width);
    for (let x = 0; x < width; x++) {
      const at = ((x + 0.5) * columns) / width - 0.5, left = Math.floor(at), weights = kernel(at - left);
      for (let y = 0; y < rows; y++) {
        for (let k = 0; k < 4; k++) across[y * width + x] += weights[k] * cells[y * columns + clamp(left - 1 + k, columns)];
      }
    }
    for (let y = 0; y < height; y++) {
      const at = ((y + 0.5) * rows) / height - 0.5, top = Math.floor(at), weights = kernel(at - top);
      for (let x = 0; x < width; x++) {
        for (let k = 0; k < 4; k++) result[y * width + x] += weights[k] * across[clamp(top - 1 + k, rows) * width + x];
      }
    }
    return result;
  };
  /** A value from 0, the lowest, to 255 -> [r, g, b, alpha]: clear where it is cold. */
  const heatColor = (value, colors, strength) => {
    const level = Math.min(255, Math.max(0, Math.round(value))), share = level / 255;
    const alpha = 255 * strength * share * share * (3 - 2 * share);
    return [colors[3 * level], colors[3 * level + 1], colors[3 * level + 2], alpha];
  };
  const painted = (canvas, colorOf) => { // colorOf: pixel -> [r, g, b, alpha]
    const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
    for (let i = 0; i < canvas.width * canvas.height; i++) image.data.set(colorOf(i), 4 * i);
    context.putImageData(image, 0, 0);
    return canvas;
  };
  const boxOf = ([x1, y1, x2, y2], className) => {
    const group = drawing("g", { class: className });
    for (const layer of ["under", "over"]) {
      group.append(drawing("rect", { class: layer, x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1) }));
    }
    return group;
  };
  return { find, all, make, drawing, bytes, cubic, enlarge, heatColor, painted, boxOf, root };
})();
