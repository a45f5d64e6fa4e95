// How long versions take to arrive: each arrival as a dot, and each node's usual time.

import { ago, clock, duration, h, head, number, table } from "./dom.js";

export const title = () => "Propagation";

let chart = null;

export function left() {
  chart?.destroy();
  chart = null;
}

const all = (state) => state.propagation.flatMap((feed) => feed.arrivals.map((it) => ({ ...it, feed: feed.feed })));

export function view(state) {
  const arrivals = all(state);
  const count = state.propagation.reduce((sum, feed) => sum + feed.count, 0);
  const mean = state.propagation.reduce((sum, feed) => sum + feed.sum_ms, 0) / count;
  const intro = count
    ? `${number(count)} arrivals since this node started, ${duration(mean)} on average.`
    : "No version has arrived anywhere since this node started.";
  return [
    h("p.lead", null, "From the announcement of a version here until a region has verified it. ", intro),
    h("figure", { class: arrivals.length ? null : "gone" }, h("figcaption", null, "The last versions: when they were announced, and what each node took"),
      h("div.chart", { id: "times-chart", keep: true, key: "chart", "aria-hidden": "true" })),
    section("Nodes", [["Node"], ["Region"], ["Arrivals", "num"], ["Last", "num"], ["Median", "num"], ["Worst", "num"]], nodes(arrivals)),
    section("Last arrivals", [["Version"], ["Feed"], ["Node"], ["Announced"], ["Took", "num"]], arrivals.slice(0, 30).map(arrivalRow)),
  ];
}

const section = (name, columns, rows) => h("section", null, h("h2", null, name), table(name, columns, rows, "None yet."));

function arrivalRow(it) {
  return h("tr", { key: `${it.feed} ${it.node} ${it.commit}` }, h("td", null, head(it)), h("td", null, it.feed), h("td", null, it.label),
    h("td", null, ago(it.announced)), h("td.num", null, duration(it.took_ms)));
}

function nodes(arrivals) {
  const groups = new Map();
  for (const it of arrivals) groups.set(it.node, [...(groups.get(it.node) || []), it]);
  return [...groups.values()].map((list) => {
    const took = list.map((it) => it.took_ms).sort((a, b) => a - b);
    return h("tr", { key: list[0].node }, h("th", { scope: "row" }, list[0].label), h("td", null, list[0].region || "–"),
      h("td.num", null, number(list.length)), h("td.num", null, duration(list[0].took_ms)),
      h("td.num", null, duration(took[Math.floor(took.length / 2)])), h("td.num", null, duration(took.at(-1))));
  });
}

export function drawn(state) {
  const place = document.getElementById("times-chart");
  const arrivals = all(state).sort((a, b) => a.announced.localeCompare(b.announced));
  if (!place || !arrivals.length) return;
  const x = arrivals.map((it) => Date.parse(it.announced) / 1000);
  const y = arrivals.map((it) => Math.max(it.took_ms, 1) / 1000);
  if (chart && chart.root.parentNode === place) {
    if (chart.data[0].length !== x.length || chart.data[0].at(-1) !== x.at(-1)) chart.setData([x, y]);
    fit(place);
    return;
  }
  chart?.destroy();
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const axis = { stroke: color("--quiet"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line") } };
  chart = new uPlot({
    width: place.clientWidth, height: 240, legend: { show: false }, cursor: { drag: { x: false } },
    scales: {
      x: { range: (_, min, max) => [min - Math.max(2, (max - min) * 0.03), max + Math.max(2, (max - min) * 0.03)] },
      y: { distr: 3, range: (_, min, max) => [Math.min(min, 0.01) / 1.5, Math.max(max, 1) * 1.5] },
    },
    axes: [{ ...axis, values: clock, space: 90, size: 36 }, { ...axis, size: 70, values: (_, ticks) => ticks.map((it) => (it === null ? "" : duration(it * 1000))) }],
    series: [{}, { stroke: color("--accent"), paths: () => null, points: { show: true, size: 8, fill: color("--accent") } }],
  }, [x, y], place);
}

function fit(place) {
  if (Math.abs(chart.width - place.clientWidth) > 2) chart.setSize({ width: place.clientWidth, height: 240 });
}
