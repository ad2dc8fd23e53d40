// The chat page: one conversation with the model of its server.
//
// Text from a model or a server enters the document as text nodes only, never as markup.

import { eventsOf } from "./events.js";

const KEY = `anystreamer key of ${location.pathname}`; // this host can have others
const DEMO = "anystreamer-demo"; // the name that `anystreamer serve` gives to the embedded model

const element = (id) => document.getElementById(id);
const [conversation, turns, welcome, problem, status] =
  ["conversation", "turns", "welcome", "problem", "status"].map(element);
const [message, send, stop] = ["message", "send", "stop"].map(element);
const [keyDialog, key, keyRefused] = ["key-dialog", "key", "key-refused"].map(element);

let messages = []; // sent with the next question: the turns that have an answer
let running = null; // the AbortController of the answer that is being written

/** An error with a message for the user. */
class Problem extends Error {}

// -- the server

function request(path, init = {}) {
  const headers = { ...init.headers };
  const stored = sessionStorage.getItem(KEY);
  // In UTF-8: a header takes bytes only.
  if (stored) headers.authorization = `Bearer ${String.fromCharCode(...new TextEncoder().encode(stored))}`;
  return fetch(path, { ...init, headers, cache: "no-store" });
}

/** The chunks of an answer. Throws a Problem if the answer is missing or incomplete. */
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
      if (chunk.error) throw new Problem(`The answer was interrupted: ${chunk.error.message}.`);
      yield chunk;
    }
  } catch (error) {
    throw error instanceof Problem ? error : new Problem("The connection was lost.");
  }
  throw new Problem("The answer ended early: the connection was closed.");
}

async function problemOf(response) {
  const { error } = await response.json().catch(() => ({}));
  const { code, message } = error ?? {};
  if (response.status === 401) {
    askForKey();
    return new Problem("The server needs a key.");
  }
  if (code === "engine_busy") {
    return new Problem("The model is busy: too many requests are waiting. Try again in a moment.");
  }
  if (response.status === 503) return new Problem("The model is not available at the moment.");
  if (response.status === 413 || code === "context_length_exceeded") {
    return new Problem("The conversation is too long. Start a new chat, or send a shorter message.");
  }
  return new Problem(`The server responded with an error: ${message ?? response.status}.`);
}

/** Show the model's name. It also finds out at once whether a key is needed. */
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

/** Send a question, and show the answer while it arrives. */
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
    status.textContent = turn.text; // a screen reader reads it once, and not chunk by chunk
    return;
  }
  status.textContent = "";
  if (turn.ended) return;
  // Without an answer the question does not count: it can be sent again.
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
  #chunks = 0;
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
      this.#chunks += 1;
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
        ? "interrupted"
        : stopped
          ? "stopped"
          : { stop: "finished", length: "cut off at the token limit" }[
              this.#finishReason
            ] ?? this.#finishReason,
      // A server sends no usage for an unfinished answer. A chunk has one token, or several.
      this.#usage ? tokens(this.#usage.completion_tokens) : `at least ${tokens(this.#chunks)}`,
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

/** Stay at the end while the answer grows, unless the user has scrolled away. */
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

/** Closes the connection, which stops the model. */
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

/** Grow with the text, in browsers where the stylesheet cannot do it. */
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
  // Enter also ends the composition of a character. Safari shows it in the key code only.
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
