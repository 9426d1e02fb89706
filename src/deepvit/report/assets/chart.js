// A line chart over blocks (or training steps): thresholds drawn and named, spread as a band, every line named
// at its end, the value under the pointer printed. Colours come from style sheet classes, so themes are free.

const DASHES = ["", "6 3", "2 2.5", "9 3 2 3", "1.5 3", "12 4", "5 2 1.5 2 1.5 2", "3 5"];

function extent(spec) {
  const values = [];
  for (const s of spec.series) {
    values.push(...s.y);
    if (s.low) values.push(...s.low, ...s.high);
    if (s.heads) values.push(...s.heads.flat());
  }
  for (const t of spec.thresholds || []) values.push(t.value);
  const known = values.filter((v) => v !== null && Number.isFinite(v));
  let [low, high] = spec.range || [Infinity, -Infinity];
  // A fixed range is a promise about comparable axes; data outside it still has to be seen.
  for (const v of known) {
    low = Math.min(low, v);
    high = Math.max(high, v);
  }
  if (!Number.isFinite(low)) return [0, 1];
  // What cannot be negative starts at zero, or a ripple would look like a cliff.
  if (spec.floor) low = Math.min(0, low);
  if (spec.floor && high <= 0) return [0, 1];
  if (high - low < 1e-9) return [low - 0.5, high + 0.5];
  if (!spec.range) {
    const pad = (high - low) * 0.06;
    [low, high] = [low >= 0 && low < (high - low) ? 0 : low - pad, high + pad];
  }
  return [low, high];
}

function path(xs, ys, sx, sy) {
  let out = "";
  let pen = false;
  xs.forEach((x, i) => {
    if (ys[i] === null || !Number.isFinite(ys[i])) pen = false;
    else {
      out += `${pen ? "L" : "M"}${sx(x).toFixed(1)} ${sy(ys[i]).toFixed(1)}`;
      pen = true;
    }
  });
  return out;
}

function band(s, sx, sy) {
  const ok = s.x.map((x, i) => [x, s.low[i], s.high[i]]).filter((p) => p[1] !== null && p[2] !== null);
  if (ok.length < 2) return "";
  const top = ok.map((p) => `${sx(p[0]).toFixed(1)} ${sy(p[2]).toFixed(1)}`);
  const bottom = ok.reverse().map((p) => `${sx(p[0]).toFixed(1)} ${sy(p[1]).toFixed(1)}`);
  return `M${top.join("L")}L${bottom.join("L")}Z`;
}

