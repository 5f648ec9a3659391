// The page: a list of meetings, and one meeting with its notes, transcript, translations and answers.
// All text goes into the document as text nodes; there is no way for what was said to become markup.

import { Refused, download, follow, get, send, setToken, streamPath } from "./net.js";
import { ago, clock, direction, language, nameOf, word } from "./words.js";

const KINDS = ["decision", "action_item", "open_question", "topic"];
const KIND_WORDS = { decisions: "decision", open_items: "open_question" };
const MAX_LINES = 1500;
const LIST_MS = 4000;
const LOOK_MS = 5000;
const $ = (id) => document.getElementById(id);

const state = {
  streams: [], id: null, feed: null, info: null, summary: null, seen: null, only: false,
  lines: new Map(), units: new Map(), shown: "", answers: new Map(), points: [], pending: new Map(),
};

// --- small things ------------------------------------------------------------------------------

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

const said = (tag, attributes, text) => make(tag, { dir: "auto", ...attributes }, text ?? "");

/** Put children in place of a node's, keeping those whose data-key and data-version are the same. */
function update(parent, wanted, key, version, build) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let at = parent.firstElementChild;
  for (const thing of wanted) {
    const name = String(key(thing)), stamp = String(version(thing));
    let node = old.get(name);
    if (!node || node.dataset.version !== stamp) {
      const fresh = build(thing, node);
      fresh.dataset.key = name;
      fresh.dataset.version = stamp;
      if (node) { if (at === node) at = fresh; node.replaceWith(fresh); }
      node = fresh;
    }
    old.delete(name);
    if (node === at) at = at.nextElementSibling;
    else parent.insertBefore(node, at);
  }
  for (const node of old.values()) node.remove();
}

function announce(text) {
  $("news").textContent = text;
}

// --- the list ------------------------------------------------------------------------------------

async function refreshList() {
  try {
    state.streams = (await get("/v1/streams?limit=500")).streams;
    drawList();
    if (!state.id) link("open");
    const info = state.streams.find((s) => s.stream_id === state.id);
    if (info) { state.info = { ...state.info, ...info }; drawHead(); }
  } catch (error) {
    if (error instanceof Refused && error.status === 401) login();
    else if (!state.id) link(error instanceof Refused ? "starting" : "lost");
  }
}

function drawList() {
  const text = $("filter").value.trim().toLocaleLowerCase();
  const name = (s) => s.title || s.stream_id;
  const found = state.streams.filter((s) => name(s).toLocaleLowerCase().includes(text));
  const minute = Math.floor(Date.now() / 10000);
  update($("stream-list"), found, (s) => s.stream_id,
    (s) => [s.title, s.revision, s.segments, s.ended, s.behind, s.stream_id === state.id, minute],
    (s) => make("li", {}, make("a", {
      href: `#/${encodeURIComponent(s.stream_id)}`, "aria-current": s.stream_id === state.id ? "page" : null,
    },
    said("span", { class: "name" }, name(s)),
    make("span", { class: "status" },
      make("span", { class: `dot ${s.ended ? "over" : s.behind ? "late" : "on"}`, "aria-hidden": "true" }),
      make("span", {}, s.ended ? word("ended") : word("live")),
      s.last_segment_at_ms ? make("span", {}, ago(s.last_segment_at_ms)) : null,
      s.uncovered_segments && s.behind ? make("span", { class: "late-text" }, word("uncovered", { n: s.uncovered_segments })) : null))));
  $("no-streams").hidden = found.length > 0;
  $("no-streams").textContent = word(state.streams.length ? "noMatch" : "none");
}

// --- one meeting -----------------------------------------------------------------------------------

async function open(id) {
  state.feed?.stop();
  Object.assign(state, { id, feed: null, summary: null, info: null, only: false, shown: "", pending: new Map(), openedAt: Date.now() });
  state.seen = localStorage.getItem(`seen ${id}`);
  for (const name of ["lines", "units", "answers"]) state[name] = new Map();
  document.body.dataset.view = id === null ? "list" : "stream";
  $("stream").hidden = true;
  $("welcome").hidden = id !== null;
  drawList();
  document.title = "longstream";
  if (id !== null) await load(id, true);
}

