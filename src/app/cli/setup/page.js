// ---- the setup: what is asked, tried and saved. The code stands behind the # of the address.
token = location.hash.slice(1);
history.replaceState(null, "", location.pathname);

let questions = null;
const lost = (why) => {
  byId("old").textContent = why;
  byId("old").hidden = false;
};
const send = async (path, body) => {
  try {
    const answer = await ask("api/" + path, body && { method: "POST", body: JSON.stringify(body) });
    if (answer.status === 401) { lost("The code is missing or wrong: open the address that the terminal shows, as a whole."); return null; }
    const json = await answer.json().catch(() => null);
    return answer.ok ? json : { problems: (json && json.problems) || ["it failed: status " + answer.status], exists: Boolean(json && json.exists) };
  } catch {
    lost("The setup does not answer any more: has it been ended on the terminal?");
    return null;
  }
};
const line = (kind, ...inside) => make("p", kind, ...inside);
const result = (id, lines) => byId(id).replaceChildren(...lines.filter(Boolean));
const problems = (list) => list.map((text) => line("bad", text));

const kindNow = () => questions.kinds.find((kind) => kind.name === byId("kind").value);
const fieldOf = (field, kind) => {
  const id = "field-" + field.key;
  const label = field.key.replace(/_/g, " ");
  let input;
  if (field.form === "choice") {
    input = make("select", "", make("option", "", ""), field.choices.map((choice) => make("option", "", choice)));
  } else {
    input = make("input");
    input.type = { secret: "password", switch: "checkbox", number: "number" }[field.form] || "text";
    input.autocomplete = "off";
  }
  input.id = id;
  input.dataset.key = field.key;
  input.dataset.form = field.form;
  // The reference's first sentence, without what only a file needs.
  const first = field.description.split(/(?<=\.)\s/)[0].replace(/; also .*$/, ".").replace(/`/g, "");
  if (field.form === "switch") return make("label", "switch", input, make("span", "", label, make("span", "soft small", " " + first)));
  if (field.key === "url" && kind.usual_url) input.value = kind.usual_url;
  return make("label", "field", label, input, make("span", "small", first));
};
const drawFields = () => {
  const kind = kindNow();
  const more = kind.fields.filter((field) => !field.first);
  byId("fields").replaceChildren(line("soft", kind.summary), ...kind.fields.filter((field) => field.first).map((field) => fieldOf(field, kind)),
    more.length ? make("details", "", make("summary", "soft", "More settings (" + more.length + ")"), more.map((field) => fieldOf(field, kind))) : "");
  result("sink-outcome", []);
  if (kind.name === "mqtt") byId("field-homeassistant").checked = true;
  if (kind.name === "nats") for (const key of ["jetstream", "create_stream"]) byId("field-" + key).checked = true;
};
const sinkAnswers = () => {
  const settings = {}, secrets = {};
  for (const input of byId("fields").querySelectorAll("[data-key]")) {
    const { key, form } = input.dataset;
    if (form === "switch") { if (input.checked) settings[key] = true; continue; }
    const value = input.value.trim();
    if (!value) continue;
    if (form === "secret") secrets[key] = input.value;
    else settings[key] = form === "number" ? Number(value) : value;
  }
  // For Home Assistant: a button to test, and yesterday's tip must not flash the lights.
  const usual = settings.homeassistant ? { commands: ["relay/test"], max_age: "30s" } : {};
  return { kind: byId("kind").value, settings: { ...usual, ...settings }, secrets };
};
// The package's configuration; the service reads no other. Beside another one are secrets that it does not get.
const SERVICE_FILE = "/etc/astro-relay/astro-relay.toml";
const serviceSteps = (file) => (file === SERVICE_FILE
  ? "# the secrets: docs/install.md\nsudo systemctl enable astro-relay\nsudo systemctl restart astro-relay"
  : "sudo astro-relay setup --config " + SERVICE_FILE + " --listen 9465");
const answers = (more) => ({
  channel: byId("channel").value.trim() || "main",
  room: byId("room").value.trim(),
  token: byId("token").value.trim(),
  token_type: byId("token-type").value,
  topics: [...byId("topics").querySelectorAll("input:checked")].map((input) => input.value),
  ...more,
});
const busy = async (button, outcome, work) => {
  button.disabled = true;
  result(outcome, [line("soft", "trying…")]);
  const lines = await work();
  button.disabled = false;
  result(outcome, lines || []);
};
byId("try-token").addEventListener("click", (event) => busy(event.currentTarget, "token-outcome", async () => {
  if (!byId("token").value.trim()) return [line("bad", "Paste the token first.")];
  const found = await send("token", answers());
  if (!found) return null;
  if (found.problems) return problems(found.problems);
  const refused = found.subscriptions.filter((one) => one.state !== "confirmed");
  const rooms = [...new Set(found.subscriptions.map((one) => one.room).filter(Boolean))];
  return [
    found.connected ? line("good", "Astro takes it: " + (found.subscriptions.length - refused.length) + " of " + plural(found.subscriptions.length, "topic") + " confirmed.")
      : line("bad", "Astro cannot be reached: " + (found.error || "no answer in time")),
    found.channel || rooms.length ? line("", "Channel " + (found.channel || rooms[0]) + (found.provider ? " (" + found.provider + ")" : "")) : "",
    found.scopes ? line("", "Scopes: " + found.scopes.join(", ")) : "",
    found.expired ? line("bad", "It expired at " + clock(found.expires) + ".")
      : found.expires ? line(found.expires_in_days < 7 ? "wait" : "", "It expires in " + plural(found.expires_in_days, "day") + ", at " + clock(found.expires) + ".") : line("soft", "It does not say when it expires."),
    ...found.doubts.map((doubt) => line("wait", doubt)),
    ...refused.map((one) => line("bad", one.topic + ": " + one.state + (one.why ? ", " + one.why : ""))),
  ];
}));
byId("try-sink").addEventListener("click", (event) => busy(event.currentTarget, "sink-outcome", async () => {
  const found = await send("sink", answers({ sinks: [sinkAnswers()], sink: 0 }));
  if (!found) return null;
  if (found.problems) return problems(found.problems);
  return [line(found.works ? "good" : "bad", found.works ? "It works." : "It does not work."), ...found.lines.map((text) => line(found.works ? "soft small" : "bad", text))];
}));
byId("try-test").addEventListener("click", (event) => busy(event.currentTarget, "sink-outcome", async () => {
  const found = await send("test", answers({ sinks: [sinkAnswers()], sink: 0, kind: byId("test-kind").value }));
  if (!found) return null;
  if (found.problems) return problems(found.problems);
  return [found.note ? line("wait", found.note) : "", ...found.sinks.map((one) => line(one.outcome === "accepted" ? "good" : "bad",
    "Test event " + one.outcome + (one.reason ? ": " + one.reason : "") + ((one.addresses || []).filter(Boolean).length ? " at " + one.addresses.join(", ") : "")))];
}));
byId("save").addEventListener("click", (event) => busy(event.currentTarget, "save-outcome", async () => {
  const found = await send("save", answers({ sinks: [sinkAnswers()], overwrite: byId("overwrite").checked }));
  if (!found) return null;
  if (found.exists) byId("overwrite-field").hidden = false;
  if (found.problems) return problems(found.problems);
  for (const button of document.querySelectorAll("button")) button.hidden = true;
  return [line("good", "Wrote " + found.file), ...found.secrets.map((path) => line("soft", path + ", readable by you alone")),
    line("", "Now, on the terminal:"), make("pre", "", "astro-relay run --config " + found.file),
    line("", "For good, with systemd and the package installed:"),
    make("pre", "", serviceSteps(found.file)),
    line("soft", "You can close this page.")];
}));
byId("kind").addEventListener("change", drawFields);
send("setup").then((found) => {
  if (!found || found.problems) return;
  questions = found;
  byId("where").textContent = byId("file").textContent = found.file;
  byId("overwrite-field").hidden = !found.exists;
  byId("topics").append(...found.topics.map((topic) => {
    const input = make("input");
    input.type = "checkbox";
    input.value = topic.name;
    input.checked = topic.first;
    return make("label", "switch", input, make("span", "", topic.name, make("span", "soft small", " " + topic.meaning + (topic.scope ? " (" + topic.scope + ")" : ""))));
  }));
  byId("kind").append(...found.kinds.map((kind) => make("option", "", kind.name)));
  drawFields();
});
