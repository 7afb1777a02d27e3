"use strict";
// The playground: what a model says, token by token, and what each cut does to it. Texts are token ids on the wire, so a
// branch at a token is a branch there. No library, no build step, nothing from elsewhere.

const $ = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const LN2 = Math.log(2);

function make(tag, properties = {}, ...children) {
  const { style = {}, data = {}, aria = {}, ...plain } = properties;
  const node = Object.assign(document.createElement(tag), plain);
  for (const [name, value] of Object.entries(style)) node.style.setProperty(name, value);
  for (const [name, value] of Object.entries(data)) node.dataset[name] = value;
  for (const [name, value] of Object.entries(aria)) node.setAttribute(name === "role" ? name : `aria-${name}`, value);
  node.append(...children);
  return node;
}

const NAMES = { " ": "space", "\n": "new line", "\t": "tab", "": "nothing" };
const shown = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣") || "∅";
const spoken = (text) => NAMES[text] ?? text;
const percent = (p) => (p >= 0.0995 ? `${Math.round(100 * p)} %` : p >= 0.00095 ? `${(100 * p).toFixed(1)} %` : "<0.1 %");
const number = (n) => n.toLocaleString("en", n < 100 ? { maximumSignificantDigits: 3 } : { maximumFractionDigits: 0 });

// ---------------------------------------------------------------- state

const RULES = [
  // name, label, from, to, step, what changes nothing, what is sent then
  ["temperature", "temperature", 0, 2, 0.05, 0.8, (v) => v],
  ["top_k", "top-k", 0, 60, 1, 0, (v) => v || null],
  ["top_p", "top-p", 0.05, 1, 0.05, 1, (v) => (v === 1 ? null : v)],
  ["min_p", "min-p", 0, 0.5, 0.01, 0, (v) => v || null],
  ["repetition_penalty", "repetition", 1, 2, 0.05, 1, (v) => (v === 1 ? null : v)],
];
const KEEPS = {
  everything: () => "",
  window: (n) => `window(${n})`,
  "sinks + window": (n) => `sinks(${Math.min(4, n >> 1)})+window(${n - Math.min(4, n >> 1)})`,
  "heavy hitters (H2O)": (n) => `window(${n >> 1})+h2o(${n - (n >> 1)})`,
  SnapKV: (n) => `window(${n >> 1})+snapkv(${n - (n >> 1)})`,
  TOVA: (n) => `window(2)+tova(${n - 2})`,
};
const BITS = { "as computed": "", "16 bits": "bf16", "8 bits": "int8", "4 bits": "int4", "3 bits": "int3", "2 bits": "int2",
  "1.6 bits (ternary)": "ternary", "1 bit (sign)": "sign" };

let models = [];
let running = null; // what stops the writing
let chosen = null; // { side, at }: the token that is looked at
let maps = null;
let head = 0;
const sides = [0, 1].map((index) => ({
  index, fields: $(`.side[data-side="${index}"]`), article: $(`.text[data-side="${index}"]`),
  tokens: [], given: 0, figures: null,
}));
const comparing = () => $("#compare").checked;
const active = () => (comparing() ? sides : sides.slice(0, 1));
const rules = () => Object.fromEntries(RULES.map(([name, , , , , , sent]) => [name, sent(Number($(`#${name}`).value))]));
const ids = (side, end = side.tokens.length) => side.tokens.slice(0, end).map((token) => token.id);
const modelOf = (side) => models.find((model) => model.id === $(".model", side.fields).value);
/** Whether an id means the same to both sides' models. */
const sameTokens = () => modelOf(sides[0]).alphabet === modelOf(sides[1]).alphabet;
const asked = (side) => ({ model: modelOf(side).id, kv: $(".kv", side.fields).value.trim() });

// ---------------------------------------------------------------- the server

async function ask(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  const answer = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body), signal } : { headers, signal });
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null);
  $("#key").hidden = answer.status !== 401;
  throw new Error(told?.error?.message ?? `The server answered ${answer.status}.`);
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const told = JSON.parse(part.slice(6));
      if (told.error) throw new Error(told.error.message);
      yield told;
    }
  }
}

