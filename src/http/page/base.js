"use strict";
// Everything that is shown becomes text, never markup: viewers choose many of these words.
// Paths are relative: behind a proxy the page may stand below another path.
const byId = (id) => document.getElementById(id);
const make = (tag, kind, ...inside) => {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  for (const part of inside.flat()) if (part !== null && part !== undefined && part !== "") element.append(part);
  return element;
};
const SVG = byId("icons").namespaceURI;
const drawn = (tag, attributes, ...inside) => {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inside);
  return element;
};
const icon = (kind) => {
  const known = byId("i-" + kind) ? kind : "other";
  return drawn("svg", { class: "icon " + known, "aria-hidden": "true" }, drawn("use", { href: "#i-" + known }));
};
const button = (text, does, kind) => {
  const element = make("button", kind || "", text);
  element.type = "button";
  element.addEventListener("click", () => does(element));
  return element;
};
const number = (value, digits) => Number(value || 0).toLocaleString("en", digits === undefined ? {} : { maximumFractionDigits: digits });
const bytes = (value) => value >= 1048576 ? (value / 1048576).toFixed(1) + " MiB" : Math.round((value || 0) / 1024) + " KiB";
const plural = (count, one, many) => number(count) + " " + (count === 1 ? one : many || one + "s");
const span = (seconds) => {
  seconds = Math.max(0, Math.round(seconds));
  if (seconds < 60) return seconds + " s";
  if (seconds < 3600) return Math.floor(seconds / 60) + " min" + (seconds < 600 && seconds % 60 ? " " + (seconds % 60) + " s" : "");
  if (seconds < 86400) return Math.floor(seconds / 3600) + " h " + Math.floor(seconds % 3600 / 60) + " min";
  return Math.floor(seconds / 86400) + " d " + Math.floor(seconds % 86400 / 3600) + " h";
};
const millis = (time) => typeof time === "number" ? time : Date.parse(time);
// Times of people: 24 hours, and the day where it is another.
const clock = (time) => {
  const date = new Date(millis(time));
  const today = date.toDateString() === new Date().toDateString();
  const hours = date.toLocaleTimeString([], { hourCycle: "h23" });
  return today ? hours : date.toLocaleDateString([], { day: "numeric", month: "short" }) + " " + hours;
};
// A time that goes on: "3 s ago", "for 2 min", "in 12 s". It stops where the relay does not answer.
const running = (time, before, after) => {
  const element = make("span", "num");
  element.dataset.time = millis(time);
  element.dataset.before = before || "";
  element.dataset.after = after || "";
  element.title = new Date(millis(time)).toLocaleString([], { hourCycle: "h23" });
  tell(element);
  return element;
};
const tell = (element) => {
  const seconds = Math.abs(Date.now() - Number(element.dataset.time)) / 1000;
  element.textContent = element.dataset.before + span(seconds) + element.dataset.after;
};
const ago = (time) => running(time, "", " ago");
const lasting = (time) => running(time, "for ");
const STATES = { working: "good", up: "good", open: "good", confirmed: "good", sound: "good", online: "good",
  "not working": "bad", down: "bad", gone: "bad", refused: "bad", failed: "bad", held: "bad", rejecting: "bad", offline: "bad" };
const tone = (state) => STATES[state] || "wait";
const pill = (state) => make("span", "pill " + tone(state), state);
const dot = (kind) => { const element = make("span", "dot " + kind); element.setAttribute("aria-hidden", "true"); return element; };
const facts = (pairs) => make("dl", "facts-list", pairs.filter(([, value]) => value !== null && value !== undefined && value !== "")
  .flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]));
const raw = (name, value) => {
  const details = make("details", "", make("summary", "soft", name));
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) details.append(make("pre", "", JSON.stringify(value, null, 2)));
  });
  return details;
};
const remember = (key, value) => { try { sessionStorage.setItem(key, value); } catch { /* it is chosen again */ } };
const remembered = (key) => { try { return sessionStorage.getItem(key); } catch { return null; } };
// What a person has set up for this browser: targets of goals.
const keep = (key, value) => { try { localStorage.setItem(key, value); } catch { /* it is typed again */ } };
const kept = (key) => { try { return localStorage.getItem(key); } catch { return null; } };

let token = remembered("token") || "";
const WRONG = 401, TOO_MANY = 429;
// After too many wrong tokens the relay looks at none for a while. What is read waits until then.
let barred = 0;
const secondsOf = (answer) => Number(answer.headers.get("retry-after")) || 1;
const ask = async (path, options = {}) => {
  const reads = !options.method, wait = Math.ceil((barred - Date.now()) / 1000);
  if (reads && wait > 0) return new Response(null, { status: TOO_MANY, headers: { "retry-after": wait } });
  const used = token;
  const headers = used ? { authorization: "Bearer " + used } : {};
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  // Each time that a wrong one is used counts.
  if (answer.status === WRONG && used && used === token) {
    token = "";
    remember("token", "");
  }
  if (answer.status === TOO_MANY && reads) barred = Date.now() + 1000 * secondsOf(answer);
  return answer;
};
const tooMany = (answer) => "Too many wrong tokens: try again in " + secondsOf(answer) + " s";
// A part is drawn again only when it has changed: what somebody has marked or opened stays.
const shown = new Map();
const draw = (id, data, render) => {
  const key = JSON.stringify(data);
  if (shown.get(id) === key) return;
  shown.set(id, key);
  const focused = document.activeElement && document.activeElement.dataset.focus;
  byId(id).replaceChildren(...render());
  if (focused) {
    const again = byId(id).querySelector("[data-focus=" + CSS.escape(focused) + "]");
    if (again) again.focus();
  }
};
