// What keeps people out: names that are missing, order, landmarks, contrast. Returns what is wrong.
const wrong = [];
const text = (it) => (it.getAttribute("aria-label") || it.labels?.[0]?.innerText || it.innerText || it.title || "").trim();
const shown = (it) => it.checkVisibility({ visibilityProperty: true });
const name = (it) => `${it.tagName.toLowerCase()}.${it.className} ${(it.innerText || "").slice(0, 40)}`;
for (const it of document.querySelectorAll("a, button, input, select, textarea, summary")) {
  if (shown(it) && !text(it)) wrong.push(`has no name: ${name(it)}`);
}
for (const it of document.querySelectorAll("[tabindex]")) if (it.tabIndex > 0) wrong.push(`breaks the order: ${name(it)}`);
for (const it of document.querySelectorAll("img")) if (!it.hasAttribute("alt")) wrong.push("an image without a text");
for (const it of document.querySelectorAll("table")) {
  if (!it.caption) wrong.push("a table without a caption");
  if (![...it.tHead.rows[0].cells].every((cell) => cell.scope === "col")) wrong.push("a table whose heads are none");
}
for (const it of document.querySelectorAll("[aria-describedby], [aria-labelledby]")) {
  const ids = `${it.getAttribute("aria-describedby") || ""} ${it.getAttribute("aria-labelledby") || ""}`.split(" ").filter(Boolean);
  for (const id of ids) if (!document.getElementById(id)) wrong.push(`${name(it)} names ${id}, which is not there`);
}
const ids = [...document.querySelectorAll("[id]")].map((it) => it.id);
for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) wrong.push(`the id ${id} is there twice`);
for (const landmark of ["main", "h1", "[aria-live]"]) {
  if (document.querySelectorAll(landmark).length < 1) wrong.push(`no ${landmark}`);
}
if (document.querySelectorAll("h1").length !== 1 || document.querySelectorAll("main").length !== 1) wrong.push("not one h1 and one main");
if (!document.documentElement.lang || !document.title) wrong.push("no language or no title");
if (document.documentElement.scrollWidth > innerWidth + 1) wrong.push(`wider than the window: ${document.documentElement.scrollWidth}`);

// Contrast by WCAG 2: 4.5 to 1, 3 to 1 for large text.
const rgb = (color) => (color.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
const over = ([r, g, b, a = 1], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)];
const light = (color) => color.map((c) => c / 255).map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
  .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
function ground(it) {
  const layers = [];
  for (let at = it; at; at = at.parentElement) layers.push(rgb(getComputedStyle(at).backgroundColor));
  return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
}
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const it = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !shown(it) || it.closest("script, noscript, option, .skip, :disabled")) continue;
  const style = getComputedStyle(it);
  const below = ground(it);
  const [a, b] = [light(over(rgb(style.color), below)), light(below)].sort((x, y) => y - x);
  const contrast = (a + 0.05) / (b + 0.05);
  const size = parseFloat(style.fontSize);
  const wanted = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
  if (contrast < wanted) wrong.push(`contrast ${contrast.toFixed(2)}: ${name(it)}`);
}
return [...new Set(wrong)];