function say(words, bad = false) {
  $("#status").textContent = words;
  $("#status").classList.toggle("bad", bad);
}

async function guarded(work) {
  try {
    await work();
  } catch (error) {
    if (error.name !== "AbortError") say(error instanceof TypeError ? "The server does not answer." : error.message, true);
  }
}

// ---------------------------------------------------------------- writing

/** Stop the writing that is under way, if there is one, and forget it. */
function halt() {
  if (!running) return;
  running.abort();
  running = null;
  say("");
  buttons();
}

/** Write on from tokens that stand already; for each side its own. */
async function write() {
  halt();
  const stop = (running = new AbortController());
  const sampling = { ...rules(), seed: Math.trunc(Number($("#seed").value)) || 0, max_tokens: Number($("#count").value) || 1 };
  buttons();
  say("writing …");
  await guarded(async () => {
    await Promise.all(active().map((side) => writeOne(side, sampling, stop.signal)));
    say("");
  });
  if (running !== stop) return;
  if (stop.signal.aborted) say("");
  else stop.abort(); // where one side failed, the other ends as well
  running = null;
  buttons();
  await guarded(figures);
  await look();
}

async function writeOne(side, sampling, signal) {
  const answer = await ask("/bonsai/write", { ...asked(side), tokens: ids(side), ...sampling }, signal);
  for await (const told of events(answer)) {
    signal.throwIfAborted();
    if (told.finish === undefined) {
      append(side, told);
      if (side.tokens.length % 8 === 0) part();
    } else side.speed = told.made / told.seconds;
  }
}

/** The text of tokens, for another tokenizer: bytes that are no text alone are put together again. */
function textOf(tokens) {
  const bytes = tokens.flatMap(({ text }) => (/^bytes:(\\x[0-9a-f]{2})+$/.test(text)
    ? text.slice(8).split("\\x").map((byte) => parseInt(byte, 16)) : [...new TextEncoder().encode(text)]));
  return new TextDecoder().decode(new Uint8Array(bytes));
}

/** Show the first tokens of a text on a side as its model reads them; not if another text has come there meanwhile. */
async function reread(side, from, end, given) {
  const before = side.tokens;
  const body = from.alphabet === modelOf(side).alphabet ? { tokens: ids(from, end) } : { text: textOf(from.tokens.slice(0, end)) };
  const read = await (await ask("/bonsai/read", { ...asked(side), ...body })).json();
  if (side.tokens !== before) return;
  halt();
  side.given = Math.min(given, read.tokens.length);
  show(side, read.tokens);
}

/** Begin anew with a text, as tokens of each side's own. */
async function begin() {
  halt();
  await guarded(async () => {
    choose(null);
    const text = $("#prompt").value;
    const begun = active();
    const read = await Promise.all(begun.map(async (side) => (await ask("/bonsai/read", { ...asked(side), text })).json()));
    halt(); // one that began meanwhile
    begun.forEach((side, i) => {
      side.given = read[i].tokens.length;
      show(side, read[i].tokens);
    });
    await write();
  });
}

/** Go on from one side's first tokens and another one; the other side follows where its tokens are the same. */
async function branch(side, at, token) {
  const same = sameTokens();
  const stem = [...side.tokens.slice(0, at), { ...token, picked: true }];
  for (const other of active()) {
    if (other !== side && !same) continue;
    other.given = Math.min(other.given, at);
    show(other, stem.map((one) => ({ ...one })));
  }
  choose(null);
  await write();
}

/** What the text of A costs each side, and what its cache holds of it. */
async function figures() {
  const text = textOf(sides[0].tokens);
  const same = sameTokens();
  for (const side of active()) {
    const body = side.index === 0 || same ? { tokens: ids(sides[0]) } : { text };
    side.figures = await (await ask("/bonsai/read", { ...asked(side), ...body })).json();
  }
  // Of the tokens that all sides foresaw: a cache without an end has read more of a long text than a block.
  const most = Math.min(...active().map((side) => side.figures.read - 1));
  for (const { figures: f } of active()) {
    f.scored = most;
    f.loss = most ? -f.tokens.slice(-most).reduce((sum, token) => sum + token.logprob, 0) / most : null;
  }
  part();
}

