// What is sent, beside the limits in force; and setting them.

import { send } from "./api.js";
import { bytes, clock, h, number, rate, rateOf, say, table } from "./dom.js";

/** Five minutes of seconds. */
const KEPT = 300;

let samples = [];
let last = null;
let chart = null;
let form = { error: "", saving: false };

export const title = () => "Rates";

export function reset() {
  samples = [];
  last = null;
}

export function left() {
  chart?.destroy();
  chart = null;
}

/** Once a second: how much the counters have moved since the last time. */
export function sample(state) {
  if (!state.bandwidth || !state.connected) {
    last = null;
    return;
  }
  const at = performance.now();
  const { downloads, replication } = state.bandwidth.sent;
  if (last && downloads >= last.downloads) {
    const secs = (at - last.at) / 1000;
    samples.push({ at: Date.now() / 1000, downloads: (downloads - last.downloads) / secs, replication: (replication - last.replication) / secs });
    samples = samples.slice(-KEPT);
  }
  last = { at, downloads, replication };
}

/** The mean of the last seconds. */
export function now() {
  const recent = samples.slice(-3);
  const mean = (name) => recent.reduce((sum, it) => sum + it[name], 0) / (recent.length || 1);
  return { downloads: mean("downloads"), replication: mean("replication") };
}

export function view(state) {
  const { bandwidth } = state;
  if (!bandwidth) return h("p.quiet", null, "Loading …");
  const sent = now();
  const fact = (term, value) => h("div", null, h("dt", null, term), h("dd", null, value));
  return [
    h("dl.facts", null,
      fact("To clients", rate(sent.downloads)), fact("To regions", rate(sent.replication)),
      fact("Downloads under way", number(bandwidth.sending)), fact("Waiting in the queue", number(bandwidth.queued)),
      fact("Slowed by a limit", number(bandwidth.waiting.downloads + bandwidth.waiting.replication)),
      fact("Turned away", number(bandwidth.refused))),
    h("figure", null, h("figcaption", null, "The last five minutes. ", legend(bandwidth)),
      h("div.chart", { id: "rates-chart", keep: true, key: "chart", "aria-hidden": "true" })),
    limits(state), networks(bandwidth), windows(bandwidth)];
}

function legend(bandwidth) {
  const limited = Object.entries(LINES).filter(([name]) => bandwidth.in_force[name]);
  return h("span.legend", null, h("span.key.downloads", null, "to clients"), h("span.key.replication", null, "to regions"),
    limited.map(([name, word]) => h("span.key.limit", null, `${word}: ${bandwidth.in_force[name]}`)));
}

const LINES = { total: "total limit", downloads: "limit for clients", replication: "limit for regions" };
const FIELDS = [["total", "Everything"], ["downloads", "To clients"], ["replication", "To regions"], ["per_client", "Each client"]];

function limits(state) {
  const { limits: said } = state.bandwidth;
  const { mayAct } = state.node;
  const rates = FIELDS.map(([name, label]) => h("div.field", null, h("label", { for: `limit-${name}` }, label),
    h("input", { id: `limit-${name}`, name, value: said[name] || "", placeholder: "no limit", disabled: !mayAct, autocomplete: "off", "aria-describedby": "limit-hint" })));
  const counts = [["max_downloads", "Downloads at once"], ["max_queue", "Places in the queue"]].map(([name, label]) =>
    h("div.field", null, h("label", { for: `limit-${name}` }, label),
      h("input", { id: `limit-${name}`, name, type: "number", min: name === "max_downloads" ? 1 : 0, value: said[name] ?? "", placeholder: "no limit", disabled: !mayAct })));
  return h("section.card", { "aria-labelledby": "limits" }, h("h2", { id: "limits" }, "Limits"),
    h("form", { key: JSON.stringify(said), onsubmit: (event) => save(event, said) },
      h("div.fields", null, rates, counts),
      h("p.hint", { id: "limit-hint" }, "As in 200MB/s or 512KiB/s; empty is no limit. They hold at once, for transfers under way too, until the configuration file changes or the daemon starts again."),
      h("p.error", { role: "alert" }, form.error),
      h("button.primary", { type: "submit", disabled: !mayAct || form.saving, title: mayAct ? null : "Needs an admin's token" }, "Set the limits")));
}

