// The page of the pools. What routes and tasks are called is not ours: all of it is set as text,
// none of it as HTML.
"use strict";

const SECONDS = 300; // as much as the service remembers
const SHORTEST = 60;
const SVG = "http://www.w3.org/2000/svg";
const cards = new Map();
let samples = [];
let paused = false;

const byId = (id) => document.getElementById(id);
const number = (value, digits = 0) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const time = (value) => (value < 1 ? `${number(1000 * value, value < 0.1 ? 1 : 0)} ms` : `${number(value, value < 100 ? 1 : 0)} s`);

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawn(name, properties, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(properties)) made.setAttribute(key, value);
  parent.append(made);
  return made;
}

// A card for each database; what changes is in `card`.
function makeCard(name) {
  const card = { numbers: {} };
  const numbers = element("dl", { class: "numbers" });
  for (const [key, label] of [["used", "in use"], ["idle", "idle"], ["waiting", "waiting"], ["away", "turned away"]]) {
    card.numbers[key] = element("dd", {}, "0");
    numbers.append(element("div", { class: key }, element("dt", {}, label), card.numbers[key]));
  }
  card.state = element("small");
  card.title = element("h2", {}, `${name} `, card.state);
  card.pool = makeChart("pool", ["idle", "used"], "Connections in use and idle");
  card.queue = makeChart("queue", ["waiting", "away"], "Callers waiting, and turned away");
  card.gaps = element("div", { class: "gaps" });
  card.scale = element("div", { class: "scale" }, element("span"), element("span", {}, "now"));
  card.advice = element("ul", { class: "advice", "aria-label": "Advice" });
  card.holders = element("div", { class: "holders" });
  card.routes = element("div", { class: "routes" });
  card.settings = element("div");
  const section = element("section", { "data-database": name, "aria-label": name },
    card.title, numbers, element("div", { class: "charts" }, card.pool.svg, card.queue.svg, card.gaps), card.scale, card.advice,
    element("h3", {}, "Who holds connections"), card.holders,
    element("h3", {}, "Slowest routes, by how long they hold one"), card.routes,
    element("details", {}, element("summary", {}, "Settings in force"), card.settings));
  byId("databases").append(section);
  return card;
}

function makeChart(kind, areas, label) {
  const svg = document.createElementNS(SVG, "svg");
  const size = { class: kind, viewBox: "0 0 300 100", preserveAspectRatio: "none", role: "img", "aria-label": label };
  for (const [key, value] of Object.entries(size)) svg.setAttribute(key, value);
  const chart = { svg };
  for (const area of areas) chart[area] = drawn("path", { class: area }, svg);
  drawn("path", { class: "base", d: "M0 100H300" }, svg);
  if (kind === "pool") chart.limit = drawn("path", { class: "limit" }, svg);
  return chart;
}

// Steps, up to the right edge, which is now; a gap where nobody looked.
function steps(points, highest, value) {
  const now = points.at(-1).at + 1;
  const scale = 300 / spanOf(points);
  let path = "";
  for (let index = 0; index < points.length; index += 1) {
    const { at } = points[index];
    const next = index + 1 < points.length ? points[index + 1].at : now;
    const left = Math.max(300 - scale * (now - at), 0);
    const right = 300 - scale * (now - Math.min(next, at + 3));
    const top = 100 - (100 * Math.min(value(points[index], index), highest)) / highest;
    if (right > 0 && top < 100) path += `M${left.toFixed(1)} 100V${top.toFixed(1)}H${right.toFixed(1)}V100Z`;
  }
  return path;
}

const spanOf = (points) => Math.min(Math.max(points.at(-1).at - points[0].at + 1, SHORTEST), SECONDS);

// Times of which nothing is known, as nobody looked.
function showGaps(card, points) {
  const now = points.at(-1).at + 1;
  const span = spanOf(points);
  let known = now - span;
  const gaps = [];
  for (const { at } of points) {
    if (at - known > 1) gaps.push([known, at]);
    known = at + 3;
  }
  card.gaps.replaceChildren(...gaps.map(([from, to]) => {
    const width = (100 * (to - from)) / span;
    const gap = element("span", { title: "nobody looked" }, width < 15 ? "" : "nobody looked");
    gap.style.left = `${100 - (100 * (now - from)) / span}%`;
    gap.style.width = `${width}%`;
    return gap;
  }));
}

function drawCharts(card, name) {
  const points = samples.filter((each) => each.databases[name]).map((each) => ({ at: each.at, ...each.databases[name] }));
  if (!points.length) return;
  const away = (point, index) => {
    if (!index) return 0;
    const before = points[index - 1];
    return Math.max(point.turned_away - before.turned_away, 0) / Math.max(point.at - before.at, 1);
  };
  const highest = Math.max(...points.map((each) => Math.max(each.limit, each.in_use + each.idle)));
  card.pool.idle.setAttribute("d", steps(points, highest, (each) => each.in_use + each.idle + each.connecting));
  card.pool.used.setAttribute("d", steps(points, highest, (each) => each.in_use));
  card.pool.limit.setAttribute("d", `M0 ${100 - (100 * points.at(-1).limit) / highest}H300`);
  const longest = Math.max(5, ...points.map((each, index) => Math.max(each.waiting, away(each, index))));
  card.queue.waiting.setAttribute("d", steps(points, longest, (each) => each.waiting));
  card.queue.away.setAttribute("d", steps(points, longest, away));
  showGaps(card, points);
  const last = points.length > 1 ? away(points.at(-1), points.length - 1) : 0;
  card.scale.firstChild.textContent = `${number(spanOf(points))} s ago · up to ${highest} connections, ${number(longest)} callers`;
  return last;
}

