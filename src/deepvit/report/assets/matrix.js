// All pairs of blocks as a square of colours: hover or arrow keys print the value of a cell.

const STEPS = 24;
const stepOf = (value, zero = 0) => Math.round(Math.max(-1, Math.min(1, (value - zero) / (1 - zero))) * STEPS);

function matrixChart(host, spec) {
  const n = spec.values.length;
  const names = spec.blocks;
  const canvas = el("div", {
    class: "plot square", tabindex: "0", role: "group", "aria-roledescription": "matrix",
    "aria-label": `${spec.title}, ${n} by ${n} blocks. Arrow keys move over the cells.`,
  });
  const readout = el("div", { class: "readout", "aria-live": "polite" }, spec.hint || "Point at a cell, or use the arrow keys.");
  host.append(canvas, readout);
  let paint = () => {};
  let at = null;

  function say(cell, pointer) {
    at = cell;
    paint();
    if (!cell) {
      readout.textContent = spec.hint || "Point at a cell, or use the arrow keys.";
      tip.hide();
      return;
    }
    const [row, column] = cell;
    const text = row === column
      ? `block ${names[row]} with itself: ${format(spec.values[row][column])}`
      : `blocks ${names[row]} and ${names[column]}: ${format(spec.values[row][column])}`;
    readout.textContent = text;
    if (pointer) tip.show(pointer.clientX, pointer.clientY, [text]);
  }

  function draw(width) {
    const left = 34, bottom = 22, top = 4, right = 2;
    const size = Math.min(width - left - right, spec.size || 520);
    const each = size / n;
    const total = [left + size + right, top + size + bottom];
    const root = svg("svg", { viewBox: `0 0 ${total[0]} ${total[1]}`, width: total[0], height: total[1], "aria-hidden": "true", focusable: "false" });
    const cells = svg("g", { "shape-rendering": "crispEdges" });
    for (let row = 0; row < n; row++)
      for (let column = 0; column < n; column++) {
        const value = spec.values[row][column];
        // Cells overlap by a hair, or anti-aliasing draws a lattice over them.
        cells.append(svg("rect", {
          class: value === null ? "missing" : `h${stepOf(value, spec.zero)}`,
          x: (left + column * each).toFixed(2), y: (top + row * each).toFixed(2),
          width: (each + 0.4).toFixed(2), height: (each + 0.4).toFixed(2),
        }));
      }
    root.append(cells);
    const every = [1, 2, 4, 5, 8, 10, 16].find((s) => (n / s) * 24 <= size) || 20;
    for (let k = 0; k < n; k += every) {
      const middle = (k + 0.5) * each;
      root.append(svg("text", { class: "tick", x: left - 6, y: top + middle + 4, "text-anchor": "end" }, names[k]));
      root.append(svg("text", { class: "tick", x: left + middle, y: top + size + 15, "text-anchor": "middle" }, names[k]));
    }
    root.append(svg("text", { class: "axis-name", x: 0, y: top + size + 15 }, "block"));
    const rowMark = svg("rect", { class: "cross", x: left, width: size, height: each, visibility: "hidden" });
    const columnMark = svg("rect", { class: "cross", y: top, width: each, height: size, visibility: "hidden" });
    const cellMark = svg("rect", { class: "cell", width: each, height: each, visibility: "hidden" });
    root.append(rowMark, columnMark, cellMark);
    canvas.replaceChildren(root);
    paint = () => {
      for (const mark of [rowMark, columnMark, cellMark]) mark.setAttribute("visibility", at ? "visible" : "hidden");
      if (!at) return;
      rowMark.setAttribute("y", top + at[0] * each);
      columnMark.setAttribute("x", left + at[1] * each);
      fill(cellMark, { x: left + at[1] * each, y: top + at[0] * each }, []);
    };
    const find = (event) => {
      const box = root.getBoundingClientRect();
      const scale = total[0] / box.width;
      const column = Math.floor(((event.clientX - box.left) * scale - left) / each);
      const row = Math.floor(((event.clientY - box.top) * scale - top) / each);
      return row >= 0 && row < n && column >= 0 && column < n ? [row, column] : null;
    };
    root.addEventListener("pointermove", (event) => say(find(event), event));
    root.addEventListener("pointerdown", (event) => say(find(event), event));
    root.addEventListener("pointerleave", () => say(null));
    paint();
  }

  canvas.addEventListener("keydown", (event) => {
    const shift = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!shift) return;
    event.preventDefault();
    const [row, column] = at || [0, 0];
    const clip = (value) => Math.min(n - 1, Math.max(0, value));
    say(at ? [clip(row + shift[0]), clip(column + shift[1])] : [0, 0]);
  });
  canvas.addEventListener("blur", () => say(null));
  onWidth(canvas, draw);
}

// The scale beside a matrix: one colour per step, its ends named.
function colorScale(low, gaps, zero = 0, ends = null) {
  const first = low < 0 ? -STEPS : 0;
  const count = STEPS - first + 1;
  const root = svg("svg", { class: "scale", viewBox: `0 0 ${count} 1`, preserveAspectRatio: "none", "aria-hidden": "true" });
  for (let k = 0; k < count; k++) root.append(svg("rect", { class: `h${first + k}`, x: k, y: 0, width: 1.05, height: 1 }));
  return el("div", { class: "scale-row" }, el("span", {}, ends ? ends[0] : low < 0 ? "−1 opposite" : zero > 0 ? `${zero} least here` : "0 unlike"), root, el("span", {}, ends ? ends[1] : "1 identical"),
    gaps ? svg("svg", { class: "hatched", viewBox: "0 0 16 10", "aria-hidden": "true" }, svg("rect", { class: "missing", width: 16, height: 10 })) : null,
    gaps ? el("span", {}, ends ? "not done" : "not compared") : null);
}
