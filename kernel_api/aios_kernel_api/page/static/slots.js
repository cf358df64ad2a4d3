// The slots of a module in time: a canvas of slices, and three charts, from one stream of events.
//
// The server sends each slice when it begins and again when it ends, under one number. Nothing is
// drawn and no stream is open while the tab is hidden.

import { Picture } from "./gantt.js";
import { permitted } from "./streams.js";

const MOST_POINTS = 600;
const AGAIN_MS = 2_000;
const SILENT_MS = 5_000; // the server says something four times a second: a stream that does not is held up
const STREAMS = 2; // of all tabs
const HELD_UP =
  "No slices come: something between this page and the kernel holds its stream back. Queues and workers has the same as lists.";
const ELSEWHERE =
  "Two other tabs of this browser follow the slots; this one goes on when one of them is closed or hidden.";
const TICKS_S = [1, 5, 10, 30, 60, 120, 300];

const root = document.getElementById("slots");
const picture = new Picture(document.getElementById("gantt"), {
  windowMs: Number(root.dataset.windowMs),
  say: (words) => put("gantt-now", words),
});
const points = { at: [], tokens: [], running: [], waiting: [], oldest: [] };
const charts = [];
let stream = null;
let release = null; // lets another tab have this one's stream
let silence = 0;
let turn = 0; // what was begun in an earlier one is of no interest
let again = 0;
let leftOut = 0;

function put(id, words) {
  const element = document.getElementById(id);
  if (element.textContent !== words) element.textContent = words;
  element.hidden = !words;
}

// A custom property holds `light-dark(...)` as it is written: a colour is asked of an element.
function shade(name) {
  const probe = document.createElement("i");
  probe.className = `probe ${name}`;
  root.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function utc(at) {
  return new Date(at * 1000).toISOString().slice(11, 19);
}

function chart(id, series) {
  const holder = document.getElementById(id);
  const axis = { stroke: shade("faint"), grid: { stroke: shade("line"), width: 1 } };
  const made = new window.uPlot(
    {
      width: Math.max(200, holder.clientWidth),
      height: 160,
      cursor: { show: false },
      legend: { show: series.length > 1, live: false },
      axes: [
        { ...axis, incrs: TICKS_S, space: 70, values: (_, splits) => splits.map(utc) },
        { ...axis, size: 55 },
      ],
      scales: { y: { range: (_, least, most) => [0, Math.max(1, most * 1.1)] } },
      series: [
        {},
        ...series.map(([label, , tone]) => ({ label, stroke: shade(tone), width: 2, points: { show: false } })),
      ],
    },
    [points.at, ...series.map(([, values]) => values)],
    holder,
  );
  charts.push({ holder, made, series });
}

function drawCharts() {
  for (const { holder, made } of charts) {
    made.destroy();
    holder.replaceChildren();
  }
  charts.length = 0;
  chart("chart-tokens", [["tokens/s", points.tokens, "accent"]]);
  chart("chart-queue", [
    ["running", points.running, "good"],
    ["waiting", points.waiting, "warn"],
  ]);
  chart("chart-wait", [["s", points.oldest, "warn"]]);
}

function sampled(samples) {
  for (const [at, tokens, running, waiting, oldest] of samples) {
    points.at.push(at);
    points.tokens.push(tokens);
    points.running.push(running);
    points.waiting.push(waiting);
    points.oldest.push(oldest);
  }
  for (const values of Object.values(points)) values.splice(0, values.length - MOST_POINTS);
  if (!samples.length) return;
  for (const { made, series } of charts) made.setData([points.at, ...series.map(([, values]) => values)]);
  const [, tokens, running, waiting, oldest] = samples.at(-1);
  const longest = waiting ? `, the oldest for ${oldest.toFixed(1)} s` : "";
  const told = [tokens, running, waiting].map((each) => each.toLocaleString("en"));
  put("charts-now", `Now: ${told[0]} tokens/s, ${told[1]} running, ${told[2]} waiting${longest}. Times are UTC.`);
}

function heard(news) {
  listen();
  put("slots-still", "");
  if (news.is_new) {
    picture.clear();
    leftOut = 0;
    for (const values of Object.values(points)) values.length = 0;
  }
  picture.take(news);
  sampled(news.samples);
  leftOut += news.left_out;
  put("gantt-left-out", leftOut ? `${leftOut} short slices were too many to be drawn.` : "");
}

function listen() {
  clearTimeout(silence);
  silence = setTimeout(() => put("slots-still", HELD_UP), SILENT_MS);
}

function close() {
  turn += 1;
  clearTimeout(again);
  clearTimeout(silence);
  stream?.close();
  stream = null;
  release?.();
  release = null;
  picture.stop();
}

async function open() {
  close();
  if (document.hidden) return;
  const mine = turn;
  const free = await permitted("slots", STREAMS);
  if (mine !== turn) {
    free?.();
    return;
  }
  if (!free) {
    put("slots-still", ELSEWHERE);
    again = setTimeout(open, AGAIN_MS);
    return;
  }
  release = free;
  picture.start();
  listen();
  stream = new EventSource(`/slots/events?module=${encodeURIComponent(root.dataset.module)}`);
  stream.addEventListener("slices", (event) => heard(JSON.parse(event.data)));
  stream.addEventListener("error", () => {
    clearTimeout(silence); // the line above says that the kernel is away
    if (stream?.readyState === EventSource.CLOSED) again = setTimeout(open, AGAIN_MS);
  });
  stream.addEventListener("over", close);
}

function redrawn() {
  picture.restyle();
  drawCharts();
}

let settle = 0;
new ResizeObserver(() => {
  clearTimeout(settle);
  settle = setTimeout(redrawn, 100);
}).observe(root);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawn);
document.addEventListener("visibilitychange", open);
document.addEventListener("loggedin", open);
addEventListener("pagehide", close);
addEventListener("pageshow", (event) => event.persisted && open());
drawCharts();
open();
