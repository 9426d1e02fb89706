// Attention maps over the images they belong to: one picture large, every block of it as a film strip.
// A map is stored as bytes with its own smallest and largest value; here it becomes numbers again.

function unpack(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

// One map, in multiples of an even spread (1 = as much attention as every token would get). Head 0 is the mean of
// all heads. Not every block stores every query: the first one stands in, and the note under the map says which.
function mapValues(maps, image, block, query, head) {
  const layer = maps.layers[image][block];
  const cells = layer.grid[0] * layer.grid[1];
  const place = Math.max(0, layer.queries.indexOf(query));
  layer.bytes ||= [];
  const bytes = (layer.bytes[place] ||= unpack(layer.data[place]));
  const [low, high] = layer.ranges[place];
  const only = layer.averaged || head === 0 ? null : Math.min(head, layer.heads) - 1;
  const values = new Float32Array(cells);
  const first = only === null ? 0 : only;
  const last = only === null ? (layer.averaged ? 1 : layer.heads) : only + 1;
  for (let h = first; h < last; h++) for (let i = 0; i < cells; i++) values[i] += bytes[h * cells + i];
  for (let i = 0; i < cells; i++) values[i] = low + (values[i] / (last - first) / 255) * (high - low);
  return { grid: layer.grid, values, low: Math.min(...values), high: Math.max(...values), query: layer.queries[place], even: layer.even, mixed: layer.mixed };
}

function pictureOf(source) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("an embedded picture could not be read"));
    image.src = source;
  });
}

// The colours over a picture are the dark ramp in both themes: bright means much attention, whatever the page.
let overlayColors = null;
function overlayColor(value) {
  overlayColors ||= JSON.parse(document.getElementById("overlay-colors").textContent).map((c) => [1, 3, 5].map((i) => parseInt(c.slice(i, i + 2), 16)));
  return overlayColors[STEPS + stepOf(value)];
}

function paintMap(canvas, gray, map, limit) {
  const [rows, columns] = map.grid;
  const size = canvas.width;
  canvas.height = Math.round((size * gray.height) / gray.width);
  const context = canvas.getContext("2d");
  const tile = el("canvas", { width: columns, height: rows });
  const pixels = new ImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    const share = Math.max(-1, Math.min(1, map.values[i] / limit));
    const [r, g, b] = overlayColor(share);
    pixels.data.set([r, g, b, 255 * (0.3 + 0.62 * Math.abs(share))], i * 4);
  }
  tile.getContext("2d").putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = gray.width > 64; // small images are honest squares
  context.drawImage(gray, 0, 0, size, canvas.height);
  // Patches stay squares: between them the map says nothing.
  context.imageSmoothingEnabled = false;
  context.drawImage(tile, 0, 0, size, canvas.height);
}