async function load(id, first = false) {
  try {
    const all = await get(streamPath(id));
    if (state.id !== id) return;
    Object.assign(state, { info: all.info, summary: all.summary, points: all.activity });
    state.lines = new Map([...all.transcript.segments, ...all.transcript.drafts].map((line) => [line.segment_id, line]));
    state.units = new Map(all.translations.map((t) => [t.language, new Map(t.units.map((u) => [u.unit_id, u]))]));
    state.answers = new Map((all.answers ?? []).map((answer) => [answer.question_id, answer]));
    $("older").hidden = !all.transcript.truncated;
    state.seen ??= all.summary ? revision(all.summary) : null;
    $("stream").hidden = false;
    draw();
    if (first) { scrollDown(); if (innerWidth < 800) $("title").focus?.(); }
    state.feed?.stop();
    state.feed = follow(id, all.cursor, (kind, data) => state.id === id && took(kind, data), link);
  } catch (error) {
    if (error instanceof Refused && error.status === 401) return login();
    if (error instanceof Refused && error.status === 404) return gone();
    link(error instanceof Refused ? "starting" : "lost");
    setTimeout(() => state.id === id && load(id, first), 3000);
  }
}

function took(kind, data) {
  switch (kind) {
    case "segment": return tookLine(data);
    case "summary": return tookSummary(data);
    case "translation": return tookUnit(data);
    case "answer": case "question": return tookAnswer(kind, data);
    case "session": state.info.ended = data.type === "session_end"; return drawHead();
    case "reset": return load(state.id);
    case "forgotten": return gone();
    case "refused": return data.status === 401 ? login() : gone();
  }
}

function gone() {
  state.feed?.stop();
  banner(word("gone"));
}

function tookLine(line) {
  const known = state.lines.get(line.segment_id);
  if (known?.is_final && !line.is_final) return;
  if (!line.is_final && !line.text.trim()) state.lines.delete(line.segment_id);
  else {
    if (known && !known.is_final) state.lines.delete(line.segment_id); // a final takes its place in order
    state.lines.set(line.segment_id, line);
  }
  while (state.lines.size > MAX_LINES) state.lines.delete(state.lines.keys().next().value);
  if (line.is_final) { state.info.last_segment_at_ms = line.at_ms; state.info.ended = false; }
  later("lines", drawLines);
  later("head", drawHead);
}

function tookSummary(summary) {
  const before = state.summary;
  state.summary = summary;
  const fresh = summary.items.filter((item) => !before || summary.epoch !== before.epoch || item.last_changed_revision > before.revision);
  count(summary);
  for (const item of fresh) state.pending.delete(item.id);
  if (fresh.length) announce(`${word("notes")}: ${fresh.map((item) => item.text).join(". ")}`);
  later("notes", drawNotes);
  later("head", drawHead);
}

function tookUnit(unit) {
  const units = state.units.get(unit.target_lang) ?? new Map();
  state.units.set(unit.target_lang, units);
  const known = units.get(unit.unit_id);
  units.set(unit.unit_id, { ...known, ...unit });
  while (units.size > MAX_LINES) units.delete(units.keys().next().value);
  count(unit);
  later("lines", drawLines);
}

function tookAnswer(kind, data) {
  if (kind === "question" && state.answers.has(data.question_id)) return;
  state.answers.set(data.question_id, data);
  later("answers", drawAnswers);
}

/** Tokens of a result, in its ten seconds. */
function count(event) {
  const at = Math.floor(event.emitted_at_ms / 10000) * 10000;
  let last = state.points.at(-1);
  if (last && last.at_ms > at) return;
  if (!last || last.at_ms < at) {
    last = { at_ms: at, tokens_per_s: 0, acceptance: null };
    state.points.push(last);
    if (state.points.length > 60) state.points.shift();
  }
  last.tokens_per_s += (event.usage?.output_tokens ?? 0) / 10;
  if (event.usage?.drafted) last.acceptance = event.usage.accepted / event.usage.drafted;
}

const waiting = new Map();
/** Draw at most once a frame. */
function later(name, job) {
  if (waiting.has(name)) return;
  waiting.set(name, true);
  (document.hidden ? setTimeout : requestAnimationFrame)(() => { waiting.delete(name); if (state.info) job(); });
}

function draw() {
  drawHead(); drawNotes(); drawLanguages(); drawLines(); drawAnswers(); drawExports(); drawList();
}

const revision = (summary) => `${summary.epoch}.${summary.revision}`;

// --- head ----------------------------------------------------------------------------------------

