// ---- charts, of the last day's figures

const WIDTH = 600;
const chart = (values, label, kind) => {
  const height = 100;
  const most = Math.max(1, ...values.map((value) => value || 0));
  const x = (at) => values.length < 2 ? WIDTH : at * WIDTH / (values.length - 1);
  const y = (value) => height - 4 - value / most * (height - 10);
  const points = values.map((value, at) => value === null ? null : x(at).toFixed(1) + "," + y(value).toFixed(1)).filter(Boolean);
  const svg = drawn("svg", { class: "chart " + (kind || ""), viewBox: "0 0 " + WIDTH + " " + height, preserveAspectRatio: "none", role: "img", "aria-label": label },
    drawn("line", { class: "base", x1: 0, x2: WIDTH, y1: height - 2, y2: height - 2 }));
  if (points.length) {
    const first = points[0].split(",")[0], last = points[points.length - 1].split(",")[0];
    svg.append(drawn("polygon", { class: "area", points: first + "," + (height - 2) + " " + points.join(" ") + " " + last + "," + (height - 2) }),
      drawn("polyline", { points: points.join(" ") }));
  }
  return svg;
};
// A line of time: where it works, where not, and nothing where nobody looked.
const outages = (name, health, slots, gaps) => {
  const svg = drawn("svg", { viewBox: "0 0 " + slots + " 10", preserveAspectRatio: "none", role: "img" });
  const offset = slots - health.length;
  let failing = 0;
  for (let at = 0; at < health.length;) {
    let end = at + 1;
    while (end < health.length && health[end] === health[at]) end += 1;
    if (health[at] !== "unknown") {
      const works = health[at] === "working";
      if (!works) failing += end - at;
      svg.append(drawn("rect", { class: works ? "works" : "fails", x: offset + at, y: 0, width: end - at, height: 10 }));
    }
    at = end;
  }
  for (const [from, to] of gaps || []) {
    svg.append(drawn("rect", { class: "fails", x: Math.max(0, from), y: 0, width: Math.max(slots / 300, to - from), height: 10 }));
  }
  svg.setAttribute("aria-label", name + ": " + (failing ? "did not work in " + plural(failing, "minute") : "worked throughout"));
  return [make("span", "small", name), svg];
};
let history = null;
let spanChosen = false;
const readHistory = async () => {
  try {
    const answer = await ask("api/history?minutes=" + (spanChosen ? byId("span").value : 1440));
    if (answer.ok) history = await answer.json();
  } catch { return; }
  if (history && !spanChosen) {
    // As far back as there is something to show.
    const enough = ["60", "360", "1440"].find((minutes) => history.events.length <= Number(minutes)) || "1440";
    byId("span").value = enough;
  }
  if (history) drawCharts();
};
const drawCharts = () => {
  const slots = Number(byId("span").value);
  draw("charts", [history, slots], () => {
    const { events, astro, sinks, gaps, until, step } = history;
    const padded = [...Array(Math.max(0, slots - events.length)).fill(null), ...events];
    const total = events.reduce((sum, value) => sum + value, 0);
    const start = until - slots * step;
    const recent = gaps.filter((gap) => gap.to > start);
    const missed = recent.reduce((sum, gap) => sum + (gap.to - gap.from) / 1000, 0);
    const at = (time) => (time - start) / step;
    const label = "Events a minute: " + number(total) + " in all, at most " + number(Math.max(0, ...events)) + " in a minute";
    return [chart(padded, label),
      make("div", "axis soft small", make("span", "", clock(start).replace(/:\d\d$/, "")),
        make("span", "num", "most " + number(Math.max(0, ...events)) + "/min"), make("span", "", "now")),
      make("div", "outages", ...outages("Astro", astro, slots, recent.map((gap) => [at(gap.from), at(gap.to)])),
        ...Object.entries(sinks).flatMap(([name, sink]) => outages(name, sink.health, slots))),
      make("p", "soft small", recent.length
        ? plural(recent.length, "gap") + ", " + span(missed) + " in all: events missed without a connection"
        : "No gaps: no events were missed without a connection.")];
  });
  draw("delivery", [history, slots], () => {
    const rows = Object.entries(history.sinks);
    if (!rows.length) return [make("p", "empty", "No sink yet.")];
    const head = make("tr", "", ["sink", "time to accept", "queued"].map((text) => { const th = make("th", "", text); th.scope = "col"; return th; }));
    const last = (values) => { const known = values.filter((value) => value !== null); return known.length ? known[known.length - 1] : null; };
    return [make("table", "", make("thead", "", head), make("tbody", "", rows.map(([name, sink]) => {
      const mean = last(sink.mean_ms), queued = last(sink.queued) || 0, slowest = Math.max(0, ...sink.slowest_ms);
      return make("tr", "", make("td", "name", name),
        make("td", "", make("span", "num", mean === null ? "–" : number(mean, 1) + " ms"),
          chart(sink.mean_ms, name + ": mean time until accepted; slowest " + number(slowest) + " ms", "flat"),
          make("span", "soft small num", "slowest " + (slowest < 10000 ? number(slowest) + " ms" : span(slowest / 1000)))),
        make("td", "", make("span", "num", number(queued)), chart(sink.queued, name + ": events queued, now " + queued, "flat")));
    })))];
  });
};
byId("span").addEventListener("change", () => { spanChosen = true; readHistory(); });