function buttons() {
  $("#stop").disabled = !running;
  $("#more").disabled = !!running || !sides[0].tokens.length;
}

// ---------------------------------------------------------------- the text

function show(side, tokens) {
  side.tokens = [];
  side.alphabet = modelOf(side).alphabet; // what the ids mean, whatever model is chosen next
  side.figures = null;
  $(".tokens", side.article).replaceChildren();
  for (const token of tokens) append(side, token);
  part();
}

function append(side, token) {
  const at = side.tokens.push(token) - 1;
  const p = token.logprob === null ? null : Math.exp(token.logprob);
  const surprise = p === null ? 0 : -token.logprob / LN2;
  const words = p === null ? spoken(token.text) : `${spoken(token.text)}, ${percent(p)}`;
  const span = make("span", {
    className: at < side.given || token.picked ? "t given" : "t", tabIndex: at ? -1 : 0, title: words, data: { at },
    style: { "--s": Math.min(0.55, surprise * 0.055).toFixed(3) }, aria: { role: "button", label: words, pressed: "false" },
  });
  if (token.text.includes("\n")) span.append(make("span", { className: "nl", textContent: "⏎" }), token.text.replace(/⏎/g, ""));
  else span.append(token.text);
  token.span = span;
  $(".tokens", side.article).append(span);
  return span;
}

/** Mark where two texts part, and tell the figures. */
function part() {
  all(".parts").forEach((span) => span.classList.remove("parts"));
  let at = -1;
  if (comparing()) {
    const [a, b] = sides.map((side) => side.tokens);
    const least = Math.min(a.length, b.length);
    at = a.slice(0, least).findIndex((token, i) => token.text !== b[i].text);
    for (const side of at < 0 ? [] : sides) side.tokens[at].span.classList.add("parts");
  }
  for (const side of active()) tell(side, at);
}

function tell(side, at) {
  const made = side.tokens.length - side.given;
  const items = [];
  const item = (words, value, unit = "") => items.push(make("span", {}, `${words} `, make("b", { textContent: value }), unit));
  if (side.tokens.length) item("written", String(made), made === 1 ? " token" : " tokens");
  if (side.speed) item("", number(side.speed), " tokens/s");
  const f = side.figures;
  if (f && f.loss !== null) {
    const whole = f.scored === f.tokens.length - 1 ? "text" : `last ${f.scored} tokens`;
    item(`loss of ${comparing() ? "A's" : "the"} ${whole}`, f.loss.toFixed(3), " nats a token");
    item("cache", number(f.bits_per_token), " bits a token");
    item("", number(f.bits / 8192), " KiB");
  }
  if (comparing() && side.tokens.length && sides[1 - side.index].tokens.length)
    items.push(make("span", { className: at < 0 ? "" : "gone",
      textContent: at < 0 ? "the same so far" : `parts at token ${at + 1 - sides[0].given || 1}` }));
  $(".figures", side.article).replaceChildren(...items);
}

function choose(where) {
  if (chosen) chosen.side.tokens[chosen.at]?.span.setAttribute("aria-pressed", "false");
  chosen = where;
  if (chosen) {
    const { span } = chosen.side.tokens[chosen.at];
    span.setAttribute("aria-pressed", "true");
    focusToken(chosen.side, chosen.at);
  }
  underline();
}

function focusToken(side, at) {
  for (const token of side.tokens) token.span.tabIndex = -1;
  const { span } = side.tokens[at];
  span.tabIndex = 0;
  span.focus({ preventScroll: false });
}

function textKeys(side, event) {
  const here = document.activeElement.dataset.at;
  if (here === undefined) return;
  const at = Number(here), last = side.tokens.length - 1;
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
  if (to !== undefined) {
    event.preventDefault();
    const next = Math.max(0, Math.min(last, to));
    if (chosen) pick(side, next);
    else focusToken(side, next);
  } else if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    pick(side, at).then(() => $("#next button")?.focus());
  }
}

async function pick(side, at) {
  choose({ side, at });
  await look();
}

// ---------------------------------------------------------------- what comes next

