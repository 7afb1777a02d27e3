"use strict";
// The page of `bonsai watch`: it hears of runs by server-sent events and draws them. Names and texts of runs are put in as
// text only; the two fragments that come as HTML (comparison, health) are made and escaped by the report's own code.

const $ = (id) => document.getElementById(id);
const runs = new Map();       // by name: what was told of each run
const colours = [];           // names of the runs that are shown; the place is the colour
let studies = [];

// ------------------------------------------------------------------ hearing

function listen() {
  const source = new EventSource("events");
  source.onmessage = (event) => {
    const messages = JSON.parse(event.data);
    messages.forEach(take);
    if (messages[0].kind === "begin") for (const run of [...runs.values()]) if (!run.seen) take({ kind: "gone", name: run.name });
    soon(draw);
  };
  source.onopen = () => live(true);
  source.onerror = () => live(false);  // the browser connects again by itself, and is told everything anew
}

function live(is) {
  $("status").dataset.live = is ? "yes" : "no";
  $("status").dataset.said = is ? "" : "The connection is lost; trying again. ";
  soon(draw);
}

let fresh = true;             // nothing was heard yet: the first runs are shown without being asked for

function take(message) {
  const run = runs.get(message.name);
  switch (message.kind) {
    case "begin": for (const old of runs.values()) { old.logs = []; old.evals = []; old.seen = false; } break;
    case "run":
      if (run) Object.assign(run, message, { seen: true });
      else runs.set(message.name, { ...message, logs: [], evals: [], state: "waiting", stamp: 0, seen: true });
      break;
    case "lines":
      if (message.anew) { run.logs = []; run.evals = []; }
      for (const line of message.lines) ("val_loss" in line ? run.evals : run.logs).push(line);
      run.stamp = message.written;
      soon(compare, 1500);
      break;
    case "state":
      run.state = message.state;
      break;
    case "changed":
      run[message.what] = undefined;
      if (message.name === $("one").value) soon(message.what === "samples" ? samples : health, 300);
      break;
    case "gone":
      runs.delete(message.name);
      if (colours.includes(message.name)) colours[colours.indexOf(message.name)] = null;
      break;
    case "studies": studies = message.studies; soon(plots); break;
  }
}

const waiting = new Map();
function soon(work, after = 100) {
  if (!waiting.has(work)) waiting.set(work, setTimeout(() => { waiting.delete(work); work(); }, after));
}

// ------------------------------------------------------------------ the table

const last = (lines, key) => { for (let i = lines.length - 1; i >= 0; i--) if (key in lines[i]) return lines[i][key]; };
const least = (lines, key) => lines.reduce((low, line) => (line[key] < low ? line[key] : low), Infinity);
const stepOf = (run) => Math.max(last(run.logs, "step") ?? 0, last(run.evals, "step") ?? 0);
const bestOf = (run) => least(run.evals, "val_loss");
const few = (x, digits = 4) => (x === undefined || !isFinite(x) ? "–" : x.toFixed(digits));
const many = (x) => (x === undefined || !isFinite(x) ? "–" : Math.round(x).toLocaleString("en"));

function left(run) {
  const seconds = last(run.logs, "seconds"), step = last(run.logs, "step");
  if (run.state !== "training" || !step) return "";
  const rest = (seconds / step) * (run.steps - stepOf(run));
  return rest < 90 ? `${Math.round(rest)} s` : rest < 5400 ? `${Math.round(rest / 60)} min` : `${(rest / 3600).toFixed(1)} h`;
}

function ordered() {
  const words = $("find").value.toLowerCase(), order = $("order").value;
  const found = [...runs.values()].filter((run) => run.name.toLowerCase().includes(words));
  const under = (run) => (run.state === "training" ? 0 : 1);
  if (order === "name") return found.sort((a, b) => (a.name < b.name ? -1 : 1));
  if (order === "best") return found.sort((a, b) => bestOf(a) - bestOf(b));
  return found.sort((a, b) => under(a) - under(b) || b.stamp - a.stamp);
}

