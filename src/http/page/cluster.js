// ---- several relays as one: who is there, who holds what, who drives which destination

const memberRow = (cluster, name) => {
  const one = cluster.members[name];
  const gone = cluster.gone[name];
  const [kind, state] = !one ? ["bad", "not heard of for " + span(gone)] : one.draining ? ["wait", "leaving"]
    : one.stands ? ["good", "works"] : ["wait", "taking up channels"];
  return make("tr", "", make("td", "", make("span", "name", name), name === cluster.member ? make("span", "soft", " (this one)") : ""),
    make("td", "", dot(kind), make("span", kind === "good" ? "" : kind, " " + state)),
    make("td", "num", one ? number(one.channels) : "–"), make("td", "num", one ? number(one.waiting) : "–"));
};
const driverRow = ([name, sink]) => make("tr", "", make("td", "", make("span", "name", name)),
  make("td", sink.driver ? "" : "bad", sink.driver || "nobody"), make("td", "num", sink.since ? lasting(sink.since) : "–"));
const headed = (...words) => make("thead", "", make("tr", "", words.map((word, at) => make("th", at > 1 ? "num" : "", word))));
const clusterOf = (status) => status.pages.cluster;
const showCluster = (status) => {
  const cluster = clusterOf(status);
  byId("cluster-card").hidden = !cluster;
  if (!cluster) return;
  // How long ago somebody was heard of changes always; who works does not.
  const heard = Object.fromEntries(Object.entries(cluster.members).map(([name, one]) => [name, { ...one, heard_seconds: 0, clock: 0, stored: 0, duplicates: 0 }]));
  draw("cluster", [{ ...cluster, members: heard }], () => [
    ...cluster.problems.map((text) => make("p", "note wait", text.replace(/^cluster: /, ""))),
    make("table", "", headed("member", "", "channels", "waiting"),
      make("tbody", "", [...Object.keys(cluster.members), ...Object.keys(cluster.gone)].sort().map((name) => memberRow(cluster, name)))),
    make("table", "", headed("destination", "driven by", ""), make("tbody", "", Object.entries(cluster.sinks).map(driverRow))),
    make("p", "soft small", "Each channel is held by " + plural(cluster.copies, "member") + ". Waiting: events that a member has, and the log has not yet."),
  ]);
};
