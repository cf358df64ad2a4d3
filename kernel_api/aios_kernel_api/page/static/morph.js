// Makes an element's content what a text of HTML says, and leaves alone what is so already.
//
// Children with an id are found by it, others by their place. What a person has set (ticks, texts,
// opened details) stays. HTML is parsed inert: no script in it runs.

export function morph(element, html) {
  const parsed = new DOMParser().parseFromString(html, "text/html");
  children(element, parsed.body);
}

function isAlike(one, other) {
  return one.nodeType === other.nodeType && one.nodeName === other.nodeName && one.id === other.id;
}

function children(into, from) {
  const known = new Map();
  for (const child of into.children) if (child.id) known.set(child.id, child);
  let place = into.firstChild;
  for (const next of [...from.childNodes]) {
    const found = next.id ? known.get(next.id) : null;
    if (found && found !== place && found.parentNode === into) {
      into.insertBefore(found, place);
      place = found;
    }
    if (place && isAlike(place, next)) {
      node(place, next);
      place = place.nextSibling;
    } else {
      into.insertBefore(document.adoptNode(next), place);
    }
  }
  while (place) {
    const rest = place.nextSibling;
    place.remove();
    place = rest;
  }
}

function node(into, from) {
  if (into.nodeType !== Node.ELEMENT_NODE) {
    if (into.nodeValue !== from.nodeValue) into.nodeValue = from.nodeValue;
    return;
  }
  if (into.isEqualNode(from)) return;
  attributes(into, from);
  children(into, from);
}

function attributes(into, from) {
  for (const { name, value } of [...from.attributes]) {
    if (into.getAttribute(name) !== value) into.setAttribute(name, value);
  }
  for (const { name } of [...into.attributes]) {
    if (!from.hasAttribute(name) && !(name === "open" && into.nodeName === "DETAILS")) {
      into.removeAttribute(name);
    }
  }
}
