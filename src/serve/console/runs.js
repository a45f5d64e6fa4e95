// What this node did: commits, fetches, checkouts, hooks; with the names of what was moved, and the log.

import { get } from "./api.js";
import { ago, badge, bytes, duration, h, number, short } from "./dom.js";

const PAGE = 50;
const KINDS = { ok: "good", failed: "bad", refused: "bad", held: "busy" };

let runs = [];
let next = null;
let error = "";
let feed = "";
let newest;
let redraw = () => {};

export const title = () => "Runs";

export function reset() {
  runs = [];
  next = null;
  error = "";
  feed = "";
  newest = undefined;
}

export function entered(state, parts, draw) {
  reset();
  redraw = draw;
}

async function load(after) {
  const of = feed;
  try {
    const page = await get(`/v1/runs?limit=${PAGE}${feed ? `&feed=${encodeURIComponent(feed)}` : ""}${after ? `&after=${after}` : ""}`);
    if (of !== feed) return;
    runs = after ? [...runs, ...page.runs] : page.runs;
    next = page.next;
    error = "";
  } catch (refused) {
    error = refused.message;
  }
  redraw();
}

export function view(state) {
  if (newest !== state.newestRun) {
    newest = state.newestRun;
    load();
  }
  const choose = (event) => { feed = event.target.value; load(); };
  return [
    h("div.field.row", null, h("label", { for: "run-feed" }, "Feed"),
      h("select", { id: "run-feed", onchange: choose }, h("option", { value: "" }, "all"),
        state.feeds.map((it) => h("option", { value: it.feed }, it.feed)))),
    error && h("p.banner.bad", null, error),
    h("ol.log", null, runs.map(entry)),
    !runs.length && h("p.quiet", null, "Nothing was done yet."),
    next && h("button", { onclick: () => load(next) }, "Older runs"),
  ];
}

function entry(run) {
  const facts = [run.files ? `${number(run.files)} ${run.files === 1 ? "file" : "files"}` : null,
    run.bytes ? bytes(run.bytes) : null, duration(run.took_ms)].filter(Boolean).join(", ");
  return h("li.card.run", { key: run.id, "data-kind": run.kind }, h("details", null,
    h("summary", null, badge(KINDS[run.outcome] || "off", run.outcome), h("b", null, run.kind), h("span", null, run.feed),
      run.commit && h("code", null, short(run.commit)), h("span", null, facts), h("span.quiet.meta", null, ago(run.started))),
    run.detail && h("pre.output", { tabindex: "0", "aria-label": "Log" }, run.detail),
    h("ul.changes", null, run.names.map((it) => h("li", { key: it.path_b64 || it.path }, h("code.path", null, it.path)))),
    run.files > run.names.length && run.names.length > 0 && h("p.quiet", null, `and ${number(run.files - run.names.length)} more`),
    !run.detail && !run.names.length && h("p.quiet", null, "Nothing was moved.")));
}