function show(name, is) {
  const place = colours.indexOf(name);
  if (is && place < 0) {
    const free = colours.indexOf(null);
    if (free < 0) colours.push(name); else colours[free] = name;
  } else if (!is && place >= 0) colours[place] = null;
}

const shown = () => colours.map((name, i) => [runs.get(name), i]).filter(([run]) => run);

function draw() {
  if (fresh && runs.size) {
    fresh = false;
    const first = ordered().slice(0, 8);
    for (const run of first) show(run.name, true);
    choices(first[0]?.name);
    soon(compare);
  }
  for (const run of runs.values()) {  // one that began while we watched
    if (run.state !== "training" || run.offered || colours.includes(run.name) || shown().length >= 8) continue;
    run.offered = true;
    show(run.name, true);
    soon(compare);
  }
  const training = [...runs.values()].filter((run) => run.state === "training").length;
  const words = `${runs.size} ${runs.size === 1 ? "run" : "runs"}, ${training} training.`;
  const said = ($("status").dataset.said ?? "") + words;
  if ($("status").textContent !== said) $("status").textContent = said;
  $("empty").hidden = runs.size > 0;
  const body = $("runs").tBodies[0], rows = new Map([...body.rows].map((row) => [row.dataset.name, row]));
  let before = null;
  for (const run of ordered()) {
    const row = rows.get(run.name) ?? newRow(run);
    rows.delete(run.name);
    fillRow(row, run);
    const place = before ? before.nextSibling : body.firstChild;
    if (place !== row) body.insertBefore(row, place);
    before = row;
  }
  for (const row of rows.values()) row.remove();
  choices();
  for (const chart of charts) chart.draw();
}

function newRow(run) {
  const row = document.createElement("tr"), head = document.createElement("th"), label = document.createElement("label");
  row.dataset.name = run.name;
  head.scope = "row";
  const box = Object.assign(document.createElement("input"), { type: "checkbox" });
  box.onchange = () => { run.offered = true; show(run.name, box.checked); soon(draw, 0); soon(compare); };
  const mark = Object.assign(document.createElement("i"), { className: "swatch" });
  label.append(box, mark, document.createTextNode(run.name));
  head.append(label);
  row.append(head);
  for (let i = 0; i < 6; i++) row.append(document.createElement("td"));
  row.cells[2].append(document.createElement("progress"), document.createElement("span"));
  return row;
}

function fillRow(row, run) {
  const place = colours.indexOf(run.name), [box, mark] = row.cells[0].firstChild.childNodes;
  box.checked = place >= 0;
  mark.style.color = place >= 0 ? `var(--c${place % 8})` : "transparent";
  mark.classList.toggle("dashed", place > 7);
  row.title = [run.about, run.parameters && `${many(run.parameters)} parameters`, run.command].filter(Boolean).join("\n");
  row.cells[1].textContent = run.state;
  row.cells[1].dataset.state = run.state;
  const [bar, count] = row.cells[2].childNodes;
  bar.max = run.steps || 1;
  bar.value = stepOf(run);
  bar.setAttribute("aria-label", `steps of ${run.name}`);
  count.textContent = `${many(stepOf(run))}/${many(run.steps)}`;
  row.cells[3].textContent = few(last(run.logs, "loss"));
  row.cells[4].textContent = few(bestOf(run));
  row.cells[5].textContent = many(last(run.logs, "tokens_per_second"));
  row.cells[6].textContent = left(run);
}

// ------------------------------------------------------------------ charts

function element(name, attributes, parent) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  parent?.append(made);
  return made;
}