let looking = 0;
/** The distribution at the chosen token, or after the last one. */
async function look() {
  const mine = ++looking;
  const side = chosen?.side ?? sides[0];
  if (!models.length) return;
  await guarded(async () => {
    let tokens = ids(side, chosen ? chosen.at : undefined), body = { tokens };
    const instead = chosen ? side.tokens[chosen.at] : null;
    if (!tokens.length) body = chosen ? { tokens: modelOf(side).start } : { text: $("#prompt").value };
    const small = modelOf(side).vocabulary <= 128;
    const told = await (await ask("/bonsai/next", { ...asked(side), ...body, ...rules(), top: small ? 128 : 40 })).json();
    if (mine !== looking) return;
    const place = instead ? `in place of “${shown(instead.text)}”` : "after the last token";
    $("#where").textContent = `${comparing() ? "AB"[side.index] + ", " : ""}${place}: entropy ${(told.entropy / LN2).toFixed(2)} bits, ${told.kept} of ${modelOf(side).vocabulary} tokens can be drawn. Choose one to branch there.`;
    list(side, told.tokens, instead);
    plot(small ? told.tokens : []);
  });
  if ($("#attention").open) await guarded(attention);
}

function list(side, tokens, instead) {
  const most = Math.max(...tokens.map(([, , p, q]) => Math.max(p, q)));
  $("#next").replaceChildren(...tokens.slice(0, 40).map(([id, text, p, q]) => {
    const bars = make("span", { className: "bars" }, ...[p, q].map((v) => make("i", { style: { "--w": `${(100 * v) / most}%` } })));
    const button = make("button", {
      type: "button", className: instead?.id === id ? "chosen" : "", title: `token ${id}`,
      onclick: () => branch(side, chosen ? chosen.at : side.tokens.length, { id, text, logprob: Math.log(p) }),
    }, make("code", {}, make("span", { textContent: shown(text), aria: { hidden: "true" } }), make("span", { className: "hidden", textContent: spoken(text) })), bars, make("span", { className: "p", textContent: `${percent(p)} → ${q ? percent(q) : "–"}` }));
    return make("li", {}, button);
  }));
}

function plot(tokens) {
  const drawn = tokens.slice().sort((a, b) => a[0] - b[0]);
  const most = Math.max(...drawn.map(([, , p, q]) => Math.max(p, q)), 1e-9), width = 320 / Math.max(1, drawn.length);
  const node = (tag, attributes, text = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text;
    return made;
  };
  const svg = node("svg", { viewBox: "0 0 320 96", preserveAspectRatio: "none", "aria-hidden": "true" });
  drawn.forEach(([, text, p, q], i) => {
    const column = (v, from, share, name) => node("rect", {
      class: name, x: (i + from) * width, width: width * share, y: 84 - (80 * v) / most, height: (80 * v) / most });
    svg.append(column(p, 0.05, 0.9, "m"), column(q, 0.3, 0.4, "r"));
    svg.append(node("text", { x: (i + 0.5) * width, y: 93 }, shown(text)));
  });
  $("#plot").hidden = !drawn.length;
  $("#plot").replaceChildren(svg);
}

// ---------------------------------------------------------------- attention

async function attention() {
  const side = attended();
  if (!side.tokens.length) return;
  const told = await (await ask("/bonsai/attention", { ...asked(side), tokens: ids(side) })).json();
  const bytes = Uint8Array.from(atob(told.maps), (c) => c.charCodeAt(0));
  maps = { ...told, bytes, side };
  $(".maps").hidden = false;
  const grid = $("#heads");
  grid.style.setProperty("grid-template-columns", `repeat(${told.heads}, minmax(0, 1fr))`);
  head = Math.min(head, told.layers * told.heads - 1);
  grid.replaceChildren(...Array.from({ length: told.layers * told.heads }, (_, i) => {
    const canvas = make("canvas", { width: 32, height: 32 });
    paint(canvas, i, 32);
    const name = `layer ${Math.floor(i / told.heads)}, head ${i % told.heads}`;
    return make("button", { type: "button", title: name, aria: { label: name, pressed: String(i === head) },
      onclick: () => { head = i; chooseHead(); } }, canvas);
  }));
  chooseHead();
}

