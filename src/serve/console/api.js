// Talking to the node: requests with the user's token, and the stream of what changes.

const KEY = "depsync-token";

export const token = {
  get: () => sessionStorage.getItem(KEY) || "",
  set: (text) => sessionStorage.setItem(KEY, text),
  forget: () => sessionStorage.removeItem(KEY),
};

/** Why something was not done, in the node's own words. */
export class Refused extends Error {
  constructor(status, body) {
    super(body?.message || `the node answered ${status}`);
    this.status = status;
    this.code = body?.error;
  }
}

function headers(more) {
  const shown = token.get();
  return shown ? { authorization: `Bearer ${shown}`, ...more } : { ...more };
}

async function request(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", ...options, headers: headers(options.headers) });
  } catch {
    throw new Refused(0, { message: "the node does not answer" });
  }
  if (answer.ok) return answer;
  let body = null;
  try {
    body = await answer.json();
  } catch { /* not one of ours: the status has to do */ }
  throw new Refused(answer.status, body);
}

export const get = async (path) => (await request(path)).json();

export async function send(method, path, body) {
  const answer = await request(path, {
    method,
    headers: { "content-type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  return answer.status === 204 ? null : answer.json();
}

/** A command to a feed: `command("apps", "sync")`. */
export const command = (feed, name, fields) =>
  send("POST", `/v1/feeds/${encodeURIComponent(feed)}/${name}`, fields || {});

export const download = async (path) => (await request(path)).blob();

/**
 * Follows `/v1/events` until `stop` aborts: `tell(name, value)` for each event, `state(connected)`
 * when that changes. Connects again by itself, and hears everything again then. A browser's own
 * EventSource sends no token.
 */
export async function follow(tell, state, stop) {
  let pause = 500;
  while (!stop.aborted) {
    try {
      const answer = await request("/v1/events", { signal: stop });
      state(true);
      pause = 500;
      await read(answer.body.getReader(), tell, stop);
      state(false);
    } catch (error) {
      if (stop.aborted) return;
      if (error.status === 401 || error.status === 403) throw error;
      state(false, error.message);
    }
    await new Promise((done) => setTimeout(done, pause));
    pause = Math.min(pause * 2, 10_000);
  }
}

// The node says something every 15 seconds at least: a connection that is silent for longer is dead.
const SILENCE = 40_000;

async function read(reader, tell, stop) {
  const cancel = () => reader.cancel().catch(() => {});
  stop.addEventListener("abort", cancel);
  try {
    await hear(reader, tell);
  } finally {
    stop.removeEventListener("abort", cancel);
    cancel();
  }
}

async function hear(reader, tell) {
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    let timer;
    const late = new Promise((_, fail) => { timer = setTimeout(() => fail(new Error("silent")), SILENCE); });
    let chunk;
    try {
      chunk = await Promise.race([reader.read(), late]);
    } finally {
      clearTimeout(timer);
    }
    if (chunk.done) return;
    rest += decoder.decode(chunk.value, { stream: true });
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const field = (name) => block.split("\n").filter((line) => line.startsWith(`${name}:`))
        .map((line) => line.slice(name.length + 1).replace(/^ /, "")).join("\n");
      if (field("event")) tell(field("event"), JSON.parse(field("data")));
    }
  }
}