function drawHead() {
  const { info } = state;
  const name = info.title || state.id;
  document.title = `${name} · longstream`;
  $("title").textContent = name;
  const facts = [
    make("span", { class: `badge ${info.ended ? "over" : "on"}` }, word(info.ended ? "ended" : "live")),
    info.last_segment_at_ms ? ago(info.last_segment_at_ms) : null,
    state.summary ? word("revision", { r: revision(state.summary) }) : null,
  ].filter(Boolean);
  $("facts").replaceChildren(...facts.map((fact) => make("span", {}, fact)));
  drawMeter();
  const late = info.behind && !info.ended && info.uncovered_segments > 0;
  if (!navigator.onLine) banner(word("offline"));
  else banner(late ? word("behind", { n: info.uncovered_segments, time: new Date(info.uncovered_since_ms).toLocaleTimeString(language) }) : "");
}

function banner(text) {
  if ($("banner").textContent !== text) $("banner").textContent = text;
  $("banner").hidden = !text;
}

function drawMeter() {
  const points = state.points.slice(-40);
  $("meter").hidden = points.length < 2;
  if (points.length < 2) return;
  const rates = points.map((p) => p.tokens_per_s);
  const busy = points.filter((p) => p.acceptance !== null);
  const mean = rates.reduce((a, b) => a + b, 0) / rates.length;
  const accepted = busy.length ? busy.reduce((a, p) => a + p.acceptance, 0) / busy.length : null;
  const parts = [spark(rates, Math.max(...rates, 1), "rate"), make("span", {}, word("rate", { n: mean }))];
  if (accepted !== null) {
    parts.push(spark(busy.map((p) => p.acceptance), 1, "accepted"),
      make("span", {}, word("accepted", { n: Math.round(accepted * 100) })));
  }
  $("meter").replaceChildren(...parts);
}

function spark(values, top, kind) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 72 20");
  svg.setAttribute("class", `spark ${kind}`);
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(svg.namespaceURI, "polyline");
  const step = 70 / Math.max(1, values.length - 1);
  line.setAttribute("points", values.map((v, i) => `${(1 + i * step).toFixed(1)},${(18 - (v / top) * 16).toFixed(1)}`).join(" "));
  svg.append(line);
  return svg;
}

// --- notes ---------------------------------------------------------------------------------------

function isNew(item) {
  if (!state.seen || !state.summary) return false;
  const [epoch, number] = state.seen.split(".").map(Number);
  return state.summary.epoch !== epoch || item.last_changed_revision > number;
}

function drawNotes() {
  const items = state.summary?.items ?? [];
  const fresh = items.filter(isNew);
  $("changed").hidden = fresh.length === 0;
  if (fresh.length) {
    $("changed").replaceChildren(
      make("span", {}, fresh.length === 1 ? word("changedOne") : word("changed", { n: fresh.length })),
      make("button", { type: "button", "aria-pressed": String(state.only), onclick: () => { state.only = !state.only; drawNotes(); } }, word(state.only ? "all" : "onlyChanged")),
      make("button", { type: "button", onclick: markSeen }, word("seen")));
  } else state.only = false;
  const shown = state.only ? fresh : items;
  const groups = KINDS.map((kind) => [kind, shown.filter((item) => item.kind === kind)]).filter(([, list]) => list.length);
  if (!groups.length) {
    $("groups").replaceChildren(make("p", { class: "quiet empty" }, word("noNotes")));
    return;
  }
  update($("groups"), groups, ([kind]) => kind, () => "", ([kind]) => make("section", { class: `group ${kind}` },
    make("h3", {}, make("span", {}, word(kind)), make("span", { class: "count" })), make("ul", {})));
  for (const [kind, list] of groups) {
    const section = $("groups").querySelector(`[data-key="${kind}"]`);
    section.querySelector(".count").textContent = list.length.toLocaleString(language);
    const sorted = [...list].sort((a, b) => rank(a) - rank(b));
    update(section.querySelector("ul"), sorted, (item) => item.id,
      (item) => [item.text, item.state, item.owner, item.due, item.by, item.evidence.length, isNew(item), state.pending.get(item.id) ?? ""], drawItem);
  }
}

const rank = (item) => (item.state === "open" ? 0 : item.state === "done" ? 1 : 2);

