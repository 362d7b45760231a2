// ---- the health, the strip from Astro to the destinations, and a page for each thing

let latest = null;
const channelsOf = (status) => {
  const channels = {};
  for (const connection of Object.values(status.pages.connections)) {
    for (const one of connection.subscriptions) (channels[one.channel] = channels[one.channel] || []).push(one);
  }
  return channels;
};
const subscriptionsOf = (status) => Object.values(status.pages.connections).flatMap((connection) => connection.subscriptions);

// Rates are those of the last half minute: of two seconds they would only jump.
const counts = [];
const measure = (status) => {
  const now = performance.now();
  counts.push({ at: now, last: status.journal.last, sinks: Object.fromEntries(Object.entries(status.pages.sinks).map(([name, sink]) => [name, sink.delivered])) });
  while (counts.length > 2 && now - counts[0].at > 30000) counts.shift();
};
const perMinute = (read) => {
  const first = counts[0], last = counts[counts.length - 1];
  if (!first || last === first || read(first) === undefined || read(last) < read(first)) return null;
  return (read(last) - read(first)) * 60000 / (last.at - first.at);
};
const rate = (value) => value === null ? "–" : number(value, value < 10 && value > 0 ? 1 : 0) + "/min";

const fact = (kind, ...inside) => make("span", kind || "", ...inside);
const node = (id, kind, title, about, lines, does) => {
  const element = button("", does, "node");
  element.dataset.focus = "node " + id;
  element.replaceChildren(make("h3", "", dot(kind), make("span", "", title), about ? make("span", "soft small", about) : ""),
    ...lines.map((line) => make("div", "facts " + (line.kind || ""), line.parts)));
  element.append(make("span", "visually-hidden", kind === "good" ? " works" : kind === "" ? " is left to other members" : kind === "bad" ? " does not work" : " is degraded"));
  return make("li", id.startsWith("sink ") ? "sink" : "", element);
};
// Messages come while another connection takes over, too.
const isOpen = (connection) => ["open", "moving"].includes(connection.state);
// Whether this member of a cluster subscribes to nothing because others hold every channel.
const heldElsewhere = (status) => {
  const cluster = clusterOf(status);
  const holders = cluster ? Object.values(cluster.channels) : [];
  return !status.pages.wanted && holders.length > 0 && holders.every((names) => names.length && !names.includes(cluster.member));
};
const astroNode = (status) => {
  const all = subscriptionsOf(status);
  const confirmed = all.filter((one) => one.state === "confirmed").length;
  const connections = Object.values(status.pages.connections);
  const closed = connections.filter((one) => !isOpen(one));
  const missing = status.pages.gaps_running || [];
  const elsewhere = heldElsewhere(status);
  const kind = elsewhere ? "" : !connections.length || closed.length || !confirmed ? "bad" : confirmed < all.length ? "wait" : "good";
  const last = status.pages.last_event;
  return node("astro", kind, "Astro", "", [
    { parts: [elsewhere ? fact("", "held by other members")
      : fact(confirmed < all.length ? "bad" : "", make("b", "num", number(confirmed)), " of " + number(all.length) + " subscriptions"),
      fact("detail", make("b", "num", rate(perMinute((count) => count.last))))] },
    { kind: closed.length ? "" : "detail", parts: [closed.length ? fact("bad", closed[0].state + " ", lasting(missing.length ? Math.min(...missing.map((gap) => gap.since)) : closed[0].down_since || closed[0].since)) : last ? fact("", "last event ", ago(last)) : elsewhere ? "" : fact("", "no event yet")] },
  ], astroDialog);
};
const journalNode = (status) => {
  const { health, bytes: size, events } = status.journal;
  const kind = health === "working" ? "good" : health === "memory only" ? "wait" : "bad";
  return node("journal", kind, "Journal", "", [
    { parts: [fact("", make("b", "num", number(events || 0)), " kept")] },
    { kind: "detail", parts: [fact(kind === "good" ? "" : kind, kind === "good" ? bytes(size) + " on disk" : health)] },
  ], journalDialog);
};
// Whether anything is wrong with a sink's events though it is connected.
const complained = (name) => latest.health.reasons.some((reason) => reason.about.sink === name && reason.state !== "working");
const sinkKind = (name, sink) => sink.state === "standby" ? "" : sink.state === "up" ? (sink.dead || complained(name) ? "wait" : "good")
  : ["connecting", "busy"].includes(sink.state) ? "wait" : "bad";
