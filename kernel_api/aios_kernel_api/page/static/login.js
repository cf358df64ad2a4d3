// Asks for a login in place when the one of this page is over: what was typed stays where it is.
//
// `loggedin` is told to the document when it is good again. Forms carry a word that is made of the
// token, so they get the new one. Somebody else's login is another page: it is loaded.

const CHECK = "/live?part=head"; // HEAD of it: is the login good?
const asking = new WeakSet(); // forms whose login is looked at before they are sent
const good = new WeakSet(); // and has been found good
let dialog = null;
let before = null; // where the focus was

export function loggedOut() {
  if (dialog?.open) return;
  dialog ??= made();
  before = document.activeElement;
  dialog.showModal();
}

export async function isLoggedIn() {
  const answer = await fetch(CHECK, { method: "HEAD", cache: "no-store" });
  return answer.status !== 401;
}

function made() {
  const template = document.getElementById("login-again");
  const element = template.content.firstElementChild.cloneNode(true);
  document.body.append(element);
  element.addEventListener("cancel", (event) => event.preventDefault());
  element.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    logIn(event.target);
  });
  return element;
}

function complain(words) {
  const place = dialog.querySelector("[role=alert]");
  place.textContent = words;
  place.hidden = !words;
}

async function parsed(answer) {
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

async function logIn(form) {
  complain("");
  try {
    const body = new URLSearchParams(new FormData(form));
    const answer = await fetch("/login", { method: "POST", body, redirect: "manual" });
    if (answer.type !== "opaqueredirect") {
      const said = (await parsed(answer)).querySelector("[role=alert]");
      complain(said?.textContent ?? `The kernel answers ${answer.status}.`);
      return;
    }
    form.reset();
    await goOn();
  } catch {
    complain("The kernel is away. Try again in a moment.");
  }
}

// Takes what a page of the new login has: it may have been made in another tab.
async function goOn() {
  const answer = await fetch("/agents", { cache: "no-store" });
  if (!answer.ok) return;
  const page = await parsed(answer);
  if (whose(page) !== whose(document)) {
    location.assign("/");
    return;
  }
  const word = page.querySelector("[name=csrf]").value;
  for (const field of document.querySelectorAll("[name=csrf]")) field.value = word;
  document.body.setAttribute("hx-headers", page.body.getAttribute("hx-headers"));
  dialog.close();
  before?.focus();
  document.dispatchEvent(new Event("loggedin"));
}

function whose(page) {
  return page.querySelector(".who").dataset.who;
}

// A form is sent once the login has been found good: else the answer would take the place of what
// was typed.
document.addEventListener("submit", async (event) => {
  const { target: form, submitter } = event;
  if (event.defaultPrevented || form.method !== "post" || good.delete(form)) return;
  event.preventDefault();
  if (asking.has(form)) return;
  asking.add(form);
  try {
    if (await isLoggedIn()) {
      good.add(form);
      form.requestSubmit(submitter);
    } else {
      loggedOut();
    }
  } catch {
    const banner = document.getElementById("connection");
    banner.textContent = "The kernel is away: nothing was sent. Send it when it is back.";
    banner.hidden = false;
  } finally {
    asking.delete(form);
    good.delete(form);
  }
});

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && dialog?.open) goOn().catch(() => {});
});
document.addEventListener("htmx:responseError", (event) => {
  if (event.detail.xhr.status === 401) loggedOut();
});
