// Numbers with their units, and series drawn by Plotly. What is absent stays absent: a gap, or the words "no data", never 0.

const TONES = { good: "#15803d", warning: "#b45309", bad: "#b91c1c" };
const COLOURS = ["#1d4ed8", "#c2410c", "#15803d", "#7e22ce", "#0e7490", "#be123c", "#4d7c0f", "#6d28d9", "#a16207", "#0f766e"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const STEPS = [[1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]];

function scaled(value, suffix) {
  const size = Math.abs(value);
  const [factor, prefix] = STEPS.find(([least]) => size >= least) ?? [1, ""];
  return `${trimmed(value / factor)} ${prefix}${suffix}`.trim();
}

function trimmed(value) {
  const size = Math.abs(value);
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  return String(Number(value.toFixed(digits)));
}

export function worded(value, panel) {
  const state = panel.states.find(([at]) => at === value);
  if (state) return state[1];
  switch (panel.unit) {
    case "watt": return scaled(value, "W");
    case "joule": return scaled(value, "J");
    case "hertz": return scaled(value, "Hz");
    case "bytes": return scaled(value, "B");
    case "Bps": return scaled(value, "B/s");
    case "cps": return scaled(value, "/s");
    case "s": return Math.abs(value) < 1 && value !== 0 ? `${trimmed(value * 1000)} ms` : `${trimmed(value)} s`;
    case "percentunit": return `${trimmed(value * 100)} %`;
    default: return scaled(value, "");
  }
}

export function toneOf(value, panel) {
  let level = panel.base;
  for (const step of panel.thresholds) if (value >= step.value) level = step.level;
  return level;
}

function lastOf(series) {
  for (let i = series.values.length - 1; i >= 0; i--) if (series.values[i] !== null) return series.values[i];
  return null;
}

export function drawNumber(element, panel, found) {
  const values = found.map(lastOf).filter((value) => value !== null);
  const known = values.length > 0;
  element.className = `value ${known ? (panel.thresholds.length ? toneOf(values[0], panel) : "") : "empty"}`;
  element.textContent = known ? values.map((value) => worded(value, panel)).join(" · ") : "no data";
}

export function drawLines(element, panel, found, window) {
  const seen = found.filter((series) => series.values.some((value) => value !== null));
  if (!seen.length) {
    if (element.data) Plotly.purge(element);
    element.className = "chart empty";
    element.textContent = "no data";
    return;
  }
  if (element.classList.contains("empty")) element.replaceChildren();
  element.className = "chart";
  const steps = panel.look === "states";
  // Where a panel asks several things of several objects, an object has one colour and a question one kind of line.
  const whose = [...new Set(seen.map((series) => series.whose))], many = whose.length > 1 && seen.some((series) => series.query > 0);
  const colour = (series, at) => COLOURS[(many ? whose.indexOf(series.whose) : at) % COLOURS.length];
  element.style.height = `${250 + 20 * Math.max(0, Math.ceil(seen.length / 3) - 2)}px`; // a long legend takes nothing from the chart
  const traces = seen.map((series, at) => ({
    x: series.times, y: series.values, name: series.name, mode: "lines", connectgaps: false,
    line: {
      width: 1.5, color: colour(series, at), shape: steps ? "hv" : "linear", dash: many ? DASHES[series.query % DASHES.length] : "solid",
    },
    text: series.values.map((value) => (value === null ? "" : worded(value, panel))), hovertemplate: "%{text}",
  }));
  const marks = steps ? panel.states.map(([value]) => value) : null;
  const layout = {
    margin: { l: 70, r: 10, t: 8, b: 24 }, showlegend: true, hovermode: "x unified", uirevision: panel.title,
    legend: { orientation: "h", y: -0.12, font: { size: 10 } }, font: { size: 11 }, paper_bgcolor: "#fff", plot_bgcolor: "#fff",
    xaxis: { type: "date", ticks: "outside", ticklen: 4, tickcolor: "#e5e7eb",
      range: [new Date(window.start * 1000), new Date(window.end * 1000)], gridcolor: "#f3f4f6",
      tickformat: window.end - window.start > 86400 ? "%d %b" : window.end - window.start > 600 ? "%H:%M" : "%H:%M:%S" },
    yaxis: { gridcolor: "#f3f4f6", rangemode: "tozero", ...axis(panel, seen, marks) },
    shapes: panel.thresholds.map((step) => ({
      type: "line", xref: "paper", x0: 0, x1: 1, y0: step.value, y1: step.value, line: { color: TONES[step.level], width: 1, dash: "dot" },
    })).filter((shape) => !steps && shape.y0 <= highest(seen) * 1.5),
  };
  Plotly.react(element, traces, layout, { displayModeBar: false, responsive: true });
}

function highest(seen) {
  let found = 0;
  for (const series of seen) for (const value of series.values) if (value !== null && value > found) found = value;
  return found;
}

// Ticks at round numbers of the unit: Plotly knows no "kW" or "ms".
function axis(panel, seen, marks) {
  if (marks) return { tickvals: marks, ticktext: panel.states.map(([, word]) => word), range: [Math.min(...marks) - 0.3, Math.max(...marks) + 0.3] };
  let low = 0, high = highest(seen);
  for (const series of seen) for (const value of series.values) if (value !== null && value < low) low = value;
  if (high === low) high = low + 1;
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= rough);
  const tickvals = [];
  for (let n = Math.floor(low / step); n * step <= high + step / 2; n++) tickvals.push(n * step);
  return { tickvals, ticktext: tickvals.map((value) => worded(Number(value.toPrecision(12)), { ...panel, states: [] })) };
}
