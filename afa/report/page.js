"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const OPEN = 255;
  const state = { layer: "", viewed: "", opacity: 60, shown: [], index: 0, classId: null, position: null, painted: 0 };

  // ---- Small helpers. Names come from files of strangers: they only ever become text, never markup.
  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }
  function option(value, text) {
    const element = make("option", "", text);
    element.value = value;
    return element;
  }
  const className = (id) => (id === OPEN ? "left open or ignored" : data.classes[id]);
  const percent = (share) => (share === null || share === undefined ? "no score" : `${(100 * share).toFixed(1)} %`);
  function swatch(id) {
    const element = make("span", id === OPEN ? "swatch hatched" : "swatch");
    if (id !== OPEN) element.style.background = `rgb(${data.palette[id].join(" ")})`;
    return element;
  }
  function legend(list, ids) {
    list.replaceChildren(...ids.map((id) => {
      const item = make("li");
      item.append(swatch(id), make("span", "", className(id)));
      return item;
    }));
  }

  // ---- Values of the grey images.
  const decoded = new Map();
  function grey(uri) {
    if (!decoded.has(uri)) {
      if (decoded.size > 300) decoded.delete(decoded.keys().next().value);
      decoded.set(uri, (async () => {
        const image = new Image();
        image.src = uri;
        await image.decode();
        const canvas = make("canvas");
        canvas.width = image.naturalWidth;
        canvas.height = image.naturalHeight;
        const context = canvas.getContext("2d", { willReadFrequently: true });
        context.drawImage(image, 0, 0);
        const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
        const values = new Uint8Array(canvas.width * canvas.height);
        for (let i = 0; i < values.length; i++) values[i] = pixels[4 * i];
        return { width: canvas.width, height: canvas.height, values };
      })());
    }
    return decoded.get(uri);
  }
  function readsBack() {
    const canvas = make("canvas");
    canvas.width = 16;
    canvas.height = 1;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const pixels = context.createImageData(16, 1);
    for (let i = 0; i < 64; i++) pixels.data[i] = i % 4 === 3 ? 255 : (i * 37) % 256;
    context.putImageData(pixels, 0, 0);
    return context.getImageData(0, 0, 16, 1).data.every((value, i) => value === pixels.data[i]);
  }
  at("altered").hidden = readsBack();

  // ---- Colours of scores: dark is low, bright is high.
  const STOPS = [[14, 16, 56], [38, 72, 146], [24, 138, 146], [104, 188, 92], [238, 214, 72], [255, 250, 222]];
  const COLOURS = Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (STOPS.length - 1);
    const low = Math.min(Math.floor(place), STOPS.length - 2);
    return STOPS[low].map((value, c) => Math.round(value + (place - low) * (STOPS[low + 1][c] - value)));
  });

  // ---- Layers.
  const outputsOf = (source) => data.sources[source].outputs;
  function findOutput(source, name) {
    return outputsOf(source).find((output) => output.name === name);
  }
  const layers = [["image", "image alone"]];
  if (data.sources.some((source) => source.main)) layers.push(["prediction", "prediction"]);
  if (data.images.some((image) => image.truth)) {
    layers.push(["truth", "truth"]);
    if (data.sources.some((source) => source.main)) layers.push(["errors", "errors of the prediction"]);
  }
  for (const kind of ["label", "map", "affinity"]) {
    for (const [source] of data.sources.entries()) {
      for (const output of outputsOf(source)) {
        const value = `${kind}:${output.name}`;
        const there = data.images.some((image) => partsOf(image.sources[source], kind)[output.name]);
        if (!there || layers.some(([known]) => known === value)) continue;
        const words = { label: "label", map: "scores", affinity: "click a pixel" }[kind];
        layers.push([value, `${output.title}: ${words}`]);
      }
    }
  }
  function partsOf(said, kind) {
    return { label: said.labels, map: said.maps, affinity: said.affinities }[kind] || {};
  }
  function labelUri(image, source, layer) {
    const said = image.sources[source];
    if (layer === "truth") return image.truth;
    const name = layer === "prediction" || layer === "errors" ? data.sources[source].main : layer.slice(6);
    return said.labels[name];
  }

  // ---- Painting: an overlay of the image's size.
  function pixelsOf(canvas, image) {
    canvas.width = image.shown[0];
    canvas.height = image.shown[1];
    const context = canvas.getContext("2d");
    return [context, context.createImageData(canvas.width, canvas.height)];
  }
  function set(pixels, i, colour, alpha) {
    pixels.data[4 * i] = colour[0];
    pixels.data[4 * i + 1] = colour[1];
    pixels.data[4 * i + 2] = colour[2];
    pixels.data[4 * i + 3] = alpha;
  }
  const HATCH = [[255, 255, 255], [105, 105, 105]];
  function paintLabel(canvas, image, label) {
    const [context, pixels] = pixelsOf(canvas, image);
    const period = Math.max(6, Math.round(canvas.width / 40));
    for (let i = 0; i < label.values.length; i++) {
      const id = label.values[i];
      const stripe = ((i % label.width) + Math.floor(i / label.width)) % period < period / 2 ? 0 : 1;
      set(pixels, i, id === OPEN ? HATCH[stripe] : data.palette[id] || [255, 255, 255], 255);
    }
    context.putImageData(pixels, 0, 0);
  }
  function paintErrors(canvas, image, truth, label) {
    const [context, pixels] = pixelsOf(canvas, image);
    const period = Math.max(6, Math.round(canvas.width / 40));
    for (let i = 0; i < label.values.length; i++) {
      const stripe = ((i % label.width) + Math.floor(i / label.width)) % period < period / 2 ? 0 : 1;
      if (truth.values[i] === OPEN) set(pixels, i, HATCH[stripe], 255);
      else if (truth.values[i] === label.values[i]) set(pixels, i, [20, 60, 40], 255);
      else set(pixels, i, [235, 70, 50], 255);
    }
    context.putImageData(pixels, 0, 0);
  }
  // The scores of a class, or the highest of all classes, at the map's own size: floats.
  async function scoresOf(entry, classId) {
    const [height, width] = entry.size;
    const all = await grey(entry.uri);
    const chosen = classId !== null && entry.ids.includes(classId)
      ? [entry.ids.indexOf(classId)]
      : entry.ids.map((id, k) => (id ? k : -1)).filter((k) => k >= 0);
    const scores = new Float32Array(width * height).fill(chosen.length ? -Infinity : entry.low);
    for (const k of chosen) {
      for (let i = 0; i < scores.length; i++) {
        const value = entry.low + (all.values[k * scores.length + i] / 255) * (entry.high - entry.low);
        if (value > scores[i]) scores[i] = value;
      }
    }
    return { width, height, scores };
  }
  function enlarged(map, width, height) {
    if (map.width === width && map.height === height) return map.scores;
    const found = new Float32Array(width * height);
    const clamp = (value, most) => Math.min(Math.max(value, 0), most);
    for (let y = 0; y < height; y++) {
      const fy = clamp(((y + 0.5) * map.height) / height - 0.5, map.height - 1);
      const y0 = Math.floor(fy), y1 = Math.min(y0 + 1, map.height - 1), wy = fy - y0;
      for (let x = 0; x < width; x++) {
        const fx = clamp(((x + 0.5) * map.width) / width - 0.5, map.width - 1);
        const x0 = Math.floor(fx), x1 = Math.min(x0 + 1, map.width - 1), wx = fx - x0;
        const top = map.scores[y0 * map.width + x0] * (1 - wx) + map.scores[y0 * map.width + x1] * wx;
        const low = map.scores[y1 * map.width + x0] * (1 - wx) + map.scores[y1 * map.width + x1] * wx;
        found[y * width + x] = top * (1 - wy) + low * wy;
      }
    }
    return found;
  }
  async function paintMap(canvas, image, entry, output, classId) {
    const map = await scoresOf(entry, classId);
    const [context, pixels] = pixelsOf(canvas, image);
    const width = canvas.width, height = canvas.height;
    const scores = enlarged(map, width, height);
    const threshold = classId === 0 ? null : output.threshold;
    for (let i = 0; i < scores.length; i++) {
      const level = Math.round((255 * (scores[i] - entry.low)) / (entry.high - entry.low));
      set(pixels, i, COLOURS[Math.min(Math.max(level, 0), 255)], 255);
      if (threshold === null) continue;
      // The line between what is above the background score and what is not.
      const above = scores[i] > threshold;
      const right = (i + 1) % width ? scores[i + 1] > threshold : above;
      const below = i + width < scores.length ? scores[i + width] > threshold : above;
      if (above !== right || above !== below) set(pixels, i, [255, 255, 255], 255);
    }
    context.putImageData(pixels, 0, 0);
  }
  async function affinityOf(entry, row, column) {
    const [height, width] = entry.grid;
    const all = await grey(entry.uri);
    const found = new Float32Array(height * width);
    if (entry.radius === null) {
      const count = height * width, own = row * width + column;
      for (let j = 0; j < count; j++) {
        const place = entry.half && j < own ? j * count + own : own * count + j;
        found[j] = all.values[place] / data.affinityLevels;
      }
      return found;
    }
    const reach = entry.radius, side = 2 * reach + 1;
    for (let dy = -reach; dy <= reach; dy++) {
      for (let dx = -reach; dx <= reach; dx++) {
        const y = row + dy, x = column + dx;
        if (y < 0 || x < 0 || y >= height || x >= width) continue;
        const place = (row * side + dy + reach) * width * side + column * side + dx + reach;
        found[y * width + x] = all.values[place] / data.affinityLevels;
      }
    }
    return found;
  }
  async function paintAffinity(canvas, image, entry, position) {
    const [height, width] = entry.grid;
    const [row, column] = cellOf(entry, position);
    const values = await affinityOf(entry, row, column);
    const small = make("canvas");
    small.width = width;
    small.height = height;
    const pixels = small.getContext("2d").createImageData(width, height);
    values.forEach((value, i) => set(pixels, i, COLOURS[Math.round(255 * value)], 255));
    small.getContext("2d").putImageData(pixels, 0, 0);
    const [context] = pixelsOf(canvas, image);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    context.strokeStyle = "#ff3b2f";
    context.lineWidth = Math.max(1, canvas.width / 160);
    const w = canvas.width / width, h = canvas.height / height;
    context.strokeRect(column * w, row * h, w, h);
  }
  function cellOf(entry, position) {
    const [height, width] = entry.grid;
    return [
      Math.min(height - 1, Math.floor(position[1] * height)),
      Math.min(width - 1, Math.floor(position[0] * width)),
    ];
  }
  // Paints a layer; gives what a reader is told about it.
  async function paint(canvas, image, source, layer, classId, position) {
    const said = image.sources[source];
    const name = layer.slice(layer.indexOf(":") + 1);
    const nothing = (words) => {
      pixelsOf(canvas, image);
      return words;
    };
    if (layer === "image") return nothing("the image alone");
    if (layer.startsWith("affinity:")) {
      const entry = said.affinities[name];
      if (!entry) return nothing("its affinity is not stored: only the first images have it");
      await paintAffinity(canvas, image, entry, position || [0.5, 0.5]);
      const [row, column] = cellOf(entry, position || [0.5, 0.5]);
      const coarse = entry.shrunk ? ", on a coarser grid than the method's" : "";
      return `row ${row + 1}, column ${column + 1} of ${entry.grid[0]} x ${entry.grid[1]}${coarse}`;
    }
    if (layer.startsWith("map:")) {
      const entry = said.maps[name];
      if (!entry) return nothing("it has no scores here");
      await paintMap(canvas, image, entry, findOutput(source, name), classId);
      const which = classId !== null && entry.ids.includes(classId) ? className(classId) : "highest of all classes";
      return `scores: ${which}`;
    }
    const uri = labelUri(image, source, layer);
    if (!uri) return nothing(layer === "truth" || layer === "errors" ? "it has no true mask" : "it has no label here");
    const label = await grey(uri);
    if (layer === "errors") {
      if (!image.truth) return nothing("it has no true mask");
      paintErrors(canvas, image, await grey(image.truth), label);
      return "red: the prediction differs from the truth; hatched: ignored or open";
    }
    paintLabel(canvas, image, label);
    const miou = layer === "truth" ? null : said.mious[layer === "prediction" ? data.sources[source].main : name];
    return miou === null || miou === undefined ? "" : `mIoU ${percent(miou)}`;
  }

  // ---- Cards.
  const cards = at("cards");
  cards.classList.toggle("two", data.sources.length > 1);
  const names = (ids) => (ids.length ? ids.map(className).join(", ") : "background only");
  function describe(image) {
    const shows = image.truth ? `it shows ${names(image.true)}` : image.given.length ? `labelled ${names(image.given)}` : "";
    const found = image.sources.map((said, k) => {
      const of = data.sources.length > 1 ? `${data.sources[k].title}: ` : "";
      return `${of}mIoU ${percent(said.miou)}`;
    });
    return [image.name, shows, ...(image.truth ? found : [])].filter(Boolean).join("; ");
  }
  function stack(image) {
    const element = make("span", image.shown[0] < 300 ? "stack small-image" : "stack");
    const photo = make("img");
    photo.loading = "lazy";
    photo.width = image.shown[0];
    photo.height = image.shown[1];
    photo.src = image.image;
    photo.alt = describe(image);
    const canvas = make("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "overlay");
    element.append(photo, canvas);
    return [element, canvas];
  }
  const made = data.images.map((image, index) => {
    const card = make("button", "card");
    card.type = "button";
    card.dataset.index = index;
    const pair = make("span", "pair");
    const canvases = data.sources.map(() => {
      const [element, canvas] = stack(image);
      pair.append(element);
      return canvas;
    });
    const line = make("span", "name");
    line.append(make("span", "", image.name));
    line.append(make("span", "", image.truth ? image.sources.map((said) => percent(said.miou)).join(" / ") : ""));
    card.append(pair, line, make("span", "shows", image.truth || image.given.length ? names(image.truth ? image.true : image.given) : ""));
    card.addEventListener("click", () => open(state.shown.indexOf(index)));
    return { card, canvases, wanted: "", last: Promise.resolve() };
  });
  // One painting of a card after the other, and only the newest: images are decoded in any order.
  function paintCard(index) {
    const one = made[index], layer = state.layer, classId = state.classId;
    const key = `${layer} ${classId}`;
    if (one.wanted === key) return;
    one.wanted = key;
    one.last = one.last.then(async () => {
      if (one.wanted !== key) return;
      for (const [source, canvas] of one.canvases.entries()) {
        const told = await paint(canvas, data.images[index], source, layer, classId, null);
        canvas.setAttribute("aria-label", `${layerText(layer)}: ${told || data.images[index].name}`);
      }
    });
  }
  const layerText = (layer) => (layers.find(([value]) => value === layer) || ["", ""])[1];
  const visible = new Set();
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const index = Number(entry.target.dataset.index);
      if (entry.isIntersecting) {
        visible.add(index);
        paintCard(index);
      } else visible.delete(index);
    }
  }, { rootMargin: "200px" });
  made.forEach(({ card }) => observer.observe(card));
  cards.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const own = state.shown.indexOf(Number(document.activeElement.dataset.index));
    if (!step || own < 0) return;
    const next = state.shown[own + step];
    if (next !== undefined) made[next].card.focus();
    event.preventDefault();
  });

  // ---- Filter and order.
  const inImage = (image, id) =>
    image.true.includes(id) || image.given.includes(id) || image.sources.some((said) => said.predicted.includes(id));
  const orders = {
    worst: ["lowest mIoU first", (a, b) => score(a) - score(b)],
    best: ["highest mIoU first", (a, b) => score(b) - score(a)],
    name: ["by name", (a, b) => (data.images[a].name < data.images[b].name ? -1 : 1)],
  };
  const score = (index) => data.images[index].sources[0].miou ?? 2;
  if (data.sources.length > 1) {
    const gain = (index) => (data.images[index].sources[1].miou ?? 0) - (data.images[index].sources[0].miou ?? 0);
    orders.gain = ["second better than the first", (a, b) => gain(b) - gain(a)];
    orders.loss = ["first better than the second", (a, b) => gain(a) - gain(b)];
  }
  function arrange() {
    const wanted = at("filter").value === "" ? null : Number(at("filter").value);
    const shown = data.images.map((_, index) => index).filter((index) => wanted === null || inImage(data.images[index], wanted));
    state.shown = shown.sort((a, b) => orders[at("order").value][1](a, b) || a - b);
    state.classId = wanted;
    cards.replaceChildren(...state.shown.map((index) => made[index].card));
    at("count").textContent = `${state.shown.length} of ${data.images.length} images`;
    visible.forEach(paintCard);
  }

  // ---- The viewer.
  let panes = [];
  function open(place) {
    if (place < 0) return;
    state.index = place;
    const image = data.images[state.shown[place]];
    at("viewer-title").textContent = `${image.name}`;
    panes = data.sources.map((source, k) => {
      const pane = make("div", "pane");
      const [element, canvas] = stack(image);
      element.style.setProperty("--ratio", image.shown[0] / image.shown[1]);
      element.tabIndex = -1;
      const told = make("p");
      pane.append(element, told);
      element.addEventListener("click", (event) => choose(k, placeOf(event, element)));
      element.addEventListener("pointermove", (event) => tell(k, placeOf(event, element)));
      return { pane, canvas, told };
    });
    at("panes").replaceChildren(...panes.map(({ pane }) => pane));
    state.position = null;
    const ids = [...new Set([...image.true, ...image.given, ...image.sources.flatMap((said) => said.predicted)])];
    legend(at("viewer-legend"), [0, ...ids.sort((a, b) => a - b), OPEN]);
    const offered = [...new Set(image.sources.flatMap((said) => Object.values(said.maps).flatMap((entry) => entry.ids)))];
    const before = at("viewer-class").value;
    at("viewer-class").replaceChildren(option("", "highest of all classes"), ...offered.sort((a, b) => a - b).map((id) => option(id, className(id))));
    at("viewer-class").value = offered.includes(Number(before)) && before !== "" ? before : "";
    at("pixel").textContent = image.size[0] !== image.shown[0] ? `${image.size[0]} x ${image.size[1]} pixels, shown at ${image.shown[0]} x ${image.shown[1]}` : "";
    if (!at("viewer").open) {
      at("viewer").showModal();
      view(state.layer);
    } else paintViewer();
  }
  function placeOf(event, element) {
    const box = element.getBoundingClientRect();
    const inside = (value) => Math.min(Math.max(value, 0), 0.999999);
    return [inside((event.clientX - box.left) / box.width), inside((event.clientY - box.top) / box.height)];
  }
  const current = () => data.images[state.shown[state.index]];
  let lastViewed = Promise.resolve();
  function paintViewer() {
    const run = ++state.painted;
    lastViewed = lastViewed.then(() => (run === state.painted ? paintPanes() : null));
  }
  async function paintPanes() {
    const image = current();
    const chosen = at("viewer-class").value === "" ? null : Number(at("viewer-class").value);
    for (const [source, { canvas, told }] of panes.entries()) {
      const words = await paint(canvas, image, source, state.viewed, chosen, state.position);
      const title = data.sources.length > 1 ? `${data.sources[source].title}: ` : "";
      told.textContent = `${title}${layerText(state.viewed)}${words ? `; ${words}` : ""}`;
      canvas.setAttribute("aria-label", told.textContent);
    }
    paintScale(image);
  }
  function paintScale(image) {
    const name = state.viewed.slice(state.viewed.indexOf(":") + 1);
    const isMap = state.viewed.startsWith("map:"), isAffinity = state.viewed.startsWith("affinity:");
    const source = image.sources.findIndex((said) => (isMap ? said.maps[name] : said.affinities[name]));
    at("scale").hidden = !(isMap || isAffinity) || source < 0;
    if (at("scale").hidden) return;
    const entry = isMap ? image.sources[source].maps[name] : { low: 0, high: 1 };
    const threshold = isMap ? findOutput(source, name).threshold : null;
    const context = at("scale-bar").getContext("2d");
    COLOURS.forEach((colour, i) => {
      context.fillStyle = `rgb(${colour.join(" ")})`;
      context.fillRect(i, 0, 1, 12);
    });
    if (threshold !== null) {
      context.fillStyle = "#fff";
      context.fillRect(Math.round((255 * (threshold - entry.low)) / (entry.high - entry.low)) - 1, 0, 3, 12);
    }
    at("scale-low").textContent = Number(entry.low.toFixed(3));
    at("scale-high").textContent = Number(entry.high.toFixed(3));
    at("scale-text").textContent = threshold === null ? "" : `white line: the background score, ${Number(threshold.toFixed(4))}`;
  }
  async function tell(source, position) {
    const image = current(), said = image.sources[source];
    const pixel = (label) => label.values[Math.floor(position[1] * label.height) * label.width + Math.floor(position[0] * label.width)];
    const x = Math.floor(position[0] * image.size[0]), y = Math.floor(position[1] * image.size[1]);
    const parts = [`x ${x}, y ${y}`];
    if (image.truth) parts.push(`truth: ${className(pixel(await grey(image.truth)))}`);
    const main = data.sources[source].main;
    if (main && said.labels[main]) parts.push(`prediction: ${className(pixel(await grey(said.labels[main])))}`);
    const name = state.viewed.slice(state.viewed.indexOf(":") + 1);
    if (state.viewed.startsWith("map:") && said.maps[name]) {
      const chosen = at("viewer-class").value === "" ? null : Number(at("viewer-class").value);
      const map = await scoresOf(said.maps[name], chosen);
      const value = map.scores[Math.floor(position[1] * map.height) * map.width + Math.floor(position[0] * map.width)];
      parts.push(`score: ${value.toFixed(3)}`);
    }
    if (state.viewed.startsWith("affinity:") && said.affinities[name]) {
      const entry = said.affinities[name];
      const values = await affinityOf(entry, ...cellOf(entry, state.position || [0.5, 0.5]));
      const [row, column] = cellOf(entry, position);
      parts.push(`affinity: ${values[row * entry.grid[1] + column].toFixed(2)}`);
    }
    if (image === current()) at("pixel").textContent = parts.join("; ");
  }
  // A click on a pixel: its affinity, where there is one.
  function choose(source, position) {
    state.position = position;
    if (!state.viewed.startsWith("affinity:")) {
      const stored = current().sources.flatMap((said) => Object.keys(said.affinities));
      if (!stored.length) {
        const any = layers.some(([value]) => value.startsWith("affinity:"));
        if (any) at("pixel").textContent = "The affinity of this image is not stored: only the first images of this page have it.";
        return;
      }
      view(`affinity:${stored[0]}`);
    } else paintViewer();
    tell(source, position);
  }
  function move(dx, dy) {
    const name = state.viewed.slice(9);
    const entry = current().sources.map((said) => said.affinities[name]).find(Boolean);
    if (!state.viewed.startsWith("affinity:") || !entry) return;
    const [row, column] = cellOf(entry, state.position || [0.5, 0.5]);
    const [height, width] = entry.grid;
    const y = Math.min(Math.max(row + dy, 0), height - 1), x = Math.min(Math.max(column + dx, 0), width - 1);
    state.position = [(x + 0.5) / width, (y + 0.5) / height];
    paintViewer();
  }
  function turn(step) {
    const place = state.index + step;
    if (place >= 0 && place < state.shown.length) open(place);
  }
  at("viewer").addEventListener("keydown", (event) => {
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const inControl = ["SELECT", "INPUT"].includes(event.target.tagName);
    const arrow = arrows[event.key];
    if (arrow && event.shiftKey) move(...arrow);
    else if (inControl) return;
    else if (arrow && arrow[0]) turn(arrow[0]);
    else if (arrow) {
      const place = layers.findIndex(([value]) => value === state.viewed) + arrow[1];
      if (layers[place]) view(layers[place][0]);
    } else if (event.key === "+" || event.key === "-") setOpacity(state.opacity + (event.key === "+" ? 10 : -10));
    else return;
    event.preventDefault();
  });
  at("viewer").addEventListener("close", () => {
    const index = state.shown[state.index];
    if (index !== undefined) made[index].card.focus();
  });
  at("previous").addEventListener("click", () => turn(-1));
  at("next").addEventListener("click", () => turn(1));
  at("close").addEventListener("click", () => at("viewer").close());

  // ---- What is shown: of the cards, and of the image that is open.
  function show(layer) {
    state.layer = layer;
    at("layer").value = layer;
    visible.forEach(paintCard);
  }
  function view(layer) {
    state.viewed = layer;
    at("viewer-layer").value = layer;
    paintViewer();
  }
  function setOpacity(value) {
    state.opacity = Math.min(Math.max(Number(value), 0), 100);
    document.documentElement.style.setProperty("--opacity", state.opacity / 100);
    at("opacity").value = at("viewer-opacity").value = state.opacity;
    at("opacity-value").textContent = `${state.opacity} %`;
  }
  const options = (some) => some.map(([value, text]) => option(value, text));
  at("layer").append(...options(layers.filter(([value]) => !value.startsWith("affinity:"))));
  at("layer").addEventListener("change", (event) => show(event.target.value));
  at("viewer-layer").append(...options(layers));
  at("viewer-layer").addEventListener("change", (event) => view(event.target.value));
  for (const id of ["opacity", "viewer-opacity"]) at(id).addEventListener("input", (event) => setOpacity(event.target.value));
  at("viewer-class").addEventListener("change", () => paintViewer());

  const counts = data.classes.map((_, id) => data.images.filter((image) => inImage(image, id)).length);
  at("filter").append(option("", "all"), ...data.classes.map((name, id) => [id, name]).filter(([id]) => id && counts[id]).map(([id, name]) => option(id, `${name} (${counts[id]})`)));
  at("filter").addEventListener("change", arrange);
  at("order").append(...Object.entries(orders).map(([value, [text]]) => option(value, text)));
  at("order").addEventListener("change", arrange);
  legend(at("legend"), [0, ...data.classes.keys()].filter((id, k) => k === 0 || (id && counts[id])).concat([OPEN]));

  at("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // ---- The confusion matrix.
  const chooser = at("confusion-output");
  if (chooser) {
    data.sources.forEach((source, k) => {
      for (const output of source.outputs) {
        if (!source.confusion[output.name]) continue;
        const of = data.sources.length > 1 ? `${source.title}: ` : "";
        chooser.append(option(`${k}:${output.name}`, `${of}${output.title}`));
      }
    });
    const main = data.sources[0].main;
    if (main) chooser.value = `0:${main}`;
    chooser.addEventListener("change", drawMatrix);
    drawMatrix();
  }
  function drawMatrix() {
    const [source, ...rest] = chooser.value.split(":");
    const matrix = data.sources[Number(source)].confusion[rest.join(":")];
    const compact = data.classes.length > 25;
    const withOpen = matrix.some((row) => row[row.length - 1]);
    const columns = [...data.classes.keys(), ...(withOpen ? [OPEN] : [])];
    const table = at("matrix");
    table.className = compact ? "compact" : "";
    const head = make("tr");
    head.append(make("th", "", "truth"), ...columns.map((id) => {
      const cell = make("th"), name = id === OPEN ? "left open" : className(id);
      cell.append(make("span", "", name));
      cell.title = name;
      cell.scope = "col";
      return cell;
    }));
    const rows = matrix.map((counts, id) => {
      const row = make("tr");
      const name = make("th", "", className(id));
      name.scope = "row";
      name.title = className(id);
      row.append(name);
      const total = counts.reduce((sum, value) => sum + value, 0);
      columns.forEach((column) => {
        const share = total ? counts[column === OPEN ? counts.length - 1 : column] / total : 0;
        const cell = make("td", column === id ? "own" : "", compact ? "" : total ? (100 * share).toFixed(1) : "-");
        if (share > 0.0005) {
          cell.style.backgroundColor = `color-mix(in srgb, var(${column === id ? "--c2" : "--c1"}) ${(70 * Math.sqrt(share)).toFixed(0)}%, transparent)`;
          cell.title = `${className(id)}: ${(100 * share).toFixed(1)} % as ${className(column)}`;
        }
        row.append(cell);
      });
      return row;
    });
    const top = make("thead"), body = make("tbody");
    top.append(head);
    body.append(...rows);
    table.replaceChildren(top, body);
  }

  const cardLayers = [...at("layer").options].map(({ value }) => value);
  const first = cardLayers.includes("prediction") ? "prediction" : cardLayers[Math.min(1, cardLayers.length - 1)];
  setOpacity(60);
  show(first);
  arrange();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
})();
