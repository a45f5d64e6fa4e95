// Elements, and how a new picture takes the place of an old one without losing focus, scroll or what
// is typed. Text is set as text: nothing that comes from a server ever becomes markup.

/** An element: `h("td.number", {title: "…", onclick: f}, "text", child, [children])`. */
export function h(spec, props, ...kids) {
  const [tag, ...classes] = spec.split(".");
  const el = document.createElement(tag);
  if (classes.length) el.className = classes.join(" ");
  el.handlers = {};
  for (const [name, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "key") el.key = value;
    else if (name === "keep") el.keep = true;
    else if (name === "class") el.className += ` ${value}`;
    else if (name.startsWith("on")) listen(el, name.slice(2), value);
    else el.setAttribute(name, value === true ? "" : value);
  }
  add(el, kids);
  return el;
}

function add(el, kids) {
  for (const kid of kids) {
    if (Array.isArray(kid)) add(el, kid);
    else if (kid instanceof Node) el.append(kid);
    else if (kid !== null && kid !== undefined && kid !== false) el.append(String(kid));
  }
}

// One listener for each type; which handler it calls can be exchanged by `morph`.
function listen(el, type, handler) {
  el.handlers[type] = handler;
  el.addEventListener(type, (event) => el.handlers[type]?.call(el, event));
}

/** Makes `old` look like `fresh`, changing only what differs. */
export function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName || old.key !== fresh.key) {
    old.replaceWith(fresh);
    return fresh;
  }
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return old;
  }
  attributes(old, fresh);
  for (const type of Object.keys(fresh.handlers || {})) {
    if (old.handlers && type in old.handlers) old.handlers[type] = fresh.handlers[type];
    else if (old.handlers) listen(old, type, fresh.handlers[type]);
  }
  if (!fresh.keep) children(old, fresh);
  return old;
}

// What a person has opened or typed stays theirs.
const THEIRS = { DETAILS: ["open"], DIALOG: ["open"], INPUT: ["value", "checked"], OPTION: ["selected"] };

function attributes(old, fresh) {
  const theirs = THEIRS[old.nodeName] || [];
  for (const { name, value } of [...fresh.attributes]) {
    if (old.getAttribute(name) !== value && !theirs.includes(name)) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !theirs.includes(name)) old.removeAttribute(name);
  }
}

function children(old, fresh) {
  const keyed = new Map([...old.childNodes].filter((it) => it.key !== undefined).map((it) => [it.key, it]));
  let at = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    let found = wanted.key === undefined ? at : keyed.get(wanted.key);
    if (found && wanted.key === undefined && found.key !== undefined) found = null;
    if (!found) {
      old.insertBefore(wanted, at);
      continue;
    }
    if (found !== at) old.insertBefore(found, at);
    else at = at.nextSibling;
    morph(found, wanted);
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

const UNITS = ["B", "kB", "MB", "GB", "TB"];

/** `1.4 MB` */
export function bytes(count) {
  if (count === null || count === undefined) return "–";
  let at = 0;
  while (count >= 1000 && at < UNITS.length - 1) {
    count /= 1000;
    at += 1;
  }
  return `${at && count < 10 ? count.toFixed(1) : Math.round(count)} ${UNITS[at]}`;
}

/** `1.4 MB/s` */
export const rate = (count) => `${bytes(count)}/s`;

/** Bytes per second of `10MB/s`; null when it is no rate. */
export function rateOf(text) {
  const found = /^\s*([\d.]+)\s*([kKMGT]?)(i?)B\/s\s*$/.exec(text || "");
  if (!found) return null;
  const power = ["", "K", "M", "G", "T"].indexOf(found[2].toUpperCase());
  return Number(found[1]) * (found[3] ? 1024 : 1000) ** power;
}

/** `12 ms`, `3.4 s`, `5 min` */
export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1) return "< 1 ms";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 10_000) return `${(ms / 1000).toFixed(1)} s`;
  if (ms < 120_000) return `${Math.round(ms / 1000)} s`;
  if (ms < 7_200_000) return `${Math.round(ms / 60_000)} min`;
  if (ms < 172_800_000) return `${Math.round(ms / 3_600_000)} h`;
  return `${Math.round(ms / 86_400_000)} days`;
}

/** A time as people say it, with the exact one behind it. */
export function ago(text) {
  if (!text) return "–";
  const at = new Date(text);
  const age = Date.now() - at;
  const said = age < 5000 ? "just now" : `${age < 60_000 ? `${Math.round(age / 1000)} s` : duration(age)} ago`;
  return h("time", { datetime: text, title: at.toLocaleString() }, said);
}

/** `1,234` */
export const number = (count) => (count ?? 0).toLocaleString("en");

/** `1 file`, `2 files` */
export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

/** The first digits of a commit. */
export const short = (commit) => (commit ? commit.slice(0, 8) : "–");

/** A head as `#12 1a2b3c4d`. */
export function head(it) {
  if (!it) return h("span.quiet", null, "nothing");
  return h("span.head", { title: it.commit }, h("b", null, `#${it.seq}`), " ", h("code", null, short(it.commit)));
}

/** A word with a colour and a shape: `good`, `busy`, `bad`, `off`. */
export const badge = (kind, word, title) => h(`span.badge.${kind}`, { title }, word);

/** A folder's or file's path in a URL, from the bytes that it has. */
export function encodePath(item) {
  const raw = item.name_b64 || item.path_b64;
  if (!raw) return (item.name ?? item.path).split("/").map(encodeURIComponent).join("/");
  const one = (c) => (c === "/" ? c : `%${c.charCodeAt(0).toString(16).padStart(2, "0")}`);
  return [...atob(raw)].map(one).join("");
}

/** Says something to everybody, also to those who do not look. */
export function say(text, kind = "good") {
  const toast = h(`p.toast.${kind}`, null, text);
  document.getElementById("toasts").append(toast);
  setTimeout(() => toast.remove(), kind === "bad" ? 12_000 : 5_000);
}

/** A text where what stands between backquotes is a command. */
export const prose = (text) => (text || "").split("`").map((part, at) => (at % 2 ? h("code", null, part) : part));

/** A table with a caption for screen readers; `columns`: `[title, class]`. */
export function table(caption, columns, rows, empty) {
  const heads = columns.map(([title, kind]) => h("th", { scope: "col", class: kind }, title));
  const body = rows.length
    ? rows
    : [h("tr", { key: "empty" }, h("td.empty", { colspan: columns.length }, empty))];
  return h("div.scroll", { role: "region", "aria-label": caption, tabindex: "0" },
    h("table", null, h("caption.unseen", null, caption), h("thead", null, h("tr", null, heads)), h("tbody", null, body)));
}

/** Times under a chart, as long ones as the distance between them asks for. */
export const clock = (_, ticks, __, ___, step) => ticks.map((it) => new Date(it * 1000)
  .toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false, ...(step < 60 ? { second: "2-digit" } : {}) }));
