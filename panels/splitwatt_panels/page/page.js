// The page: which dashboard, which range and which budgets, clusters or nodes are chosen stands behind the # of its address.

import { drawLines, drawNumber } from "./charts.js";

const POINTS = 300;
const AT_ONCE = 6;
const ALL = ".*";
const element = (id) => document.getElementById(id);
const model = await (await fetch("model.json")).json();
const chosen = { set: model.sets[0].key, range: "900", refresh: "10", values: {} };
let round = 0, built = 0, timer = 0;

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const key of ["set", "range", "refresh"]) if (given.has(key)) chosen[key] = given.get(key);
  if (!model.sets.some((set) => set.key === chosen.set)) chosen.set = model.sets[0].key;
  chosen.values = {};
  for (const [key, value] of given) if (key.startsWith("var-")) chosen.values[key.slice(4)] = value;
}

function writeAddress() {
  const said = new URLSearchParams({ set: chosen.set, range: chosen.range, refresh: chosen.refresh });
  for (const [name, value] of Object.entries(chosen.values)) said.set(`var-${name}`, value);
  history.replaceState(null, "", `#${said}`);
}

function windowNow() {
  const range = Number(chosen.range), step = Math.max(1, Math.ceil(range / POINTS));
  const end = Math.floor(Date.now() / 1000 / step) * step;
  return { start: end - range, end, step };
}

async function ask(path, query) {
  const response = await fetch(`${path}?${new URLSearchParams(query)}`);
  const text = await response.text();
  let answer;
  try { answer = JSON.parse(text); } catch { throw new Error(text.trim() || `HTTP ${response.status}`); }
  if (answer.status !== "success") throw new Error(answer.error ?? `HTTP ${response.status}`);
  return answer.data;
}

// A chosen value stands inside a string of PromQL that is a regular expression.
const quoted = (value) => value.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&").replace(/[\\"]/g, "\\$&");

function filled(expr, window) {
  const rate = Math.max(Math.ceil(4 * model.scrapeSeconds), window.step + Math.ceil(model.scrapeSeconds));
  return expr.replaceAll(model.rateInterval, `${rate}s`)
    .replace(/\$(\w+)/g, (_, name) => (chosen.values[name] ? quoted(chosen.values[name]) : ALL));
}

function named(legend, labels) {
  return legend.replace(/\{\{(\w+)\}\}/g, (_, label) => labels[label] ?? "");
}

// A point for each step, null where there is none: a gap must look like one.
function series(row, legend, query, window) {
  const there = new Map(row.values.map(([at, value]) => [Math.round(at), Number(value)]));
  const times = [], values = [];
  for (let at = window.start; at <= window.end; at += window.step) {
    const value = there.get(at);
    times.push(new Date(at * 1000));
    values.push(value === undefined || !Number.isFinite(value) ? null : value);
  }
  const whose = [...legend.matchAll(/\{\{(\w+)\}\}/g)].map(([, label]) => row.metric[label] ?? "").join("/");
  return { name: named(legend, row.metric), whose, query, times, values };
}

async function answered(panel, window) {
  const found = await Promise.all(panel.queries.map(async (query, at) => {
    const data = await ask("api/v1/query_range", { query: filled(query.expr, window), ...window });
    return data.result.map((row) => series(row, query.legend, at, window));
  }));
  return found.flat();
}

function button(text, pressed, act) {
  const made = document.createElement("button");
  made.textContent = text;
  made.setAttribute("aria-pressed", String(pressed));
  made.addEventListener("click", act);
  return made;
}

function say(text, bad) {
  element("state").textContent = text;
  element("state").className = bad ? "bad" : "";
}

function showSets() {
  element("sets").replaceChildren(...model.sets.map((set) => button(set.title, set.key === chosen.set, () => {
    chosen.set = set.key;
    chosen.values = {};
    build();
  })));
}

