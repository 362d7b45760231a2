// ---- what can be done, and what came of it

const result = (text, bad) => {
  const row = make("div", bad ? "result bad" : "result", make("p", "grow", text));
  row.append(button("×", () => row.remove()));
  row.lastElementChild.setAttribute("aria-label", "Dismiss");
  byId("results").append(row);
  while (byId("results").childElementCount > 4) byId("results").firstElementChild.remove();
  if (!bad) setTimeout(() => row.remove(), 12000);
};
const open = (title, render) => {
  byId("dialog-title").textContent = title;
  byId("dialog-body").replaceChildren(...render());
  if (!byId("dialog").open) byId("dialog").showModal();
};
const close = () => byId("dialog").close();
byId("dialog-close").addEventListener("click", close);

// The admin token is asked for when it is needed, and tried at once.
const admitted = async (why) => {
  const allowed = await ask("api/admin", { method: "POST" });
  if (allowed.ok) return true;
  if (allowed.status === TOO_MANY) {
    result(tooMany(allowed) + ".", true);
    return false;
  }
  if (allowed.status === 403) {
    result("Nothing can be changed here: set http.admin_token in the configuration (or http.admin_token_file) and restart.", true);
    return false;
  }
  return new Promise((resolve) => {
    const field = make("input");
    field.type = "password";
    field.autocomplete = "current-password";
    field.id = "token";
    const wrong = make("p", "bad small");
    wrong.setAttribute("role", "alert");
    const form = make("form", "body", make("p", "", why),
      make("label", "", "Admin token (http.admin_token)", field), wrong,
      make("div", "tools", make("button", "main", "Continue")));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      token = field.value.trim();
      const answer = await ask("api/admin", { method: "POST" });
      if (!answer.ok) {
        token = "";
        wrong.textContent = answer.status === TOO_MANY ? tooMany(answer) : (await answer.text()).trim();
        field.select();
        return;
      }
      remember("token", token);
      given = true;
      close();
      resolve(true);
    });
    let given = false;
    // The event comes with a later frame: it may be of the dialog that stood there before.
    const gone = () => {
      if (byId("dialog").open && field.isConnected) return;
      byId("dialog").removeEventListener("close", gone);
      if (!given) resolve(false);
    };
    byId("dialog").addEventListener("close", gone);
    open("Admin token", () => [form]);
    field.focus();
  });
};
// Does it, and says what came of it. The answer's JSON, or null where it failed.
const act = async (what, path, body, says) => {
  if (!await admitted(what + " needs the admin token.")) return null;
  try {
    const answer = await ask(path, { method: "POST", body: body && JSON.stringify(body) });
    const text = await answer.text();
    let json = null;
    try { json = JSON.parse(text); } catch { /* an answer in words */ }
    if (!answer.ok && answer.status !== 422) {
      result(what + " failed: " + (json && json.error || text.trim() || "status " + answer.status), true);
      return null;
    }
    const said = says(json, answer.ok);
    if (said) result(said.text || said, said.bad);
    return json;
  } catch (error) {
    result(what + " failed: the relay does not answer", true);
    return null;
  } finally {
    refresh();
  }
};
const tryNow = (sink) => act("Trying " + sink, "api/sinks/" + encodeURIComponent(sink) + "/retry", null, () => sink + " is tried now.");
const reload = () => act("Reload", "reload", null, (report, ok) => {
  if (!ok) return { text: "The configuration was rejected; the one before stays in force.\n" + report.problems.join("\n"), bad: true };
  const names = { channels_added: "channels added", channels_removed: "channels removed", channels_changed: "channels changed",
    sinks_added: "sinks added", sinks_removed: "sinks removed", sinks_changed: "sinks changed", applied: "changed", needs_restart: "need a restart" };
  const changes = Object.entries(names).map(([key, name]) => [name, report[key] || []])
    .filter(([, list]) => list.length).map(([name, list]) => name + ": " + list.join(", "));
  return "Reloaded at " + clock(report.at) + ". " + (changes.join("; ") || "Nothing has changed.");
});
const refreshSession = (channel) => act("Refresh of the session", "api/sessions/" + encodeURIComponent(channel) + "/refresh", null,
  () => "The session of " + channel + " was fetched.");

