// A feed's files at any version.

import { download, get } from "./api.js";
import { quoted } from "./dialogs.js";
import { ago, bytes, encodePath, h, plural, say, short, table } from "./dom.js";

/** Beyond this a browser should not hold a file; the page says how to fetch it instead. */
const MAX_DOWNLOAD = 200_000_000;

let at = null;
let folder = { entries: [], next: null, error: "", loading: true };
let versions = [];
let redraw = () => {};

export const title = () => (at ? `Files of ${at.feed}` : "Files");

export function reset() {
  at = null;
  folder = { entries: [], next: null, error: "", loading: true };
  versions = [];
}

/** `#/feeds/{feed}/files/{commit}/{path}`; the path stays as it is in the URL. */
export function entered(state, parts, draw) {
  const known = at?.feed === decodeURIComponent(parts[1]) ? versions : [];
  reset();
  redraw = draw;
  at = { feed: decodeURIComponent(parts[1]), commit: parts[3], path: parts.slice(4).join("/") };
  versions = known;
  load();
  if (!versions.length) loadVersions();
}

const base = () => `/v1/feeds/${encodeURIComponent(at.feed)}`;
const link = (commit, path) => `#/feeds/${encodeURIComponent(at.feed)}/files/${commit}/${path}`;

async function load(after) {
  const of = at;
  try {
    const page = await get(`${base()}/tree/${at.commit}/${at.path}?limit=500${after ? `&after=${encodeURIComponent(after)}` : ""}`);
    if (of !== at) return;
    folder = { entries: [...(after ? folder.entries : []), ...page.entries], next: page.next, error: "", loading: false };
  } catch (refused) {
    if (of === at) folder = { entries: [], next: null, error: refused.message, loading: false };
  }
  redraw();
}

async function loadVersions() {
  const of = at.feed;
  try {
    const page = await get(`${base()}/log?limit=200`);
    if (of === at?.feed) versions = page.commits;
  } catch { /* the folder itself says what is wrong */ }
  redraw();
}

export function view() {
  const commit = versions.find((it) => it.commit === at.commit);
  const choose = (event) => { location.hash = link(event.target.value, at.path); };
  const options = versions.map((it) => h("option", { key: it.commit, value: it.commit, selected: it.commit === at.commit },
    `#${it.seq} ${short(it.commit)} – ${it.subject}`));
  if (!commit) options.unshift(h("option", { key: at.commit, value: at.commit, selected: true }, short(at.commit)));
  return [
    h("div.field.row", null, h("label", { for: "version" }, "Version"),
      h("select", { id: "version", key: `versions ${at.commit} ${versions.length}`, onchange: choose }, options),
      commit && h("span.quiet", null, ago(commit.time), ` by ${commit.author}`)),
    crumbs(),
    folder.error ? h("p.banner.bad", null, folder.error) : listing(),
    folder.next && h("button", { onclick: () => load(folder.next) }, "Show more"),
  ];
}

function crumbs() {
  const parts = at.path.split("/").filter(Boolean);
  const one = (name, path, last) => h("li", null, last ? h("span", { "aria-current": "location" }, name) : h("a", { href: link(at.commit, path) }, name));
  return h("nav.crumbs", { "aria-label": "Folder" }, h("ol", null, one(at.feed, "", !parts.length),
    parts.map((part, n) => one(decoded(part), `${parts.slice(0, n + 1).join("/")}/`, n === parts.length - 1))));
}

/** Bytes that are no UTF-8 stay as they are in the URL. */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function listing() {
  const columns = [["Name"], ["Kind"], ["Size", "num"], ["Mode"], ["Modified"], ["", "acts"]];
  const empty = folder.loading ? "Loading …" : "The folder is empty.";
  const order = (it) => (it.type === "folder" ? 0 : 1);
  const entries = [...folder.entries].sort((a, b) => order(a) - order(b));
  return [table("Files", columns, entries.map(row), empty),
    !folder.loading && h("p.quiet", null, plural(folder.entries.length, "entry", "entries"), folder.next && " so far")];
}

function row(item) {
  const path = `${at.path}${at.path && !at.path.endsWith("/") ? "/" : ""}${encodePath(item)}`;
  const name = item.type === "folder" ? h("a", { href: link(at.commit, `${path}/`) }, `${item.name}/`) : item.name;
  return h("tr", { key: item.name_b64 || item.name },
    h("th", { scope: "row" }, h("span.path", null, name), item.target !== undefined && h("span.sub", null, `→ ${item.target}`)),
    h("td", null, item.type), h("td.num", null, item.type === "file" ? bytes(item.size) : ""),
    h("td", null, item.mode && h("code", null, item.mode)), h("td", null, ago(item.mtime)),
    h("td.acts", null, item.type === "file" && h("button.small", { "aria-label": `Download ${item.name}`, onclick: () => fetchFile(item, path) }, "Download")));
}

async function fetchFile(item, path) {
  const url = `${base()}/at/${at.commit}/${path}?via=primary`;
  if (item.size > MAX_DOWNLOAD) {
    say(`${item.name} is large: fetch it with  depsync get ${quoted(`${at.feed}/${decodeURIComponent(path)}`)} --at ${at.commit}`, "bad");
    return;
  }
  try {
    const link = h("a", { href: URL.createObjectURL(await download(url)), download: item.name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (refused) {
    say(refused.message, "bad");
  }
}
