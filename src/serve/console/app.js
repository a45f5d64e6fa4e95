// The shell: signing in, what the stream tells, which view is shown. A view is a function from the
// state to elements; it is drawn again whenever something changes, and only differences are put in.

import { Refused, follow, get, token } from "./api.js";
import { addRegion } from "./dialogs.js";
import { h, morph, say } from "./dom.js";
import * as feeds from "./feeds.js";
import * as files from "./files.js";
import * as overview from "./overview.js";
import * as problems from "./problems.js";
import * as rates from "./rates.js";
import * as runs from "./runs.js";
import * as times from "./times.js";

const NO_STATE = () => ({
  node: null, feeds: [], nodes: [], turnedAway: [], regions: [], bandwidth: null, faults: [], propagation: [],
  newestRun: null, connected: false, trouble: "", heard: false,
});

let state = NO_STATE();
let stream = null;
let signIn = { error: "", open: false };
let view = null;
let drawing = false;

const LINKS = [
  ["#/", "Overview", overview], ["#/feeds", "Feeds", feeds], ["#/runs", "Runs", runs], ["#/rates", "Rates", rates],
  ["#/times", "Propagation", times], ["#/problems", "Problems", problems],
];

/** Draws soon; several changes at once are drawn together. */
function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    const app = document.getElementById("app");
    const fresh = h("div", { id: "app" }, state.node ? page() : welcome());
    if (!app.handlers) app.replaceWith(fresh);
    else morph(app, fresh);
    view?.module.drawn?.(state);
  });
}

// ---- Signing in

function welcome() {
  if (stream) return h("p.alone", { key: "wait", role: "status" }, "Connecting …");
  const submit = (event) => {
    event.preventDefault();
    const shown = event.target.elements.token.value.trim();
    if (shown) token.set(shown);
    start();
  };
  return h("main.alone", { key: "sign-in", id: "main" },
    h("img", { src: "/console/icon.svg", alt: "", width: 48, height: 48 }),
    h("h1", null, "depsync"),
    h("form", { onsubmit: submit },
      h("label", { for: "token" }, "Token"),
      h("input", { id: "token", name: "token", type: "password", autocomplete: "off", autofocus: true, required: true,
        "aria-describedby": "token-hint token-error" }),
      h("p.error", { id: "token-error", role: "alert" }, signIn.error),
      h("button.primary", { type: "submit" }, "Sign in")),
    signIn.open && h("p", null, h("button.link", { onclick: start }, "Look around without a token")),
    h("p.hint", { id: "token-hint" }, "A reader's token shows everything, an admin's also acts. An admin makes one by ",
      h("code", null, "depsync token create --role reader"), "; the first admin's is in ", h("code", null, "admin.token"),
      " of the node's state directory. It is kept until this tab is closed."));
}

async function start() {
  signIn.error = "";
  stream = new AbortController();
  draw();
  try {
    await get("/v1/node");
    follow(tell, connected, stream.signal).catch(signOutBecause);
  } catch (error) {
    signOutBecause(error);
  }
}

/** Whether reading is free here: on loopback it is. */
async function tryWithoutToken() {
  try {
    await get("/v1/node");
    signIn.open = true;
  } catch { /* a token it is */ }
  draw();
}

function signOutBecause(error) {
  signOut(error instanceof Refused && error.status === 401 && !token.get() ? "This node asks for a token." : error.message);
}

function signOut(error = "") {
  stream?.abort();
  stream = null;
  token.forget();
  state = NO_STATE();
  signIn = { error, open: signIn.open };
  view?.module.left?.();
  view = null;
  for (const [, , module] of LINKS) module.reset?.();
  files.reset();
  tryWithoutToken();
}

// ---- What the stream tells

function tell(name, value) {
  if (name === "node") state.node = { ...value, mayAct: value.you.role === "admin" };
  if (name === "feeds") state.feeds = value.feeds;
  if (name === "nodes") setNodes(value);
  if (name === "regions") state.regions = value.regions;
  if (name === "bandwidth") state.bandwidth = value;
  if (name === "faults") setFaults(value.faults);
  if (name === "propagation") state.propagation = value.feeds;
  if (name === "runs") state.newestRun = value.newest;
  if (state.node) route();
  draw();
}

