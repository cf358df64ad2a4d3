// Keeps the parts of a page that are in view as the kernel is: one stream for all of them.
//
// A part is an element with `data-live`: its address. What changed in it is changed in place, so
// that ticks, focus and what is being read stay. A hidden tab asks for nothing.

import { isLoggedIn, loggedOut } from "./login.js";
import { morph } from "./morph.js";
import { permitted } from "./streams.js";
import "./filters.js";
import "./ticks.js";

const SETTLE_MS = 150; // parts scroll in and out of view
const OPENS_MS = 5_000; // the server says something at once: a stream without that is held up
const SILENT_MS = 15_000; // the server says something every 5 s: a stream that does not is held up
const POLL_MS = 2_000; // in place of a stream that does not get through
const AGAIN_MS = 2_000;
const STREAMS = 3; // of all tabs; the others ask instead

const banner = document.getElementById("connection");
const inView = new Set();
let stream = null;
let opened = ""; // the addresses that the stream is for
let release = null; // lets another tab have this one's stream
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
  release?.();
  release = null;
  opened = "";
}

function heard(patienceMs = SILENT_MS) {
  clearTimeout(silence);
  silence = setTimeout(() => {
    isHeldUp = true;
    restart();
  }, patienceMs);
}

function open(addresses) {
  stream = new EventSource(`/live?${query(addresses)}`);
  heard(OPENS_MS);
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
  stream.addEventListener("over", over);
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

function over() {
  close();
  loggedOut();
}

// The stream was refused: is the login over, or nobody there?
async function ask() {
  const mine = turn;
  try {
    if (!(await isLoggedIn())) {
      over();
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
      over();
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

async function restart() {
  close();
  const addresses = document.hidden ? [] : wanted();
  if (!addresses.length) return;
  opened = addresses.join("\n");
  const mine = turn;
  const free = isHeldUp ? null : await permitted("stream", STREAMS);
  if (mine !== turn) {
    free?.();
  } else if (free) {
    release = free;
    open(addresses);
  } else {
    pollOnce(addresses);
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
document.addEventListener("loggedin", restart);
addEventListener("pagehide", close);
addEventListener("pageshow", (event) => event.persisted && restart());
watch();