function grayOf(image) {
  const canvas = el("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const light = 0.5 * (0.299 * pixels.data[i] + 0.587 * pixels.data[i + 1] + 0.114 * pixels.data[i + 2]);
    pixels.data[i] = pixels.data[i + 1] = pixels.data[i + 2] = light;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function mapViewer(host, models) {
  const shown = models.filter((model) => model.maps && model.maps.images.length);
  if (!shown.length) return;
  const lead = shown[0].maps;
  const state = { image: 0, block: Math.max(0, lead.blocks.indexOf(String(shown[0].from))), head: 0, query: 0, scale: "own" };
  const depth = Math.max(...shown.map((m) => m.maps.blocks.length));
  const pictures = new Map();
  const load = async (source) => {
    if (!pictures.has(source)) pictures.set(source, pictureOf(source).then((image) => ({ image, gray: grayOf(image) })));
    return pictures.get(source);
  };

  const thumbs = el("div", { class: "thumbs", role: "group", "aria-label": "Image" });
  lead.images.forEach((image, k) => {
    thumbs.append(el("button", {
      type: "button", class: "thumb", "aria-pressed": k === 0 ? "true" : "false", title: image.name,
      on: { click: () => ((state.image = k), (state.query = Math.min(state.query, image.queries.length - 1)), refresh()) },
    }, el("img", { src: image.source, alt: image.name, width: 56, height: 56 })));
  });
  const caption = el("p", { class: "caption" });

  const blockOut = el("output", {});
  const blockIn = el("input", { type: "range", id: "map-block", min: 0, max: depth - 1, value: 0, step: 1 });
  const heads = Math.max(...shown.flatMap((m) => m.maps.layers[0].map((layer) => (layer.averaged ? 0 : layer.heads))));
  const headOut = el("output", {});
  const headIn = el("input", { type: "range", id: "map-head", min: 0, max: heads, value: 0, step: 1 });
  const queryIn = el("select", { id: "map-query" });
  const scaleIn = el("select", { id: "map-scale" },
    el("option", { value: "own" }, "each map by its own peak"),
    el("option", { value: "shared" }, "one scale for all blocks"));
  blockIn.addEventListener("input", () => ((state.block = Number(blockIn.value)), refresh()));
  headIn.addEventListener("input", () => ((state.head = Number(headIn.value)), refresh()));
  queryIn.addEventListener("change", () => ((state.query = Number(queryIn.value)), refresh()));
  scaleIn.addEventListener("change", () => ((state.scale = scaleIn.value), refresh()));

  const original = el("canvas", { class: "picture", width: 448, height: 448, role: "img" });
  original.addEventListener("click", (event) => {
    // The nearest stored query patch: only some rows of a map are kept, or the file would not be small.
    const box = original.getBoundingClientRect();
    const at = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
    let best = null;
    lead.images[state.image].queries.forEach((query, k) => {
      if (!query.at) return;
      const far = Math.hypot(query.at[0] - at[0], query.at[1] - at[1]);
      if (best === null || far < best.far) best = { far, k };
    });
    if (best) ((state.query = best.k), refresh());
  });
  const originalNote = el("figcaption", {});
  const views = shown.map((model) => ({
    model,
    canvas: el("canvas", { class: "picture overlay", width: 448, height: 448, role: "img" }),
    note: el("p", { class: "map-note" }),
    bar: el("canvas", { width: 2 * STEPS + 1, height: 1, "aria-hidden": "true" }),
    ends: el("div", {}),
    film: el("div", { class: "film", role: "group", "aria-label": `All blocks of ${model.name}` }),
  }));
  const controls = el("div", { class: "controls" },
    el("label", { for: "map-block" }, el("span", {}, "Block"), blockOut, blockIn),
    el("label", { for: "map-head" }, el("span", {}, "Head"), headOut, headIn),
    el("label", { for: "map-query" }, el("span", {}, "Query"), queryIn),
    el("label", { for: "map-scale" }, el("span", {}, "Scale"), scaleIn));
  // With several models the image moves under the controls, so that the models' maps stand in one row.
  const figure = el("figure", {}, original, originalNote);
  host.append(
    el("div", { class: "map-stage" },
      el("div", { class: "map-side" }, thumbs, caption, controls, shown.length > 1 ? figure : null),
      shown.length > 1 ? null : figure,
      ...views.map((v) => el("figure", {}, v.canvas, el("div", { class: "map-scale" }, v.bar, v.ends), el("figcaption", {}, shown.length > 1 ? el("b", { class: `model-name c${v.model.color}` }, v.model.name) : null, v.note)))),
    ...views.map((v) => el("div", { class: "film-row" }, shown.length > 1 ? el("h4", { class: `c${v.model.color}` }, v.model.name) : null, v.film)));

  // At least twice an even share: the ripples of a near-uniform map must not shine like peaks.
  const peak = (map) => Math.max(Math.abs(map.low), Math.abs(map.high), 2);
  const queryName = () => lead.images[state.image].queries[state.query].name;

  let turn = 0;
  async function refresh() {
    const mine = ++turn;
    const image = lead.images[state.image];
    const { image: picture, gray } = await load(image.source);
    if (mine !== turn) return; // the slider has moved on while the picture was read
    [...thumbs.children].forEach((b, k) => b.setAttribute("aria-pressed", k === state.image ? "true" : "false"));
    caption.replaceChildren(el("b", {}, image.name), image.label ? ` · ${image.label}` : "");
    queryIn.replaceChildren(...image.queries.map((q, k) => el("option", { value: k, selected: k === state.query }, q.name)));
    const headName = state.head === 0 ? "mean of heads" : `head ${state.head - 1}`;
    headOut.textContent = headName;
    headIn.setAttribute("aria-valuetext", headName);
    paintOriginal(picture, image);
    for (const view of views) {
      const maps = view.model.maps;
      const index = Math.min(state.image, maps.images.length - 1);
      const block = Math.min(state.block, maps.blocks.length - 1);
      const all = maps.blocks.map((_, k) => mapValues(maps, index, k, queryName(), state.head));
      const shared = state.scale === "shared" ? Math.max(...all.map(peak)) : null;
      const map = all[block];
      paintMap(view.canvas, gray, map, shared || peak(map));
      const words = `Block ${maps.blocks[block]}, ${headName}, ${map.query}`;
      view.canvas.setAttribute("aria-label", `Attention map over ${image.name}: ${words}`);
      const [low, high] = [map.low, map.high].map((value) => format(value * map.even));
      // What mixing makes of maps is no share of anything: rows need not sum to 1, weights may be negative.
      view.note.textContent = `${words}. ` + (map.mixed
        ? `Heads are mixed here: the weights of the patches run from ${low} to ${high} (an even map would give each ${format(map.even)}).`
        : `The patch that gets most attention gets ${high}, ${format(map.high, 1)} times what an even map would give each.`);
      scaleBar(view, map, shared || peak(map));
      view.canvas.dataset.scale = state.scale;
      filmStrip(view, gray, all, shared);
    }
    blockOut.textContent = `${lead.blocks[Math.min(state.block, lead.blocks.length - 1)]}`;
    blockIn.value = state.block;
    blockIn.setAttribute("aria-valuetext", `block ${blockOut.textContent}`);
  }

  // The colours of the map with the weights that they stand for; blue only where a weight is negative.
  function scaleBar(view, map, limit) {
    const first = map.low < 0 ? -STEPS : 0;
    view.bar.width = STEPS - first + 1;
    const context = view.bar.getContext("2d");
    for (let step = first; step <= STEPS; step++) {
      const [r, g, b] = overlayColor(step / STEPS);
      const alpha = 0.3 + 0.62 * Math.abs(step / STEPS); // over the middle grey of the picture under a map
      context.fillStyle = `rgb(${[r, g, b].map((c) => Math.round(alpha * c + (1 - alpha) * 64)).join(" ")})`;
      context.fillRect(step - first, 0, 1, 1);
    }
    const most = format(limit * map.even);
    const marks = first < 0 ? [`−${most}`, "weight of a patch: 0", most] : ["weight of a patch: 0", most];
    view.ends.replaceChildren(...marks.map((text) => el("span", {}, text)));
  }

  function paintOriginal(picture, image) {
    const context = original.getContext("2d");
    original.height = Math.round((original.width * picture.naturalHeight) / picture.naturalWidth);
    context.imageSmoothingEnabled = picture.naturalWidth > 64; // small images are honest squares
    context.drawImage(picture, 0, 0, original.width, original.height);
    originalNote.textContent = image.queries.some((query) => query.at) ? "The image. Click a ring to look from that patch." : "The image as the network saw it.";
    original.setAttribute("aria-label", `${image.name}, with the patches that maps are stored for`);
    image.queries.forEach((query, k) => {
      if (!query.at) return;
      const [y, x] = [query.at[0] * original.height, query.at[1] * original.width];
      for (const [width, color] of [[5, "#000000"], [2, k === state.query ? "#ffb000" : "#ffffff"]]) {
        context.beginPath();
        context.arc(x, y, k === state.query ? 12 : 8, 0, 7);
        context.lineWidth = width;
        context.strokeStyle = color;
        context.stroke();
      }
    });
  }

  function filmStrip(view, gray, all, shared) {
    const maps = view.model.maps;
    if (!view.film.children.length)
      maps.blocks.forEach((name, k) => view.film.append(el("button", {
        type: "button", class: "frame", on: { click: () => ((state.block = k), refresh()) },
      }, el("canvas", { width: 112, height: 112, "aria-hidden": "true" }), el("span", {}, name))));
    [...view.film.children].forEach((frame, k) => {
      frame.setAttribute("aria-pressed", k === Math.min(state.block, maps.blocks.length - 1) ? "true" : "false");
      frame.setAttribute("aria-label", `Block ${maps.blocks[k]}`);
      paintMap(frame.firstChild, gray, all[k], shared || peak(all[k]));
    });
  }
  refresh();
}