const attended = () => (chosen?.side ?? (comparing() && $("#of input:checked")?.value === "1" ? sides[1] : sides[0]));

function chooseHead() {
  all("#heads button").forEach((button, i) => button.setAttribute("aria-pressed", String(i === head)));
  const size = maps.tokens;
  $("#map").width = $("#map").height = size;
  paint($("#map"), head, size);
  underline();
}

/** One head's map; smaller squares take the largest value that falls into them. */
function paint(canvas, index, size) {
  const T = maps.tokens, start = index * T * T;
  const context = canvas.getContext("2d"), image = context.createImageData(size, size);
  const [r, g, b] = getComputedStyle(document.documentElement).getPropertyValue("--look").trim().split(" ").map(Number);
  for (let i = 0; i < image.data.length; i += 4) image.data.set([r, g, b, 0], i);
  for (let query = 0; query < T; query++)
    for (let key = 0; key <= query; key++) {
      const at = 4 * (Math.floor((query * size) / T) * size + Math.floor((key * size) / T)) + 3;
      const alpha = 255 * Math.sqrt(maps.bytes[start + query * T + key] / 255);
      image.data[at] = Math.max(image.data[at], alpha);
    }
  context.putImageData(image, 0, 0);
}

/** Under every token what the chosen one takes of it. */
function underline() {
  for (const side of sides) for (const token of side.tokens) token.span.style.removeProperty("--a");
  if (!chosen || !maps || maps.side !== chosen.side || !$("#attention").open) return;
  const T = maps.tokens, query = chosen.at - maps.first;
  if (query < 0 || query >= T) return;
  for (let key = 0; key <= query; key++) {
    const share = maps.bytes[head * T * T + query * T + key] / 255;
    chosen.side.tokens[maps.first + key]?.span.style.setProperty("--a", Math.sqrt(share).toFixed(3));
  }
}

// ---------------------------------------------------------------- setting up

function pickers(side) {
  const select = (name, label, options) => make("label", {}, label, make("select", { className: name }, ...options.map((o) => make("option", { textContent: o, value: o }))));
  const words = make("input", { className: "kv", placeholder: "everything, as computed", spellcheck: false, maxLength: 300 });
  const measured = make("label", { className: "found" }, "measured", make("select", {}));
  side.fields.append(
    make("div", { className: "row" }, select("model", "", models.map((model) => model.id)), make("span", { className: "note facts" })),
    make("div", { className: "row policy" }, select("keep", "cache keeps", Object.keys(KEEPS)), select("n", "tokens", []),
      select("bits", "in", Object.keys(BITS)), measured, make("label", { className: "words" }, "--kv", words)),
  );
  $(".model", side.fields).setAttribute("aria-label", `Model ${"AB"[side.index]}`);
  const compose = () => {
    const keep = KEEPS[$(".keep", side.fields).value](Number($(".n", side.fields).value));
    $(".n", side.fields).disabled = !keep;
    words.value = [keep, BITS[$(".bits", side.fields).value]].filter(Boolean).join(", ");
    changed(side);
  };
  for (const name of [".keep", ".n", ".bits"]) $(name, side.fields).onchange = compose;
  words.onchange = () => changed(side);
  $("select", measured).onchange = (event) => { words.value = event.target.value; changed(side); };
  $(".model", side.fields).onchange = () => { fit(side); changed(side); };
}

/** Where a side's text stands. */
function paper(side) {
  side.article.append(make("div", { className: "tokens", onclick: (event) => {
    const at = event.target.closest(".t")?.dataset.at;
    if (at !== undefined) pick(side, Number(at));
  }, onkeydown: (event) => textKeys(side, event) }), make("p", { className: "figures" }));
}