function ticks(low, high, count, log) {
  const found = [];
  if (log) {
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const digit of high / low < 8 ? [1, 1.5, 2, 3, 4, 5, 7] : high / low < 300 ? [1, 2, 5] : [1]) found.push(digit * 10 ** power);
  } else {
    const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
    const width = [1, 2, 2.5, 5, 10].map((digit) => digit * power).find((size) => size >= rough);
    for (let at = Math.ceil(low / width) * width; at <= high + width * 1e-6; at += width) found.push(Math.abs(at) < width * 1e-6 ? 0 : at);
  }
  return found.filter((at) => at >= low * (1 - 1e-9) - 1e-12 && at <= high * (1 + 1e-9) + 1e-12);
}

function word(x) {
  const size = Math.abs(x);
  for (const [least, unit, letter] of [[1e9, 1e9, "B"], [1e6, 1e6, "M"], [1e4, 1e3, "k"]])
    if (size >= least) return `${+(x / unit).toPrecision(4)}${letter}`;
  return size >= 1000 ? many(x) : `${+x.toPrecision(4)}`;
}

// A frame with axes; gives the functions from values to places.
function frame(svg, { width, height, x, y, xLog, yLog, xLabel, yTicks }) {
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const box = { left: 52, right: width - 10, top: 8, bottom: height - 34 };
  const scale = ([low, high], log, from, to) => {
    const turn = log ? Math.log10 : (v) => v, a = turn(low), b = turn(high) - turn(low) || 1;
    return (v) => from + ((turn(v) - a) / b) * (to - from);
  };
  const px = scale(x, xLog, box.left, box.right), py = scale(y, yLog, box.bottom, box.top);
  const grid = element("g", { "font-size": 11, fill: "currentColor" }, svg);
  for (const [at, label] of yTicks ?? ticks(...y, height / 50, yLog).map((value) => [value, word(value)])) {
    element("line", { x1: box.left, x2: box.right, y1: py(at), y2: py(at), stroke: "var(--rule)" }, grid);
    element("text", { x: box.left - 7, y: py(at) + 4, "text-anchor": "end" }, grid).textContent = label;
  }
  for (const at of ticks(...x, width / 90, xLog))
    element("text", { x: px(at), y: box.bottom + 16, "text-anchor": "middle" }, grid).textContent = word(at);
  element("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, stroke: "var(--soft)" }, grid);
  element("text", { x: box.right, y: box.bottom + 31, "text-anchor": "end" }, grid).textContent = xLabel;
  return { px, py, box };
}

// A centred mean whose window shrinks to the ends, as the report has it.
function calm(points, share) {
  const half = Math.round((points.length * share) / 2);
  if (!half) return points;
  const sums = [0];
  for (const [, y] of points) sums.push(sums[sums.length - 1] + y);
  return points.map(([x], i) => {
    const before = Math.min(half, i), after = Math.min(before, points.length - 1 - i);
    return [x, (sums[i + after + 1] - sums[i - before]) / (before + after + 1)];
  });
}

const path = (points, { px, py }) => points.map(([x, y], i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");

class Chart {
  constructor({ title, key, extra, wide, zero }) {
    Object.assign(this, { title, key, extra, wide, zero });
    const figure = document.createElement("figure");
    if (wide) figure.className = "whole";
    const heading = Object.assign(document.createElement("h3"), { textContent: title });
    this.svg = element("svg", { class: "chart", role: "img", tabindex: 0, "aria-label": title });
    this.said = Object.assign(document.createElement("figcaption"), { textContent: "\u00a0" });
    figure.append(heading, this.svg, this.said);
    $("charts").append(figure);
    this.svg.onpointermove = (event) => this.at((event.offsetX / this.svg.clientWidth) * this.width);
    this.svg.onpointerleave = () => this.at(null);
    this.svg.onblur = () => this.at(null);
    this.svg.onkeydown = (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move || !this.frame) return;
      event.preventDefault();
      const { left, right } = this.frame.box;
      this.at(Math.min(right, Math.max(left, (this.place ?? (move > 0 ? left : right)) + (move * (right - left)) / 50)));
    };
  }

  draw() {
    const across = $("across").value, share = $("smooth").value / 100, log = this.wide && $("log").checked;
    const points = (lines, key) => lines.filter((l) => key in l && across in l && (!log || l[key] > 0)).map((l) => [l[across], l[key]]);
    this.curves = shown().map(([run, colour]) => ({ run, colour, logs: points(run.logs, this.key), evals: this.extra ? points(run.evals, this.extra) : [] }));
    const all = this.curves.flatMap((curve) => [...curve.logs, ...curve.evals]);
    this.svg.parentNode.hidden = !all.length && !this.wide;
    this.width = this.wide ? Math.max(320, Math.min(900, $("charts").clientWidth)) : Math.min(440, $("charts").clientWidth || 440);
    const ys = all.map(([, y]) => y), xs = all.map(([x]) => x);
    const reach = (values, fallback) => (values.length ? [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))] : fallback);
    const x = reach(xs, [0, 1]);
    let y = reach(ys, [0, 1]);
    if (x[0] === x[1]) x[1] = x[0] + 1;
    if (this.zero) y = [0, y[1] * 1.05 || 1];
    else if (log) y = [y[0] / 1.02, y[1] * 1.02];
    else { const room = (y[1] - y[0]) * 0.06 || Math.abs(y[1]) * 0.05 || 1; y = [y[0] - room, y[1] + room]; }
    const labels = { step: "step", tokens: "tokens", seconds: "seconds of training" };
    this.frame = frame(this.svg, { width: this.width, height: this.wide ? 330 : 220, x, y, yLog: log, xLabel: labels[across] });
    for (const { colour, logs, evals } of this.curves) {
      const stroke = { fill: "none", stroke: `var(--c${colour % 8})`, "stroke-width": 1.8, "stroke-dasharray": colour > 7 ? "6 3" : "none" };
      const smooth = calm(logs, share);
      if (smooth !== logs) element("path", { ...stroke, "stroke-width": 0.9, opacity: 0.35, d: path(logs, this.frame) }, this.svg);
      element("path", { ...stroke, opacity: evals.length ? 0.6 : 1, d: path(smooth, this.frame) }, this.svg);
      element("path", { ...stroke, "stroke-width": 2.4, d: path(evals, this.frame) }, this.svg);
      for (const [ex, ey] of evals.length < 60 ? evals : [])
        element("circle", { cx: this.frame.px(ex), cy: this.frame.py(ey), r: 3, fill: `var(--c${colour % 8})` }, this.svg);
    }
    this.rule = element("line", { y1: this.frame.box.top, y2: this.frame.box.bottom, stroke: "var(--soft)", visibility: "hidden" }, this.svg);
    this.at(this.place ?? null);
  }

  // The values beside a place, in words below the chart.
  at(place) {
    this.place = place;
    if (place === null) {
      this.rule.setAttribute("visibility", "hidden");
      this.said.textContent = this.wide ? "Strong: validation; faint: training. Arrow keys move along." : "\u00a0";
      return;
    }
    for (const side of ["x1", "x2"]) this.rule.setAttribute(side, place);
    this.rule.setAttribute("visibility", "visible");
    const near = (points) => points.reduce((best, point) => (Math.abs(this.frame.px(point[0]) - place) < Math.abs(this.frame.px(best?.[0] ?? Infinity) - place) ? point : best), null);
    const words = this.curves.flatMap(({ run, logs, evals }) => {
      const log = near(logs), val = near(evals);
      const values = [log && `${word(log[1])} at ${word(log[0])}`, val && `validation ${few(val[1])} at ${word(val[0])}`].filter(Boolean);
      return values.length ? [`${run.name}: ${values.join(", ")}`] : [];
    });
    this.said.textContent = words.join(" · ") || "\u00a0";
  }
}

