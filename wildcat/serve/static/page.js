"use strict";
(() => {
  const {
    find, findAll: all, create: make, createSvg: drawing, decodeBase64: bytes, cubic, resizeMap: enlarge, heatColor,
    paint: painted, drawBox: boxOf, root,
  } = wildcat;
  const percent = (value) => `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)} %`;
  const hex = (color) => `#${color.map((v) => v.toString(16).padStart(2, "0")).join("")}`;

  // --- talking to the service ---
  const status = find("#status");
  const say = (words, bad = false) => {
    status.textContent = words;
    status.classList.toggle("bad", bad);
  };
  const ask = async (path, file, signal) => {
    const form = new FormData();
    form.append("image", file, file.name || "pasted.png");
    let response;
    try {
      response = await fetch(path, { method: "POST", body: form, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The service does not answer. Is it still running?");
    }
    if (response.ok) return response;
    const { detail = `The service answered ${response.status}.`, hint = "" } = await response.json().catch(() => ({}));
    throw new Error(`${detail.charAt(0).toUpperCase()}${detail.slice(1)} ${hint}`);
  };
  const failed = (error) => { if (error.name !== "AbortError") say(error.message, true); };

  let model, tables, marks;
  const getModel = async () => {
    const [facts, colors] = await Promise.all(["/model", "/static/colors.json"].map((path) => fetch(path).then((r) => r.json())));
    model = facts;
    marks = colors.marks;
    tables = Object.fromEntries(Object.entries(colors.colormaps).map(([name, text]) => [name, bytes(text)]));
    document.title = `${model.name} · wildcat`;
    find("#name").textContent = model.name;
    find("#here").textContent = location.origin;
    const networks = model.members.map((m) => `${m.backbone}, ${m.input_size} px${m.num_maps > 1 ? `, ${m.num_maps} maps a class` : ""}`);
    for (const [name, value] of [
      ["Classes", `${model.classes.length.toLocaleString("en")}${model.task === "multiclass" ? ", one an image" : ", any number an image"}`],
      [networks.length > 1 ? "Networks" : "Network", networks.join("; ")],
      ["Device", model.device], ["wildcat", model.versions.wildcat],
    ]) {
      const pair = make("div");
      pair.append(make("dt", "", name), make("dd", "", value));
      find("#facts").append(pair);
    }
    find("#format").append(...model.annotation_formats.map((name) => make("option", "", name)));
    find("#colormap").append(...Object.keys(tables).map((name) => make("option", "", name)));
    say("");
  };
  /** Whether the model is known; an image that is given before that waits for it. */
  const met = getModel().then(() => true, () => { say("The service does not answer. Is it still running?", true); return false; });

  // --- state ---
  const LISTED = 60, SIDE = 320, CRF_SIDE = 1000;
  let file = null, row = null, photo = null; // what was given, what the service said, the image to draw on
  let pinned = "", current = "", modality = -1; // class names; -1 is the mean of the M maps
  let chosen = null, sharpened = null; // the mask's threshold, null: the model's own; the mask with CRF as class indices
  let running = null; // what is under way

  // --- from cells to pixels ---
  /** Bilinear, as the library makes masks. */
  const linear = (t) => [0, 1 - t, t, 0];
  const canvasOf = (className, side = SIDE) => {
    const scale = Math.min(1, side / Math.max(row.width, row.height)), canvas = make("canvas", className);
    canvas.width = Math.max(1, Math.round(row.width * scale));
    canvas.height = Math.max(1, Math.round(row.height * scale));
    return canvas;
  };
  const heatOf = (name, which, { className = "", side = SIDE, strength = 1 } = {}) => {
    const cells = row.cells.classes[name], colors = tables[find("#colormap").value];
    const canvas = canvasOf(className, side);
    const map = bytes(which < 0 ? cells.map : cells.modalities[which]);
    const heat = enlarge(map, row.cells.grid, canvas.height, canvas.width, cubic);
    return painted(canvas, (i) => heatColor(heat[i], colors, strength));
  };
  const byScore = () => row.cells.mask.rule === "score"; // or each map by its own maximum
  const thresholdNow = () => chosen ?? row.cells.mask.threshold;
  /** The class index + 1 of each pixel, 0 the background, as `Prediction.mask` draws it. */
  const maskOf = (height, width) => {
    const labels = new Uint16Array(height * width), best = new Float32Array(height * width).fill(thresholdNow());
    for (const name of row.cells.mask.classes) {
      const cells = row.cells.classes[name], index = model.classes.indexOf(name) + 1;
      const map = enlarge(bytes(cells.map), row.cells.grid, height, width, linear).map((v) => cells.low + (v / 255) * (cells.high - cells.low));
      const unit = byScore() ? 1 : map.reduce((a, b) => Math.max(a, b), 0);
      if (unit > 0) map.forEach((v, i) => { if (v / unit > best[i]) { best[i] = v / unit; labels[i] = index; } });
    }
    return labels;
  };
  const colorOfLabel = () => new Map(row.cells.mask.classes.map((name, i) => [model.classes.indexOf(name) + 1, marks[i % marks.length]]));
  const maskCanvas = (side = SIDE) => {
    const canvas = canvasOf("mask", side), colors = colorOfLabel();
    let labels;
    if (sharpened) {
      const { width, height } = sharpened;
      labels = new Uint16Array(canvas.width * canvas.height);
      for (let y = 0, i = 0; y < canvas.height; y++) {
        const line = Math.floor(((y + 0.5) * height) / canvas.height) * width;
        for (let x = 0; x < canvas.width; x++, i++) labels[i] = sharpened.labels[line + Math.floor(((x + 0.5) * width) / canvas.width)];
      }
    } else labels = maskOf(canvas.height, canvas.width);
    return painted(canvas, (i) => { const color = colors.get(labels[i]); return color ? [...color, 255] : [0, 0, 0, 0]; });
  };

  // --- drawing ---
  const RINGS = [[1.15, "#18181b"], [1, "#fff"], [0.66, "#e69f00"]];
  const radius = () => 0.02 * Math.sqrt(row.width * row.height);
  const marksOf = (name) => {
    const svg = drawing("svg", { viewBox: `0 0 ${row.width} ${row.height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    for (const box of row.boxes[name] ?? []) svg.append(boxOf(box, "mark-box"));
    const [cx, cy] = row.points[name], point = drawing("g", { class: "mark-point" });
    for (const [part, fill] of RINGS) point.append(drawing("circle", { cx, cy, r: radius() * part, fill }));
    svg.append(point);
    return svg;
  };
  const layer = () => document.body.dataset.layer;
  const draw = () => {
    if (!row) return;
    const stage = find("#stage"), strength = row.cells.classes[current].opacity;
    stage.replaceChildren(photo);
    if (layer() === "heat") stage.append(heatOf(current, modality, { side: 480, strength: modality < 0 ? Math.max(strength, 0.35) : 1 }), marksOf(current));
    if (layer() === "mask") stage.append(maskCanvas(480));
    const [x, y] = row.points[current], which = modality < 0 ? "" : `, map ${modality + 1}`;
    find("#caption").textContent = layer() === "mask" ? (row.cells.mask.classes.length ? "" : "No class is likely enough for a mask.")
      : `${current}${which}: ${percent(row.probabilities[current])}, point at (${x.toFixed(0)}, ${y.toFixed(0)})`;
    const legend = find("#legend"), colors = colorOfLabel();
    legend.hidden = layer() !== "mask" || !row.cells.mask.classes.length;
    legend.replaceChildren(...row.cells.mask.classes.map((name) => {
      const entry = make("span"), swatch = drawing("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" });
      swatch.append(drawing("rect", { width: 12, height: 12, rx: 2, fill: hex(colors.get(model.classes.indexOf(name) + 1)) }));
      entry.append(swatch, name);
      return entry;
    }));
    for (const button of all(".row")) {
      button.classList.toggle("current", button.dataset.name === current && layer() !== "mask");
      button.setAttribute("aria-pressed", button.dataset.name === pinned);
    }
  };
  const fillModalities = () => {
    const count = row.cells.classes[current].modalities.length;
    find("#modalities").replaceChildren(...[-1, ...Array(count).keys()].map((which) => {
      const button = make("button"), stage = make("span", "stage"), image = photo.cloneNode();
      image.alt = "";
      button.type = "button";
      button.dataset.modality = which;
      stage.style.aspectRatio = row.width / row.height;
      stage.append(image, make("canvas"));
      button.append(stage, make("span", "", which < 0 ? "Mean" : `Map ${which + 1}`));
      button.addEventListener("click", () => { modality = which; refresh(); });
      return button;
    }));
  };
  const drawModalities = () => {
    const buttons = all("#modalities button");
    find("#behind").hidden = buttons.length < 3 || layer() !== "heat";
    if (find("#behind").hidden) return;
    find("#behind-name").textContent = `The ${buttons.length - 1} maps behind ${current}`;
    for (const button of buttons) {
      const which = Number(button.dataset.modality);
      find("canvas", button).replaceWith(heatOf(current, which, { className: "always", side: 120 }));
      button.setAttribute("aria-pressed", which === modality);
    }
  };
  const refresh = () => { draw(); drawModalities(); };
  const look = (name) => { if (name !== current) { current = name; refresh(); } };

  const fillClasses = () => {
    const names = Object.keys(row.cells.classes).sort((a, b) => row.scores[b] - row.scores[a]);
    const rest = model.classes.length - names.length;
    find("#classes-note").textContent = rest > 0 ? `The ${names.length} likeliest of ${model.classes.length.toLocaleString("en")}.` : row.labels.length ? "" : "None reaches 50 %.";
    find("#classes").replaceChildren(...names.map((name, i) => {
      const item = make("li"), button = make("button", row.labels.includes(name) ? "row predicted" : "row");
      const length = make("span", "length"), bar = make("i");
      button.type = "button";
      button.dataset.name = name;
      button.title = name;
      button.tabIndex = i ? -1 : 0;
      bar.style.width = `${100 * row.probabilities[name]}%`;
      length.append(bar);
      button.append(make("bdi", "", name), make("span", "num", percent(row.probabilities[name])), length);
      button.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") look(name); });
      button.addEventListener("focus", () => look(name));
      button.addEventListener("click", () => { pinned = name; look(name); draw(); });
      item.append(button);
      return item;
    }));
  };
  find("#classes").addEventListener("pointerleave", () => { if (row) look(pinned); });
  find("#classes").addEventListener("keydown", (event) => {
    const rows = all(".row"), here = rows.indexOf(event.target.closest(".row"));
    const next = { ArrowDown: rows[here + 1], ArrowUp: rows[here - 1], Home: rows[0], End: rows.at(-1) }[event.key];
    if (!next) return;
    event.preventDefault();
    for (const other of rows) other.tabIndex = other === next ? 0 : -1;
    next.focus();
  });

  // --- a new image ---
  const shown = async (source) => {
    const image = make("img");
    image.src = URL.createObjectURL(source);
    image.decoding = "sync";
    image.draggable = false;
    await image.decode();
    return image;
  };
  const sized = (ratio) => {
    const stage = find("#stage");
    stage.style.aspectRatio = ratio;
    stage.style.width = `min(100%, ${62 * ratio}vh)`; // all of it is seen beside the classes
  };
  const open = async (given) => {
    if (!(await met)) return;
    if (given.size > model.limits.max_mb * 1e6) {
      say(`This file has ${(given.size / 1e6).toFixed(1)} MB; at most ${model.limits.max_mb} MB are read here.`, true);
      return;
    }
    running?.abort();
    const mine = (running = new AbortController());
    say(`Looking at ${given.name || "the image"} …`);
    document.body.classList.add("waiting");
    try {
      const answer = await (await ask(`/predict?cells=${LISTED}`, given, mine.signal)).json();
      const image = await shown(given).catch(async () => shown(await (await ask("/map?kind=image", given, mine.signal)).blob()));
      if (photo) URL.revokeObjectURL(photo.src);
      [file, row, photo, sharpened, modality] = [given, answer, image, null, -1];
      resetThreshold();
      photo.alt = `${row.image}: ${row.labels.join(", ") || "no class is predicted"}`;
      find("#crf").checked = false;
      pinned = current = row.labels[0] ?? Object.keys(row.cells.classes)[0];
      document.body.classList.add("has-image");
      find("#drop strong").textContent = "Another image:";
      find("#drop span").textContent = "drop, paste or choose a file";
      find("#result").hidden = false;
      sized(row.width / row.height);
      fillClasses();
      fillModalities();
      refresh();
      say(`${row.image}, ${row.width} × ${row.height} pixels`);
    } catch (error) {
      failed(error);
    } finally {
      if (running === mine) {
        running = null;
        document.body.classList.remove("waiting");
      }
    }
  };
  find("#file").addEventListener("change", (event) => {
    if (event.target.files[0]) open(event.target.files[0]);
    event.target.value = "";
  });
  document.addEventListener("paste", (event) => {
    const [pasted] = event.clipboardData.files;
    if (pasted) open(pasted);
    else say("There is no image to paste; addresses are never opened.", true);
  });
  document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    const [dropped] = event.dataTransfer.files;
    if (dropped) open(dropped);
    else say("Drop the file of an image; addresses are never opened.", true);
  });

  // --- tools ---
  for (const choice of all("input[name=layer]")) {
    choice.addEventListener("change", () => { document.body.dataset.layer = choice.value; refresh(); });
  }
  const opacity = find("#opacity");
  const setOpacity = () => root.style.setProperty("--opacity", opacity.value / 100);
  opacity.addEventListener("input", setOpacity);
  setOpacity();
  for (const choice of all("[data-show]")) {
    choice.addEventListener("change", () => document.body.classList.toggle(`show-${choice.dataset.show}`, choice.checked));
  }
  find("#colormap").addEventListener("change", refresh);
  const threshold = find("#threshold"), crf = find("#crf");
  const sayThreshold = () => {
    find("#threshold-said").textContent = byScore() ? `score ${thresholdNow().toFixed(1)}` : `${(100 * thresholdNow()).toFixed(0)} %`;
  };
  /** The slider, in percent or in scores, where the model's own threshold is. */
  const resetThreshold = () => {
    chosen = null;
    const own = thresholdNow(), maps = row.cells.mask.classes.map((name) => row.cells.classes[name]);
    threshold.min = byScore() ? Math.floor(Math.min(own, ...maps.map((cells) => cells.low))) : 1;
    threshold.max = byScore() ? Math.ceil(Math.max(own, ...maps.map((cells) => cells.high))) : 95;
    threshold.step = byScore() ? 0.1 : 1;
    threshold.value = byScore() ? own : 100 * own;
    sayThreshold();
  };
  threshold.addEventListener("input", () => {
    chosen = threshold.value / (byScore() ? 1 : 100);
    sayThreshold();
    if (!crf.checked) draw();
  });

  /** The color of an index in VOC's palette, as one number. */
  const paletteColor = (index) => {
    let color = 0;
    for (let level = 0; level < 3; level++) {
      for (let channel = 0; channel < 3; channel++) color |= ((index >> (3 * level + channel)) & 1) << (7 - level + 8 * channel);
    }
    return color;
  };
  const labelsOf = async (answer) => {
    const image = make("img");
    image.src = answer.files.masks;
    await image.decode();
    const canvas = make("canvas"), [width, height] = [image.naturalWidth, image.naturalHeight];
    [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const { data } = context.getImageData(0, 0, width, height), labels = new Uint16Array(width * height);
    const known = new Map(Object.entries(answer.mask_values).map(([name, value]) => [paletteColor(value), model.classes.indexOf(name) + 1]));
    for (let i = 0; i < labels.length; i++) labels[i] = known.get(data[4 * i] | (data[4 * i + 1] << 8) | (data[4 * i + 2] << 16)) ?? 0;
    return { width, height, labels };
  };
  /** The image as the CRF is given it: no larger than a screen shows. */
  const small = async () => {
    if (Math.max(row.width, row.height) <= CRF_SIDE) return file;
    const canvas = canvasOf("", CRF_SIDE), context = canvas.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(photo, 0, 0, canvas.width, canvas.height);
    return new File([await new Promise((done) => canvas.toBlob(done, "image/png"))], "small.png");
  };
  const sharpen = async () => {
    running?.abort();
    sharpened = null;
    if (!crf.checked) {
      say("");
      draw();
      return;
    }
    const mine = (running = new AbortController());
    say("Sharpening the mask to the edges of the image …");
    document.body.classList.add("waiting");
    try {
      const path = `/predict?save=masks&crf=true${chosen === null ? "" : `&threshold=${chosen}`}`;
      sharpened = await labelsOf(await (await ask(path, await small(), mine.signal)).json());
      say(`${row.image}, mask sharpened`);
      draw();
    } catch (error) {
      if (error.name !== "AbortError") crf.checked = false;
      failed(error);
    } finally {
      if (running === mine) {
        running = null;
        document.body.classList.remove("waiting");
      }
    }
  };
  crf.addEventListener("change", sharpen);
  threshold.addEventListener("change", () => { if (crf.checked) sharpen(); });

  // --- downloads ---
  const give = (blob, name) => {
    const link = make("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  };
  const stem = () => row.image.replace(/\.[^.]*$/, "") || "image";
  find("#get-json").addEventListener("click", () => {
    const { cells, ...plain } = row;
    give(new Blob([`${JSON.stringify(plain, null, 2)}\n`], { type: "application/json" }), `${stem()}.json`);
  });
  find("#get-png").addEventListener("click", () => {
    const canvas = canvasOf("", 4096), context = canvas.getContext("2d"), scale = canvas.width / row.width;
    const shows = (what) => layer() === "heat" && document.body.classList.contains(`show-${what}`);
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(photo, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = opacity.value / 100;
    const over = find("#stage canvas");
    if (over) context.drawImage(over, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = 1;
    context.scale(scale, scale);
    const line = 0.005 * Math.sqrt(row.width * row.height);
    for (const [x1, y1, x2, y2] of shows("boxes") ? row.boxes[current] ?? [] : []) {
      for (const [width, color] of [[2 * line, "#18181bbf"], [line, "#e69f00"]]) {
        context.lineWidth = width;
        context.strokeStyle = color;
        context.strokeRect(x1, y1, x2 - x1, y2 - y1);
      }
    }
    for (const [part, color] of shows("points") ? RINGS : []) {
      context.beginPath();
      context.arc(...row.points[current], radius() * part, 0, 2 * Math.PI);
      context.fillStyle = color;
      context.fill();
    }
    canvas.toBlob((blob) => give(blob, `${stem()}-${layer() === "heat" ? current : layer()}.png`), "image/png");
  });
  find("#get-annotations").addEventListener("click", async (event) => {
    const button = event.target, format = find("#format").value;
    button.disabled = true;
    try {
      const answer = await ask(`/annotations?format=${encodeURIComponent(format)}`, file);
      give(await answer.blob(), `${stem()}-${format}.zip`);
    } catch (error) {
      failed(error);
    } finally {
      button.disabled = false;
    }
  });
})();