function makeTable(columns, rows, none) {
  if (!rows.length) return element("p", { class: "none" }, none);
  const head = element("tr", {}, ...columns.map(([label, kind]) => element("th", kind ? { class: kind } : {}, label)));
  const body = rows.map((row) => element("tr", {}, ...row.map((cell, index) => {
    const [label, kind] = columns[index];
    const properties = { ...(index ? { "data-label": label } : {}), ...(kind ? { class: kind } : {}) };
    return element("td", properties, ...[cell].flat());
  })));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
}

function share(part, whole) {
  const value = whole ? Math.min(part / whole, 1) : 0;
  return [element("meter", { min: 0, max: 1, value }), element("span", { class: "percent" }, `${number(100 * value)} %`)];
}

function showHolders(holders, several) {
  return makeTable(
    [["who, and where"], ["for", "number"], ["in SQL", "number"], ["statements", "number"]],
    holders.map((each) => [
      [
        each.route || `task ${each.task}`,
        ...(each.ended ? [element("span", { class: "ended" }, " ended without returning it")] : []),
        ...(each.streams ? [" streaming rows"] : []),
        ...(several ? [element("small", {}, ` process ${each.process}`)] : []),
        ...(each.request_id ? [element("small", {}, ` ${each.request_id}`)] : []),
        ...each.where.map((line) => element("code", {}, each.is_there ? line : `taken at ${line}`)),
      ],
      time(each.held), share(each.in_sql, each.held), number(each.statements),
    ]),
    "nobody");
}

function showRoutes(routes) {
  return makeTable(
    [["route"], ["on average", "number"], ["longest", "number"], ["in SQL", "number"], ["times", "number"]],
    routes.map((each) => [
      each.route, time(each.held / Math.max(each.checkouts, 1)), time(each.longest),
      share(each.in_sql, each.held), number(each.checkouts),
    ]),
    "none yet");
}

// Nothing at all of a loop that was never blocked.
function showLoop(loop) {
  const section = byId("loop");
  section.hidden = !loop.latest.length;
  section.querySelector("small").textContent =
    `blocked ${number(loop.blocks)} ×, ${time(loop.blocked_seconds)} in all: meanwhile no request went on`;
  section.querySelector("div").replaceChildren(makeTable(
    [["who blocked it, and where: await it, or run it in a thread"], ["for", "number"], ["ago", "number"]],
    loop.latest.map((each) => [
      [
        each.by,
        ...each.where.map((line) => element("code", {}, line)),
      ],
      time(each.seconds), time(each.ago),
    ]),
    ""));
}

function showSettings(settings) {
  return makeTable([["variable"], ["value"], ["from"]],
    settings.map((each) => [element("code", {}, each.name), each.value, each.origin]), "none");
}

function processes({ process, processes: count, workers, silent }) {
  if (workers.length === 1 && !silent) return `process ${process}${count > 1 ? `, one of ${count}` : ""}`;
  return `processes ${workers.join(", ")}${silent ? `; ${silent} more do not answer` : ""}`;
}

function show(state) {
  byId("service").textContent = `of ${state.service}`;
  document.title = `Pools of ${state.service}`;
  setStatus(`${processes(state)}, ${new Date(1000 * state.time).toLocaleTimeString()}`, false);
  showLoop(state.event_loop);
  for (const [name, database] of Object.entries(state.databases)) {
    if (!cards.has(name)) cards.set(name, makeCard(name));
    const card = cards.get(name);
    const { pool } = database;
    const away = drawCharts(card, name) || 0;
    card.state.textContent = database.up ? `up, ${pool.pool_size + pool.max_overflow} at most` : "down";
    card.state.className = database.up ? "up" : "down";
    if (pool.oldest_wait >= 0.1) card.state.textContent += `, the oldest waits for ${time(pool.oldest_wait)}`;
    card.numbers.used.textContent = number(pool.in_use);
    card.numbers.idle.textContent = number(pool.idle);
    card.numbers.waiting.textContent = number(pool.waiting);
    card.numbers.away.textContent = `${number(away)}/s`;
    card.numbers.waiting.parentElement.classList.toggle("hot", pool.waiting > 0);
    card.numbers.away.parentElement.classList.toggle("hot", away > 0);
    card.advice.replaceChildren(...database.advice.map((each) => element("li", {}, each)));
    card.holders.replaceChildren(showHolders(database.holders, state.workers.length > 1));
    card.routes.replaceChildren(showRoutes(database.routes));
    card.settings.replaceChildren(showSettings(database.settings));
  }
}

function setStatus(text, lost) {
  byId("status").textContent = text;
  byId("status").classList.toggle("lost", lost);
}

function listen() {
  const source = new EventSource("events");
  let first = true;
  source.addEventListener("message", (message) => {
    const state = JSON.parse(message.data);
    const all = first ? state.samples : [...samples, ...state.samples];
    samples = all.filter((each) => each.at > all.at(-1).at - SECONDS);
    first = false;
    if (!paused) show(state);
  });
  source.addEventListener("error", () => {
    first = true;
    setStatus("no connection to the service; trying again", true);
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  });
}

byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").textContent = paused ? "Go on" : "Pause";
  byId("pause").setAttribute("aria-pressed", String(paused));
  if (paused) setStatus("paused", false);
});
listen();