const KINDS = ["tip", "follow", "subscription", "raid", "cheer"];
const choice = (values, chosen) => {
  const select = make("select", "", values.map(([value, text]) => { const option = make("option", "", text); option.value = value; return option; }));
  select.value = chosen;
  return select;
};
const testDialog = (sink) => open("Send a test event", () => {
  const status = latest;
  const kind = choice(KINDS.map((word) => [word, word]), "tip");
  const channels = choice(Object.keys(status ? channelsOf(status) : {}).map((label) => [label, label]));
  channels.selectedIndex = 0;
  const sinks = choice([["", "all sinks"], ...Object.keys(status ? status.pages.sinks : {}).map((name) => [name, name])], sink || "");
  const outcome = make("div", "body");
  outcome.setAttribute("role", "status");
  const go = button("Send", async () => {
    go.disabled = true;
    outcome.replaceChildren(make("p", "soft", "sending…"));
    const body = { kind: kind.value };
    if (sinks.value) body.sink = sinks.value;
    if (channels.value) body.channel = channels.value;
    const report = await act("The test", "api/test", body, (report) => {
      const failed = report.sinks.filter((one) => one.outcome === "failed");
      const words = report.sinks.map((one) => one.sink + ": " + one.outcome + (one.reason ? ", " + one.reason : ""));
      return { text: "Test " + report.kind + ". " + words.join("; "), bad: failed.length > 0 };
    });
    go.disabled = false;
    // The token's question may have taken the dialog's place.
    if (!report) { outcome.replaceChildren(); return; }
    tested(report);
    outcome.replaceChildren(...(report.note ? [make("p", "wait", report.note)] : []), make("ul", "", report.sinks.map((one) =>
      make("li", "", make("span", "name", one.sink), " ", make("span", one.outcome === "accepted" ? "good" : one.outcome === "failed" ? "bad" : "soft", one.outcome),
        one.reason ? ": " + one.reason : "", (one.addresses || []).filter(Boolean).length ? make("div", "soft small", one.addresses.join(", ")) : ""))));
  }, "main");
  return [make("p", "soft", "A true event of its kind, marked as a test, over connections of its own. It is not written to the journal."),
    make("div", "tools", make("label", "", "Kind", kind), make("label", "", "Channel", channels), make("label", "", "Through", sinks)),
    make("div", "tools", go), outcome];
});
const replayDialog = (sink) => open("Replay to " + sink, () => {
  const from = choice([["10m", "the last 10 minutes"], ["1h", "the last hour"], ["6h", "the last 6 hours"], ["24h", "the last 24 hours"]], "1h");
  const topic = make("input");
  topic.placeholder = "channel.tips, channel.**";
  const when = make("input");
  when.placeholder = "data.donation.amount >= 5";
  const outcome = make("div", "body");
  outcome.setAttribute("role", "status");
  const body = (preview) => ({ sink, from: from.value, preview, ...(topic.value.trim() ? { topic: topic.value.trim() } : {}),
    ...(when.value.trim() ? { when: when.value.trim() } : {}) });
  const go = button("Replay", async () => {
    const done = await act("The replay", "api/replay", body(false), () => "The replay to " + sink + " was requested: its events come marked as replayed.");
    if (done) close();
  }, "danger");
  go.hidden = true;
  const look = button("Preview", async () => {
    const report = await act("The preview", "api/replay", body(true), () => null);
    if (!report) return;
    if (!byId("dialog").open) byId("dialog").showModal();
    const { events, sent, skipped } = report.preview;
    const topics = Object.entries(sent);
    const total = topics.reduce((sum, [, count]) => sum + count, 0);
    go.hidden = total === 0;
    outcome.replaceChildren(
      make("p", "", make("span", "name", plural(total, "event") + " would be sent"), " of " + number(events) + " in that time",
        report.complete === false ? " (as far as it was looked through)" : "", "."),
      make("ul", "small", topics.map(([name, count]) => make("li", "", number(count) + " × " + name))),
      Object.keys(skipped).length ? make("p", "soft small", "Not sent: " + Object.entries(skipped).map(([why, count]) => number(count) + " (" + why + ")").join(", ")) : "");
  }, "main");
  for (const field of [from, topic, when]) field.addEventListener("change", () => { go.hidden = true; outcome.replaceChildren(); });
  return [make("p", "soft", "Events of the journal are handed to this sink again, marked as replayed. The preview sends nothing."),
    make("div", "tools", make("label", "", "Events of", from), make("label", "", "Only topics", topic), make("label", "", "Only when", when)),
    make("div", "tools", look, go), outcome];
});

