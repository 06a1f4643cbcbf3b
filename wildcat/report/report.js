"use strict";
(() => {
  const {
    find, findAll, create, createSvg, decodeBase64, cubic, resizeMap, heatColor, paint, drawPoint, drawBox, legendEntry, root,
  } = wildcat;

  // --- sortable tables ---
  const sortBy = (table, column, head) => {
    const ascending = column === 0 ? head.ariaSort !== "ascending" : head.ariaSort === "descending";
    const key = (row) => {
      const cell = row.children[column];
      return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
    };
    const rows = findAll("tbody tr", table).sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      return (ascending ? 1 : -1) * (typeof x === "number" ? x - y : x.localeCompare(y));
    });
    for (const other of findAll("thead th", table)) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    find("tbody", table).append(...rows);
  };
  for (const table of findAll("table.sortable")) {
    findAll("thead th", table).forEach((head, column) => {
      const button = create("button", "", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      button.addEventListener("click", () => sortBy(table, column, head));
    });
  }

  // --- drawing: `card` is an Example and `image` a Thumbnail of gallery.py, as JSON ---
  const store = JSON.parse(find("#store").textContent);
  if (!store.cards.length) return;
  const colormaps = Object.fromEntries(Object.entries(store.colormaps).map(([name, text]) => [name, decodeBase64(text)]));
  const canvases = new Map(); // canvas -> its map, to repaint it with another colour map
  let colormap = Object.keys(colormaps)[0];

  const repaint = (canvas) => {
    const { map, grid, strength } = canvases.get(canvas);
    const colors = colormaps[colormap], heat = resizeMap(decodeBase64(map), grid, canvas.height, canvas.width, cubic);
    paint(canvas, (i) => heatColor(heat[i], colors, strength));
  };
  const createHeat = (card, map, className, strength = 1) => {
    const [width, height] = store.images[card.image].size, scale = 160 / Math.max(width, height);
    const canvas = create("canvas", className);
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    canvases.set(canvas, { map, grid: card.grid, strength });
    repaint(canvas);
    return canvas;
  };
  const createImage = (source, className = "", alt = "") => {
    const element = create("img", className);
    element.src = source;
    element.alt = alt;
    element.decoding = "sync"; // otherwise the heatmap can appear before its image
    element.draggable = false;
    return element;
  };
  const createMarks = (card, { predictions = true, size = 0.024 } = {}) => {
    const [width, height] = store.images[card.image].size;
    const svg = createSvg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    for (const box of card.truth_boxes ?? []) svg.append(drawBox(box, box[4] ? "mark-truth difficult" : "mark-truth"));
    if (predictions) {
      for (const box of card.boxes) svg.append(drawBox(box, "mark-box"));
      svg.append(drawPoint(card.point, size * Math.sqrt(width * height)));
    }
    return svg;
  };
  /** The image with all its layers; style rules show the chosen ones. */
  const createStage = (card, { alt = "", size = 0.024, strength = 1 } = {}) => {
    const image = store.images[card.image], stage = create("span", "stage");
    stage.append(createImage(image.src, "", alt), createHeat(card, card.heat, "", strength));
    if (image.mask) stage.append(createImage(image.mask, "mask"));
    stage.append(createMarks(card, { size }));
    return stage;
  };

  // --- cards: drawn when they scroll into view ---
  const buttons = findAll(".card");
  const cardOf = (button) => store.cards[Number(button.dataset.card)];
  const narrow = matchMedia("(max-width: 40rem)");
  const resizeCard = (button) => {
    const [width, height] = store.images[cardOf(button).image].size;
    const scale = narrow.matches ? Math.min(118 / height, 210 / width) : Math.min(150 / height, 260 / width);
    const shown = Math.round(width * scale), stage = find(".stage", button);
    button.style.width = `${Math.max(shown, narrow.matches ? 92 : 112)}px`;
    if (stage) {
      stage.style.width = `${shown}px`;
      stage.style.height = `${Math.round(height * scale)}px`;
    }
  };
  const drawCard = (button) => {
    if (find(".stage", button)) return;
    find(".frame", button).append(createStage(cardOf(button), { size: 0.045, strength: cardOf(button).opacity }));
    resizeCard(button);
  };
  buttons.forEach(resizeCard);
  narrow.addEventListener("change", () => buttons.forEach(resizeCard));
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      observer.unobserve(entry.target);
      drawCard(entry.target);
    }
  }, { rootMargin: "600px" });
  for (const button of buttons) observer.observe(button);
  addEventListener("beforeprint", () => buttons.forEach(drawCard));

  // --- long lists of examples: the first 12, and a button for the rest ---
  const FIRST = 12;
  for (const list of findAll(".examples")) {
    const rest = [...list.children].slice(FIRST);
    if (rest.length < 2) continue;
    for (const item of rest) item.hidden = true;
    const item = create("li", "more"), button = create("button", "", `Show ${rest.length} more`);
    button.type = "button";
    item.append(button);
    list.append(item);
    button.addEventListener("click", () => {
      item.remove();
      for (const other of rest) other.hidden = false;
      find(".card", rest[0]).focus();
    });
  }

  // --- tools: layers, opacity, colour map, class ---
  const select = find("#colormap"), slider = find("#opacity"), jump = find("#jump");
  for (const name of Object.keys(colormaps)) select.append(new Option(name, name));
  select.addEventListener("change", () => {
    colormap = select.value;
    for (const canvas of canvases.keys()) repaint(canvas);
  });
  slider.addEventListener("input", () => root.style.setProperty("--opacity", slider.value / 100));
  for (const input of findAll("input[name=layer]")) {
    input.addEventListener("change", () => { document.body.dataset.layer = input.value; });
  }
  for (const input of findAll("input[data-show]")) {
    input.addEventListener("change", () => document.body.classList.toggle(`show-${input.dataset.show}`, input.checked));
  }
  if (!store.cards.some((card) => card.truth_boxes)) find("input[data-show=truth]").closest("label").hidden = true;
  if (!store.images.some((image) => image.mask)) find("input[value=mask]").closest("label").hidden = true;
  jump.addEventListener("change", () => {
    const section = document.getElementById(jump.value);
    if (!section) return;
    section.scrollIntoView();
    find(".card", section)?.focus({ preventScroll: true });
    jump.value = "";
  });

  // --- keyboard: the Tab key stops once per list, the arrow keys move within and between lists ---
  const visibleButtons = (within = document) => findAll(".card", within).filter((button) => !button.closest("li").hidden);
  for (const list of findAll(".examples")) findAll(".card", list).forEach((button, i) => { button.tabIndex = i ? -1 : 0; });
  const focusOn = (button) => {
    if (!button) return;
    for (const other of findAll(".card", button.closest(".examples"))) other.tabIndex = other === button ? 0 : -1;
    drawCard(button);
    button.focus();
  };
  const nextButton = (from, key) => {
    const list = visibleButtons(from.closest(".examples")), every = visibleButtons(), index = every.indexOf(from);
    if (key === "Home") return list[0];
    if (key === "End") return list.at(-1);
    if (key === "ArrowLeft") return every[index - 1];
    if (key === "ArrowRight") return every[index + 1];
    // up and down: the horizontally nearest card in the nearest line of cards
    const direction = key === "ArrowUp" ? -1 : 1, { top, left } = from.getBoundingClientRect();
    const beyond = every.slice(Math.max(0, index - 60), index + 60)
      .map((button) => ({ button, place: button.getBoundingClientRect() }))
      .map(({ button, place }) => ({ button, distance: direction * (place.top - top), offset: Math.abs(place.left - left) }))
      .filter((other) => other.distance > 20);
    const nearest = Math.min(...beyond.map((other) => other.distance));
    return beyond.filter((other) => other.distance - nearest < 20).sort((a, b) => a.offset - b.offset)[0]?.button;
  };
  find("#gallery").addEventListener("keydown", (event) => {
    const button = event.target.closest(".card");
    if (!button || event.altKey || event.ctrlKey || event.metaKey) return;
    if (!["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) return;
    event.preventDefault();
    focusOn(nextButton(button, event.key));
  });

  // --- viewer: one example enlarged, with its modality maps and the ground truth ---
  const viewer = find("#viewer"), tools = find("#tools");
  let current = null; // the button of the example in the viewer
  const createFigure = (stage, caption) => {
    const figure = create("figure");
    figure.append(stage, create("figcaption", "", caption));
    return figure;
  };
  const sizeStage = (stage, image, maxHeight) => { // maxHeight: percent of the window, 0 for no limit
    const ratio = image.size[0] / image.size[1];
    stage.style.aspectRatio = ratio;
    stage.style.width = maxHeight ? `min(100%, ${maxHeight * ratio}vh)` : "100%";
    return stage;
  };
  const createTruth = (card, image) => {
    if (!image.truth && !card.truth_boxes?.length) return null;
    const stage = create("span", "stage truth-stage");
    const present = image.present.length ? image.present.join(", ") : "none of the classes";
    stage.append(createImage(image.src, "", `${image.name}, ground truth: ${present}`));
    if (image.truth) stage.append(createImage(image.truth, "mask always"));
    stage.append(createMarks(card, { predictions: false }));
    const shown = [image.truth && "mask", card.truth_boxes?.length && `boxes of ${card.class_name}`].filter(Boolean);
    return createFigure(sizeStage(stage, image, 56), `Ground truth: ${shown.join(" and ")}`);
  };
  const mapNames = (card) => card.shares?.map((share, i) => `Map ${i + 1}: ${share} %`) ?? [`Maps 1 to ${card.num_maps}`];
  const createModalities = (card, image) => {
    const row = create("div", "modalities");
    card.modalities.forEach((map, i) => {
      const stage = create("span", "stage"), alt = `${mapNames(card)[i]} of ${card.class_name}`;
      stage.append(createImage(image.src, "", alt), createHeat(card, map, "always"));
      row.append(createFigure(sizeStage(stage, image, 0), mapNames(card)[i]));
    });
    return row;
  };
  const createFacts = (card, image) => {
    const place = card.point_inside === null ? "" : card.point_inside ? ", inside a true box" : ", outside the true boxes";
    const rows = [
      ["Verdict", card.verdict], ["Probability", `${(100 * card.probability).toFixed(1)} %`], ["Score", card.score.toFixed(2)],
      ["Point", `(${card.point.join(", ")})${place}`],
      ["Predicted", image.predicted.map(([name, p]) => `${name} ${(100 * p).toFixed(0)} %`).join(", ") || "nothing"],
    ];
    if (image.present) rows.push(["Ground truth", image.present.join(", ") || "nothing"]);
    rows.push(["Image", `${image.size[0]} × ${image.size[1]} px`]);
    const facts = create("dl", "facts");
    for (const [name, value] of rows) {
      const pair = create("div");
      pair.append(create("dt", "", name), create("dd", "", value));
      facts.append(pair);
    }
    return facts;
  };
  const show = (button) => {
    current = button;
    const card = cardOf(button), image = store.images[card.image], body = find("#viewer-body");
    for (const canvas of findAll("canvas", body)) canvases.delete(canvas);
    find("#viewer-title").textContent = `${card.class_name} · ${image.name}`;
    const pair = create("div", "pair"), truth = createTruth(card, image);
    const caption = card.opacity < 1 ? "Prediction; at full opacity although the class is not predicted" : "Prediction";
    pair.append(createFigure(sizeStage(createStage(card, { alt: card.description }), image, 56), caption));
    if (truth) pair.append(truth);
    body.replaceChildren(pair);
    if (image.legend.length) {
      const legend = create("p", "legend");
      legend.append(...image.legend.map(([name, color]) => legendEntry(name, color)));
      body.append(legend);
    }
    if (card.num_maps > 1) {
      const note = card.shares
        ? "On one scale. Percent: share of the regions that decide on the class in which the map is the highest."
        : "The maps are alike and drawn once: a model that averages them trains them equally.";
      body.append(create("h3", "", `The ${card.num_maps} modality maps`), create("p", "", note), createModalities(card, image));
    }
    body.append(createFacts(card, image));
    if (!viewer.open) {
      find("#viewer-tools").append(tools);
      viewer.showModal();
      find("#next").focus();
    }
    viewer.scrollTop = 0;
  };
  const move = (offset) => {
    const every = visibleButtons(), next = every[every.indexOf(current) + offset];
    if (next) show(next);
  };
  const close = () => {
    if (!current) return;
    const last = current;
    current = null;
    viewer.close();
    find("#tools-home").append(tools);
    focusOn(last);
  };
  for (const button of buttons) button.addEventListener("click", () => show(button));
  find("#previous").addEventListener("click", () => move(-1));
  find("#next").addEventListener("click", () => move(1));
  find("#close").addEventListener("click", close);
  viewer.addEventListener("click", (event) => { if (event.target === viewer) close(); });
  viewer.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      event.preventDefault();
      move(event.key === "ArrowLeft" ? -1 : 1);
    }
  });
  viewer.addEventListener("close", close); // the Escape key
  if (/^#view-\d+$/.test(location.hash)) { // report.html#view-3 opens the example with that number
    const linked = find(`.card[data-card="${location.hash.slice(6)}"]`);
    if (linked) show(linked);
  }
})();
