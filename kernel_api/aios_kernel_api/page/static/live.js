// Keeps the parts of a page that are in view as the kernel is: one stream for all of them.
//
// A part is an element with `data-live`: its address. What changed in it is changed in place, so
// that ticks, focus and what is being read stay. A hidden tab asks for nothing.

import { morph } from "./morph.js";

const SETTLE_MS = 150; // parts scroll in and out of view
const SILENT_MS = 15_000; // the server says something every 5 s: a stream that does not is held up
const POLL_MS = 2_000; // in place of a stream that does not get through
const AGAIN_MS = 2_000;

const banner = document.getElementById("connection");
const inView = new Set();
let stream = null;
let opened = ""; // the addresses that the stream is for
let isHeldUp = false; // streams do not get through: something between buffers them
let settle = 0;
let silence = 0;
let poll = 0;
let again = 0;
let turn = 0; // what was asked for in an earlier one is of no interest

function say(words) {
  if (banner.textContent !== words) banner.textContent = words;
  banner.hidden = !words;
}

function wanted() {
  const shown = [...inView].filter((element) => element.isConnected);
  return [...new Set(shown.map((element) => element.dataset.live))].sort();
}

function query(addresses) {
  return addresses.map((address) => `part=${encodeURIComponent(address)}`).join("&");
}

function show({ part, html }) {
  for (const element of document.querySelectorAll("[data-live]")) {
    if (element.dataset.live !== part) continue;
    morph(element, html);
    window.htmx?.process(element);
    element.dispatchEvent(new CustomEvent("shown", { bubbles: true }));
  }
}

function close() {
  turn += 1;
  clearTimeout(silence);
  clearTimeout(poll);
  clearTimeout(again);
  stream?.close();
  stream = null;
  opened = "";
}

function heard() {
  clearTimeout(silence);
  silence = setTimeout(() => {
    isHeldUp = true;
    restart();
  }, SILENT_MS);
}

function open(addresses) {
  opened = addresses.join("\n");
  stream = new EventSource(`/live?${query(addresses)}`);
  heard();
  stream.addEventListener("beat", () => {
    heard();
    if (banner.dataset.why === "away") {
      banner.dataset.why = "";
      say("");
    }
  });
  stream.addEventListener("part", (event) => {
    heard();
    show(JSON.parse(event.data));
  });
  stream.addEventListener("trouble", (event) => {
    heard();
    const words = JSON.parse(event.data);
    say(words && `The kernel does not answer: ${words}. This page goes on when it does.`);
  });
  stream.addEventListener("over", () => location.reload());
  stream.addEventListener("error", () => {
    clearTimeout(silence);
    away();
    if (stream?.readyState === EventSource.CLOSED) {
      close();
      again = setTimeout(ask, AGAIN_MS);
    }
  });
}

function away() {
  banner.dataset.why = "away";
  say("The kernel is away; what you see is as it was. This page goes on when it is back.");
}

// The stream was refused: is the login over, or nobody there?
async function ask() {
  const mine = turn;
  try {
    const answer = await fetch(location.href, { method: "HEAD", cache: "no-store" });
    if (answer.status === 401) {
      location.reload();
      return;
    }
  } catch {
    if (mine === turn) again = setTimeout(ask, AGAIN_MS);
    return;
  }
  if (mine === turn) restart();
}

async function pollOnce(addresses) {
  const mine = turn;
  try {
    const answer = await fetch(`/parts?${query(addresses)}`, { cache: "no-store" });
    if (answer.status === 401) {
      location.reload();
      return;
    }
    if (answer.ok) {
      for (const each of await answer.json()) show(each);
      say("");
    }
  } catch {
    away();
  }
  if (mine === turn) poll = setTimeout(() => pollOnce(addresses), POLL_MS);
}

function restart() {
  close();
  const addresses = document.hidden ? [] : wanted();
  if (!addresses.length) return;
  if (isHeldUp) {
    opened = addresses.join("\n");
    pollOnce(addresses);
  } else {
    open(addresses);
  }
}

function changed() {
  clearTimeout(settle);
  settle = setTimeout(() => {
    if ((document.hidden ? "" : wanted().join("\n")) !== opened) restart();
  }, SETTLE_MS);
}

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) inView.add(entry.target);
    else inView.delete(entry.target);
  }
  changed();
});

function watch() {
  for (const element of document.querySelectorAll("[data-live]")) watcher.observe(element);
}

document.addEventListener("visibilitychange", changed);
document.addEventListener("htmx:afterSettle", watch);
addEventListener("pagehide", close);
addEventListener("pageshow", (event) => event.persisted && restart());
watch();