let letters = [];
// What they were read for; an action on them, too, has them read again.
let lettersFor = null;
let lettersActs = 0;
const lettersDialog = () => open("Dead letters", () => [make("div", "", letters.map(showLetter))]);
const readLetters = async (counts, again) => {
  const wanted = JSON.stringify([counts, lettersActs]);
  // What came of a retry does not always change how many there are.
  if (wanted === lettersFor && !again && !letters.some((letter) => letter.retry)) return;
  if (!Object.values(counts).some(Boolean)) {
    letters = [];
    lettersFor = wanted;
    return;
  }
  const answer = await ask("api/dead-letters");
  letters = answer.ok ? await answer.json() : [];
  // 409: there are none to read, for the journal is in memory.
  lettersFor = answer.ok || answer.status === 409 ? wanted : null;
};
const showLetter = (letter) => {
  const row = make("div", "letter",
    make("div", "line", make("span", "name", letter.sink), make("span", "", letter.topic), make("span", "soft small", clock(letter.at))),
    make("p", "bad small", letter.reason));
  const event = typeof letter.event === "string" ? letter.event : JSON.stringify(letter.event, null, 2);
  row.append(make("details", "", make("summary", "small soft", "the event"), make("pre", "", event)),
    make("div", "tools",
      button(letter.retry ? "retrying" : "Retry", () => lettersAct("retry", { numbers: [letter.number] }, 1, letter.sink)),
      button("Delete…", () => dropDialog({ numbers: [letter.number] }, 1, letter.sink), "danger")));
  return row;
};
const lettersAct = async (what, body, count, sink) => {
  const words = what === "retry" ? ["Retry", "to be tried again"] : ["Deletion", "deleted"];
  const done = await act(words[0], "api/dead-letters/" + what, body, (report) =>
    plural(report.count, "dead letter") + " of " + sink + " " + words[1] + (body.numbers && report.count < count ? " (" + count + " were asked for)." : "."));
  lettersActs += 1;
  if (done) close();
};
const dropDialog = (body, count, sink) => open("Delete " + plural(count, "dead letter") + " of " + sink + "?", () => [
  make("p", "", "They cannot be had back. " + sink + " will never get " + (count === 1 ? "this event." : "these events.")),
  make("div", "tools", button("Keep", close, "main"), button("Delete", () => lettersAct("drop", body, count, sink), "danger"))]);
const showDead = (counts) => {
  const reasons = new Map();
  for (const letter of letters) {
    const key = letter.sink + "\n" + letter.reason;
    const known = reasons.get(key) || { sink: letter.sink, reason: letter.reason, count: 0 };
    known.count += 1;
    reasons.set(key, known);
  }
  return Object.entries(counts).filter(([, count]) => count).map(([sink, count]) => make("div", "letter",
    make("div", "line", make("span", "name", sink), make("span", "bad", plural(count, "event") + " refused")),
    [...reasons.values()].filter((one) => one.sink === sink).slice(0, 3).map((one) => make("p", "small soft", one.reason)),
    letters.length ? make("div", "tools", button("Retry all", () => lettersAct("retry", { sink }, count, sink)),
      button("Delete all…", () => dropDialog({ sink }, count, sink), "danger"))
      : make("p", "small soft", "They are counted only: the journal is in memory.")));
};
byId("review").addEventListener("click", lettersDialog);
byId("send-test").addEventListener("click", () => testDialog());
byId("reload").addEventListener("click", reload);
byId("more").addEventListener("click", () => open("More", () => {
  const link = (path, text) => { const element = make("a", "", text); element.href = path; return element; };
  return [make("ul", "", [["status", "Status as JSON"], ["api/sessions", "Sessions as JSON"], ["api/history", "The last 24 hours as JSON"],
    ["metrics", "Metrics for Prometheus"], ["readyz", "Probe: /readyz"]].map(([path, text]) => make("li", "", link(path, text)))),
  make("p", "soft small", "What each message means and what to do: docs/operating.md. Events and their fields: docs/events.md. On the command line: astro-relay status, astro-relay tail, astro-relay help."),
  latest ? raw("All that the relay says of itself", latest) : ""];
}));
