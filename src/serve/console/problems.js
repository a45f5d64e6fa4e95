// What is wrong now, since when, and what to do.

import { ago, badge, h, prose } from "./dom.js";

export const title = () => "Problems";

const WORDS = { critical: ["bad", "not served"], fault: ["busy", "needs you"], notice: ["off", "notice"] };

export function view(state) {
  if (!state.faults.length) {
    return h("div.well", null, h("p.big", null, "Nothing is wrong."),
      h("p", null, "Every feed is served, every region has what it should have, and nothing waits for anybody."));
  }
  return h("ul.problems", null, state.faults.map(card));
}

function card(fault) {
  const [kind, word] = WORDS[fault.level];
  const key = [fault.kind, fault.feed, fault.subject].join("|");
  return h("li.card", { key, class: kind, "data-kind": fault.kind },
    h("div.title", null, badge(kind, word),
      fault.feed && h("a", { href: `#/feeds/${encodeURIComponent(fault.feed)}` }, fault.feed),
      h("span.grow"), h("span.quiet", null, "began ", ago(fault.since))),
    h("p.what", null, prose(fault.fault)),
    h("p.advice", null, prose(fault.advice)));
}
