"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);

// Characters without a glyph, or that turn the text around them: shown by their code, and still in the text.
const UNSEEN = /((?![\n\t])[\p{Cc}\p{Cs}\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff])/u;
const code = character => character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
function plain(text) {
  const parts = text.split(UNSEEN), fragment = document.createDocumentFragment();
  parts.forEach((part, i) => {
    if (!part) return;
    fragment.append(i % 2 ? make("span", {class: "unseen", "data-code": code(part)}) : part);
    if (i % 2) fragment.lastChild.textContent = part;
  });
  return fragment;
}
const escaped = text => text.split(UNSEEN).map((part, i) => (i % 2 ? "\\u" + code(part) : part)).join("");

// The one way from data to the document: a string child becomes text, never markup.
function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}
function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.map(child => (typeof child === "string" ? plain(child) : child)));
  return element;
}
function shortened(text, length) {
  const characters = Array.from(text.slice(0, 4 * length));
  return characters.length > length ? characters.slice(0, length - 1).join("") + "\u2026" : text;
}

// One tip: beside `where()`, as long as its owner is hovered or has the focus.
const tip = byId("tip");
let tipped = null;
function showTip(owner, where, contents, {spoken = true, leave = () => {}} = {}) {
  if (tipped && tipped.owner !== owner) tipped.leave();
  tip.setAttribute("aria-live", spoken ? "polite" : "off");
  tip.replaceChildren(...contents);
  tipped = {owner, where, leave};
  const at = where(), box = tip.getBoundingClientRect();
  tip.style.left = Math.max(8, Math.min(at.left, innerWidth - box.width - 8)) + "px";
  const below = at.bottom + box.height + 8 < innerHeight;
  tip.style.top = (below ? at.bottom + 6 : Math.max(8, at.top - box.height - 6)) + "px";
}
function hideTip() {
  tip.replaceChildren();
  tipped?.leave();
  tipped = null;
}
document.addEventListener("scroll", () => {  // focusing may scroll: what has the focus and is in sight keeps its tip
  if (!tipped) return;
  const at = tipped.where(), held = tipped.owner === document.activeElement && at.bottom > 0 && at.top < innerHeight;
  held ? showTip(tipped.owner, tipped.where, [...tip.childNodes], {spoken: false, leave: tipped.leave}) : hideTip();
}, {passive: true});
document.addEventListener("keydown", event => { if (event.key === "Escape") hideTip(); });

document.title = data.title + " \u2013 token credit";
byId("title").append(plain(data.title));
