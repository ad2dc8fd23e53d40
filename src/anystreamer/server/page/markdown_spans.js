// Parses what is within a block of Markdown: emphasis, code, links, escapes. It makes no nodes.
//
// The links of an answer cannot be followed: the address is shown beside the text. The time is
// linear, as in `markdown.js`.

const DEEPEST = 16; // emphasis and links inside each other; deeper ones have no effect

const SPECIAL = /[\\`*_~[\]!<&]/g;
const ESCAPED = /\\([!-/:-@[-`{-~\n])/y;
const AUTOLINK = /<([a-z][a-z0-9+.-]{1,31}:[^\s<>]{0,1024})>/iy;
const BREAK = /<br ?\/?>/iy;
const ENTITY = /&(?:#(\d{1,7})|#x([\da-f]{1,6})|(amp|lt|gt|quot|apos|nbsp));/iy;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };

const SPACE = /[ \n]{0,256}/y;
const POINTED = /<([^<>\n]{0,1024})>/y;
const ADDRESS = /(?:[^\s()\\<]|\\.|\([^\s()]{0,256}\)){1,1024}/y;
const TITLE = /"[^"]{0,1024}"|'[^']{0,1024}'|\([^()]{0,1024}\)/y;

export const isBlank = (line) => line.trim() === "";

/**
 * The spans of a block's text: strings, and `{kind, children}`.
 *
 * Kinds: emphasis, strong, deleted, code, link, image, address.
 */
export function spansOf(text) {
  return treeOf(new Scanner(text).scan());
}