/** The pickers as this model can have them. */
function fit(side) {
  const model = modelOf(side);
  const facts = [`${number(model.parameters)} parameters`, `${model.layers} layers × ${model.heads} heads`, `block ${model.block}`, model.plan];
  $(".facts", side.fields).textContent = facts.filter(Boolean).join(", ");
  const sizes = [2, 4, 8, 16].map((by) => Math.floor(model.block / by)).filter((n) => n >= 4);
  $(".n", side.fields).replaceChildren(...sizes.map((n) => make("option", { textContent: n, value: n })));
  $(".policy", side.fields).hidden = !!model.no_policies;
  if (model.no_policies) $(".kv", side.fields).value = "";
  const found = Object.entries(model.measured);
  $(".found", side.fields).hidden = !found.length;
  $(".found select", side.fields).replaceChildren(make("option", { textContent: "choose …", value: "" }),
    ...found.map(([policy, words]) => make("option", { textContent: `${policy}: ${words}`, value: policy })));
  $(".n", side.fields).disabled = $(".keep", side.fields).value === "everything";
}

/** Another model or cache: what stands there is read anew by it, or begun anew. */
async function changed(side) {
  halt();
  maps = null;
  side.speed = null;
  if (!side.tokens.length) return look();
  choose(null);
  await guarded(async () => {
    await reread(side, side, side.tokens.length, side.given);
    say("");
    await figures();
  });
  await look();
}

function later(work, wait = 120) {
  let timer = 0;
  return () => { clearTimeout(timer); timer = setTimeout(work, wait); };
}

function theme(next) {
  const name = next ?? localStorage.getItem("theme") ?? "auto";
  localStorage.setItem("theme", name);
  const dark = name === "dark" || (name === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("#theme").textContent = `Theme: ${name}`;
  if (maps && $("#attention").open) guarded(attention);
}

function compare() {
  halt();
  const on = comparing();
  sides[1].fields.hidden = sides[1].article.hidden = !on;
  $("#parted").hidden = $("#of").hidden = !on;
  choose(null);
  if (on && sides[0].tokens.length) {
    show(sides[1], []);
    guarded(async () => {
      if (sides[0].given) await reread(sides[1], sides[0], sides[0].given, Infinity);
      await figures();
    });
  }
  part();
}

async function open() {
  const about = await (await ask("/bonsai/models")).json();
  models = about.models;
  $("#count").max = about.limits.tokens;
  $("#about").textContent = `${models.length} model${models.length > 1 ? "s" : ""} here; texts, weights and figures stay on this machine`;
  for (const side of sides) {
    side.fields.replaceChildren($("legend", side.fields));
    pickers(side);
  }
  if (models.length > 1) $(".model", sides[1].fields).selectedIndex = 1;
  sides.forEach(fit);
  await look();
}

function main() {
  theme();
  matchMedia("(prefers-color-scheme: dark)").onchange = () => theme();
  $("#theme").onclick = () => theme({ auto: "light", light: "dark", dark: "auto" }[localStorage.getItem("theme")]);
  const relook = later(look);
  for (const [name, label, min, max, step, value] of RULES) {
    const input = make("input", { type: "range", id: name, min, max, step, value });
    const output = make("output", {});
    const told = () => { output.textContent = name === "top_k" && input.value === "0" ? "off" : input.value; };
    input.oninput = () => { told(); relook(); };
    told();
    $("#rules").append(make("label", {}, label, input, output));
  }
  $("#of").append("of", ...["A", "B"].map((name, i) => make("label", {}, make("input", { type: "radio", name: "of", value: i, checked: !i,
    onchange: () => { choose(null); guarded(attention); } }), ` ${name}`)));
  $("#go").onclick = begin;
  $("#more").onclick = write;
  $("#stop").onclick = () => running?.abort();
  $("#compare").onchange = compare;
  $("#prompt").oninput = later(() => { if (!sides[0].tokens.length) look(); }, 300);
  $("#attention").ontoggle = () => ($("#attention").open ? guarded(attention) : underline());
  $("#key").onsubmit = (event) => {
    event.preventDefault();
    sessionStorage.setItem("key", $("#key input").value);
    say("");
    guarded(open);
  };
  document.onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) begin();
    if (event.key !== "Escape") return;
    if (running) running.abort();
    else if (chosen) { const { side, at } = chosen; choose(null); focusToken(side, at); look(); }
  };
  sides.forEach(paper);
  compare();
  guarded(open);
}

main();
