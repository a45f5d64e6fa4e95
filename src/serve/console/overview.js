// Regions and nodes: who has what it should have, and who does not.

import { act, ask, forget } from "./dialogs.js";
import { ago, badge, bytes, duration, h, head, number, plural, rate, table } from "./dom.js";
import { now } from "./rates.js";

export const title = () => "Overview";

const KINDS = { verified: "good", behind: "busy", waiting: "off", paused: "off", away: "bad" };
const WORDS = { verified: "up to date", behind: "behind", waiting: "waits", paused: "paused", away: "stale" };

/** Every node of every feed as a row. */
export const rowsOf = (state) => state.nodes.flatMap((node) => node.feeds.map((feed) => ({ node, feed })));

export function view(state) {
  const rows = rowsOf(state).sort((a, b) => order(a).localeCompare(order(b)));
  return [tiles(state, rows), fleet(state, rows), feeds(state)];
}

const order = ({ node, feed }) => `${node.region || "~"} ${node.label} ${feed.feed}`;

function tiles(state, rows) {
  const counted = rows.filter(({ feed }) => feed.standing === "serving");
  const current = counted.filter(({ feed }) => feed.state === "verified").length;
  const bad = state.faults.filter((fault) => fault.level !== "notice");
  const held = state.feeds.reduce((sum, feed) => sum + feed.held_count, 0);
  const sent = now();
  return h("div.tiles", null,
    tile("Health", bad.length ? plural(bad.length, "problem") : "All is well", bad.length ? "bad" : "good", "#/problems",
      bad.length ? bad[0].fault : "Nothing needs anybody."),
    tile("Regions up to date", counted.length ? `${current} of ${counted.length}` : "–",
      current < counted.length ? "busy" : "plain", null, counted.length ? "Verified at the newest version." : "No region has registered yet."),
    tile("Changes that wait", number(held), held ? "busy" : "plain", held ? `#/feeds/${heldFeed(state)}` : null,
      held ? "Held, or still being written." : "Everything is published."),
    tile("Sending now", rate(sent.downloads + sent.replication), "plain", "#/rates",
      `${rate(sent.downloads)} to clients, ${rate(sent.replication)} to regions.`));
}

const heldFeed = (state) => encodeURIComponent(state.feeds.find((feed) => feed.held_count)?.feed ?? "");

function tile(name, value, kind, href, hint) {
  const inside = [h("span.name", null, name), h("span.value", null, value), h("span.hint", null, hint)];
  return href ? h(`a.tile.${kind}`, { href }, inside) : h(`div.tile.${kind}`, null, inside);
}

function fleet(state, rows) {
  const columns = [["Region"], ["Node"], ["Feed"], ["Wants"], ["Has"], ["Lag", "num"], ["State"], ["Verified"], ["", "acts"]];
  const empty = "No node mirrors from here yet. “Add a region” makes its token and shows the command that it runs.";
  return h("section", { "aria-labelledby": "fleet" }, h("h2", { id: "fleet" }, "Regions and nodes"),
    table("Regions and nodes", columns, rows.map((row) => fleetRow(state, row)), empty));
}

function fleetRow(state, { node, feed }) {
  const region = state.regions.find((it) => it.name === node.region);
  const unlisted = region && !region.listed;
  const note = feed.standing === "standby" ? "stands by" : feed.standing === "mirror" ? "serves no region" : null;
  const pinned = region?.nodes.concat(region.barred).find((it) => it.id === node.id && it.feed === feed.feed)?.pinned;
  return h("tr", { key: `${node.id} ${feed.feed}`, "data-region": node.region, "data-state": feed.state },
    h("th", { scope: "row" }, node.region || h("span.quiet", null, "none"),
      unlisted && h("span.sub", { title: "region.xml does not name it: no client is led there" }, "not in region.xml")),
    h("td", null, node.label, node.via && h("span.sub", null, `below ${labelOf(state, node.via)}`),
      node.unreachable && h("span.sub.warn", { title: node.unreachable }, "not reachable from here")),
    h("td", null, feed.feed, note && h("span.sub", null, note)),
    h("td", null, head(feed.want)),
    h("td", null, head(feed.have)),
    h("td.num", null, feed.state === "verified" ? "0" : duration(feed.lag_ms ?? null)),
    h("td", null, badge(KINDS[feed.state] || "off", WORDS[feed.state] || feed.state),
      pinned && h("span.sub", null, `pinned at ${pinned.slice(0, 8)}`),
      feed.waits && h("span.sub", null, feed.waits), progress(feed.progress),
      feed.last_error && h("span.sub.warn", null, feed.last_error)),
    h("td", null, ago(feed.verified_at)),
    h("td.acts", null, nodeActs(state, node, feed)));
}

const labelOf = (state, id) => state.nodes.find((node) => node.id === id)?.label || id.slice(0, 8);

function progress(it) {
  if (!it) return null;
  const left = it.left_ms ? `, ${duration(it.left_ms)} left` : "";
  return h("span.sub", null, h("progress", { max: it.total || 1, value: it.done, "aria-label": "fetched" }),
    ` ${bytes(it.done)} of ${bytes(it.total)}${left}`);
}

function nodeActs(state, node, feed) {
  if (!state.node.mayAct || node.via) return null;
  const about = { node: node.id };
  const paused = feed.state === "paused";
  const button = (text, label, onclick) => h("button.small", { onclick, "aria-label": `${text} ${label}` }, text);
  return [
    paused
      ? button("Resume", node.label, () => act(feed.feed, "resume", about, `${node.label} goes on.`))
      : button("Pause", node.label, () => ask({
        title: `Pause ${node.label}?`, ok: "Pause", feed: feed.feed, name: "pause", fields: about, done: `${node.label} is paused.`,
        text: "It stays at the version it has until it is resumed. Clients are led elsewhere meanwhile, and nobody waits for it.",
      })),
    !node.connected && button("Forget", node.label, () => forget(node)),
  ];
}

function feeds(state) {
  const columns = [["Feed"], ["Role"], ["Version"], ["Files", "num"], ["Size", "num"], ["State"], ["Waiting", "num"]];
  const rows = state.feeds.map((feed) => h("tr", { key: feed.feed },
    h("th", { scope: "row" }, h("a", { href: `#/feeds/${encodeURIComponent(feed.feed)}` }, feed.feed)),
    h("td", null, feed.role === "primary" ? "owned here" : "mirrored", feed.upstream && h("span.sub", null, `from ${feed.upstream}`)),
    h("td", null, feed.commit ? head(feed) : h("span.quiet", null, "nothing yet")),
    h("td.num", null, number(feed.files)), h("td.num", null, bytes(feed.bytes)),
    h("td", null, stateBadge(feed)), h("td.num", null, number(feed.held_count))));
  return h("section", { "aria-labelledby": "feeds" }, h("h2", { id: "feeds" }, "Feeds of this node"),
    table("Feeds of this node", columns, rows, "This node carries no feed."));
}

const BAD = ["stopped", "failing", "refused", "full"];

/** A feed's state as a word with a colour. */
export function stateBadge(feed) {
  const kind = BAD.includes(feed.state) ? "bad" : feed.last_error ? "bad" : feed.held_deletions ? "busy"
    : feed.state === "idle" ? "good" : "busy";
  return badge(kind, feed.state === "idle" ? "up to date" : feed.state || "starting", feed.detail);
}