function drawItem(item) {
  const gone = item.state === "superseded" || item.state === "withdrawn";
  const facts = [
    item.owner ? make("span", { class: "fact" }, make("span", { class: "label" }, `${word("owner")} `), said("b", {}, item.owner)) : null,
    item.due ? make("span", { class: "fact" }, make("span", { class: "label" }, `${word("due")} `), said("b", {}, item.due)) : null,
    item.state !== "open" ? make("span", { class: `state ${item.state}` }, word(item.state)) : null,
    item.by === "person" ? make("span", { class: "state person" }, word("byPerson")) : null,
    ...item.evidence.slice(0, 3).map((evidence) => chip(evidence)),
  ].filter(Boolean);
  const pending = state.pending.get(item.id);
  return make("li", { class: `item ${item.state}${isNew(item) ? " fresh" : ""}`, id: `item-${item.id}` },
    make("div", { class: "item-line" },
      make("p", { class: "item-text" }, isNew(item) ? make("span", { class: "new" }, word("new")) : null,
        said(gone ? "s" : "span", {}, item.text)),
      actions(item)),
    facts.length ? make("div", { class: "item-facts" }, ...facts) : null,
    pending ? make("p", { class: "quiet", role: "status" }, pending) : null);
}

function chip(evidence) {
  const text = [clock(evidence.start_ms), evidence.speaker].filter(Boolean).join(" ") || "¶";
  return make("button", {
    type: "button", class: "chip", dir: "auto", title: word("jump"), "aria-label": `${word("jump")}: ${text}`,
    onclick: (event) => jump(evidence.segment_id, event.currentTarget),
  }, text);
}

function markSeen() {
  state.seen = revision(state.summary);
  localStorage.setItem(`seen ${state.id}`, state.seen);
  drawNotes();
}

// --- a person's edits ----------------------------------------------------------------------------

function actions(item) {
  const menu = make("details", { class: "menu small" }, make("summary", { "aria-label": `${word("more")}: ${item.text}`, title: word("more") }, "⋯"));
  const choose = (name, job) => make("button", { type: "button", onclick: () => { menu.open = false; job(); } }, word(name));
  menu.append(make("div", { class: "menu-list" },
    item.state === "open" ? choose("markDone", () => edit(item, { op: "done" })) : choose("reopen", () => edit(item, { op: "reopen" })),
    choose("correct", () => correct(item)),
    item.state === "withdrawn" ? null : choose("withdraw", () => edit(item, { op: "withdraw" }))));
  return menu;
}

async function edit(item, change) {
  try {
    state.pending.set(item.id, word("sent"));
    drawNotes();
    await send("PATCH", streamPath(state.id, `/items/${encodeURIComponent(item.id)}`), change);
  } catch (error) {
    state.pending.set(item.id, word("notSent", { why: error.message }));
    drawNotes();
  }
}

function correct(item) {
  const node = $(`item-${item.id}`);
  const field = (name, value) => make("label", {}, make("span", {}, word(name)), make("input", { name, value: value ?? "", dir: "auto", maxlength: 1000 }));
  const form = make("form", {
    class: "correct",
    onsubmit: (event) => {
      event.preventDefault();
      const data = new FormData(form);
      const change = { op: "update", text: data.get("text").trim(), owner: data.get("owner").trim(), due: data.get("due").trim() };
      node.dataset.version = "";
      edit(item, change);
    },
    onkeydown: (event) => { if (event.key === "Escape") { node.dataset.version = ""; drawNotes(); } },
  }, field("text", item.text), make("div", { class: "pair" }, field("owner", item.owner), field("due", item.due)),
  make("div", { class: "pair" }, make("button", { class: "primary" }, word("save")),
    make("button", { type: "button", onclick: () => { node.dataset.version = ""; drawNotes(); } }, word("cancel"))));
  node.replaceChildren(form);
  form.querySelector("input").focus();
}

// --- transcript and translations --------------------------------------------------------------------

function drawLanguages() {
  const choices = ["", ...[...state.units.keys()].sort()];
  if (choices.length < 2) { $("languages").replaceChildren(); return; }
  update($("languages"), choices, (tag) => `l${tag}`, (tag) => [tag === state.shown], (tag) => make("button", {
    type: "button", "aria-pressed": String(tag === state.shown),
    onclick: () => { state.shown = tag; drawLanguages(); drawLines(); scrollDown(); },
  }, tag ? nameOf(tag) : word("original")));
}

const narrow = () => getComputedStyle($("tabs")).display !== "none";

/** What scrolls the transcript: its box, or on a narrow page the document; null while it is not shown. */
function scroller() {
  if (!narrow()) return $("scroll");
  return $("said").classList.contains("chosen") ? document.scrollingElement : null;
}

function atEnd() {
  const box = scroller();
  return !box || box.scrollHeight - box.scrollTop - box.clientHeight < 80;
}

