// The chat page: one conversation with the model of its server.
//
// Text from a model or a server enters the document as text nodes only, never as markup.

import { copy } from "./clipboard.js";
import { eventsOf } from "./events.js";
import { MarkdownView } from "./markdown_view.js";
import { offerPictures, pictureAsPart, setPictures, takePictures } from "./pictures.js";
import { sampling, systemMessages } from "./settings.js";
import { inTab } from "./storage.js";

const KEY = `anystreamer key of ${location.pathname}`; // a host can have several servers
const SHORTEST = 0.05; // in less time (seconds), all text came at once: there is no rate to show
const COPIED_SHOWN = 2000; // how long a button shows that it has copied (milliseconds)
const BLOCKS = "p, h2, h3, h4, h5, h6, pre, tr, .line"; // elements that are read as one line each
const DEMO = "anystreamer-demo"; // the name that `anystreamer serve` gives to the embedded model

const element = (id) => document.getElementById(id);
const [conversation, turns, welcome, problem, status] =
  ["conversation", "turns", "welcome", "problem", "status"].map(element);
const [message, send, stop] = ["message", "send", "stop"].map(element);
const [keyDialog, key, keyRefused] = ["key-dialog", "key", "key-refused"].map(element);

let answered = []; // sent with the next question: the turns that have an answer
let takesPictures = false; // the model, as its server says
let running = null; // the AbortController of the answer that is being written

/** An error with a message for the user. */
class Problem extends Error {}

// -- the server

function request(path, init = {}) {
  const headers = { ...init.headers };
  const stored = inTab.get(KEY);
  // In UTF-8, because a header can have only bytes.
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
        messages: [...systemMessages(), ...asked],
        ...sampling(),
        stream: true,
        stream_options: { include_usage: true, continuous_usage_stats: true },
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

/** Show the model's name. The request for it also shows at once whether a key is needed. */
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
  const { id: name, input_modalities: kinds } = (await response.json()).data[0];
  if (kinds?.includes("image") && !takesPictures) {
    takesPictures = true;
    offerPictures(message, (text) => (problem.textContent = text));
  }
  element("model").textContent = name;
  document.title = `Chat – ${name}`;
  element("suggestion").hidden = name !== DEMO;
  problem.textContent = "";
}

// -- the conversation

/** Send a question, and show the answer while it arrives: in the place of *replaced*, if given. */
async function ask(question, replaced = null) {
  const pictures = replaced?.pictures ?? takePictures();
  const abort = (running = new AbortController());
  const turn = new Turn(question, pictures, replaced);
  const before = answered.filter((each) => each !== replaced);
  showRunning();
  status.textContent = "The model is answering.";
  problem.textContent = "";
  try {
    const asked = [...before.flatMap((each) => each.messages), turn.question];
    for await (const chunk of chunksOf(asked, abort.signal)) turn.add(chunk);
  } catch (error) {
    if (!abort.signal.aborted) turn.problem = error.message;
  }
  if (running !== abort) return; // a new conversation has begun
  running = null;
  turn.end(abort.signal.aborted);
  problem.textContent = turn.problem;
  if (turn.text) {
    answered = [...before, turn];
    status.textContent = turn.readText(); // screen readers read it once, not chunk by chunk
  } else {
    status.textContent = "";
    // Without an answer the question does not count: it can be sent again.
    if (!turn.ended) takeBack(turn, replaced);
  }
  showRunning();
}

function takeBack(turn, replaced) {
  turn.remove(replaced);
  if (replaced === null && message.value === "") {
    message.value = turn.asked;
    setPictures(turn.pictures);
    fit();
  }
}

/** Ask for the last answer again. It stays if no new one comes. */
function retry() {
  const last = answered.at(-1);
  if (running === null && last) ask(last.asked, last);
}

async function copied(text, button) {
  const label = button.textContent;
  const isCopied = await copy(text);
  status.textContent = isCopied ? "Copied." : "The browser does not allow copying.";
  button.textContent = isCopied ? "Copied" : "Not copied";
  setTimeout(() => (button.textContent = label), COPIED_SHOWN);
}

/** A question with its answer, on the page. */
class Turn {
  text = "";
  problem = "";
  ended = false; // by the model

  #clock = new Clock();
  #finishReason = null;
  #node = element("turn").content.firstElementChild.cloneNode(true);
  #answer = this.#node.querySelector(".answer > .text");
  #view = new MarkdownView(this.#answer, keepingEndInSight);
  #reasoning = this.#node.querySelector(".reasoning");
  #figures = this.#node.querySelector(".figures");

