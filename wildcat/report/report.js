"use strict";
(() => {
  const {
    find, findAll, create, createSvg, decodeBase64, cubic, resizeMap, heatColor, paint, drawPoint, drawBox, legendEntry, root,
  } = wildcat;

  // --- tables that sort ---
  for (const table of findAll("table.sortable")) {
    findAll("thead th", table).forEach((head, column) => {
      const button = create("button", "", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const rising = column === 0 ? head.ariaSort !== "ascending" : head.ariaSort === "descending";
        const key = (row) => {
          const cell = row.children[column];
          return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
        };
        const rows = findAll("tbody tr", table).sort((a, b) => {
          const [x, y] = [key(a), key(b)];
          return (rising ? 1 : -1) * (typeof x === "number" ? x - y : x.localeCompare(y));
        });
        for (const other of findAll("thead th", table)) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", rising ? "ascending" : "descending");
        find("tbody", table).append(...rows);
      });
    });
  }

  // --- images ---
  const store = JSON.parse(find("#store").textContent);
  if (!store.cards.length) return;
  const tables = Object.fromEntries(Object.entries(store.colormaps).map(([name, text]) => [name, decodeBase64(text)]));
  const canvases = new Map(); // canvas -> what is drawn on it
  let colormap = Object.keys(tables)[0];

  const repaint = (canvas) => {
    const { map, grid, strength } = canvases.get(canvas);
    const colors = tables[colormap], heat = resizeMap(decodeBase64(map), grid, canvas.height, canvas.width, cubic);
    paint(canvas, (i) => heatColor(heat[i], colors, strength));
  };
  const heatOf = (card, map, className, strength = 1) => {
    const [width, height] = store.photos[card.photo].size, scale = 160 / Math.max(width, height);
    const canvas = create("canvas", className);
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    canvases.set(canvas, { map, grid: card.grid, strength });
    repaint(canvas);
    return canvas;
  };
  const imageOf = (source, className = "", alt = "") => {
    const image = create("img", className);
    image.src = source;
    image.alt = alt;
    image.decoding = "sync"; // heat never stands there without its image
    image.draggable = false;
    return image;
  };
  const marksOf = (card, { answers = true, size = 0.024 } = {}) => {
    const [width, height] = store.photos[card.photo].size;
    const svg = createSvg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    for (const box of card.truth ?? []) svg.append(drawBox(box, box[4] ? "mark-truth difficult" : "mark-truth"));
    if (answers) {
      for (const box of card.boxes) svg.append(drawBox(box, "mark-box"));
      svg.append(drawPoint(card.point, size * Math.sqrt(width * height)));
    }
    return svg;
  };
  const stageOf = (card, { alt = "", size = 0.024, strength = 1 } = {}) => {
    const photo = store.photos[card.photo], stage = create("span", "stage");
    stage.append(imageOf(photo.src, "", alt), heatOf(card, card.heat, "", strength));
    if (photo.mask) stage.append(imageOf(photo.mask, "mask"));
    stage.append(marksOf(card, { size }));
    return stage;
  };

  const cards = findAll(".card");
  const cardOf = (button) => store.cards[Number(button.dataset.card)];
  const narrow = matchMedia("(max-width: 40rem)");
  const fit = (button) => {
    const [width, height] = store.photos[cardOf(button).photo].size, tall = narrow.matches ? 118 : 150;
    const scale = Math.min(tall / height, (narrow.matches ? 210 : 260) / width);
    const shown = Math.round(width * scale);
    button.style.width = `${Math.max(shown, narrow.matches ? 92 : 112)}px`;
    const stage = find(".stage", button);
    if (stage) {
      stage.style.width = `${shown}px`;
      stage.style.height = `${Math.round(height * scale)}px`;
    }
  };
  const fill = (button) => {
    if (find(".stage", button)) return;
    find(".frame", button).append(stageOf(cardOf(button), { size: 0.045, strength: cardOf(button).opacity }));
    fit(button);
  };
  cards.forEach(fit);
  narrow.addEventListener("change", () => cards.forEach(fit));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      fill(entry.target);
    }
  }, { rootMargin: "600px" });
  for (const button of cards) watcher.observe(button);
  addEventListener("beforeprint", () => cards.forEach(fill));

  // --- long shelves: the first dozen, the rest when asked for ---
  const PAGE = 12;
  for (const shelf of findAll(".shelf")) {
    const rest = [...shelf.children].slice(PAGE);
    if (rest.length < 2) continue;
    for (const item of rest) item.hidden = true;
    const item = create("li", "more"), button = create("button", "", `Show ${rest.length} more`);
    button.type = "button";
    item.append(button);
    shelf.append(item);
    button.addEventListener("click", () => {
      item.remove();
      for (const other of rest) other.hidden = false;
      find(".card", rest[0]).focus();
    });
  }

  // --- what is drawn ---
  const select = find("#colormap"), slider = find("#opacity");
  for (const name of Object.keys(tables)) select.append(new Option(name, name));
  select.addEventListener("change", () => {
    colormap = select.value;
    for (const canvas of canvases.keys()) repaint(canvas);
  });
  slider.addEventListener("input", () => root.style.setProperty("--opacity", slider.value / 100));
  for (const choice of findAll("input[name=layer]")) {
    choice.addEventListener("change", () => { document.body.dataset.layer = choice.value; });
  }
  for (const choice of findAll("input[data-show]")) {
    choice.addEventListener("change", () => document.body.classList.toggle(`show-${choice.dataset.show}`, choice.checked));
    if (choice.dataset.show === "truth" && !store.cards.some((card) => card.truth)) choice.closest("label").hidden = true;
  }
  if (!store.photos.some((photo) => photo.mask)) find("input[value=mask]").closest("label").hidden = true;
  const jump = find("#jump");
  jump.addEventListener("change", () => {
    const section = document.getElementById(jump.value);
    if (!section) return;
    section.scrollIntoView();
    find(".card", section)?.focus({ preventScroll: true });
    jump.value = "";
  });

  // --- arrow keys: one stop of the Tab key a shelf, the arrows move inside and between shelves ---
  const reachable = () => findAll(".card").filter((button) => !button.closest("li").hidden);
  for (const shelf of findAll(".shelf")) findAll(".card", shelf).forEach((button, i) => { button.tabIndex = i ? -1 : 0; });
  const focusOn = (button) => {
    if (!button) return;
    for (const other of findAll(".card", button.closest(".shelf"))) other.tabIndex = other === button ? 0 : -1;
    fill(button);
    button.focus();
  };
  const step = (from, key) => {
    const shelf = findAll(".card", from.closest(".shelf")).filter((button) => !button.closest("li").hidden);
    if (key === "Home") return shelf[0];
    if (key === "End") return shelf.at(-1);
    const every = reachable(), here = every.indexOf(from);
    if (key === "ArrowLeft" || key === "ArrowRight") return every[here + (key === "ArrowLeft" ? -1 : 1)];
    const way = key === "ArrowUp" ? -1 : 1, place = from.getBoundingClientRect();
    const lines = every.slice(Math.max(0, here - 60), here + 60)
      .map((button) => ({ button, place: button.getBoundingClientRect() }))
      .filter((other) => way * (other.place.top - place.top) > 20);
    const nearest = Math.min(...lines.map((other) => way * (other.place.top - place.top)));
    return lines.filter((other) => Math.abs(way * (other.place.top - place.top) - nearest) < 20)
      .sort((a, b) => Math.abs(a.place.left - place.left) - Math.abs(b.place.left - place.left))[0]?.button;
  };
  find("#gallery").addEventListener("keydown", (event) => {
    const button = event.target.closest(".card");
    if (!button || event.altKey || event.ctrlKey || event.metaKey) return;
    if (!["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) return;
    event.preventDefault();
    focusOn(step(button, event.key));
  });

  // --- the viewer ---
  const viewer = find("#viewer"), tools = find("#tools");
  let open = null;
  const captioned = (stage, caption) => {
    const figure = create("figure");
    figure.append(stage, create("figcaption", "", caption));
    return figure;
  };
  const sized = (stage, photo, share) => {
    const ratio = photo.size[0] / photo.size[1];
    stage.style.aspectRatio = ratio;
    stage.style.width = share ? `min(100%, ${share * ratio}vh)` : "100%";
    return stage;
  };
  const truthOf = (card, photo) => {
    if (!photo.truth && !card.truth?.length) return null;
    const stage = create("span", "stage truth-stage");
    const named = photo.present.length ? photo.present.join(", ") : "none of the classes";
    stage.append(imageOf(photo.src, "", `${photo.name}, the truth: ${named}`));
    if (photo.truth) stage.append(imageOf(photo.truth, "mask always"));
    stage.append(marksOf(card, { answers: false }));
    const shown = [photo.truth && "mask", card.truth?.length && `boxes of ${card.class}`].filter(Boolean);
    return captioned(sized(stage, photo, 56), `Truth: ${shown.join(" and ")}`);
  };
  const factsOf = (card, photo) => {
    const facts = create("dl", "facts");
    const rows = [
      ["Verdict", card.verdict], ["Probability", `${(100 * card.probability).toFixed(1)} %`], ["Score", card.score.toFixed(2)],
      ["Point", `(${card.point.join(", ")})${card.inside === null ? "" : card.inside ? ", inside a true box" : ", outside the true boxes"}`],
      ["Predicted", photo.predicted.map(([name, p]) => `${name} ${(100 * p).toFixed(0)} %`).join(", ") || "nothing"],
    ];
    if (photo.present) rows.push(["Truly present", photo.present.join(", ") || "nothing"]);
    rows.push(["Image", `${photo.size[0]} × ${photo.size[1]} px`]);
    for (const [name, value] of rows) {
      const pair = create("div");
      pair.append(create("dt", "", name), create("dd", "", value));
      facts.append(pair);
    }
    return facts;
  };
  const show = (button) => {
    open = button;
    const card = cardOf(button), photo = store.photos[card.photo], body = find("#viewer-body");
    for (const canvas of findAll("canvas", body)) canvases.delete(canvas);
    find("#viewer-title").textContent = `${card.class} · ${photo.name}`;
    const pair = create("div", "pair");
    const said = card.opacity < 1 ? "Prediction; the heat is drawn in full though the class is not predicted" : "Prediction";
    pair.append(captioned(sized(stageOf(card, { alt: card.words }), photo, 56), said));
    const truth = truthOf(card, photo);
    if (truth) pair.append(truth);
    body.replaceChildren(pair);
    if (photo.legend.length) {
      const legend = create("p", "legend");
      for (const [name, color] of photo.legend) legend.append(legendEntry(name, color));
      body.append(legend);
    }
    if (card.maps.length > 1) {
      const row = create("div", "modalities");
      card.maps.forEach((map, i) => {
        const stage = create("span", "stage");
        stage.append(imageOf(photo.src, "", `Map ${i + 1} of ${card.maps.length} behind ${card.class}`), heatOf(card, map, "always"));
        row.append(captioned(sized(stage, photo, 0), `Map ${i + 1}`));
      });
      body.append(create("h3", "", `The ${card.maps.length} maps whose mean is the heatmap, on one scale`), row);
    }
    body.append(factsOf(card, photo));
    if (!viewer.open) {
      find("#viewer-tools").append(tools);
      viewer.showModal();
      find("#next").focus();
    }
    viewer.scrollTop = 0;
  };
  const turn = (way) => {
    const every = reachable(), next = every[every.indexOf(open) + way];
    if (next) show(next);
  };
  const leave = () => {
    if (!open) return;
    const last = open;
    open = null;
    viewer.close();
    find("#tools-home").append(tools);
    focusOn(last);
  };
  for (const button of cards) button.addEventListener("click", () => show(button));
  find("#previous").addEventListener("click", () => turn(-1));
  find("#next").addEventListener("click", () => turn(1));
  find("#close").addEventListener("click", leave);
  viewer.addEventListener("click", (event) => { if (event.target === viewer) leave(); });
  viewer.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      event.preventDefault();
      turn(event.key === "ArrowLeft" ? -1 : 1);
    }
  });
  viewer.addEventListener("close", leave); // the Escape key
  if (/^#view-\d+$/.test(location.hash)) { // a link to one image
    const asked = find(`.card[data-card="${location.hash.slice(6)}"]`);
    if (asked) show(asked);
  }
})();
