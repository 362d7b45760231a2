// ---- events: one row for what happened

const MOST_ROWS = 200;
// Chips: kinds that are shown, and whether they are from the start.
const CHIPS = [["tips", true], ["subscriptions", true], ["follows", true], ["cheers", true], ["raids", true], ["other", true],
  ["gaps", true], ["chat", false], ["session", false], ["relay", false]];
// From the kind of the relay's summary to the chip and the icon.
const CHIP_OF = { tip: "tips", "super chat": "tips", charity: "tips", merch: "tips", sub: "subscriptions", gift: "subscriptions", gifts: "subscriptions",
  member: "subscriptions", follow: "follows", cheer: "cheers", stars: "cheers", kicks: "cheers", jewels: "cheers", elixir: "cheers", raid: "raids", host: "raids",
  chat: "chat", "tip held": "other", session: "session", "session reset": "session", gap: "gaps", backfill: "relay", health: "relay" };
const ICON_OF = { "super chat": "tip", charity: "tip", merch: "redemption", sub: "subscription", member: "subscription", gifts: "gift", stars: "cheer", kicks: "cheer",
  jewels: "cheer", elixir: "cheer", host: "raid", points: "redemption", store: "redemption", "session reset": "session", "tip held": "tip" };
const chosen = new Set((remembered("chips") || CHIPS.filter(([, on]) => on).map(([name]) => name).join(" ")).split(" "));

// What the relay says of an event in a few words.
const describe = (line, topic) => {
  const said = line.summary || {};
  const kind = said.kind || topic;
  return { kind, who: said.who || "", much: said.amount || "", text: said.message || "", mark: said.mark || "", quiet: Boolean(said.quiet) };
};
const BY_TOPIC = [["relay.session", "session"], ["relay.", "relay"], ["channel.session.", "session"], ["channel.chat.", "chat"]];
const chipOf = (event) => {
  const known = CHIP_OF[event.about.kind] || BY_TOPIC.filter(([start]) => event.topic.startsWith(start)).map(([, chip]) => chip)[0];
  return known || (event.about.quiet ? "relay" : "other");
};
let rows = [];
let fresh = [];
let total = 0;
let drawing = false;
let terms = [];
const glob = (pattern) => {
  const words = pattern.split(".");
  const all = words[words.length - 1] === "**";
  if (all) words.pop();
  return (topic) => {
    const parts = topic.split(".");
    if (all ? parts.length < words.length : parts.length !== words.length) return false;
    return words.every((word, at) => word === "*" || word === parts[at]);
  };
};
// Where activities are subscribed they tell of tips and follows too: one row for one thing.
const doubled = (event) => ["channel.tips", "channel.follow"].includes(event.topic) && latest
  && (channelsOf(latest)[event.channel] || []).some((one) => one.topic === "channel.activities");
const fits = (event) => terms.length
  ? terms.every((term) => term.glob ? term.glob(event.topic) : event.words.includes(term.word) || (term.word.includes(".") && event.topic.includes(term.word)))
  : chosen.has(chipOf(event)) && !doubled(event);

const VERBS = { tip: "tipped", "super chat": "sent a super chat of", cheer: "cheered", stars: "sent", kicks: "sent", jewels: "sent", elixir: "sent", follow: "followed", raid: "raided with", host: "hosted with",
  sub: "subscribed,", member: "became a member,", gift: "got a gift subscription,", gifts: "gave", points: "redeemed", store: "redeemed", charity: "donated", merch: "bought" };