  constructor(question, pictures, replaced) {
    this.asked = question;
    this.pictures = pictures;
    const parts = [...pictures.map(pictureAsPart), { type: "text", text: question }];
    this.question = { role: "user", content: pictures.length ? parts : question };
    this.#node.querySelector(".question .pictures").append(...pictures);
    this.#node.querySelector(".question .text").textContent = question;
    this.#node.classList.add("waiting");
    this.#figures.textContent = "Waiting for the model …";
    this.#node.querySelector(".copy").addEventListener("click", ({ currentTarget }) => {
      copied(this.text, currentTarget);
    });
    this.#node.querySelector(".retry").addEventListener("click", retry);
    this.#answer.addEventListener("click", ({ target }) => {
      const button = target.closest(".copy-code");
      if (button) copied(button.closest(".code").querySelector("pre").textContent, button);
    });
    if (replaced) replaced.#node.replaceWith(this.#node);
    else turns.append(this.#node);
    welcome.hidden = true;
    conversation.scrollTop = conversation.scrollHeight;
  }

  /** The messages that it adds to the conversation. */
  get messages() {
    return [this.question, { role: "assistant", content: this.text }];
  }

  add({ choices: [choice], usage }) {
    const { content, reasoning_content: reasoning } = choice?.delta ?? {};
    this.#clock.add(Boolean(content || reasoning), usage);
    if (!choice) return;
    if (content || reasoning) {
      this.#node.classList.replace("waiting", "writing");
      this.#figures.textContent = "";
    }
    if (reasoning) {
      keepingEndInSight(() => {
        this.#reasoning.hidden = false;
        this.#reasoning.querySelector(".text").append(reasoning);
      });
    }
    if (content) {
      this.text += content;
      this.#view.add(content);
    }
    if (choice.finish_reason) {
      this.#finishReason = choice.finish_reason;
      this.ended = true;
    }
  }

  end(stopped) {
    this.#view.end();
    const how = this.problem
      ? "interrupted"
      : stopped
        ? "stopped"
        : { stop: "finished", length: "cut off at the token limit" }[this.#finishReason] ??
          this.#finishReason;
    keepingEndInSight(() => {
      this.#node.classList.remove("waiting", "writing");
      this.#figures.textContent = [how, ...this.#clock.figures()].join(" · ");
      this.#node.querySelector(".actions").hidden = this.text === "";
    });
  }

  /** The answer without marks and buttons, for a screen reader. */
  readText() {
    const blocks = [...this.#answer.querySelectorAll(BLOCKS)];
    return blocks.map((block) => block.textContent).join("\n");
  }

  /** Take it off the page; *replaced* comes back. */
  remove(replaced) {
    if (replaced) {
      replaced.#node.querySelector(".question .pictures").append(...this.pictures);
      this.#node.replaceWith(replaced.#node);
    }
    else this.#node.remove();
    welcome.hidden = turns.childElementCount > 0;
  }
}

/** Counts the tokens of one answer, and measures their times. */
class Clock {
  #begun = performance.now();
  #chunks = 0;
  #tokens = null; // the server's count
  #first = null; // [milliseconds, tokens] when the first text came
  #last = null;

  add(hasText, usage) {
    if (usage) this.#tokens = usage.completion_tokens;
    if (!hasText) return;
    this.#chunks += 1;
    this.#last = [performance.now(), this.#tokens];
    this.#first ??= this.#last;
  }

  figures() {
    const took = duration(performance.now() - this.#begun);
    // A chunk has one token, or several.
    const count =
      this.#tokens === null ? `at least ${tokens(this.#chunks)}` : tokens(this.#tokens);
    return [count, took, ...this.#rate()];
  }

  /** Tokens per second, from the first one on. */
  #rate() {
    if (this.#first === null || this.#first[1] === null) return [];
    const seconds = (this.#last[0] - this.#first[0]) / 1000;
    const count = this.#last[1] - this.#first[1];
    if (count < 1 || seconds < SHORTEST) return [];
    const rate = count / seconds;
    return [`${rate.toLocaleString("en", { maximumFractionDigits: rate < 10 ? 1 : 0 })} tokens/s`];
  }
}

const tokens = (number) => `${number.toLocaleString("en")} token${number === 1 ? "" : "s"}`;

/** A time in seconds, or a short time in milliseconds: in seconds it would be 0.0 s. */
const duration = (ms) => (ms < 100 ? `${Math.ceil(ms) || 1} ms` : `${(ms / 1000).toFixed(1)} s`);

/** Keep the end of the conversation in sight while *change* makes it grow, if it was in sight. */
function keepingEndInSight(change) {
  const { scrollTop, scrollHeight, clientHeight } = conversation;
  change();
  if (scrollHeight - scrollTop - clientHeight <= 80) {
    conversation.scrollTop = conversation.scrollHeight;
  }
}

function showRunning() {
  if (running === null && document.activeElement === stop) message.focus();
  send.hidden = running !== null;
  stop.hidden = running === null;
  turns.classList.toggle("is-running", running !== null);
}

/** Closes the connection, which stops the model. */
function stopAnswer() {
  running?.abort();
}

// -- the key

function askForKey() {
  keyRefused.hidden = inTab.get(KEY) === null;
  inTab.set(KEY, null);
  key.value = "";
  if (!keyDialog.open) keyDialog.showModal();
}

element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  inTab.set(KEY, key.value.trim());
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
  if (event.key === "Escape" && !event.isComposing && !document.querySelector("dialog[open]")) stopAnswer();
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
  answered = [];
  setPictures([]);
  turns.replaceChildren();
  welcome.hidden = false;
  problem.textContent = status.textContent = "";
  showRunning();
  message.focus();
});
addEventListener("pagehide", stopAnswer);

greet();