function scrollDown() {
  const box = scroller();
  if (box) box.scrollTop = box.scrollHeight;
  $("newest").hidden = true;
}

function drawLines() {
  const follows = atEnd();
  if (state.units.size + 1 !== $("languages").children.length && state.units.size) drawLanguages();
  const all = [...state.lines.values()];
  const units = state.shown ? state.units.get(state.shown) ?? new Map() : null;
  const finals = all.filter((line) => line.is_final);
  const named = (list) => list.map((line, at) => ({ ...line, first: at === 0 || list[at - 1].speaker !== line.speaker }));
  update($("lines"), named(finals), (line) => line.segment_id,
    (line) => { const unit = units?.get(line.segment_id); return [line.offset, line.first, state.shown, unit?.revision, unit?.committed, unit?.tail]; },
    (line) => drawLine(line, units));
  update($("drafts"), all.filter((line) => !line.is_final), (line) => line.segment_id, (line) => [line.offset, state.shown, units?.get(line.segment_id)?.tail],
    (line) => drawLine({ ...line, first: true }, units));
  if (follows) scrollDown();
  else $("newest").hidden = false;
}

function drawLine(line, units) {
  const unit = units?.get(line.segment_id);
  const time = clock(line.start_ms);
  const words = unit
    ? make("p", { class: "words", dir: "auto", lang: state.shown }, unit.committed, unit.tail ? make("span", { class: "tail" }, `${unit.committed ? " " : ""}${unit.tail}`) : null)
    : said("p", { class: `words${units ? " untranslated" : ""}`, lang: line.language }, line.text);
  return make("li", { class: `line${line.first ? " first" : ""}`, id: `line-${line.segment_id}`, tabindex: "-1" },
    line.first ? make("p", { class: "who" }, said("span", { class: "speaker" }, line.speaker || word("unknown")), time ? make("time", {}, time) : null) : null,
    words, line.corrected ? make("span", { class: "state" }, word("corrected")) : null);
}

function jump(segment, from) {
  if (narrow()) tab("said");
  const line = document.getElementById(`line-${segment}`);
  if (!line) { $("older").hidden = false; $("older").scrollIntoView({ block: "center" }); return; }
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  line.scrollIntoView({ block: "center", behavior: calm ? "auto" : "smooth" });
  line.focus({ preventScroll: true });
  line.classList.remove("found");
  requestAnimationFrame(() => line.classList.add("found"));
  line.onkeydown = (event) => {
    if (event.key !== "Escape") return;
    if (from.closest("#notes")) tab("notes");
    from.focus();
  };
}

// --- questions and answers -------------------------------------------------------------------------

async function ask(kind, text) {
  const name = crypto.randomUUID?.() ?? String(Date.now() + Math.random());
  const question = { question_id: name, kind, text, asked_at_ms: Date.now() };
  const [epoch, number] = (state.seen ?? "").split(".");
  if (kind === "catch_up" && state.summary && Number(epoch) === state.summary.epoch && state.summary.items.some(isNew)) question.since_revision = Number(number);
  state.answers.set(name, { question_id: name, kind, question: text, answered: false });
  if (narrow()) tab("ask");
  drawAnswers();
  try {
    await send("POST", streamPath(state.id, "/questions"), question);
  } catch (error) {
    state.answers.set(name, { ...state.answers.get(name), failed: word("notSent", { why: error.message }) });
    drawAnswers();
  }
}

function drawAnswers() {
  const list = [...state.answers.values()].reverse();
  update($("answers"), list, (a) => a.question_id, (a) => [a.answered, a.failed], (a) => {
    const { answer } = a;
    const asked = a.kind === "catch_up" ? word("catchUpAsked") : a.question || word(KIND_WORDS[a.kind] ?? "answerTo");
    return make("li", { class: "answer" },
      make("p", { class: "asked" }, make("span", { class: "visually-hidden" }, `${word("you")}: `), said("span", {}, asked)),
      a.failed ? make("p", { class: "failed" }, a.failed) : null,
      !a.answered && !a.failed ? make("p", { class: "quiet pending" }, word("waiting")) : null,
      answer ? make("div", { class: "reply", dir: "auto" }, ...answer.text.split("\n").filter((line) => line.trim()).map((line) => said("p", {}, line))) : null,
      answer ? make("div", { class: "item-facts" },
        answer.refused ? make("span", { class: "state" }, word("refused")) : null,
        ...(answer.evidence ?? []).slice(0, 6).map((evidence) => chip(evidence)),
        answer.covers?.to_ms ? make("span", { class: "quiet" }, word("covers", { time: clock(answer.covers.to_ms) })) : null) : null);
  });
}