async function save(event, said) {
  event.preventDefault();
  const data = new FormData(event.target);
  const wish = { networks: said.networks.map(plain), windows: said.windows.map(without) };
  for (const [name] of FIELDS) if (data.get(name).trim()) wish[name] = data.get(name).trim();
  for (const name of ["max_downloads", "max_queue"]) if (data.get(name)) wish[name] = Number(data.get(name));
  form = { error: "", saving: true };
  try {
    await send("PUT", "/v1/bandwidth", wish);
    say("The limits are in force.");
    form = { error: "", saving: false };
  } catch (refused) {
    form = { error: refused.message, saving: false };
    say(refused.message, "bad");
  }
}

const without = (object) => Object.fromEntries(Object.entries(object).filter(([, value]) => value !== null));
const plain = ({ cidr, region, limit }) => without({ cidr: cidr ?? null, region: region ?? null, limit });

function networks(bandwidth) {
  if (!bandwidth.limits.networks.length) return null;
  const rows = bandwidth.limits.networks.map((it) => h("tr", null, h("th", { scope: "row" }, it.cidr || it.region), h("td.num", null, it.limit)));
  return h("section", null, h("h2", null, "Networks and regions"), table("Networks and regions", [["For"], ["Limit", "num"]], rows));
}

function windows(bandwidth) {
  if (!bandwidth.limits.windows.length) return null;
  const rows = bandwidth.limits.windows.map((it) => h("tr", null, h("td", null, h("code", null, it.start), it.timezone && ` ${it.timezone}`),
    h("td", null, `${Math.round(it.for_ms / 60_000)} min`), FIELDS.map(([name]) => h("td.num", null, it[name] || "–"))));
  const columns = [["Opens at"], ["For"], ...FIELDS.map(([, label]) => [label, "num"])];
  return h("section", null, h("h2", null, `Timetable: ${bandwidth.open_windows} open now`), table("Timetable", columns, rows));
}

export function drawn(state) {
  const place = document.getElementById("rates-chart");
  if (!place || !state.bandwidth) return;
  const end = Date.now() / 1000;
  const shown = samples.length ? samples : [{ at: end - 1, downloads: 0, replication: 0 }];
  const lines = Object.keys(LINES).map((name) => rateOf(state.bandwidth.in_force[name]));
  const data = [shown.map((it) => it.at), shown.map((it) => it.downloads), shown.map((it) => it.replication),
    ...lines.map((line) => shown.map(() => line))];
  if (!chart || chart.root.parentNode !== place) {
    chart?.destroy();
    chart = make(place, data);
  } else {
    chart.setData(data);
    if (Math.abs(chart.width - place.clientWidth) > 2) chart.setSize({ width: place.clientWidth, height: 260 });
  }
}

function make(place, data) {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const axis = { stroke: color("--quiet"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line") } };
  const line = (name, more) => ({ stroke: color(name), width: 2, points: { show: false }, ...more });
  const limit = { stroke: color("--bad"), width: 1, dash: [6, 5], points: { show: false } };
  return new uPlot({
    width: place.clientWidth, height: 260, legend: { show: false }, cursor: { drag: { x: false } },
    scales: {
      x: { range: () => [Date.now() / 1000 - KEPT, Date.now() / 1000] },
      y: { range: (_, min, max) => [0, Math.max(max * 1.1, 1000)] },
    },
    axes: [{ ...axis, values: clock, space: 90, size: 36 }, { ...axis, size: 78, values: (_, ticks) => ticks.map((it) => `${bytes(it)}/s`) }],
    series: [{}, line("--accent", { fill: color("--accent-soft") }), line("--second"), limit, limit, limit],
  }, data, place);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", left);