/** The match of a sticky pattern at a place, or null. */
function match(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

/** Finds the parts of a text: strings, `{span}`, runs of `*`, `_` and `~`, and ends of links. */
class Scanner {
  #text;
  #at = 0;
  #parts = [];
  #runs = []; // the runs in `#parts` that can still become emphasis
  #brackets = []; // the brackets that can still become a link
  #without = 0; // how many of the first brackets contain a link, and cannot become one
  #lastTicks = null; // by the number of backticks: where the last run of this length is

  constructor(text) {
    this.#text = text;
  }

  scan() {
    while (this.#at < this.#text.length) {
      SPECIAL.lastIndex = this.#at;
      const next = SPECIAL.exec(this.#text)?.index ?? this.#text.length;
      if (next > this.#at) this.#take(this.#text.slice(this.#at, next), next - this.#at);
      if (next < this.#text.length) this.#special(this.#text[next]);
    }
    pair(this.#runs);
    return this.#parts;
  }

  #special(character) {
    switch (character) {
      case "`":
        return this.#code();
      case "*":
      case "_":
      case "~":
        return this.#run(character);
      case "[":
        return this.#open("[", "link");
      case "!":
        return this.#text[this.#at + 1] === "[" ? this.#open("![", "image") : this.#take("!", 1);
      case "]":
        return this.#close();
    }
    return this.#replaced() || this.#take(character, 1);
  }

  /** Add a part for the next characters. */
  #take(part, length) {
    this.#parts.push(part);
    this.#at += length;
    return true;
  }

  /** Escapes, entities, breaks, and addresses between `<` and `>`. */
  #replaced() {
    const [text, at] = [this.#text, this.#at];
    let found;
    if ((found = match(ESCAPED, text, at))) return this.#take(found[1], 2);
    if ((found = match(BREAK, text, at))) return this.#take("\n", found[0].length);
    if ((found = match(ENTITY, text, at))) return this.#take(characterOf(found), found[0].length);
    if ((found = match(AUTOLINK, text, at))) {
      return this.#take({ span: { kind: "address", children: [found[1]] } }, found[0].length);
    }
    return false;
  }

  #code() {
    const [text, at] = [this.#text, this.#at];
    const ticks = runAt(text, at, "`");
    if (this.#lastTicks === null) {
      this.#lastTicks = new Map();
      for (const { 0: run, index } of text.matchAll(/`+/g)) this.#lastTicks.set(run.length, index);
    }
    // After an escaped backtick, the rest of a run can have a length that no whole run has.
    if (!(this.#lastTicks.get(ticks) > at)) return this.#take("`".repeat(ticks), ticks);
    let end = at + ticks;
    for (;;) {
      end = text.indexOf("`", end);
      const length = runAt(text, end, "`");
      if (length === ticks) break;
      end += length;
    }
    let code = text.slice(at + ticks, end).replaceAll("\n", " ");
    if (/^ .*[^ ].* $/.test(code)) code = code.slice(1, -1);
    return this.#take({ span: { kind: "code", children: [code] } }, end + ticks - at);
  }

  #run(character) {
    const [text, at] = [this.#text, this.#at];
    const length = runAt(text, at, character);
    const before = kindOf(lastCharacter(text, at));
    const after = kindOf(String.fromCodePoint(text.codePointAt(at + length) ?? 0x20));
    const left = after !== "space" && (after === "word" || before !== "word");
    const right = before !== "space" && (before === "word" || after !== "word");
    const inWords = character !== "_"; // snake_case has no emphasis
    const run = {
      character,
      length,
      left: length,
      number: this.#parts.length,
      opens: left && (inWords || !right || before === "mark"),
      closes: right && (inWords || !left || after === "mark"),
      ends: [],
      begins: [],
    };
    if (character === "~" && length !== 2) return this.#take("~".repeat(length), length);
    this.#runs.push(run);
    return this.#take(run, length);
  }

  #open(mark, kind) {
    this.#brackets.push({ kind, part: this.#parts.length, runs: this.#runs.length });
    return this.#take(mark, mark.length);
  }

  #close() {
    const bracket = this.#brackets.pop();
    const isWithout = this.#brackets.length < this.#without;
    this.#without = Math.min(this.#without, this.#brackets.length);
    const target = bracket && !(isWithout && bracket.kind === "link") && this.#target();
    if (!target) return this.#take("]", 1);
    pair(this.#runs.splice(bracket.runs));
    this.#parts[bracket.part] = { begin: bracket.kind };
    if (bracket.kind === "link") this.#without = this.#brackets.length;
    return this.#take({ end: true, address: target.address }, target.end - this.#at);
  }

  /** The address that follows a link's text, and the place after it; null if there is none. */
  #target() {
    const text = this.#text;
    let at = this.#at + 1;
    if (text[at] !== "(") return null;
    const skip = () => (at += match(SPACE, text, at)[0].length);
    at += 1;
    skip();
    const found = match(POINTED, text, at) ?? match(ADDRESS, text, at);
    const address = (found?.[1] ?? found?.[0] ?? "").replace(/\\([!-/:-@[-`{-~])/g, "$1");
    at += found?.[0].length ?? 0;
    const end = at;
    if (skip() > end) at += match(TITLE, text, at)?.[0].length ?? 0;
    skip();
    return text[at] === ")" ? { address, end: at + 1 } : null;
  }
}

function runAt(text, at, character) {
  let end = at;
  while (text[end] === character) end += 1;
  return end - at;
}

function lastCharacter(text, at) {
  if (at === 0) return " ";
  const low = text.charCodeAt(at - 1);
  return low >= 0xdc00 && low < 0xe000 ? text.slice(Math.max(0, at - 2), at) : text[at - 1];
}

function kindOf(character) {
  if (/^\s/u.test(character)) return "space";
  return /^[\p{P}\p{S}]/u.test(character) ? "mark" : "word";
}

function characterOf([, decimal, hexadecimal, name]) {
  if (name) return ENTITIES[name.toLowerCase()];
  const code = decimal ? Number(decimal) : parseInt(hexadecimal, 16);
  const isCharacter = code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code < 0xe000);
  return isCharacter ? String.fromCodePoint(code) : "\ufffd";
}

/** Find the emphasis: each closing run takes the nearest opening one of its kind. */
function pair(runs) {
  const open = [];
  const searched = new Map(); // no run before this number opens for a closing run of this kind
  for (const run of runs) {
    const kind = `${run.character}${run.opens}${run.length % 3}`;
    while (run.closes && run.left > 0) {
      const from = searched.get(kind) ?? 0;
      let at = open.length - 1;
      while (at >= 0 && open[at].number >= from && !fits(open[at], run)) at -= 1;
      if (at < 0 || open[at].number < from) {
        searched.set(kind, run.number);
        break;
      }
      open.length = at + 1; // the runs between them can open nothing
      const opener = open[at];
      const width = opener.left >= 2 && run.left >= 2 ? 2 : 1;
      const span = run.character === "~" ? "deleted" : width === 2 ? "strong" : "emphasis";
      opener.begins.push(span);
      run.ends.push(span);
      opener.left -= width;
      run.left -= width;
      if (opener.left === 0) open.pop();
    }
    if (run.opens && run.left > 0) open.push(run);
  }
}

function fits(opener, closer) {
  if (opener.character !== closer.character) return false;
  const both = (opener.closes || closer.opens) && (opener.length + closer.length) % 3 === 0;
  return !both || (opener.length % 3 === 0 && closer.length % 3 === 0);
}

/** The parts as a tree: the open spans are on a stack. */
function treeOf(parts) {
  const root = [];
  const stack = [{ children: root }];
  let tooDeep = 0;
  const begin = (kind) => {
    if (stack.length > DEEPEST) return (tooDeep += 1);
    const span = { kind, children: [] };
    stack.at(-1).children.push(span);
    return stack.push(span);
  };
  const end = () => (tooDeep > 0 ? void (tooDeep -= 1) : stack.pop());
  const add = (part) => {
    const { children } = stack.at(-1);
    if (typeof part === "string" && typeof children.at(-1) === "string") {
      children.push(children.pop() + part);
    } else if (part !== "") {
      children.push(part);
    }
  };
  for (const part of parts) {
    if (typeof part === "string") add(part);
    else if (part.span) add(part.span);
    else if (part.begin) begin(part.begin);
    else if (part.end) {
      const link = end();
      if (!link || link.kind === "image" || textOf(link) !== part.address) {
        add(" (");
        add({ kind: "address", children: [part.address] });
        add(")");
      }
    } else {
      part.ends.forEach(end);
      add(part.character.repeat(part.left));
      part.begins.toReversed().forEach(begin);
    }
  }
  return root;
}

const textOf = (span) =>
  typeof span === "string" ? span : span.children.map(textOf).join("");