const sinkNode = ([name, sink]) => {
  const kind = sinkKind(name, sink);
  const queued = sink.lag_events
    ? [fact(kind === "good" ? "" : kind, make("b", "num", number(sink.lag_events)), " queued"),
      sink.lag_seconds ? fact("detail", "oldest ", make("b", "num", span(sink.lag_seconds))) : ""] : [];
  const driver = sink.state === "standby" && clusterOf(latest).sinks[name];
  const second = driver ? fact("", "driven by " + (driver.driver || "nobody")) : sink.state !== "up" ? fact(kind, sink.state + " ", lasting(sink.since))
    : sink.last_delivered ? fact("", "last event ", ago(sink.last_delivered)) : fact("", "delivered ", make("b", "num", number(sink.delivered)));
  return node("sink " + name, kind, name, sink.kind, [
    { parts: [fact(sink.state === "up" ? "" : "detail", make("b", "num", rate(perMinute((count) => count.sinks[name])))), ...queued,
      sink.dead ? fact("bad", make("b", "num", number(sink.dead)), " refused") : ""] },
    { kind: sink.state === "up" ? "detail" : "", parts: [second] },
  ], () => sinkDialog(name));
};

const astroDialog = () => open("Astro", () => {
  const status = latest;
  const order = ["refused", "pending", "waiting", "confirmed"];
  const all = subscriptionsOf(status).sort((a, b) => order.indexOf(a.state) - order.indexOf(b.state));
  const connections = Object.entries(status.pages.connections);
  return [...connections.map(([name, one]) => make("div", "",
    make("div", "line", make("span", "name", "connection " + name), pill(one.state), make("span", "soft small", lasting(one.since))),
    one.attempts && !isOpen(one) ? make("p", "small", plural(one.attempts, "attempt") + " since it last worked") : "",
    one.next_attempt ? make("p", "small", "next attempt at " + clock(one.next_attempt)) : "",
    one.last_error ? make("p", isOpen(one) ? "note" : "bad small", (isOpen(one) ? "last error: " : "") + one.last_error) : "",
    one.unreadable ? make("p", "bad small", one.unreadable) : "")),
  make("table", "", make("thead", "", make("tr", "", ["topic", "channel", "state"].map((text) => make("th", "", text)))),
    make("tbody", "", all.map((one) => make("tr", "", make("td", "", one.topic), make("td", "", one.channel), make("td", tone(one.state), one.state,
      one.code || one.text ? make("div", "small", [one.code, one.text].filter(Boolean).join(": ")) : "",
      one.retry_at ? make("div", "soft small", "next attempt at " + clock(one.retry_at)) : ""))))),
  make("h2", "", "Gaps"),
  status.pages.gaps.length ? make("ul", "", [...status.pages.gaps].reverse().slice(0, 20).map((gap) => make("li", "small", clock(gap.from) + ": " + gap.channel
    + " missed " + span((gap.to - gap.from) / 1000) + ", " + gap.cause))) : make("p", "soft", "None since the start."),
  raw("Raw values", status.pages.connections)];
});
const journalDialog = () => open("Journal", () => {
  const journal = latest.journal;
  return [facts([["health", journal.health], ["on disk", bytes(journal.bytes)], ["in memory", bytes(journal.memory_bytes)],
    ["oldest event", number(journal.oldest)], ["newest event", number(journal.last)], ["not yet synced", number(Math.max(0, journal.last - journal.synced))]]),
  make("div", "tools", Object.keys(latest.pages.sinks).map((name) => button("Replay to " + name + "…", () => replayDialog(name)))),
  raw("Raw values", journal)];
});
const captioned = (title, most) => make("div", "line", make("h2", "grow", title), make("span", "soft small num", most));
const sinkDialog = (name) => open(name, () => {
  const status = latest;
  const sink = sinksOf(status).find(([known]) => known === name);
  if (!sink) return [make("p", "", "It is no longer configured.")];
  const one = sink[1];
  const figures = history && history.sinks[name];
  const remarks = [...(one.remarks || []), ...(one.state_remarks || [])];
  return [make("div", "line", pill(one.state === "up" ? "working" : one.state), make("span", "soft", one.kind), make("span", "soft", lasting(one.since))),
    one.state !== "up" && one.last_error ? make("p", "bad", one.last_error) : "",
    one.next_attempt ? make("p", "", "next attempt ", running(one.next_attempt, "in ")) : "",
    make("div", "tools", one.state === "up" || one.state === "standby" ? "" : button("Try now", () => tryNow(name), "main"), button("Send a test…", () => testDialog(name)),
      button("Replay…", () => replayDialog(name)), one.dead ? button("Dead letters…", lettersDialog) : ""),
    facts([["delivered", number(one.delivered)], ["last event", one.last_delivered ? ago(one.last_delivered) : ""], ["queued", number(one.lag_events)], ["oldest queued", one.lag_events && one.lag_seconds ? span(one.lag_seconds) : ""],
      ["dead letters", number(one.dead)], ["lost", one.lost ? make("span", "bad", number(one.lost)) : "0"],
      ["last error", one.last_error && one.state === "up" ? (one.last_error_at ? clock(one.last_error_at) + " " : "") + one.last_error : ""]]),
    figures ? make("div", "", captioned("Time until accepted", Math.max(0, ...figures.slowest_ms) + " ms at most"), chart(figures.mean_ms, name + ": mean time until accepted"),
      captioned("Queued", number(Math.max(0, ...figures.queued)) + " at most"), chart(figures.queued, name + ": events queued"),
      captioned("Outages", ""), make("div", "outages", ...outages(name, figures.health, figures.health.length))) : "",
    remarks.length ? make("details", "", make("summary", "soft", "About this destination (" + remarks.length + ")"), remarks.map((text) => make("p", "note", text))) : "",
    raw("Raw values", one)];
});
const sinksOf = (status) => Object.entries(status.pages.sinks).map(([name, sink]) => [name, { ...sink, dead: status.dead_letters[name] || 0 }]);