const charts = [
  new Chart({ title: "Loss, nats a token", key: "loss", extra: "val_loss", wide: true }),
  new Chart({ title: "Gradient norm", key: "grad_norm" }),
  new Chart({ title: "Learning rate", key: "lr", zero: true }),
  new Chart({ title: "Tokens a second", key: "tokens_per_second", zero: true }),
  new Chart({ title: "Model FLOPs utilisation", key: "mfu", zero: true }),
  new Chart({ title: "Memory, MiB", key: "memory_mb", zero: true }),
];

// ------------------------------------------------------------------ what is asked for

async function ask(address) {
  try {
    const answer = await fetch(address);
    return answer.ok ? answer : null;
  } catch { return null; }
}

const route = (name) => name.split("/").map(encodeURIComponent).join("/");

async function compare() {
  if (!$("compared").open) return;
  const chosen = shown().slice(0, 12);
  const answer = chosen.length ? await ask("comparison?" + chosen.map(([run]) => "run=" + encodeURIComponent(run.name)).join("&")) : null;
  $("comparison").innerHTML = answer ? await answer.text() : "";
  $("comparison").querySelectorAll("section:first-child .swatch").forEach((mark, i) => {
    if (chosen[i]) mark.style.color = `var(--c${chosen[i][1] % 8})`;
  });
}

