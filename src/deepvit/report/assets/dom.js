// Small pieces that every part of the page uses. Text only ever enters the page as text nodes, never as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Three significant places where they matter; a real minus sign, as in print.
function format(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  let text;
  if (size !== 0 && (size < 0.0005 || size >= 1e6)) text = value.toExponential(1);
  else if (Number.isInteger(value) && size >= 10) text = String(value);
  else text = value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : digits);
  return text.replace("-", "−");
}

// Ticks at round numbers, at most `wanted` + 1 of them; `least` apart: between whole epochs there is nothing.
function ticks(low, high, wanted, least = 0) {
  const rough = (high - low) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(rough));
  const whole = (s) => !least || Math.abs(s / least - Math.round(s / least)) < 1e-9;
  const step = Math.max(least, [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999 && (s < least || whole(s))));
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step)
    found.push(Math.abs(value) < step * 1e-6 ? 0 : value);
  return found;
}
function tickText(value) {
  const small = value !== 0 && Math.abs(value) < 0.001;
  return (small ? value.toExponential() : String(Number(value.toPrecision(6)))).replaceAll("-", "−");
}

// One tooltip for the whole page, kept inside the window.
const tip = {
  node: null,
  show(x, y, lines) {
    if (!this.node) document.body.append((this.node = el("div", { class: "tip", role: "status" })));
    this.node.replaceChildren(...lines.map((line) => el("div", { class: line.class }, line.text ?? line)));
    this.node.hidden = false;
    const box = this.node.getBoundingClientRect();
    const room = document.documentElement.clientWidth;
    const left = x + 14 + box.width > room - 4 ? Math.max(4, x - 14 - box.width) : x + 14;
    const top = y - 10 - box.height < 4 ? y + 18 : y - 10 - box.height;
    this.node.style.left = `${left}px`;
    this.node.style.top = `${top}px`;
  },
  hide() {
    if (this.node) this.node.hidden = true;
  },
};

// The block under the pointer is shared by every chart of the page: point at block 17 in one, see it in all.
const cursor = {
  block: null,
  watchers: [],
  watch(watcher) {
    this.watchers.push(watcher);
  },
  set(block) {
    if (block === this.block) return;
    this.block = block;
    for (const watcher of this.watchers) watcher(block);
  },
};

// Redraw when the room for a chart changes, but not once for every pixel of a drag.
const drawn = [];
function onWidth(host, draw) {
  let last = 0;
  const at = (width) => {
    if (width > 0 && width !== last) draw((last = width));
  };
  const look = () => at(Math.floor(host.clientWidth));
  drawn.push({ toScreen: look, toPaper: () => at(Math.min(last, PAPER)) });
  new ResizeObserver(() => requestAnimationFrame(look)).observe(host);
  look();
}

// What was drawn for a wide screen would print with letters too small to read; and paper cannot unfold anything.
const PAPER = 700;
addEventListener("beforeprint", () => {
  for (const chart of drawn) chart.toPaper();
  for (const part of document.querySelectorAll("details:not([open])")) {
    part.open = true;
    part.dataset.folded = "";
  }
});
addEventListener("afterprint", () => {
  for (const chart of drawn) chart.toScreen();
  for (const part of document.querySelectorAll("details[data-folded]")) {
    part.open = false;
    delete part.dataset.folded;
  }
});

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Pages opened from a disk or an insecure host have no clipboard interface; the old way still works there.
    const area = el("textarea", { class: "offscreen", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

function copyButton(button, text) {
  const label = button.textContent;
  button.addEventListener("click", async () => {
    button.textContent = (await copyText(typeof text === "function" ? text() : text)) ? "Copied" : "Select and copy by hand";
    setTimeout(() => (button.textContent = label), 1600);
  });
}
