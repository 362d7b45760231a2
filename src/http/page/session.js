// ---- the live session of each channel, as figures

const FAMILIES = [["follower", "followers"], ["subscriber", "subscribers"], ["sponsor", "members"], ["tip", "tips"],
  ["cheer", "bits"], ["superchat", "super chats"], ["raid", "raids"], ["charity", "charity"], ["merch", "merch"]];
const valueOf = (element) => {
  if (typeof element === "number") return element;
  if (!element || typeof element !== "object") return null;
  for (const key of ["count", "amount"]) if (typeof element[key] === "number") return element[key];
  return null;
};
const money = (family) => ["tip", "superchat", "charity", "merch"].includes(family);
const figure = (family, value) => money(family)
  ? Number(value).toLocaleString("en", { minimumFractionDigits: value % 1 ? 2 : 0, maximumFractionDigits: 2 }) : number(value);
const named = (element, family) => {
  if (!element || typeof element !== "object" || !element.name) return "";
  if (!element.amount || family === "follower") return element.name;
  if (family === "subscriber" || family === "sponsor") return element.name + ", " + plural(element.amount, "month");
  return element.name + " " + figure(family, element.amount);
};
const tile = (elements, [family, what]) => {
  const session = valueOf(elements[family + "-session"]);
  const total = valueOf(elements[family + "-total"]);
  if (session === null && total === null) return null;
  const latest = named(elements[family + "-latest"], family);
  const top = named(elements[family + "-session-top-donation"], family);
  // What nobody has ever done on this channel is left out.
  if (!session && !total && !latest) return null;
  return make("li", "", make("b", "", figure(family, session === null ? total : session)), make("div", "", what),
    session !== null && total ? make("div", "small", figure(family, total) + " in all") : "",
    latest ? make("div", "small", "latest: " + latest) : "",
    top && top !== latest ? make("div", "small", "top: " + top) : "");
};
// The vendor says how far a goal is, not what it is: its target is kept in this browser.
const goal = (channel, [name, element]) => {
  const value = valueOf(element);
  const family = name.split("-")[0];
  const key = "goal " + channel + " " + name;
  const target = typeof element.target === "number" ? element.target : Number(kept(key)) || 0;
  const words = name.replace(/-/g, " ");
  const ask = button("", () =>
    open("Target of the " + words, () => {
      const field = make("input");
      field.type = "number";
      field.min = 0;
      field.value = target || "";
      const form = make("form", "body", make("p", "soft", "StreamElements tells how far a goal is, not where it ends. The target is kept in this browser only; empty takes it away."),
        make("label", "", "Target", field), make("div", "tools", make("button", "main", "Set")));
      form.addEventListener("submit", (event) => { event.preventDefault(); keep(key, field.value); shown.delete("sessions"); close(); drawSessions(); });
      return [form];
    }), "plain small");
  ask.append(make("b", "num", figure(family, value)), make("span", "soft", target ? " of " + figure(family, target) : " · set a target"));
  ask.dataset.focus = key;
  const row = make("li", "", make("div", "line", make("span", "soft small grow", words), ask));
  if (target) {
    const bar = make("div", "bar", make("i"));
    const percent = Math.max(0, Math.min(100, value / target * 100));
    bar.firstElementChild.style.width = percent + "%";
    bar.setAttribute("role", "progressbar");
    bar.setAttribute("aria-label", words);
    bar.setAttribute("aria-valuenow", Math.round(percent));
    row.append(bar);
  }
  return row;
};
let sessions = {};
const sinceOf = (session) => session.fetched && session.fetched.last_reset || null;
const showSession = ([channel, session]) => {
  const elements = session.session || {};
  const tiles = FAMILIES.map((family) => tile(elements, family)).filter(Boolean);
  const goals = Object.entries(elements).filter(([name, element]) => /-goal$/.test(name) && valueOf(element));
  const since = sinceOf(session);
  const card = make("section", "card",
    make("div", "head", make("h2", "", "Session of " + channel), make("span", "grow"),
      since ? make("span", "soft small", "since " + clock(since).replace(/:\d\d$/, "")) : "",
      button("Details", () => sessionDialog(channel), "small")),
    tiles.length ? make("ul", "tiles", tiles) : make("p", "empty", session.fetched && session.fetched.error
      ? "The session cannot be fetched: " + session.fetched.error : "Nothing has happened in this session."),
    goals.length ? make("ul", "goals", goals.map((one) => goal(channel, one))) : "");
  card.setAttribute("aria-label", "Session of " + channel);
  return card;
};
const sessionDialog = (channel) => open("Session of " + channel, () => {
  const session = sessions[channel] || {};
  const elements = Object.entries(session.session || {});
  const text = (value) => value !== null && typeof value === "object" ? JSON.stringify(value) : String(value);
  return [facts([["since", sinceOf(session) ? clock(sinceOf(session)) : ""], ["elements", number(elements.length)],
    ["fetched", session.fetched && session.fetched.fetched_at ? ago(session.fetched.fetched_at) : "not yet"], ["error", session.fetched && session.fetched.error]]),
  make("div", "tools", button("Refresh", () => refreshSession(channel))),
  facts(elements.map(([name, value]) => [name, text(value)]))];
});
const drawSessions = () => draw("sessions", sessions, () => Object.entries(sessions).filter(([, session]) => session.session || session.fetched).map(showSession));
const readSessions = async () => {
  try {
    const answer = await ask("api/sessions");
    if (!answer.ok) return;
    sessions = await answer.json();
  } catch { return; }
  drawSessions();
};