async function showVariables(set, mine) {
  const now = windowNow();
  const rows = await Promise.all(set.variables.map(async (variable) => {
    const asked = { "match[]": variable.metric, start: now.start, end: now.end };
    const values = await ask(`api/v1/label/${variable.label}/values`, asked);
    const row = document.createElement("div"), name = document.createElement("span");
    row.dataset.variable = variable.name;
    name.textContent = variable.title;
    const choose = (value) => () => {
      if (value) chosen.values[variable.name] = value; else delete chosen.values[variable.name];
      showVariables(set, mine).catch((error) => say(error.message, true));
      draw();
    };
    const current = chosen.values[variable.name];
    row.append(name, button("All", !current, choose("")), ...values.map((v) => button(v, v === current, choose(v))));
    return row;
  }));
  if (mine === built) element("variables").replaceChildren(...rows);
}

function frame(panel) {
  const made = document.createElement("article");
  made.className = panel.look;
  made.dataset.title = panel.title;
  const details = document.createElement("details"), summary = document.createElement("summary");
  const title = document.createElement("h3"), body = document.createElement("div");
  title.textContent = panel.title;
  summary.append(title);
  details.append(summary, ...[panel.description, panel.why].map((text) => {
    const line = document.createElement("p");
    line.textContent = text;
    return line;
  }));
  body.className = `${panel.look === "number" ? "value" : "chart"} empty`;
  made.append(details, body);
  made.body = body;
  made.panel = panel;
  return made;
}

// Lines of twelve columns: a number takes three, a chart six, and the last of a line what is left.
function placed(frames) {
  let line = [], taken = 0;
  const close = () => {
    const last = line.at(-1);
    if (last && last.panel.look !== "number") last.style.gridColumn = `span ${12 - taken + 6}`;
    line = [];
    taken = 0;
  };
  for (const made of frames) {
    const wide = made.panel.look === "number" ? 3 : 6;
    if (taken + wide > 12) close();
    line.push(made);
    taken += wide;
  }
  close();
  return frames;
}

function build() {
  const set = model.sets.find((each) => each.key === chosen.set), mine = ++built;
  document.title = `Splitwatt / ${set.title}`;
  element("description").textContent = set.description;
  element("range").value = chosen.range;
  element("refresh").value = chosen.refresh;
  showSets();
  element("variables").replaceChildren();
  for (const old of document.querySelectorAll("article .chart")) if (old.data) Plotly.purge(old);
  element("panels").replaceChildren(...set.rows.flatMap((row) => {
    const heading = document.createElement("h2");
    heading.textContent = row.title;
    return [heading, ...placed(row.panels.map(frame))];
  }));
  showVariables(set, mine).catch((error) => say(error.message, true));
  draw();
}

async function draw() {
  clearTimeout(timer);
  writeAddress();
  const mine = ++round, window = windowNow(), waiting = [...document.querySelectorAll("article")];
  let problem = "";
  const worker = async () => {
    for (let article = waiting.shift(); article && mine === round; article = waiting.shift()) {
      try {
        const found = await answered(article.panel, window);
        if (mine !== round) return;
        if (article.panel.look === "number") drawNumber(article.body, article.panel, found);
        else drawLines(article.body, article.panel, found, window);
      } catch (error) {
        problem = error.message;
      }
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  if (mine !== round) return;
  say(problem || `as of ${new Date(window.end * 1000).toLocaleTimeString()}`, Boolean(problem));
  document.body.dataset.drawn = String(Number(document.body.dataset.drawn ?? 0) + 1);
  if (Number(chosen.refresh) > 0) timer = setTimeout(draw, Number(chosen.refresh) * 1000);
}

element("range").addEventListener("change", (event) => { chosen.range = event.target.value; draw(); });
element("refresh").addEventListener("change", (event) => { chosen.refresh = event.target.value; draw(); });
addEventListener("hashchange", () => { readAddress(); build(); });
readAddress();
build();
