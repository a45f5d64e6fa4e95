// One feed: where it stands, what waits for a decision, and its history.

import { get } from "./api.js";
import { act, ask, pin } from "./dialogs.js";
import { ago, badge, bytes, h, head, number, plural, prose, short, table } from "./dom.js";
import { stateBadge } from "./overview.js";

const PAGE = 25;

let name = null;
let redraw = () => {};
let history = { commits: [], next: null, error: "" };
let held = { list: [], next: null };
let changes = new Map();
let seen = "";

export const title = () => (name ? `Feed ${name}` : "Feeds");

export function reset() {
  name = null;
  seen = "";
  history = { commits: [], next: null, error: "" };
  held = { list: [], next: null };
  changes = new Map();
}

export function entered(state, parts, draw) {
  reset();
  redraw = draw;
  name = parts[1] ? decodeURIComponent(parts[1]) : null;
}

const base = () => `/v1/feeds/${encodeURIComponent(name)}`;

/** What is fetched is fetched again when the feed has moved. */
function refresh(feed) {
  const mark = `${feed.commit} ${feed.held_count} ${feed.held_deletions?.id}`;
  if (mark === seen) return;
  seen = mark;
  load();
  loadHeld();
}

async function load(after) {
  const of = name;
  try {
    const page = await get(`${base()}/log?limit=${PAGE}${after ? `&after=${after}` : ""}`);
    if (of !== name) return;
    history = { commits: after ? [...history.commits, ...page.commits] : page.commits, next: page.next, error: "" };
  } catch (refused) {
    history.error = refused.message;
  }
  redraw();
}

async function loadHeld(after) {
  const of = name;
  try {
    const page = await get(`${base()}/held?limit=100${after ? `&after=${encodeURIComponent(after)}` : ""}`);
    if (of !== name) return;
    held = { list: after ? [...held.list, ...page.held] : page.held, next: page.next };
  } catch {
    held = { list: [], next: null };
  }
  redraw();
}

async function loadChanges(commit, after) {
  const known = changes.get(commit.commit);
  if (known && !after) return;
  const range = `${commit.parent || 0}..${commit.commit}`;
  try {
    const page = await get(`${base()}/diff/${range}?limit=200${after ? `&after=${encodeURIComponent(after)}` : ""}`);
    changes.set(commit.commit, { list: [...(after ? known.list : []), ...page.changes], next: page.next });
  } catch (refused) {
    changes.set(commit.commit, { list: [], error: refused.message });
  }
  redraw();
}

export function view(state) {
  if (!name && state.feeds.length === 1) name = state.feeds[0].feed;
  if (!name) return choose(state);
  const feed = state.feeds.find((it) => it.feed === name);
  if (!feed) return h("p.lead", null, "This node carries no feed of that name.");
  refresh(feed);
  return [summary(feed), acts(state, feed), waiting(state, feed), log(state, feed)];
}

function choose(state) {
  const cards = state.feeds.map((feed) => h("li", { key: feed.feed }, h("a.card.pick", { href: `#/feeds/${encodeURIComponent(feed.feed)}` },
    h("b", null, feed.feed), stateBadge(feed), h("span.quiet", null, `${plural(feed.files, "file")}, ${bytes(feed.bytes)}`))));
  return h("ul.picks", null, cards);
}

function summary(feed) {
  const fact = (term, value) => h("div", null, h("dt", null, term), h("dd", null, value));
  return h("dl.facts", null,
    fact("State", [stateBadge(feed), feed.detail && h("span.sub", null, prose(feed.detail)), feed.last_error && h("span.sub.warn", null, prose(feed.last_error))]),
    fact("Version", feed.commit ? head(feed) : "nothing yet"),
    fact("Content", `${plural(feed.files, "file")}, ${bytes(feed.bytes)}`),
    fact("Epoch", number(feed.epoch)),
    fact(feed.role === "primary" ? "Owned here" : "Mirrored from", feed.role === "primary" ? plural(feed.followers, "follower") : feed.upstream || "–"),
    fact("Repository", `${bytes(feed.store.pack_bytes + feed.store.object_bytes)}, ${bytes(feed.store.free_bytes)} free`));
}

function acts(state, feed) {
  const { mayAct } = state.node;
  const button = (text, onclick, hint) => h("button", { onclick, disabled: !mayAct, title: mayAct ? hint : "Needs an admin's token" }, text);
  const primary = feed.role === "primary";
  const browse = feed.commit && h("a.button", { href: `#/feeds/${encodeURIComponent(name)}/files/${feed.commit}/` }, "Browse files");
  return h("div.acts-bar", { role: "group", "aria-label": "Actions" },
    browse,
    button("Sync now", () => act(name, "sync", {}, "Everything was looked at."), "Look for changes now"),
    primary && button("Hold", () => act(name, "hold", {}, "Changes are gathered; nothing is published."), "Gather changes until released"),
    primary && button("Release", () => act(name, "release", {}, "What was gathered is published."), "Publish what was held back, as one version"),
    button("Pause all", () => ask({
      title: `Pause ${name}?`, ok: "Pause", feed: name, name: "pause", fields: {}, done: `${name} is paused everywhere.`,
      text: "Every node below stays at the version it has until the feed is resumed.",
    }), "Every node stays where it is"),
    button("Resume all", () => act(name, "resume", {}, "Every node goes on."), "Every node goes on"),
    primary && button("Unpin all", () => act(name, "unpin", {}, "Nothing is pinned for every node."), "Take back a pin for every node"));
}

