// The patches of an image after every block: which are like the one that was clicked, and which are unusually long.

// Cosine of patch `from` with every patch; the file has the pairs i < j, row by row, a byte each.
function alikeWith(layer, from) {
  const cells = layer.grid[0] * layer.grid[1];
  layer.pairs ||= unpack(layer.similarity);
  const values = new Float32Array(cells).fill(1);
  for (let other = 0; other < cells; other++) {
    if (other === from) continue;
    const [i, j] = other < from ? [other, from] : [from, other];
    values[other] = -1 + (2 * layer.pairs[i * cells - (i * (i + 1)) / 2 + j - i - 1]) / 255;
  }
  return values;
}

function normsOf(layer) {
  layer.lengths ||= Float32Array.from(unpack(layer.norms), (byte) => (layer.highest * byte) / 255);
  return layer.lengths;
}

function patchViewer(host, model) {
  const patches = model.patches;
  const first = patches.layers[0][0].grid;
  const alike = patches.layers.every((layers) => layers.every((layer) => layer.similarity));
  const state = { image: 0, block: patches.blocks.length - 1, at: [0.5, 0.5], show: alike ? "alike" : "norm" };
  const canvas = el("canvas", {
    class: "picture", width: 448, height: 448, role: "img", tabindex: "0", id: "patch-picture",
  });
  const note = el("p", { class: "map-note", "aria-live": "polite" });
  const bar = el("canvas", { height: 1, width: 1, "aria-hidden": "true" });
  const ends = el("div", {});
  const film = el("div", { class: "film", role: "group", "aria-label": "All blocks" });
  const thumbs = el("div", { class: "thumbs", role: "group", "aria-label": "Image" });
  patches.images.forEach((image, k) => thumbs.append(el("button", {
    type: "button", class: "thumb", "aria-pressed": "false", title: image.name, on: { click: () => ((state.image = k), refresh()) },
  }, el("img", { src: image.source, alt: image.name, width: 56, height: 56 }))));
  const blockOut = el("output", {});
  const blockIn = el("input", { type: "range", id: "patch-block", min: 0, max: patches.blocks.length - 1, step: 1, value: state.block });
  const showIn = el("select", { id: "patch-show" },
    alike ? el("option", { value: "alike" }, "how alike each patch is to the clicked one") : null,
    el("option", { value: "norm" }, "how long each patch token is"));
  blockIn.addEventListener("input", () => ((state.block = Number(blockIn.value)), refresh()));
  showIn.addEventListener("change", () => ((state.show = showIn.value), refresh()));
  host.append(
    el("div", { class: "map-stage" },
      el("div", { class: "map-side" }, thumbs, el("div", { class: "controls" },
        el("label", { for: "patch-block" }, el("span", {}, "Block"), blockOut, blockIn),
        el("label", { for: "patch-show" }, el("span", {}, "Show"), showIn))),
      el("figure", {}, canvas, el("div", { class: "map-scale" }, bar, ends), el("figcaption", {}, note))),
    film);

  const pictures = new Map();
  const load = (source) => {
    if (!pictures.has(source)) pictures.set(source, pictureOf(source).then(grayOf));
    return pictures.get(source);
  };
  // The chosen place is a share of the image: blocks may have other grids.
  const cellAt = (grid) => [0, 1].map((axis) => Math.min(grid[axis] - 1, Math.floor(state.at[axis] * grid[axis])));
  const isHigh = (value) => value > patches.high;

  function mapOf(layer) {
    const [row, column] = cellAt(layer.grid);
    const values = state.show === "alike" ? alikeWith(layer, row * layer.grid[1] + column) : normsOf(layer);
    return { grid: layer.grid, values, low: Math.min(...values), high: Math.max(...values) };
  }

  function outlines(target, layer) {
    const context = target.getContext("2d");
    const [height, width] = [target.height / layer.grid[0], target.width / layer.grid[1]];
    const draw = (row, column, color) => {
      for (const [line, paint] of [[Math.max(2, width / 8), "#000000"], [Math.max(1, width / 16), color]]) {
        context.lineWidth = line;
        context.strokeStyle = paint;
        context.strokeRect(column * width + line / 2, row * height + line / 2, width - line, height - line);
      }
    };
    normsOf(layer).forEach((value, k) => isHigh(value) && draw(Math.floor(k / layer.grid[1]), k % layer.grid[1], "#4dd0ff"));
    if (state.show === "alike") draw(...cellAt(layer.grid), "#ffffff");
  }

  let turn = 0;
  async function refresh() {
    const mine = ++turn;
    const image = patches.images[state.image];
    const gray = await load(image.source);
    if (mine !== turn) return;
    const layers = patches.layers[state.image];
    const maps = layers.map(mapOf);
    // Lengths on one scale for all blocks, or growth over depth would not be seen.
    const limit = state.show === "alike" ? 1 : Math.max(patches.high, ...maps.map((map) => map.high));
    [...thumbs.children].forEach((button, k) => button.setAttribute("aria-pressed", k === state.image ? "true" : "false"));
    const layer = layers[state.block], map = maps[state.block];
    paintMap(canvas, gray, map, limit);
    outlines(canvas, layer);
    const high = [...normsOf(layer)].filter(isHigh);
    const [row, column] = cellAt(layer.grid);
    const others = [...map.values];
    if (state.show === "alike") others.splice(row * layer.grid[1] + column, 1);
    const mean = others.reduce((sum, value) => sum + value, 0) / others.length;
    note.textContent = `Block ${patches.blocks[state.block]}. ` + (state.show === "alike"
      ? `Patch (${row}, ${column}), outlined in white: cosine with the others ${format(mean, 2)} on the average, from ${format(Math.min(...others), 2)} to ${format(Math.max(...others), 2)}. `
      : `The longest patch is ${format(map.high, 1)} times as long as the median. `)
      + (high.length ? `Outlined in blue: ${high.length} of high norm (above ${patches.high} times the median).` : "No patch of high norm.");
    canvas.setAttribute("aria-label", `${image.name}: ${note.textContent} Arrow keys choose another patch.`);
    const from = state.show === "alike" && maps.some((each) => each.low < 0) ? -STEPS : 0;
    bar.width = STEPS - from + 1;
    const context = bar.getContext("2d");
    for (let step = from; step <= STEPS; step++) {
      const [r, g, b] = overlayColor(step / STEPS);
      const alpha = 0.3 + 0.62 * Math.abs(step / STEPS);
      context.fillStyle = `rgb(${[r, g, b].map((c) => Math.round(alpha * c + (1 - alpha) * 64)).join(" ")})`;
      context.fillRect(step - from, 0, 1, 1);
    }
    const marks = state.show === "norm" ? ["norm: 0", `${format(limit, 1)} times the median`] : from ? ["−1 opposite", "0 unlike", "1 alike"] : ["0 unlike", "1 alike"];
    ends.replaceChildren(...marks.map((text) => el("span", {}, text)));
    blockOut.textContent = patches.blocks[state.block];
    blockIn.value = state.block;
    if (!film.children.length)
      patches.blocks.forEach((name, k) => film.append(el("button", {
        type: "button", class: "frame", "aria-label": `Block ${name}`, on: { click: () => ((state.block = k), refresh()) },
      }, el("canvas", { width: 112, height: 112, "aria-hidden": "true" }), el("span", {}, name))));
    [...film.children].forEach((frame, k) => {
      frame.setAttribute("aria-pressed", k === state.block ? "true" : "false");
      paintMap(frame.firstChild, gray, maps[k], limit);
      outlines(frame.firstChild, layers[k]);
    });
  }

  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    state.at = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width].map((share) => Math.min(0.999, Math.max(0, share)));
    refresh();
  });
  canvas.addEventListener("keydown", (event) => {
    const shift = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!shift) return;
    event.preventDefault();
    const grid = patches.layers[state.image][state.block].grid;
    state.at = cellAt(grid).map((cell, axis) => (Math.min(grid[axis] - 1, Math.max(0, cell + shift[axis])) + 0.5) / grid[axis]);
    refresh();
  });
  if (first) refresh();
}
