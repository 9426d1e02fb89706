// The depth strip: a core sample of the network, one cell a block, hot where things are alike.

// `last`: strips that stand under each other need one scale and one reading line, under the last of them.
function depthStrip(host, spec, last) {
  const n = spec.blocks.length;
  const canvas = el("div", {
    class: "plot strip", tabindex: "0", role: "group", "aria-roledescription": "depth strip",
    "aria-label": `${spec.title}, ${n} blocks from left to right. Arrow keys move over the blocks.`,
  });
  const readout = el("div", { class: "readout", "aria-live": "polite" });
  host.append(canvas, el("div", { class: "strip-foot" }, readout, last ? colorScale(spec.low, spec.rows.some((row) => row.values.includes(null)), 0, spec.ends) : null));
  let move = () => {};

  function draw(width) {
    const narrow = width < 560;
    const left = narrow ? 0 : 196;
    const rowHeight = 26, gap = narrow ? 20 : 6, top = spec.from === null ? 6 : 30;
    const each = (width - left) / n;
    const yOf = (k) => top + k * (rowHeight + gap) + (narrow ? 16 : 0);
    const bottom = yOf(spec.rows.length - 1) + rowHeight;
    const height = bottom + 24;
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true", focusable: "false" });
    spec.rows.forEach((row, k) => {
      const label = narrow ? { x: 0, y: yOf(k) - 5 } : { x: left - 14, y: yOf(k) + rowHeight / 2 + 4, "text-anchor": "end" };
      root.append(svg("text", { class: "strip-name", ...label }, row.name));
      row.values.forEach((value, i) => root.append(svg("rect", {
        // What is measured in nats has shades of its own; what does nothing is an outline.
        class: value === null ? "missing" : row.shades ? (row.shades[i] === 0 ? "nothing" : `h${stepOf(row.shades[i])}`) : `h${stepOf(value)}`,
        x: (left + i * each + 0.5).toFixed(2), y: yOf(k), width: Math.max(1, each - 1).toFixed(2), height: rowHeight, rx: Math.min(2, each / 6),
      })));
    });
    const every = [1, 2, 4, 5, 8, 10, 16, 20].find((s) => (n / s) * 24 <= width - left) || 40;
    spec.blocks.forEach((name, i) => {
      if (i % every === 0) root.append(svg("text", { class: "tick", x: left + (i + 0.5) * each, y: bottom + 16, "text-anchor": "middle" }, name));
    });
    // Blocks that are spoken of need not be neighbours.
    const spoken = spec.marked || [];
    const apart = spoken.length > 0 && spoken.length < spec.to - spec.from + 1;
    if (apart) for (const i of spoken)
      root.append(svg("path", { class: "bracket", d: `M${left + i * each + 2} ${top - 7}H${left + (i + 1) * each - 2}` }));
    else if (spec.from !== null) {
      const x = left + spec.from * each;
      const end = left + (spec.to + 1) * each;
      const [first, final] = [spec.blocks[spec.from], spec.blocks[spec.to]];
      const toEnd = spec.to === n - 1;
      const words = toEnd ? (spec.from === 0 ? "every block" : `block ${first} and on`) : first === final ? `block ${first}` : `blocks ${first} to ${final}`;
      const fits = width - x > words.length * 7.5;
      root.append(svg("path", { class: "bracket", d: `M${x + 0.5} ${top - 4}V${top - 10}H${end - 0.5}V${top - 4}` }));
      root.append(svg("text", { class: "bracket-name", x: fits ? x : width, y: top - 15, "text-anchor": fits ? "start" : "end" }, words));
    }
    if (!narrow) root.append(svg("text", { class: "axis-name", x: left - 14, y: bottom + 16, "text-anchor": "end" }, "block"));
    const frame = svg("rect", { class: "cell", y: yOf(0) - 2, width: each, height: bottom - yOf(0) + 4, visibility: "hidden" });
    root.append(frame);
    canvas.replaceChildren(root);
    move = (block) => {
      const i = block === null ? -1 : spec.indices.indexOf(block);
      frame.setAttribute("visibility", i < 0 ? "hidden" : "visible");
      if (i < 0) {
        readout.textContent = last ? spec.hint : "";
        return;
      }
      frame.setAttribute("x", left + i * each);
      readout.replaceChildren(`block ${spec.blocks[i]}: `, ...spec.rows.map((row) => el("span", { class: "value" }, `${row.name} `, el("b", {}, format(row.values[i])))));
    };
    const under = (event) => {
      const box = root.getBoundingClientRect();
      const i = Math.floor((((event.clientX - box.left) / box.width) * width - left) / each);
      return i >= 0 && i < n ? spec.indices[i] : null;
    };
    root.addEventListener("pointermove", (event) => cursor.set(under(event)));
    root.addEventListener("pointerdown", (event) => cursor.set(under(event)));
    root.addEventListener("pointerleave", () => cursor.set(null));
    move(cursor.block);
  }

  canvas.addEventListener("keydown", (event) => {
    const shift = { ArrowLeft: -1, ArrowRight: 1, Home: -n, End: n }[event.key];
    if (!shift) return;
    event.preventDefault();
    const at = spec.indices.indexOf(cursor.block);
    cursor.set(spec.indices[Math.min(n - 1, Math.max(0, at < 0 ? 0 : at + shift))]);
  });
  canvas.addEventListener("blur", () => cursor.set(null));
  cursor.watch((block) => move(block));
  onWidth(canvas, draw);
}