function choices(name) {
  const select = $("one"), wanted = name ?? select.value;
  const names = [...runs.keys()].sort();
  if (names.join("\n") === [...select.options].map((o) => o.value).join("\n") && !name) return;
  select.replaceChildren(...names.map((n) => new Option(n, n, false, n === wanted)));
  soon(samples); soon(health);
}

async function samples() {
  const run = runs.get($("one").value), slider = $("when");
  const answer = run && (await ask("samples/" + route(run.name)));
  if (run) run.samples = answer ? await answer.json() : [];
  const count = run?.samples?.length ?? 0, follows = +slider.value >= +slider.max;
  slider.max = Math.max(0, count - 1);
  if (follows || +slider.value > +slider.max) slider.value = slider.max;
  sample();
}

function sample() {
  const found = runs.get($("one").value)?.samples?.[+$("when").value];
  $("at").textContent = found ? many(found.step) : "";
  $("sample").textContent = found ? found.text : "No sample yet: --train.sample_tokens 100 writes one at every evaluation.";
}

async function health() {
  const run = runs.get($("one").value);
  const answer = run && (await ask("health/" + route(run.name)));
  $("health").innerHTML = answer ? await answer.text() : "";
  const heading = $("health").querySelector("h2");
  if (heading) heading.textContent = `Health of ${run.name}`;
}

// ------------------------------------------------------------------ studies

async function plots() {
  $("studies").hidden = !studies.length;
  const made = [];
  for (const study of studies) {
    const key = `${study.name} ${study.study} ${study.stamp}`;
    const old = [...$("plots").children].find((one) => one.dataset.key === key);
    const answer = old ? null : await ask(`studies/${study.study}/${route(study.name)}`);
    if (old) made.push(old);
    else if (answer) made.push(plot(key, study, await answer.json()));
  }
  $("plots").replaceChildren(...made);
}