function lineChart(host, spec) {
  const series = spec.series.filter((s) => s.y.some((v) => v !== null));
  const xs = [...new Set(series.flatMap((s) => s.x))].sort((a, b) => a - b);
  const canvas = el("div", {
    class: "plot", tabindex: "0", role: "group", "aria-roledescription": "chart", "aria-label": summary(spec, series),
  });
  const readout = el("div", { class: "readout", "aria-live": "polite" });
  host.append(canvas, readout);
  let move = () => {};

  function draw(width) {
    const height = spec.height || Math.round(Math.min(230, Math.max(170, width * 0.52)));
    const margin = { left: 40, right: 10, top: 10, bottom: 22 };
    const [low, high] = extent(spec);
    const first = xs[0], last = xs[xs.length - 1];
    const inner = width - margin.left - margin.right;
    const sx = (x) => margin.left + (last === first ? 0.5 : (x - first) / (last - first)) * inner;
    const sy = (y) => height - margin.bottom - ((y - low) / (high - low)) * (height - margin.top - margin.bottom);
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true", focusable: "false" });

    for (const y of ticks(low, high, 4)) {
      root.append(svg("line", { class: y === 0 ? "axis" : "grid", x1: margin.left, x2: width - margin.right, y1: sy(y), y2: sy(y) }));
      root.append(svg("text", { class: "tick", x: margin.left - 6, y: sy(y) + 4, "text-anchor": "end" }, tickText(y)));
    }
    const places = spec.blocks ? blockTicks(xs, inner) : ticks(first, last === first ? first + 1 : last, Math.max(2, Math.floor(inner / 70)), xs.every(Number.isInteger) ? 1 : 0);
    for (const x of places) {
      if (x < first || x > last) continue;
      root.append(svg("text", { class: "tick", x: sx(x), y: height - margin.bottom + 15, "text-anchor": "middle" }, tickText(x)));
    }
    root.append(svg("text", { class: "axis-name", x: 0, y: height - margin.bottom + 15 }, spec.xName || "block"));
    if (spec.region && spec.region[1] >= first && spec.region[0] <= last) {
      const half = inner / Math.max(1, last - first) / 2;
      const left = Math.max(margin.left, sx(spec.region[0]) - half);
      const right = Math.min(width - margin.right, sx(spec.region[1]) + half);
      root.append(svg("rect", { class: "region", x: left, y: margin.top, width: right - left, height: height - margin.top - margin.bottom }));
    }
    for (const t of spec.thresholds || []) {
      root.append(svg("line", { class: "threshold", x1: margin.left, x2: width - margin.right, y1: sy(t.value), y2: sy(t.value) }));
    }
    for (const s of series) if (s.heads) s.heads.forEach((heads, i) => {
      for (const value of heads) if (value !== null) root.append(svg("circle", { class: "head", cx: sx(s.x[i]), cy: sy(value), r: 1.5 }));
    });
    for (const s of series) if (s.low) root.append(svg("path", { class: `band c${s.color}`, d: band(s, sx, sy) }));
    for (const s of series) {
      // A thin line leads over blocks that have no number; the strong one only joins neighbours.
      const known = s.x.map((x, i) => [x, s.y[i]]).filter((p) => p[1] !== null);
      if (spec.blocks && known.length < s.x.length) root.append(svg("path", { class: `bridge c${s.color}`, d: path(known.map((p) => p[0]), known.map((p) => p[1]), sx, sy) }));
      root.append(svg("path", { class: `line c${s.color}${s.faint ? " faint" : ""}`, d: path(s.x, s.y, sx, sy), "stroke-dasharray": DASHES[s.dash || 0] || null }));
      if (s.x.length <= 64 && spec.blocks && !s.faint) for (let i = 0; i < s.x.length; i++)
        if (s.y[i] !== null) root.append(svg("circle", { class: `dot c${s.color}`, cx: sx(s.x[i]), cy: sy(s.y[i]), r: s.x.length > 36 ? 1.6 : 2.4 }));
    }
    for (const t of spec.thresholds || []) {
      // After the lines, so that its halo keeps it readable where they cross.
      const above = sy(t.value) - margin.top > 14;
      root.append(svg("text", { class: "threshold-name", x: margin.left + 4, y: sy(t.value) + (above ? -4 : 12) }, t.label));
    }
    const guide = svg("line", { class: "guide", y1: margin.top, y2: height - margin.bottom, visibility: "hidden" });
    const marks = series.map((s) => svg("circle", { class: `mark c${s.color}`, r: 4.5, visibility: "hidden" }));
    root.append(guide, ...marks);
    canvas.replaceChildren(root);

    move = (x) => {
      const at = x === null ? null : nearest(xs, x);
      const shown = at !== null && (!spec.blocks || Math.abs(at - x) < 0.5);
      guide.setAttribute("visibility", shown ? "visible" : "hidden");
      if (shown) fill(guide, { x1: sx(at), x2: sx(at) }, []);
      const parts = [];
      series.forEach((s, k) => {
        const i = shown ? s.x.indexOf(spec.blocks ? at : nearest(s.x, at)) : -1;
        const value = i < 0 ? null : s.y[i];
        marks[k].setAttribute("visibility", value === null ? "hidden" : "visible");
        if (value === null) return;
        fill(marks[k], { cx: sx(s.x[i]), cy: sy(value) }, []);
        const spread = s.low && s.high[i] !== null ? ` ± ${format((s.high[i] - s.low[i]) / 2, 2)}` : "";
        parts.push(el("span", { class: `value c${s.color}` }, series.length > 1 ? `${s.name} ` : "", el("b", {}, format(value)), spread));
      });
      if (shown) readout.replaceChildren(el("span", {}, `${spec.xName || "block"} ${tickText(at)}: `), ...parts);
      else readout.replaceChildren(...legend(series));
    };
    const under = (event) => {
      const box = root.getBoundingClientRect();
      const share = ((event.clientX - box.left) / box.width * width - margin.left) / inner;
      return nearest(xs, first + Math.min(1, Math.max(0, share)) * (last - first));
    };
    const set = (x) => (spec.blocks ? cursor.set(x) : move(x));
    root.addEventListener("pointermove", (event) => set(under(event)));
    root.addEventListener("pointerdown", (event) => set(under(event)));
    root.addEventListener("pointerleave", () => set(null));
    move(spec.blocks ? cursor.block : null);
  }

  let at = null;
  canvas.addEventListener("keydown", (event) => {
    const shift = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (shift === undefined) return;
    event.preventDefault();
    const from = at === null ? (shift > 0 ? -1 : xs.length) : at;
    at = Math.min(xs.length - 1, Math.max(0, from + shift));
    if (spec.blocks) cursor.set(xs[at]);
    else move(xs[at]);
  });
  canvas.addEventListener("blur", () => {
    at = null;
    if (spec.blocks) cursor.set(null);
    else move(null);
  });
  if (spec.blocks) cursor.watch((block) => move(block));
  onWidth(canvas, draw);
}

const nearest = (xs, x) => xs.reduce((best, each) => (Math.abs(each - x) < Math.abs(best - x) ? each : best), xs[0]);

function blockTicks(xs, room) {
  const span = xs[xs.length - 1] - xs[0];
  const step = [1, 2, 4, 5, 8, 10, 16, 20, 40].find((s) => (span / s) * 26 <= room) || 50;
  return xs.filter((x) => (x - xs[0]) % step === 0);
}

function legend(series) {
  if (series.length === 1) {
    const known = series[0].y.filter((v) => v !== null);
    const heads = series[0].heads ? "; grey dots are single heads" : "";
    return [el("span", {}, `first ${format(known[0])}, last ${format(known[known.length - 1])}${heads}`)];
  }
  return series.map((s) =>
    el("span", { class: `value c${s.color}` },
      svg("svg", { width: 20, height: 8, class: "key", "aria-hidden": "true" },
        svg("line", { class: `line c${s.color}`, x1: 0, x2: 20, y1: 4, y2: 4, "stroke-dasharray": DASHES[s.dash || 0] || null })),
      s.name));
}

function summary(spec, series) {
  const parts = series.map((s) => {
    const known = s.y.filter((v) => v !== null);
    return `${s.name}: from ${format(known[0])} to ${format(known[known.length - 1])}, highest ${format(Math.max(...known))}`;
  });
  return `${spec.title}. ${parts.join("; ")}. Arrow keys move over the points.`;
}
