// What the page is made of; the words around the charts are in the HTML already and need no script.

function themeSwitch() {
  const button = document.getElementById("theme");
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const current = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const label = () => {
    button.textContent = current() === "dark" ? "Light page" : "Dark page";
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = current() === "dark" ? "light" : "dark";
    label();
  });
  dark.addEventListener("change", label);
  label();
}

function profileSeries(models, chart) {
  const found = [];
  for (const model of models)
    chart.keys.forEach((key, k) => {
      const series = model.series[key];
      if (!series) return;
      const several = models.length > 1;
      found.push({
        name: several ? model.name : chart.names[k],
        color: several ? model.color : k === 0 ? 0 : k === 1 ? 1 : 2,
        dash: several ? model.color : k,
        x: model.indices,
        y: series.values,
        low: !several && k === 0 ? series.low : null,
        high: !several && k === 0 ? series.high : null,
        heads: several ? null : series.heads,
      });
    });
  return found;
}

function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const models = data.models;
  themeSwitch();
  for (const host of document.querySelectorAll("[data-strip]")) {
    const place = Number(host.dataset.strip);
    depthStrip(host, models[place].strip, place === models.length - 1);
  }
  for (const host of document.querySelectorAll("[data-worth]")) depthStrip(host, models[host.dataset.worth].worth, true);
  for (const host of document.querySelectorAll("[data-chart]")) {
    const chart = data.charts[host.dataset.chart];
    lineChart(host, {
      title: chart.title, blocks: true, range: chart.range, floor: chart.floor, thresholds: chart.thresholds,
      region: models.length === 1 && models[0].from !== null ? [models[0].from, models[0].to] : null, series: profileSeries(models, chart),
    });
  }
  for (const host of document.querySelectorAll("[data-matrix]")) {
    const [model, key] = host.dataset.matrix.split(":");
    const matrix = models[model].matrices[key];
    host.append(colorScale(matrix.low, matrix.values.flat().includes(null), matrix.zero));
    matrixChart(host, { ...matrix, size: models.length > 1 ? 420 : 520 });
  }
  for (const host of document.querySelectorAll("[data-curve]")) {
    const curve = data.curves[host.dataset.curve];
    lineChart(host, { ...curve, height: 240 });
  }
  const maps = document.getElementById("map-viewer");
  if (maps) mapViewer(maps, models);
  const patches = document.getElementById("patch-viewer");
  if (patches) patchViewer(patches, models[0]);
  for (const table of document.querySelectorAll("table.sortable")) sortable(table);
  for (const box of document.querySelectorAll(".scroll")) sideways(box);
  for (const button of document.querySelectorAll("[data-copy-table]"))
    copyButton(button, () => csvOf(document.getElementById(button.dataset.copyTable)));
  for (const button of document.querySelectorAll("[data-copy-numbers]")) copyButton(button, data.csv);
  for (const button of document.querySelectorAll("[data-copy]")) copyButton(button, button.dataset.copy);
  // The page says so when it is whole, for those who wait for it.
  document.documentElement.dataset.ready = "true";
}
start();
