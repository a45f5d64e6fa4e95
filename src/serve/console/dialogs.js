// Questions before something is done, and adding a region. Native dialogs: they keep the focus, close
// on Escape, and give the focus back.

import { command, send } from "./api.js";
import { h, say } from "./dom.js";

/** Opens a dialog; `body` is put between its title and its buttons. */
function open(title, body, buttons, onsubmit) {
  const close = () => dialog.close();
  const error = h("p.error", { role: "alert" });
  const form = h("form", { onsubmit: submit },
    h("h2", { id: "dialog-title" }, title), body, error,
    h("div.buttons", null, h("button", { type: "button", onclick: close }, buttons.cancel || "Cancel"),
      buttons.ok && h("button.primary", { type: "submit", class: buttons.danger && "danger" }, buttons.ok)));
  const dialog = h("dialog", { "aria-labelledby": "dialog-title", onclose: () => dialog.remove() }, form);
  async function submit(event) {
    event.preventDefault();
    const button = form.querySelector("button[type=submit]");
    button.disabled = true;
    error.textContent = "";
    try {
      await onsubmit(new FormData(form), { close, form });
    } catch (refused) {
      error.textContent = refused.message;
    }
    button.disabled = false;
  }
  document.getElementById("dialogs").append(dialog);
  dialog.showModal();
  return dialog;
}

const field = (label, name, props, hint) => {
  const id = `field-${name}`;
  const described = hint ? `${id}-hint` : null;
  return h("div.field", null, h("label", { for: id }, label),
    h("input", { id, name, autocomplete: "off", spellcheck: "false", "aria-describedby": described, ...props }),
    hint && h("p.hint", { id: described }, hint));
};

/** Asks, and does it: `{title, text, ok, danger, feed, name, fields, done}`. */
export function ask({ title, text, ok, danger, feed, name, fields, done, body }) {
  open(title, [text && h("p", null, text), body], { ok, danger }, async (_, { close }) => {
    await command(feed, name, fields);
    close();
    say(done);
  });
}

/** Does something that needs no question. */
export async function act(feed, name, fields, done) {
  try {
    await command(feed, name, fields);
    say(done);
  } catch (refused) {
    say(refused.message, "bad");
  }
}

/** Keeps nodes at a commit: all, a region, or a node. */
export function pin(feed, commit, nodes) {
  const options = nodes.map((node) => h("option", { value: node.id },
    `${node.label}${node.region ? ` (${node.region})` : ""}`));
  const body = [
    h("p", null, "Pinned nodes stay at this version, and their clients are given it, until they are unpinned."),
    h("div.field", null, h("label", { for: "field-whom" }, "Who stays at it"),
      h("select", { id: "field-whom", name: "whom" }, h("option", { value: "" }, "every node"), options)),
  ];
  open(`Pin ${commit.slice(0, 8)}`, body, { ok: "Pin" }, async (data, { close }) => {
    const node = data.get("whom");
    await command(feed, "pin", node ? { commit, node } : { commit });
    close();
    say(node ? "Pinned." : "Every node is pinned.");
  });
}

/** Forgets a node that is gone. */
export function forget(node) {
  const text = "It is no longer counted or waited for. If it comes back, it registers again.";
  open(`Forget ${node.label}?`, h("p", null, text), { ok: "Forget it", danger: true }, async (_, { close }) => {
    await send("DELETE", `/v1/nodes/${encodeURIComponent(node.id)}`);
    close();
    say(`${node.label} is forgotten.`);
  });
}

/** A word that no shell reads as anything else. */
export const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

/** Makes a token for a region and shows the one command that its node runs. */
export function addRegion(state) {
  const feeds = state.feeds.map((feed) => h("option", { value: feed.feed }, feed.feed));
  const body = [
    h("p", null, "This makes a token for the region and shows the command that its node runs."),
    field("Region", "region", { required: true, pattern: "[A-Za-z0-9._\\-]+", placeholder: "eu-west", autofocus: true },
      "Letters, digits, dots and dashes; as in region.xml, if clients are to be led there."),
    h("div.field", null, h("label", { for: "field-feed" }, "Feed"), h("select", { id: "field-feed", name: "feed" }, feeds)),
    field("Folder there", "dir", { required: true, value: "/srv/deployment" }, "It is filled with the feed's files."),
    field("Its address", "listen", { value: "127.0.0.1:7873" },
      "Where the node listens. Beyond loopback it needs a certificate: see the guide."),
  ];
  open("Add a region", body, { ok: "Make the token" }, async (data, { close }) => {
    const text = (name) => data.get(name).trim();
    const made = await send("POST", "/v1/tokens", { role: "mirror", feed: text("feed"), region: text("region") });
    close();
    showCommand(text, made.token, state.node.url);
  });
}

function showCommand(text, secret, url) {
  const region = text("region");
  const words = ["depsync", "region", text("dir"), "--upstream", url, "--name", region, "--feed", text("feed"),
    "--listen", text("listen"), "--token-file", `${region}.token`];
  const line = `(umask 077; echo ${secret} > ${region}.token) && ${words.map(quoted).join(" ")}`;
  const box = h("textarea.command", { readonly: true, rows: 5, "aria-label": "Command", id: "command" });
  box.value = line;
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(line);
      say("Copied.");
    } catch {
      box.select();
      say("Selected: copy it with Ctrl+C.");
    }
  };
  const body = [
    h("p", null, "Run this at the new node. The token is in it and is shown only now; it mirrors this feed for this region and opens nothing else."),
    box,
    h("p", null, h("button", { type: "button", onclick: copy }, "Copy the command")),
    h("p.hint", null, "The region appears here when its node says hello. Clients are led to it once region.xml names their addresses."),
  ];
  open(`Region ${region}`, body, { cancel: "Done" }, () => {});
}