function setNodes(value) {
  state.nodes = value.nodes;
  state.turnedAway = value.turned_away;
}

/** News is said aloud, once. */
function setFaults(faults) {
  const name = (fault) => [fault.kind, fault.feed, fault.subject].join("|");
  const before = new Set(state.faults.map(name));
  const worst = faults.filter((fault) => fault.level !== "notice" && !before.has(name(fault)));
  if (state.heard && worst.length) say(worst[0].fault, "bad");
  if (state.heard && state.faults.length && !faults.length) say("Nothing is wrong any more.");
  state.faults = faults;
  state.heard = true;
}

function connected(is, why = "") {
  state.connected = is;
  state.trouble = why;
  draw();
}

// Counters do not move while nothing is sent, and ages do: both are drawn anew now and then.
setInterval(() => {
  if (!state.node) return;
  rates.sample(state);
  draw();
}, 1000);

// ---- The page

function route() {
  const at = location.hash || "#/";
  if (view?.at === at) return;
  const parts = at.slice(2).split("/").filter(Boolean);
  const name = parts[0] || "";
  let module = { "": overview, feeds, runs, rates, times, problems }[name] || overview;
  if (name === "feeds" && parts[2] === "files") module = files;
  const isNew = view !== null;
  view?.module.left?.();
  view = { at, module };
  module.entered?.(state, parts, draw);
  draw();
  if (isNew) requestAnimationFrame(() => document.querySelector("h1")?.focus());
}

addEventListener("hashchange", () => { if (state.node) route(); });

function page() {
  const { node } = state;
  const title = view.module.title(state);
  document.title = `${title} – ${node.label} – depsync`;
  return [
    h("header.bar", { key: "bar" },
      h("a.brand", { href: "#/" }, h("img", { src: "/console/icon.svg", alt: "", width: 26, height: 26 }), h("span", null, "depsync")),
      h("span.node", { title: node.id }, node.label, node.region && h("span.quiet", null, ` · ${node.region}`)),
      h("span.grow"),
      h("span.live", { class: state.connected ? "on" : "lost", role: "status" }, state.connected ? "Live" : "Not connected"),
      h("span.who.quiet", null, node.mayAct ? "admin" : node.you.role),
      h("button", { onclick: () => signOut() }, token.get() ? "Sign out" : "Sign in")),
    h("nav", { key: "nav", "aria-label": "Views" }, h("ul", null, LINKS.map(link))),
    h("main", { key: "main", id: "main" },
      !state.connected && h("p.banner.bad", { key: "lost" }, "The connection is lost; what is shown may be old. ", state.trouble, " Trying again …"),
      h("div.title", { key: `title-${view.at}` }, h("h1", { tabindex: "-1" }, title),
        view.module === overview && h("button.primary", { disabled: !node.mayAct, title: node.mayAct ? null : "Needs an admin's token",
          onclick: () => addRegion(state) }, "Add a region")),
      h("div.view", { key: `view-${view.at}` }, view.module.view(state, draw))),
    h("footer", { key: "foot" }, `depsync ${node.version} · `, h("a", { href: "/v1/openapi.json" }, "API description")),
  ];
}

function link([href, name, module]) {
  const here = view.module === module || (module === feeds && view.module === files);
  const worse = state.faults.filter((fault) => fault.level !== "notice").length;
  const count = module === problems && worse > 0 && h("span.count", null, worse, h("span.unseen", null, worse === 1 ? " problem" : " problems"));
  const held = state.feeds.reduce((sum, feed) => sum + (feed.held_deletions ? 1 : 0), 0);
  const waits = module === feeds && held > 0 && h("span.count.wait", null, held, h("span.unseen", null, " with deletions that wait"));
  return h("li", null, h("a", { href, "aria-current": here ? "page" : null }, name, count, waits));
}

if (token.get()) start();
else {
  draw();
  tryWithoutToken();
}
