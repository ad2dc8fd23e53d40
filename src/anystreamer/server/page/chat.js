// The chat page: one conversation with the model that answers beside it.
//
// What a model or a server says becomes text in the document by textContent, and by nothing else.

import { eventsOf } from "./events.js";

const KEY = `anystreamer key of ${location.pathname}`; // others may live on this host
const DEMO = "anystreamer-demo"; // what `anystreamer serve` calls the model that comes along

const element = (id) => document.getElementById(id);
const [conversation, turns, welcome, problem, status] =
  ["conversation", "turns", "welcome", "problem", "status"].map(element);
const [message, send, stop] = ["message", "send", "stop"].map(element);
const [keyDialog, key, keyRefused] = ["key-dialog", "key", "key-refused"].map(element);

let messages = []; // what the model is told: the turns that have an answer
let running = null; // the AbortController of the answer that is being written

/** Something went wrong that can be said in words for people. */
class Problem extends Error {}

// -- the server

function request(path, init = {}) {
  const headers = { ...init.headers };
  const stored = sessionStorage.getItem(KEY);
  // In UTF-8: a header takes bytes only.
  if (stored) headers.authorization = `Bearer ${String.fromCharCode(...new TextEncoder().encode(stored))}`;
  return fetch(path, { ...init, headers, cache: "no-store" });
}

/** The chunks of an answer. Raises a Problem if there is no answer, or not all of it. */
async function* chunksOf(asked, signal) {
  let response;
  try {
    response = await request("v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({
        messages: asked,
        stream: true,
        stream_options: { include_usage: true },
      }),
      signal,
    });
  } catch {
    throw new Problem("The server cannot be reached. Is it running?");
  }
  if (!response.ok) throw await problemOf(response);
  try {
    for await (const { data } of eventsOf(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Problem(`The answer broke off: ${chunk.error.message}.`);
      yield chunk;
    }
  } catch (error) {
    throw error instanceof Problem ? error : new Problem("The connection broke off.");
  }
  throw new Problem("The answer broke off before its end.");
}

async function problemOf(response) {
  const { error } = await response.json().catch(() => ({}));
  const { code, message } = error ?? {};
  if (response.status === 401) {
    askForKey();
    return new Problem("The server asks for a key.");
  }
  if (code === "engine_busy") {
    return new Problem("The model is busy, and too many are waiting already. Try again in a moment.");
  }
  if (response.status === 503) return new Problem("The model is not available at the moment.");
  if (response.status === 413 || code === "context_length_exceeded") {
    return new Problem("The conversation has become too long. Start a new chat, or say less.");
  }
  return new Problem(`The server answered with an error: ${message ?? response.status}.`);
}

/** Show which model it is; and find out at once whether a key is needed. */
async function greet() {
  let response;
  try {
    response = await request("v1/models");
  } catch {
    problem.textContent = "The server cannot be reached. Is it running?";
    return;
  }
  if (!response.ok) {
    problem.textContent = (await problemOf(response)).message;
    return;
  }
  const name = (await response.json()).data[0].id;
  element("model").textContent = name;
  document.title = `Chat – ${name}`;
  element("suggestion").hidden = name !== DEMO;
  problem.textContent = "";
}

// -- the conversation

/** Ask the model, and show what it answers as it comes. */
async function ask(question) {
  const abort = (running = new AbortController());
  const turn = new Turn(question);
  showRunning();
  status.textContent = "The model is answering.";
  problem.textContent = "";
  try {
    for await (const chunk of chunksOf(
      [...messages, { role: "user", content: question }],
      abort.signal,
    )) {
      turn.add(chunk);
    }
  } catch (error) {
    if (!abort.signal.aborted) turn.problem = error.message;
  }
  if (running !== abort) return; // there is a new conversation
  running = null;
  showRunning();
  turn.end(abort.signal.aborted);
  problem.textContent = turn.problem;
  if (turn.text) {
    messages.push(
      { role: "user", content: question },
      { role: "assistant", content: turn.text },
    );
    status.textContent = turn.text; // read out once, and not piece by piece
    return;
  }
  status.textContent = "";
  if (turn.ended) return;
  // Nothing was answered, so nothing was said: the question can be sent again.
  turn.remove();
  if (message.value === "") {
    message.value = question;
    fit();
  }
}

/** A question with its answer, on the page. */
class Turn {
  text = "";
  problem = "";
  ended = false; // by the model