// --- everything else --------------------------------------------------------------------------------

function drawExports() {
  const targets = [["md", ""], ["json", ""], ["srt", ""], ["vtt", ""], ...[...state.units.keys()].map((tag) => ["vtt", tag])];
  const labels = { md: "Markdown", json: "JSON", srt: "SubRip", vtt: "WebVTT" };
  $("exports").replaceChildren(...targets.map(([format, tag]) => make("button", {
    type: "button",
    onclick: async () => {
      $("exports").closest("details").open = false;
      const query = `/export?format=${format}${tag ? `&lang=${encodeURIComponent(tag)}` : ""}`;
      const url = URL.createObjectURL(await download(streamPath(state.id, query)));
      make("a", { href: url, download: `${state.id}${tag ? `.${tag}` : ""}.${format}` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10000);
    },
  }, tag ? `${labels[format]} (${nameOf(tag)})` : labels[format])));
}

function tab(name) {
  for (const button of $("tabs").children) {
    const chosen = button.dataset.tab === name;
    button.setAttribute("aria-selected", String(chosen));
    button.tabIndex = chosen ? 0 : -1;
    $(button.dataset.tab).classList.toggle("chosen", chosen);
  }
  if (name === "said") scrollDown();
}

function link(now) {
  const text = { open: word("connected"), lost: word("lost"), starting: word("starting") }[now] ?? word("connecting");
  if ($("link").textContent !== text) $("link").textContent = text;
  $("link").dataset.state = now;
}

function login() {
  state.feed?.stop();
  if (!$("login").open) $("login").showModal();
}

function route() {
  const id = location.hash.startsWith("#/") ? decodeURIComponent(location.hash.slice(2)) : "";
  open(id || null);
}

function start() {
  Object.assign(document.documentElement, { lang: language, dir: direction });
  for (const node of document.querySelectorAll("[data-word]")) node.textContent = word(node.dataset.word);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", word(node.dataset.label));
  for (const node of document.querySelectorAll("[data-hint]")) node.setAttribute("placeholder", word(node.dataset.hint));
  link("connecting");
  tab("notes");
  $("filter").addEventListener("input", drawList);
  $("newest").addEventListener("click", scrollDown);
  const scrolled = () => { if (atEnd()) $("newest").hidden = true; };
  $("scroll").addEventListener("scroll", scrolled, { passive: true });
  addEventListener("scroll", scrolled, { passive: true });
  $("catch-up").addEventListener("click", () => ask("catch_up", ""));
  $("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = $("question").value.trim();
    if (text) { $("question").value = ""; ask("free", text); }
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("ask-form").requestSubmit(); }
  });
  $("tabs").addEventListener("click", (event) => event.target.dataset.tab && tab(event.target.dataset.tab));
  $("tabs").addEventListener("keydown", (event) => {
    const buttons = [...$("tabs").children], at = buttons.indexOf(document.activeElement);
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || at < 0) return;
    const next = buttons[(at + (direction === "rtl" ? -step : step) + buttons.length) % buttons.length];
    tab(next.dataset.tab);
    next.focus();
  });
  $("login-form").addEventListener("submit", () => { setToken($("token").value.trim()); $("token").value = ""; refreshList(); route(); });
  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
  });
  document.addEventListener("keydown", (event) => {
    const typing = /^(input|textarea|select)$/i.test(document.activeElement?.tagName ?? "");
    if (event.key === "/" && !typing && state.id) { event.preventDefault(); tab("ask"); $("question").focus(); }
    if (event.key === "Escape") for (const menu of document.querySelectorAll("details.menu[open]")) { menu.open = false; menu.querySelector("summary").focus(); }
  });
  // A glance is no look: what changed stays marked when the page is only loaded again.
  const leave = () => { if (state.summary && Date.now() - state.openedAt > LOOK_MS) localStorage.setItem(`seen ${state.id}`, revision(state.summary)); };
  addEventListener("pagehide", leave);
  addEventListener("hashchange", () => { leave(); route(); });
  addEventListener("online", () => { state.feed?.again(); refreshList(); });
  addEventListener("offline", () => state.info && drawHead());
  document.addEventListener("visibilitychange", () => { if (!document.hidden) { state.feed?.again(); refreshList(); } });
  route();
  refreshList();
  setInterval(() => { if (!document.hidden) refreshList(); }, LIST_MS);
}

start();
