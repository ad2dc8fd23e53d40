// Shows Markdown that grows. Nodes are created one by one, and text enters them as text.
//
// Blocks that further text cannot change stay as they are. The last block is parsed again for each
// frame of the screen. A long one is parsed again when it has grown by an eighth: until then, its
// new text is shown unparsed. So for any answer, the time is proportional to its length.

import { parse } from "./markdown.js";

const LONG = 4096; // characters

// A last line that has only this can still become several kinds of block: it is not shown yet.
const UNDECIDED = /(?:^|\n)[ \t]*(?:[-=*+_#>`~|:][-=*+_#>`~|: \t]*|\d{1,9}[.)][ \t]*)$/;

const ELEMENTS = {
  paragraph: "p",
  rule: "hr",
  quote: "blockquote",
  item: "li",
  row: "tr",
  emphasis: "em",
  strong: "strong",
  deleted: "del",
  code: "code",
};
const SPANS = new Set(["em", "strong", "del", "code", "span", "bdi"]);

export class MarkdownView {
  #root;
  #draws;
  #text = ""; // of the blocks that can still change
  #final = 0; // how many nodes of the root can no longer change
  #parsed = 0; // how many characters of the text have been parsed
  #shown = 0; // how many are on the page
  #frame = null;

  /** *draws* is called with each function that changes *root*. */
  constructor(root, draws = (change) => change()) {
    this.#root = root;
    this.#draws = draws;
  }

  add(text) {
    this.#text += text.replaceAll("\r", "");
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      this.#draws(() => this.#draw());
    });
  }

  /** Show everything as it is now. */
  end() {
    cancelAnimationFrame(this.#frame);
    this.#draws(() => this.#show(parse(this.#text)));
  }

  #draw() {
    const { length } = this.#text;
    if (length > LONG && length - this.#parsed < this.#parsed / 8) {
      lastBlock(this.#root).append(this.#text.slice(this.#shown));
      this.#shown = length;
      return;
    }
    const undecided = UNDECIDED.exec(this.#text.slice(-256));
    const blocks = parse(undecided ? this.#text.slice(0, -undecided[0].length) : this.#text);
    this.#show(blocks);
    // The line where a block begins, and the next one, decide that the block before has ended.
    let end = this.#text.lastIndexOf("\n");
    end = end > 0 ? this.#text.lastIndexOf("\n", end - 1) : -1;
    const last = blocks.findLastIndex(({ start }, number) => number > 0 && start <= end);
    if (last > 0) {
      this.#text = this.#text.slice(blocks[last].start);
      this.#final += last;
    }
    this.#parsed = this.#shown = this.#text.length;
  }

  #show(blocks) {
    patch(this.#root, blocks.map(elementOf), this.#final);
  }
}

/** The element that text is added to if it continues the last block. */
function lastBlock(node) {
  while (node.lastElementChild && !SPANS.has(node.lastElementChild.localName)) {
    node = node.lastElementChild;
  }
  return node;
}

// -- from kinds to elements

/** A block or a span as `{tag, children, className, attributes}`; a text as it is. */
function elementOf(node) {
  if (typeof node === "string") return node;
  const children = node.children.map(elementOf);
  switch (node.kind) {
    case "heading": // the page's own heading is the h1
      return element(`h${Math.min(node.level + 1, 6)}`, children);
    case "code":
      return node.text === undefined ? element("code", children) : codeBlock(node);
    case "list":
      if (node.first === null) return element("ul", children);
      return element("ol", children, "", node.first === 1 ? {} : { start: node.first });
    case "text": // of an item that has no paragraphs
      return element("span", children, "line");
    case "table":
      return table(children);
    case "cell":
      return element(node.isHead ? "th" : "td", children, node.align);
    case "address": // isolated: its letters can be written from right to left
      return element("bdi", children, "address");
    case "link":
    case "image":
      return element("span", children, node.kind);
  }
  return element(ELEMENTS[node.kind], children);
}

const element = (tag, children, className = "", attributes = {}) => ({
  tag,
  children,
  className,
  attributes,
});

function codeBlock({ language, text }) {
  const copy = element("button", ["Copy code"], "quiet small copy-code", { type: "button" });
  return element("div", [
    element("div", [element("span", [language]), copy], "bar"),
    element("pre", text ? [text] : [], "", { tabindex: 0, dir: "ltr" }),
  ], "code");
}

function table([head, ...rows]) {
  const parts = [element("thead", [head]), ...(rows.length ? [element("tbody", rows)] : [])];
  // The keyboard can scroll only an element that can have the focus.
  const attributes = { tabindex: 0, role: "group", "aria-label": "Table" };
  return element("div", [element("table", parts)], "scroll", attributes);
}

// -- from elements to nodes

/**
 * Make the nodes of *parent*, from number *first* on, those of *children*. What stays the same
 * keeps its node, and with it the focus, the selection and how far it is scrolled.
 */
function patch(parent, children, first = 0) {
  let node = parent.childNodes[first] ?? null;
  for (const child of children) {
    if (node && isLike(node, child)) {
      update(node, child);
      node = node.nextSibling;
    } else {
      const made = build(child);
      if (node) {
        const next = node.nextSibling;
        node.replaceWith(made);
        node = next;
      } else {
        parent.append(made);
      }
    }
  }
  while (node) {
    const next = node.nextSibling;
    node.remove();
    node = next;
  }
}

const isLike = (node, child) =>
  typeof child === "string" ? node.nodeType === Node.TEXT_NODE : node.localName === child.tag;

function update(node, child) {
  if (typeof child === "string") {
    if (child.startsWith(node.data)) {
      if (child.length > node.data.length) node.appendData(child.slice(node.data.length));
    } else {
      node.data = child;
    }
    return;
  }
  if (node.className !== child.className) node.className = child.className;
  for (const { name } of [...node.attributes]) {
    if (name !== "class" && !(name in child.attributes)) node.removeAttribute(name);
  }
  for (const [name, value] of Object.entries(child.attributes)) {
    if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
  }
  patch(node, child.children);
}

function build(child) {
  if (typeof child === "string") return document.createTextNode(child);
  const node = document.createElement(child.tag);
  update(node, child);
  return node;
}