// ---- What waits

function waiting(state, feed) {
  if (!held.list.length && !feed.held_deletions) return null;
  const list = feed.held_deletions;
  const rows = held.list.map((it, at) => h("tr", { key: it.path_b64 || it.path || at },
    h("td", null, h("code.path", null, it.path)), h("td", null, prose(it.reason)), h("td", null, ago(it.since)),
    h("td.acts", null, !list && !it.path_b64 && state.node.mayAct && h("button.small", {
      "aria-label": `Publish ${it.path} as it is`,
      onclick: () => act(name, "approve", { path: it.path }, `${it.path} is published as it is.`),
    }, "Publish as it is"))));
  return h("section.card.busy", { "aria-labelledby": "held", id: "held-card" },
    h("h2", { id: "held" }, list ? `${plural(list.files, "deletion")} wait for a decision` : "Changes that wait"),
    list && h("p", null, "So many files at once are not removed from the regions before somebody has looked. They were held ", ago(list.since), "."),
    list && h("div.acts-bar", { role: "group", "aria-label": "Decide" },
      h("button.primary.danger", { disabled: !state.node.mayAct, onclick: () => approve(list) }, "Approve the deletion"),
      h("button", { disabled: !state.node.mayAct, onclick: () => reject(list) }, "Reject: put them back")),
    table("What waits", [["Path"], ["Why"], ["Since"], ["", "acts"]], rows, "Nothing."),
    held.next && h("button.link", { onclick: () => loadHeld(held.next) }, "Show more"));
}

const approve = (list) => ask({
  title: `Remove ${plural(list.files, "file")} everywhere?`, ok: "Remove them", danger: true, feed: name, name: "approve",
  fields: { id: list.id }, done: "The deletion is published.",
  text: "They are removed from every region. Their content stays in the history, and a rollback brings it back.",
});

const reject = (list) => ask({
  title: `Put ${plural(list.files, "file")} back?`, ok: "Put them back", feed: name, name: "reject", fields: { id: list.id },
  done: "The files are back.", text: "They are written into the watched folder as they were.",
});

// ---- History

function log(state, feed) {
  return h("section", { "aria-labelledby": "history" }, h("h2", { id: "history" }, "History"),
    history.error && h("p.banner.bad", null, history.error),
    h("ol.log", null, history.commits.map((commit) => entry(state, feed, commit))),
    !history.commits.length && h("p.quiet", null, "Nothing is published yet."),
    history.next && h("button", { onclick: () => load(history.next) }, "Older versions"));
}

function entry(state, feed, commit) {
  const open = (event) => { if (event.target.open) loadChanges(commit); };
  const newest = commit.commit === feed.commit;
  return h("li.card.commit", { key: commit.commit, "data-seq": commit.seq },
    h("details", { ontoggle: open },
      h("summary", null, h("b.seq", null, `#${commit.seq}`), h("span.subject", null, commit.subject),
        newest && badge("good", "newest"),
        h("span.quiet.meta", null, h("code", null, short(commit.commit)), " · ", ago(commit.time), " · ", who(state, commit))),
      moved(commit)),
    commitActs(state, feed, commit, newest));
}

/** Who made it, and at which node where that has another name. */
function who(state, commit) {
  const at = commit.node === state.node.id ? state.node.label : state.nodes.find((node) => node.id === commit.node)?.label;
  return at && at !== commit.author ? `${commit.author} at ${at}` : commit.author;
}

const VERBS = { added: ["good", "added"], modified: ["busy", "changed"], metadata: ["off", "mode or time"], deleted: ["bad", "deleted"] };

function moved(commit) {
  const known = changes.get(commit.commit);
  if (!known) return h("p.quiet", null, "Loading …");
  if (known.error) return h("p.error", null, known.error);
  const rows = known.list.map((it) => h("li", { key: it.path_b64 || it.path }, badge(...VERBS[it.change]), h("code.path", null, it.path)));
  return [h("ul.changes", null, rows), !rows.length && h("p.quiet", null, "No file differs."),
    known.next && h("button.link", { onclick: () => loadChanges(commit, known.next) }, "Show more")];
}

function commitActs(state, feed, commit, newest) {
  const label = `version ${commit.seq}`;
  const act = (text, onclick) => h("button.small", { onclick, "aria-label": `${text} ${label}` }, text);
  const owner = state.node.mayAct && feed.role === "primary";
  return h("div.acts", null,
    h("a.button.small", { href: `#/feeds/${encodeURIComponent(name)}/files/${commit.commit}/`, "aria-label": `Files of ${label}` }, "Files"),
    owner && act("Pin", () => pin(name, commit.commit, state.nodes.filter((node) => !node.via))),
    owner && !newest && act("Roll back to", () => ask({
      title: `Roll back to #${commit.seq}?`, ok: "Roll back", danger: true, feed: name, name: "rollback", fields: { commit: commit.commit },
      done: `${name} is back at the state of #${commit.seq}.`,
      body: [h("p", null, h("b", null, commit.subject), ` (${short(commit.commit)})`),
        h("p", null, "Its files come back as a new version, here and at every region. What would be lost goes aside. Later changes in the folder wait until “Release”.")],
    })));
}