const sentence = (event) => {
  const { kind, who, much, text } = event.about;
  const bold = (words) => make("b", "", words);
  const said = text ? [" ", make("q", "", text)] : [];
  if (kind === "chat") return [bold(who), ": ", text];
  if (VERBS[kind] && who) {
    const verb = much ? VERBS[kind] : VERBS[kind].replace(/,| with| of$/, "");
    return [bold(who), " " + verb, much ? " " : "", ["sub", "member", "gift"].includes(kind) ? much : bold(much), ...said];
  }
  return [bold(kind), who ? " " + who : "", much ? " " + much : "", ...said];
};
const MARKS = { backfilled: "fetched later", replayed: "replayed", test: "test" };
const showEvent = (event) => {
  const more = event.more.length;
  const side = make("span", "side", [MARKS[event.about.mark] || "", Object.keys(latest ? channelsOf(latest) : {}).length > 1 ? event.channel : "", event.result || ""].filter(Boolean).join(" · "));
  const head = button("", () => toggle(head), "event");
  head.tabIndex = -1;
  head.setAttribute("aria-expanded", "false");
  head.replaceChildren(make("span", "soft num small", clock(event.at)), icon(event.about.mark === "test" ? "test" : ICON_OF[event.about.kind] || event.about.kind),
    make("span", "what", ...sentence(event), more ? make("span", "soft", " and " + number(more) + " more") : ""), side);
  const row = make("li", "", head);
  row.seq = event.seq;
  const toggle = (head) => {
    const opening = row.childElementCount === 1;
    head.setAttribute("aria-expanded", String(opening));
    if (opening) row.append(...[event, ...event.more].slice(0, 20).map((one) => make("pre", "", JSON.stringify(one.message, null, 2))));
    else while (row.childElementCount > 1) row.lastElementChild.remove();
    hold();
  };
  return row;
};
const stream = byId("stream");
const empty = () => [make("li", "empty", rows.length ? "No event of these kinds yet." : "No events yet.")];
// The list holds still while something in it is open, or it is scrolled, or the keyboard is in it.
const holding = () => stream.scrollTop > 8 || stream.querySelector("[aria-expanded=true]") !== null;
const hold = () => {
  const waiting = fresh.filter(fits).length;
  byId("held").hidden = !waiting || !holding();
  byId("held").textContent = number(waiting) + " new";
  if (waiting && !holding()) later();
};
const later = () => {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(drawEvents);
};
const drawEvents = () => {
  drawing = false;
  if (holding()) { hold(); return; }
  const added = fresh.filter(fits).slice(-MOST_ROWS);
  fresh = [];
  byId("held").hidden = true;
  if (!added.length) return;
  if (stream.firstElementChild && stream.firstElementChild.className === "empty") stream.replaceChildren();
  const newest = added.reverse().map(showEvent);
  if (!document.hidden) for (const row of newest) row.classList.add("new");
  const focused = stream.contains(document.activeElement);
  stream.prepend(...newest);
  while (stream.childElementCount > MOST_ROWS) stream.lastElementChild.remove();
  if (!focused) stop();
};
const redraw = () => {
  fresh = [];
  const all = rows.filter(fits).slice(-MOST_ROWS).reverse().map(showEvent);
  stream.replaceChildren(...(all.length ? all : empty()));
  byId("held").hidden = true;
  stop();
};
byId("held").addEventListener("click", () => {
  for (const head of stream.querySelectorAll("[aria-expanded=true]")) head.click();
  stream.scrollTop = 0;
  redraw();
  const first = stream.querySelector(".event");
  if (first) first.focus({ preventScroll: true });
});
// One stop for the tab key; the arrows move within.
const stop = (head) => {
  for (const other of stream.querySelectorAll(".event[tabindex='0']")) other.tabIndex = -1;
  const target = head || stream.querySelector(".event");
  if (target) target.tabIndex = 0;
};
stream.addEventListener("focusin", (event) => { if (event.target.classList.contains("event")) stop(event.target); });
stream.addEventListener("keydown", (event) => {
  const all = [...stream.querySelectorAll(".event")];
  const at = all.indexOf(document.activeElement);
  if (at < 0) return;
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
  if (to === undefined || !all[to]) return;
  event.preventDefault();
  all[to].focus();
});
stream.addEventListener("scroll", hold);

// What is searched: what a row says. The topic where a word has a dot.
const wordsOf = (about, channel) => [about.kind, about.who, about.much, about.text, channel].join(" ").toLowerCase();
const arrived = (text) => {
  let line;
  try { line = JSON.parse(text); } catch { return; }
  // Events that cannot be shown any more.
  if (line.lost) return;
  const topic = String((line.message && line.message.topic) || "");
  const about = describe(line, topic), channel = String(line.channel || "");
  add({ at: millis(line.received), seq: line.seq, channel, topic, message: line.message, about, more: [], words: wordsOf(about, channel) });
};
const add = (event) => {
  total += 1;
  // The gifts of one gift bomb are one row.
  const group = event.message && event.message.data && event.message.data.activityGroup;
  const first = group && rows.slice(-80).find((row) => row.group === group && row.about.kind === event.about.kind);
  if (first) {
    first.more.push(event);
    if (!fresh.includes(first)) redrawSoon();
    return;
  }
  event.group = group;
  fresh.push(event);
  rows.push(event);
  if (rows.length > 3 * MOST_ROWS) rows = rows.slice(-2 * MOST_ROWS);
  if (fresh.length > MOST_ROWS) fresh.shift();
  if (holding()) hold(); else later();
};
let redrawing = false;
const redrawSoon = () => {
  if (redrawing || holding()) return;
  redrawing = true;
  setTimeout(() => { redrawing = false; if (!holding()) redraw(); }, 300);
};
// A test that was sent from here is in the list too: it goes through no journal.
const tested = (report) => add({ at: Date.now(), channel: report.channel, topic: "test", message: report, more: [],
  about: { kind: "Test " + report.kind, who: "", much: "sent from this page", text: "", mark: "test" },
  result: report.sinks.map((one) => one.sink + (one.outcome === "accepted" ? " ✓" : one.outcome === "failed" ? " ✗" : " –")).join(" "),
  words: "test " + report.kind });
// Which sinks have not yet got an event: by how far behind they are.
const drawLag = (status) => {
  // In a cluster they are behind the log, which numbers its events otherwise.
  const sinks = clusterOf(status) ? [] : Object.entries(status.pages.sinks);
  const behind = sinks.filter(([, sink]) => sink.lag_events > 0).map(([name, sink]) => [name, status.journal.last - sink.lag_events]);
  for (const row of stream.children) {
    if (!row.seq) continue;
    const waiting = behind.filter(([, through]) => row.seq > through).map(([name]) => name);
    const side = row.querySelector(".side");
    if (row.lag === undefined) row.lag = side.textContent;
    const text = [row.lag, waiting.length ? waiting.join(", ") + (waiting.length === 1 ? " is behind" : " are behind") : ""].filter(Boolean).join(" · ");
    if (side.textContent !== text) side.textContent = text;
  }
};

byId("chips").append(...CHIPS.map(([name]) => {
  const chip = button(name, () => {
    if (!chosen.delete(name)) chosen.add(name);
    chip.setAttribute("aria-pressed", String(chosen.has(name)));
    remember("chips", [...chosen].join(" "));
    redraw();
  }, "chip");
  chip.setAttribute("aria-pressed", String(chosen.has(name)));
  return chip;
}));
byId("search").addEventListener("input", (event) => {
  terms = event.target.value.trim().split(/\s+/).filter(Boolean)
    .map((word) => word.includes("*") ? { glob: glob(word) } : { word: word.toLowerCase() });
  redraw();
});
