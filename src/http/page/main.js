// ---- what is read, and when

const EVERY = 2000;
// Longer than this no relay takes that works.
const PATIENCE = 5000;
let since = null;
let reading = false;
const lost = () => {
  if (since) return;
  since = Date.now();
  document.body.classList.add("stale");
  byId("health").textContent = "no answer";
  byId("health").className = "pill bad";
  document.title = "✖ astro-relay";
  byId("old").textContent = "No answer from the relay since " + clock(lastAnswer || since) + ". What is below is old.";
  byId("old").hidden = false;
};
const found = () => {
  lastAnswer = Date.now();
  if (!since) return;
  since = null;
  document.body.classList.remove("stale");
  byId("old").hidden = true;
  readHistory();
};
let lastAnswer = null;
let polls = 0;
const refresh = async () => {
  if (reading) return;
  reading = true;
  try {
    const answer = await ask("status", { signal: AbortSignal.timeout(PATIENCE) });
    if (answer.status === WRONG || answer.status === 403) {
      byId("health").textContent = "token needed";
      byId("health").className = "pill wait";
      if (!byId("dialog").open && !asked) {
        asked = true;
        if (await admitted("To see this page from another machine, the admin token is needed.")) {
          asked = false;
          follow();
        }
      }
      return;
    }
    if (answer.status === TOO_MANY) {
      byId("health").textContent = tooMany(answer);
      byId("health").className = "pill wait";
      return;
    }
    const status = await answer.json();
    found();
    if (polls % 3 === 0) readSessions();
    // Somebody else may have acted on the dead letters.
    const again = polls % 30 === 0;
    polls += 1;
    show(status);
    showCluster(status);
    await readLetters(status.dead_letters, again);
    draw("dead", [letters, status.dead_letters], () => showDead(status.dead_letters));
    drawLag(status);
  } catch (error) {
    // A fault of the page's own must not look like one of the relay's.
    if (error instanceof TypeError && !/fetch|network/i.test(error.message)) throw error;
    lost();
  } finally { reading = false; }
};
let asked = false;
const tick = () => {
  if (since) return;
  for (const element of document.querySelectorAll("[data-time]")) tell(element);
};
let following = null;
const follow = async () => {
  if (following) following.abort();
  const mine = following = new AbortController();
  let first = true;
  while (mine === following) {
    let pause = EVERY;
    try {
      const answer = await ask("events?whole=true&last=" + (first && total === 0 ? 300 : 0), { signal: mine.signal });
      if (answer.status === WRONG || answer.status === 403) return;
      if (answer.status === TOO_MANY) pause = 1000 * secondsOf(answer);
      if (!answer.ok) throw new Error(answer.status);
      first = false;
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        for (const line of lines) if (line.startsWith("data:")) arrived(line.slice(5));
      }
    } catch { /* it is tried again */ }
    if (mine !== following) return;
    // The end of the stream is the first that is seen of a relay that goes.
    refresh();
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
};
stream.replaceChildren(...empty());
refresh().then(() => { followLink(); follow(); });
readSessions();
readHistory();
setInterval(() => { if (!document.hidden) refresh(); }, EVERY);
setInterval(() => { if (!document.hidden) readHistory(); }, 15000);
setInterval(tick, 1000);
// A reason elsewhere (a terminal, an alert) links here.
const followLink = () => { const opens = latest && opener(location.href); if (opens) opens(); };
window.addEventListener("hashchange", followLink);
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
