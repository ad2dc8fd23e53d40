// The system prompt and the settings of sampling, in a dialog. An empty one is not sent.
//
// The numbers are kept in the browser. The system prompt is kept only in the tab, because it can be
// private, and other programs can get the same address later.

import { inBrowser, inTab } from "./storage.js";

const PLACE = location.pathname; // a host can have several servers

const element = (id) => document.getElementById(id);
const dialog = element("settings-dialog");
const form = element("settings-form");
const NUMBERS = [...form.querySelectorAll("input")].map((each) => each.name);
const field = (name) => form.elements[name];

const nameOf = (name) => `anystreamer ${name} of ${PLACE}`;

/** The messages before the first question. */
export function systemMessages() {
  const content = inTab.get(nameOf("system"));
  return content ? [{ role: "system", content }] : [];
}

/** The fields of a request. */
export function sampling() {
  const texts = NUMBERS.map((name) => [name, inBrowser.get(nameOf(name))]);
  const numbers = texts.map(([name, text]) => [name, text ? Number(text) : NaN]);
  return Object.fromEntries(numbers.filter(([, number]) => Number.isFinite(number)));
}

function show() {
  field("system").value = inTab.get(nameOf("system")) ?? "";
  for (const name of NUMBERS) field(name).value = inBrowser.get(nameOf(name)) ?? "";
}

element("settings").addEventListener("click", () => {
  show();
  dialog.showModal();
});
form.addEventListener("submit", (event) => {
  event.preventDefault(); // the browser has checked the numbers
  inTab.set(nameOf("system"), field("system").value.trim() || null);
  for (const name of NUMBERS) inBrowser.set(nameOf(name), field(name).value || null);
  dialog.close();
});
element("settings-reset").addEventListener("click", () => {
  for (const each of form.querySelectorAll("input, textarea")) each.value = "";
});
element("settings-cancel").addEventListener("click", () => dialog.close());