function plot(key, study, { title, x_label, y_label, y_unit, points }) {
  const box = document.createElement("div");
  box.dataset.key = key;
  const heading = Object.assign(document.createElement("h3"), { textContent: `${study.name}: ${title}; ${y_label}` });
  const width = Math.max(320, Math.min(900, $("plots").clientWidth || 900));
  const svg = element("svg", { class: "chart plot", role: "group", "aria-label": `${study.name}: ${title}` });
  const said = Object.assign(document.createElement("div"), { className: "said" });
  const names = Object.assign(document.createElement("p"), { className: "names" });
  box.append(heading, svg, names, said);
  if (!points.length) return box;
  // Losses span decades on both sides of zero: linear within a thousandth, logarithmic beyond.
  const squash = (v) => Math.sign(v) * Math.log10(1 + Math.abs(v) / 1e-3);
  const xs = points.map((p) => p.x), ys = points.flatMap((p) => [p.y, ...(p.interval ?? [])]).map(squash);
  const x = [Math.min(...xs) / 1.1, Math.max(...xs) * 1.1], room = (Math.max(...ys) - Math.min(...ys)) * 0.06 || 0.1;
  const y = [Math.min(...ys) - room, Math.max(...ys) + room], sizes = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3];
  const yTicks = [0, ...sizes, ...sizes.map((v) => -v)].map((v) => [squash(v), (v > 0 ? "+" : "") + word(v)]).filter(([v]) => v >= y[0] && v <= y[1]);
  const { px, py } = frame(svg, { width, height: 360, x, y, yTicks, xLog: true, xLabel: x_label });
  const groups = [...new Set(points.map((p) => p.group))];
  const front = points.filter((p) => p.front).sort((a, b) => a.x - b.x);
  element("path", { d: path(front.map((p) => [p.x, squash(p.y)]), { px, py }), fill: "none", stroke: "var(--soft)" }, svg);
  const marks = points.map((p) => {
    const colour = `var(--c${groups.indexOf(p.group) % 8})`, at = { cx: px(p.x), cy: py(squash(p.y)) };
    const mark = element("g", { class: "point", role: "button", tabindex: -1, opacity: p.front ? 1 : 0.45, "aria-label": `${p.name}: ${word(p.x)} ${x_label}, ${few(p.y)} ${y_unit}` }, svg);
    if (p.interval) element("line", { x1: at.cx, x2: at.cx, y1: py(squash(p.interval[0])), y2: py(squash(p.interval[1])), stroke: colour }, mark);
    element("circle", { ...at, r: 5, fill: colour }, mark);
    element("circle", { ...at, r: 12, fill: "transparent" }, mark);
    return mark;
  });
  names.append(...groups.map((group, i) => {
    const one = document.createElement("span"), dot = Object.assign(document.createElement("i"), { className: "dot" });
    dot.style.color = `var(--c${i % 8})`;
    one.append(dot, document.createTextNode(group));
    return one;
  }));
  const order = points.map((_, i) => i).sort((a, b) => points[a].x - points[b].x);
  const choose = (i, focus) => {
    marks.forEach((mark, j) => mark.setAttribute("tabindex", i === j ? 0 : -1));
    marks.forEach((mark, j) => mark.children[mark.children.length - 2].setAttribute("stroke", i === j ? "var(--ink)" : "none"));
    const words = document.createElement("p"), command = document.createElement("pre"), copy = document.createElement("button");
    const p = points[i], between = p.interval ? ` (${few(p.interval[0])} to ${few(p.interval[1])})` : "";
    words.textContent = `${p.name}: ${many(p.x)} ${x_label}, ${p.y >= 0 ? "+" : ""}${few(p.y)} ${y_unit}${between}`;
    command.textContent = p.command;
    Object.assign(copy, { type: "button", className: "copy", textContent: "Copy" });
    copy.onclick = async () => { await navigator.clipboard?.writeText(p.command); copy.textContent = "Copied"; };
    said.replaceChildren(words, ...(p.command ? [command, copy] : []));
    if (focus) marks[i].focus();
  };
  marks.forEach((mark, i) => {
    mark.onclick = () => choose(i, true);
    mark.onpointerenter = () => choose(i);
    mark.onkeydown = (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move) return;
      event.preventDefault();
      choose(order[(order.indexOf(i) + move + order.length) % order.length], true);
    };
  });
  choose(points.indexOf(front[0] ?? points[0]));
  return box;
}

// ------------------------------------------------------------------ controls

for (const id of ["find", "order", "across", "log", "smooth"]) $(id).oninput = () => soon(draw, 0);
$("none").onclick = () => { colours.length = 0; for (const run of runs.values()) run.offered = true; soon(draw, 0); soon(compare); };
$("top").onclick = () => { colours.length = 0; for (const run of ordered().slice(0, 8)) show(run.name, true); soon(draw, 0); soon(compare); };
$("one").onchange = () => { $("when").value = $("when").max; samples(); health(); };
$("when").oninput = sample;
$("compared").ontoggle = compare;
addEventListener("resize", () => soon(draw));
listen();