// From the link of a reason to what it opens.
const opener = (link) => {
  const id = (link || "").split("#")[1] || "";
  if (id.startsWith("sink-") && latest.pages.sinks[id.slice(5)]) return () => sinkDialog(id.slice(5));
  return { astro: astroDialog, journal: journalDialog, "dead-letters": lettersDialog }[id] || null;
};
const reasonRow = (reason) => {
  const sink = reason.about.sink;
  const row = make("li", "", dot(tone(reason.state)), make("span", "grow", reason.what), make("span", "soft small", lasting(reason.since)));
  if (reason.next_attempt) row.append(make("span", "soft small", running(reason.next_attempt, "next attempt in ")));
  if (sink && latest.pages.sinks[sink] && latest.pages.sinks[sink].state !== "up") row.append(button("Try now", () => tryNow(sink)));
  const opens = opener(reason.link);
  if (opens) row.append(button("Details", opens));
  if (reason.do) row.append(make("span", "do soft small", reason.do));
  return row;
};
const showReport = (report) => {
  const bad = report && report.problems.length > 0;
  const later = report && report.needs_restart && report.needs_restart.length > 0;
  byId("reload-report").hidden = !bad && !later;
  if (!bad && !later) return;
  draw("reload-text", report, () => [make("p", bad ? "bad name" : "wait name", bad
    ? "The configuration that was loaded at " + clock(report.at) + " was rejected; the one before stays in force."
    : "Some changes of the configuration take effect after a restart."),
  ...(bad ? report.problems : report.needs_restart).map((text) => make("p", "note", text))]);
};
const show = (status) => {
  latest = status;
  measure(status);
  const { health } = status;
  const state = byId("health");
  if (state.textContent !== health.state) state.textContent = health.state;
  state.className = "pill " + tone(health.state);
  document.title = (health.state === "working" ? "" : "● ") + "astro-relay";
  const live = Object.entries(sessions).filter(([, session]) => session.stream && session.stream.isLive).map(([label]) => label);
  draw("about", [live, status.version, status.pages.started], () => [live.length ? live.join(", ") + " live · " : "",
    "version " + status.version + ", up ", running(status.pages.started, "for ")]);
  byId("reasons").hidden = !health.reasons.length;
  byId("reasons").className = health.state === "not working" ? "bad" : health.state === "working" ? "calm" : "";
  byId("reasons-title").textContent = health.state === "working" ? "Worth knowing" : "What is wrong";
  draw("reason-list", [health.reasons, health.more], () => [...health.reasons.map(reasonRow), health.more ? make("li", "soft", "and " + number(health.more) + " more") : ""].filter(Boolean));
  showReport(status.pages.reload);
  const sinks = sinksOf(status);
  const cluster = clusterOf(status);
  const drivers = cluster && Object.values(cluster.sinks).map((sink) => sink.driver);
  const counted = [status.pages.connections, status.pages.gaps_running, status.journal, sinks, counts.length, status.pages.last_event, heldElsewhere(status), drivers];
  draw("strip", counted, () => [astroNode(status), journalNode(status), ...sinks.map(sinkNode)]);
  const dead = Object.values(status.dead_letters).reduce((sum, count) => sum + count, 0);
  byId("dead-card").hidden = !dead;
};