  #begun = performance.now();
  #pieces = 0;
  #finishReason = null;
  #usage = null;
  #node = element("turn").content.firstElementChild.cloneNode(true);
  #answer = this.#node.querySelector(".answer > .text");
  #reasoning = this.#node.querySelector(".reasoning");
  #figures = this.#node.querySelector(".figures");

  constructor(question) {
    this.#node.querySelector(".question .text").textContent = question;
    this.#node.classList.add("waiting");
    this.#figures.textContent = "Waiting for the model …";
    turns.append(this.#node);
    welcome.hidden = true;
    conversation.scrollTop = conversation.scrollHeight;
  }

  add({ choices: [choice], usage }) {
    if (usage) this.#usage = usage;
    if (!choice) return;
    const { content, reasoning_content: reasoning } = choice.delta;
    if (content || reasoning) {
      this.#pieces += 1;
      this.#node.classList.replace("waiting", "writing");
      this.#figures.textContent = "";
      keepEndInSight();
    }
    if (reasoning) {
      this.#reasoning.hidden = false;
      this.#reasoning.querySelector(".text").append(reasoning);
    }
    if (content) {
      this.text += content;
      this.#answer.append(content);
    }
    if (choice.finish_reason) {
      this.#finishReason = choice.finish_reason;
      this.ended = true;
    }
  }

  end(stopped) {
    this.#answer.normalize();
    this.#node.classList.remove("waiting", "writing");
    keepEndInSight();
    const seconds = (performance.now() - this.#begun) / 1000;
    this.#figures.textContent = [
      this.problem
        ? "broken off"
        : stopped
          ? "stopped"
          : { stop: "finished", length: "cut off: the answer has as many tokens as it may have" }[
              this.#finishReason
            ] ?? this.#finishReason,
      // Of an answer that did not end nobody says how many; a piece is one, or several.
      this.#usage ? tokens(this.#usage.completion_tokens) : `at least ${tokens(this.#pieces)}`,
      `${seconds.toFixed(1)} s`,
    ].join(" · ");
  }

  remove() {
    this.#node.remove();
    welcome.hidden = turns.childElementCount > 0;
  }
}

const tokens = (number) => `${number.toLocaleString("en")} token${number === 1 ? "" : "s"}`;

let isScrolling = false;

/** Stay at the end while the answer grows, unless the reader has gone elsewhere. */
function keepEndInSight() {
  const { scrollTop, scrollHeight, clientHeight } = conversation;
  if (isScrolling || scrollHeight - scrollTop - clientHeight > 80) return;
  isScrolling = true;
  requestAnimationFrame(() => {
    conversation.scrollTop = conversation.scrollHeight;
    isScrolling = false;
  });
}

function showRunning() {
  if (running === null && document.activeElement === stop) message.focus();
  send.hidden = running !== null;
  stop.hidden = running === null;
}

/** Closing the connection is what stops the model. */
function stopAnswer() {
  running?.abort();
}

// -- the key

function askForKey() {
  keyRefused.hidden = sessionStorage.getItem(KEY) === null;
  sessionStorage.removeItem(KEY);
  key.value = "";
  if (!keyDialog.open) keyDialog.showModal();
}

element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, key.value.trim());
  key.value = "";
  keyDialog.close();
  greet();
});
element("key-cancel").addEventListener("click", () => keyDialog.close());
keyDialog.addEventListener("close", () => message.focus());

// -- writing

function submit() {
  const question = message.value.trim();
  if (question === "" || running !== null) return;
  message.value = "";
  fit();
  message.focus();
  ask(question);
}

/** Grow with the text, where the stylesheet cannot say so. */
function fit() {
  if (CSS.supports("field-sizing", "content")) return;
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight + 2}px`;
}

element("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
message.addEventListener("input", fit);
message.addEventListener("keydown", (event) => {
  // Enter also ends the composition of a character. Safari says so with the key code only.
  const composes = event.isComposing || event.keyCode === 229;
  if (event.key !== "Enter" || event.shiftKey || composes) return;
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing && !keyDialog.open) stopAnswer();
});
stop.addEventListener("click", stopAnswer);
element("suggestion")
  .querySelector("button")
  .addEventListener("click", (event) => {
    message.focus();
    ask(event.target.textContent);
  });
element("new").addEventListener("click", () => {
  stopAnswer();
  running = null;
  messages = [];
  turns.replaceChildren();
  welcome.hidden = false;
  problem.textContent = status.textContent = "";
  showRunning();
  message.focus();
});
addEventListener("pagehide", stopAnswer);

greet();
