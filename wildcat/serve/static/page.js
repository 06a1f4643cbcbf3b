"use strict";
(() => {
  const {
    find, findAll, create, createSvg, decodeBase64, root,
    cubic, linear, resizeMap, heatColor, paint, pointRings, drawPoint, drawBox, legendEntry,
  } = wildcat;
  const LISTED_CLASSES = 60, MAP_SIDE = 320, STAGE_SIDE = 480, THUMBNAIL_SIDE = 120, CRF_SIDE = 1000, DOWNLOAD_SIDE = 4096;
  const UNREACHABLE = "The service does not respond. Is it still running?";
  const percent = (value) => `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)} %`;
  const number = (value) => value.toLocaleString("en");
  const cssColor = (color) => `#${color.map((v) => v.toString(16).padStart(2, "0")).join("")}`;

  // --- status and requests ---
  const setStatus = (text, isError = false) => {
    find("#status").textContent = text;
    find("#status").classList.toggle("bad", isError);
  };
  const showError = (error) => { if (error.name !== "AbortError") setStatus(error.message, true); };
  /** Request a path relative to the page: a proxy may serve it below a prefix. */
  const request = async (path, options) => {
    let response;
    try {
      response = await fetch(path, options);
    } catch (error) {
      throw error.name === "AbortError" ? error : new Error(UNREACHABLE);
    }
    if (response.ok) return response;
    const proxy = { // the service itself answers with JSON
      detail: `the proxy before the service answered with status ${response.status}.`,
      hint: response.status === 413 ? "Its limit for uploads is too low for this image." : "",
    };
    const { detail, hint } = await response.json().catch(() => proxy);
    throw new Error(`${detail.charAt(0).toUpperCase()}${detail.slice(1)} ${hint}`);
  };
  const post = (path, image, signal) => {
    const body = new FormData();
    body.append("image", image, image.name || "pasted.png");
    return request(path, { method: "POST", body, signal });
  };
  /** Run `task(signal)`; a later task aborts it. */
  let currentTask = null;
  const runTask = async (text, task, onError = () => {}) => {
    currentTask?.abort();
    const controller = (currentTask = new AbortController());
    setStatus(text);
    document.body.classList.add("loading");
    try {
      await task(controller.signal);
    } catch (error) {
      if (error.name !== "AbortError") onError();
      showError(error);
    } finally {
      if (currentTask === controller) {
        currentTask = null;
        document.body.classList.remove("loading");
      }
    }
  };

  // --- state ---
  let model, colormaps, maskColors;
  let file = null, row = null, photo = null; // the uploaded file, its prediction, and the <img> to draw on
  let selected = "", shown = "", modality = -1; // class names: clicked, and under the pointer; -1 is the class map
  let threshold = null; // of the mask; null: the model's own
  let refined = null; // the mask after propagation and the CRF: width, height, labels

  // --- the model ---
  const showModel = async () => {
    const [description, colors] = await Promise.all(["model", "static/colors.json"].map((path) => request(path).then((r) => r.json())));
    model = description;
    maskColors = colors.marks;
    colormaps = Object.fromEntries(Object.entries(colors.colormaps).map(([name, text]) => [name, decodeBase64(text)]));
    document.title = `${model.name} · wildcat`;
    find("#name").textContent = model.name;
    find("#endpoint").textContent = new URL("predict", document.baseURI).href;
    const networks = model.members.map((m) => `${m.backbone}, ${m.input_size} px${m.num_maps > 1 ? `, ${m.num_maps} maps per class` : ""}`);
    for (const [name, value] of [
      ["Classes", `${number(model.classes.length)}, ${model.task === "multiclass" ? "one" : "any number"} per image`],
      [networks.length > 1 ? "Networks" : "Network", networks.join("; ")],
      ["Device", model.device], ["wildcat", model.versions.wildcat],
    ]) {
      const entry = create("div");
      entry.append(create("dt", "", name), create("dd", "", value));
      find("#facts").append(entry);
    }
    find("#format").append(...model.annotation_formats.map((name) => create("option", "", name)));
    find("#colormap").append(...Object.keys(colormaps).map((name) => create("option", "", name)));
    find("#propagate-choice").hidden = !model.boundaries;
    setStatus("");
  };
  const modelLoaded = showModel().then(() => true, (error) => { showError(error); return false; });

  // --- maps and masks ---
  /** A canvas in the proportions of the image, no side longer than `side` or the image's own. */
  const createCanvas = (className, side) => {
    const scale = Math.min(1, side / Math.max(row.width, row.height)), canvas = create("canvas", className);
    canvas.width = Math.max(1, Math.round(row.width * scale));
    canvas.height = Math.max(1, Math.round(row.height * scale));
    return canvas;
  };
  const drawHeatmap = (name, map, { className = "", side = MAP_SIDE, strength = 1 } = {}) => {
    const cells = row.cells.classes[name], colors = colormaps[find("#colormap").value], canvas = createCanvas(className, side);
    const levels = decodeBase64(map < 0 ? cells.map : cells.modalities[map]);
    const heat = resizeMap(levels, row.cells.grid, canvas.height, canvas.width, cubic);
    return paint(canvas, (i) => heatColor(heat[i], colors, strength));
  };
  const comparesScores = () => row.cells.mask.rule === "score"; // the other rules divide each map by its maximum
  const currentThreshold = () => threshold ?? row.cells.mask.threshold;
  const labelOf = (name) => model.classes.indexOf(name) + 1;
  /** Label of each pixel, 0 is background; the same as `Prediction.mask`. */
  const computeMask = (height, width) => {
    const labels = new Uint16Array(height * width), best = new Float32Array(height * width).fill(currentThreshold());
    for (const name of row.cells.mask.classes) {
      const { map, low, high } = row.cells.classes[name];
      const values = resizeMap(decodeBase64(map), row.cells.grid, height, width, linear).map((v) => low + (v / 255) * (high - low));
      const scale = comparesScores() ? 1 : values.reduce((a, b) => Math.max(a, b), 0);
      if (scale > 0) values.forEach((v, i) => { if (v / scale > best[i]) { best[i] = v / scale; labels[i] = labelOf(name); } });
    }
    return labels;
  };
  /** Nearest-neighbour resize of a mask. */
  const resizeMask = (mask, height, width) => {
    const labels = new Uint16Array(height * width);
    for (let y = 0, i = 0; y < height; y++) {
      const start = Math.floor(((y + 0.5) * mask.height) / height) * mask.width;
      for (let x = 0; x < width; x++, i++) labels[i] = mask.labels[start + Math.floor(((x + 0.5) * mask.width) / width)];
    }
    return labels;
  };
  const colorsByLabel = () => new Map(row.cells.mask.classes.map((name, i) => [labelOf(name), maskColors[i % maskColors.length]]));
  const drawMask = (side) => {
    const canvas = createCanvas("mask", side), { width, height } = canvas, colors = colorsByLabel();
    const labels = refined ? resizeMask(refined, height, width) : computeMask(height, width);
    return paint(canvas, (i) => { const color = colors.get(labels[i]); return color ? [...color, 255] : [0, 0, 0, 0]; });
  };

  // --- drawing ---
  const layer = () => document.body.dataset.layer;
  const pointRadius = () => 0.02 * Math.sqrt(row.width * row.height);
  const drawMarks = (name) => {
    const svg = createSvg("svg", { viewBox: `0 0 ${row.width} ${row.height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    for (const box of row.boxes[name] ?? []) svg.append(drawBox(box, "mark-box"));
    svg.append(drawPoint(row.points[name], pointRadius()));
    return svg;
  };
  const drawStage = () => {
    if (!row) return;
    const stage = find("#stage"), { opacity } = row.cells.classes[shown], maskClasses = row.cells.mask.classes;
    stage.replaceChildren(photo);
    if (layer() === "heat") {
      const strength = modality < 0 ? Math.max(opacity, 0.35) : 1;
      stage.append(drawHeatmap(shown, modality, { side: STAGE_SIDE, strength }), drawMarks(shown));
    }
    if (layer() === "mask") stage.append(drawMask(STAGE_SIDE));
    const [x, y] = row.points[shown], mapName = modality < 0 ? "" : `, map ${modality + 1}`;
    find("#caption").textContent = layer() !== "mask"
      ? `${shown}${mapName}: ${percent(row.probabilities[shown])}, point at (${x.toFixed(0)}, ${y.toFixed(0)})`
      : maskClasses.length ? "" : "No class is probable enough for a mask.";
    const legend = find("#legend"), colors = colorsByLabel();
    legend.hidden = layer() !== "mask" || !maskClasses.length;
    legend.replaceChildren(...maskClasses.map((name) => legendEntry(name, cssColor(colors.get(labelOf(name))))));
    for (const button of findAll(".row")) {
      button.classList.toggle("current", button.dataset.name === shown && layer() !== "mask");
      button.setAttribute("aria-pressed", button.dataset.name === selected);
    }
  };
  const createModalityButtons = () => {
    const count = row.cells.classes[shown].modalities.length;
    find("#modalities").replaceChildren(...[-1, ...Array(count).keys()].map((map) => {
      const button = create("button"), stage = create("span", "stage"), image = photo.cloneNode();
      image.alt = "";
      button.type = "button";
      button.dataset.modality = map;
      stage.style.aspectRatio = row.width / row.height;
      stage.append(image, create("canvas"));
      button.append(stage, create("span", "label"));
      button.addEventListener("click", () => { modality = map; draw(); });
      return button;
    }));
  };
  const drawModalities = () => {
    const buttons = findAll("#modalities button"), section = find("#modality-section");
    const { shares } = row.cells.classes[shown], count = buttons.length - 1;
    section.hidden = count < 2 || layer() !== "heat"; // a single map is the class map
    if (section.hidden) return;
    find("#modality-title").textContent = `The ${count} maps of ${shown}`;
    find("#modality-note").textContent = shares
      ? "Percent: share of the regions that decide on the class in which the map is the highest."
      : "The maps are alike and drawn once: a model that averages them trains them equally.";
    for (const button of buttons) {
      const map = Number(button.dataset.modality);
      button.hidden = map >= 0 && !shares;
      find(".label", button).textContent = map >= 0 ? `Map ${map + 1}: ${percent(shares?.[map] ?? 0)}` : shares ? "Together" : `Maps 1 to ${count}`;
      find("canvas", button).replaceWith(drawHeatmap(shown, map, { className: "always", side: THUMBNAIL_SIDE }));
      button.setAttribute("aria-pressed", map === modality);
    }
  };
  const draw = () => { drawStage(); drawModalities(); };
  const showClass = (name) => {
    if (name === shown) return;
    shown = name;
    if (!row.cells.classes[shown].shares) modality = -1;
    draw();
  };

  // --- the list of classes ---
  // sorted here: objects list keys such as "7" before others
  const listedClasses = () => Object.keys(row.cells.classes).sort((a, b) => row.scores[b] - row.scores[a]);
  const createClassList = () => {
    const names = listedClasses(), all = model.classes.length;
    find("#classes-note").textContent = names.length < all ? `The ${names.length} most probable of ${number(all)}.`
      : row.labels.length ? "" : "No class is predicted.";
    find("#classes").replaceChildren(...names.map((name, i) => {
      const item = create("li"), button = create("button", row.labels.includes(name) ? "row predicted" : "row");
      const bar = create("span", "length"), filled = create("i");
      button.type = "button";
      button.dataset.name = name;
      button.title = name;
      button.tabIndex = i ? -1 : 0;
      filled.style.width = `${100 * row.probabilities[name]}%`;
      bar.append(filled);
      button.append(create("bdi", "", name), create("span", "num", percent(row.probabilities[name])), bar);
      button.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") showClass(name); });
      button.addEventListener("focus", () => showClass(name));
      button.addEventListener("click", () => { selected = name; showClass(name); drawStage(); });
      item.append(button);
      return item;
    }));
  };
  find("#classes").addEventListener("pointerleave", () => { if (row) showClass(selected); });
  find("#classes").addEventListener("keydown", (event) => {
    const rows = findAll(".row"), index = rows.indexOf(event.target.closest(".row"));
    const next = { ArrowDown: rows[index + 1], ArrowUp: rows[index - 1], Home: rows[0], End: rows.at(-1) }[event.key];
    if (!next) return;
    event.preventDefault();
    for (const other of rows) other.tabIndex = other === next ? 0 : -1;
    next.focus();
  });

  // --- uploads ---
  const loadImage = async (url) => {
    const image = create("img");
    image.src = url;
    image.decoding = "sync";
    image.draggable = false;
    await image.decode();
    return image;
  };
  const setStageSize = (ratio) => {
    const stage = find("#stage");
    stage.style.aspectRatio = ratio;
    stage.style.width = `min(100%, ${62 * ratio}vh)`; // the whole image is visible beside the classes
  };
  let opening = null, outdated = false; // the upload that is being predicted; settings that changed meanwhile
  const open = async (upload) => {
    if (!(await modelLoaded)) return;
    if (upload.size > model.limits.max_mb * 1e6) {
      setStatus(`This file has ${(upload.size / 1e6).toFixed(1)} MB; the limit is ${model.limits.max_mb} MB.`, true);
      return;
    }
    opening = upload;
    await runTask(`Predicting ${upload.name || "the image"} …`, async (signal) => {
      const prediction = await (await post(`predict?cells=${LISTED_CLASSES}`, upload, signal)).json();
      const decoded = async () => loadImage(URL.createObjectURL(await (await post("map?kind=image", upload, signal)).blob()));
      // browsers cannot show TIFF, and show images of more than 8 bits in a range of their own
      const image = model.intensity_range ? await decoded() : await loadImage(URL.createObjectURL(upload)).catch(decoded);
      signal.throwIfAborted();
      if (photo) URL.revokeObjectURL(photo.src);
      [file, row, photo, refined, modality] = [upload, prediction, image, null, -1];
      resetThreshold();
      photo.alt = `${row.image}: ${row.labels.join(", ") || "no class is predicted"}`;
      resetRefinement();
      selected = shown = row.labels[0] ?? listedClasses()[0];
      document.body.classList.add("has-image");
      find("#drop strong").textContent = "Another image:";
      find("#drop span").textContent = "drop, paste or choose a file";
      find("#result").hidden = false;
      setStageSize(row.width / row.height);
      createClassList();
      createModalityButtons();
      draw();
      setStatus(`${row.image}, ${row.width} × ${row.height} pixels`);
    });
    if (opening !== upload) return; // a later one
    opening = null;
    if (file === upload) refineShownMask();
    else if (outdated) updateRefined(); // of the image that stays
    outdated = false;
  };
  const openTransfer = (transfer, message) => {
    if (transfer.files[0]) open(transfer.files[0]);
    else setStatus(message, true);
  };
  find("#file").addEventListener("change", (event) => {
    if (event.target.files[0]) open(event.target.files[0]);
    event.target.value = "";
  });
  document.addEventListener("paste", (event) => openTransfer(event.clipboardData, "The clipboard has no image; URLs are not opened."));
  document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    openTransfer(event.dataTransfer, "Drop an image file; URLs are not opened.");
  });

  // --- overlay settings ---
  for (const choice of findAll("input[name=layer]")) {
    choice.addEventListener("change", () => { document.body.dataset.layer = choice.value; draw(); refineShownMask(); });
  }
  const opacityInput = find("#opacity"), thresholdInput = find("#threshold");
  const setOpacity = () => root.style.setProperty("--opacity", opacityInput.value / 100);
  opacityInput.addEventListener("input", setOpacity);
  setOpacity();
  for (const choice of findAll("[data-show]")) {
    choice.addEventListener("change", () => document.body.classList.toggle(`show-${choice.dataset.show}`, choice.checked));
  }
  find("#colormap").addEventListener("change", draw);
  const showThreshold = () => {
    const value = currentThreshold();
    find("#threshold-value").textContent = comparesScores() ? `score ${value.toFixed(1)}` : `${(100 * value).toFixed(0)} %`;
  };
  /** Move the slider, in percent or raw scores, to the model's own threshold. */
  const resetThreshold = () => {
    threshold = null;
    const value = currentThreshold(), maps = row.cells.mask.classes.map((name) => row.cells.classes[name]);
    thresholdInput.min = comparesScores() ? Math.floor(Math.min(value, ...maps.map((map) => map.low))) : 1;
    thresholdInput.max = comparesScores() ? Math.ceil(Math.max(value, ...maps.map((map) => map.high))) : 95;
    thresholdInput.step = comparesScores() ? 0.1 : 1;
    thresholdInput.value = comparesScores() ? value : 100 * value;
    showThreshold();
  };
  thresholdInput.addEventListener("input", () => {
    threshold = thresholdInput.value / (comparesScores() ? 1 : 100);
    showThreshold();
    if (!refines()) drawStage();
  });

  // --- propagation and the CRF, computed by the service ---
  const crfInput = find("#crf"), propagateInput = find("#propagate");
  const refines = () => crfInput.checked || propagateInput.checked || Boolean(row?.cells.mask.superpixels);
  const refinementQuery = () => `crf=${crfInput.checked}&propagate=${propagateInput.checked}${threshold === null ? "" : `&threshold=${threshold}`}`;
  const resetRefinement = () => {
    crfInput.checked = model.crf;
    propagateInput.checked = model.propagate;
  };
  /** Colour of an index in the VOC palette, as one number. */
  const paletteColor = (index) => {
    let color = 0;
    for (let level = 0; level < 3; level++) {
      for (let channel = 0; channel < 3; channel++) color |= ((index >> (3 * level + channel)) & 1) << (7 - level + 8 * channel);
    }
    return color;
  };
  const decodeMask = async ({ files, mask_values: values }) => {
    const image = await loadImage(files.masks), canvas = create("canvas"), context = canvas.getContext("2d");
    const [width, height] = [(canvas.width = image.naturalWidth), (canvas.height = image.naturalHeight)];
    context.drawImage(image, 0, 0);
    const { data } = context.getImageData(0, 0, width, height), labels = new Uint16Array(width * height);
    const labelByColor = new Map(Object.entries(values).map(([name, value]) => [paletteColor(value), labelOf(name)]));
    for (let i = 0; i < labels.length; i++) labels[i] = labelByColor.get(data[4 * i] | (data[4 * i + 1] << 8) | (data[4 * i + 2] << 16)) ?? 0;
    return { width, height, labels };
  };
  const drawPhoto = (canvas) => {
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(photo, 0, 0, canvas.width, canvas.height);
    return context;
  };
  const toBlob = (canvas) => new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  /** The image for the service, at most as large as a screen shows it. */
  const reducedFile = async () => {
    if (Math.max(row.width, row.height) <= CRF_SIDE) return file;
    const canvas = createCanvas("", CRF_SIDE);
    drawPhoto(canvas);
    return new File([await toBlob(canvas)], "reduced.png");
  };
  const updateRefined = async () => {
    if (opening) {
      outdated = true;
      return;
    }
    refined = null;
    if (!refines()) {
      currentTask?.abort();
      setStatus("");
      drawStage();
      return;
    }
    await runTask("Refining the mask …", async (signal) => {
      const path = `predict?save=masks&${refinementQuery()}`;
      refined = await decodeMask(await (await post(path, await reducedFile(), signal)).json());
      setStatus(`${row.image}, mask refined`);
      drawStage();
    }, () => { crfInput.checked = propagateInput.checked = false; });
  };
  const refineShownMask = () => { if (layer() === "mask" && row && refines() && !refined) updateRefined(); };
  crfInput.addEventListener("change", updateRefined);
  propagateInput.addEventListener("change", updateRefined);
  thresholdInput.addEventListener("change", () => { if (refines()) updateRefined(); });

  // --- downloads ---
  const download = (blob, name) => {
    const link = create("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  };
  const stem = () => row.image.replace(/\.[^.]*$/, "") || "image";
  find("#download-json").addEventListener("click", () => {
    const { cells, ...prediction } = row;
    download(new Blob([`${JSON.stringify(prediction, null, 2)}\n`], { type: "application/json" }), `${stem()}.json`);
  });
  find("#download-png").addEventListener("click", async () => {
    const canvas = createCanvas("", DOWNLOAD_SIDE), context = drawPhoto(canvas), overlay = find("#stage canvas");
    const shows = (marks) => layer() === "heat" && document.body.classList.contains(`show-${marks}`);
    context.globalAlpha = opacityInput.value / 100;
    if (overlay) context.drawImage(overlay, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = 1;
    context.scale(canvas.width / row.width, canvas.width / row.width);
    const lineWidth = 0.005 * Math.sqrt(row.width * row.height);
    for (const [x1, y1, x2, y2] of shows("boxes") ? row.boxes[shown] ?? [] : []) {
      for (const [width, color] of [[2 * lineWidth, "#18181bbf"], [lineWidth, "#e69f00"]]) {
        context.lineWidth = width;
        context.strokeStyle = color;
        context.strokeRect(x1, y1, x2 - x1, y2 - y1);
      }
    }
    for (const [share, color] of shows("points") ? pointRings : []) {
      context.beginPath();
      context.arc(...row.points[shown], pointRadius() * share, 0, 2 * Math.PI);
      context.fillStyle = color;
      context.fill();
    }
    download(await toBlob(canvas), `${stem()}-${layer() === "heat" ? shown : layer()}.png`);
  });
  find("#download-annotations").addEventListener("click", async (event) => {
    const button = event.target, format = find("#format").value, name = `${stem()}-${format}.zip`;
    button.disabled = true;
    try {
      const response = await post(`annotations?format=${encodeURIComponent(format)}&${refinementQuery()}`, file);
      download(await response.blob(), name);
    } catch (error) {
      showError(error);
    } finally {
      button.disabled = false;
    }
  });
})();
