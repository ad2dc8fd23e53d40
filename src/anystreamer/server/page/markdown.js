// Parses the blocks of Markdown: CommonMark, and GitHub's tables. It makes no nodes of a document.
//
// Every text can be parsed, also half of an answer. HTML is text. The time is proportional to the
// length of any text: the nesting is limited, and no pattern is tried at each place up to the end
// of the text.

import { isBlank, spansOf } from "./markdown_spans.js";

const DEEPEST = 12; // quotes and lists inside each other; deeper ones are text
const TAB = 4;

/**
 * The blocks of a text, each as `{kind, children, start, gap}`. `start` is its place in the text.
 *
 * Kinds, and what else they have: paragraph, heading (level), code (language, text), rule, quote,
 * list (first: the number of an ordered one, or null), item, table, row, cell (align, isHead).
 */
export function parse(text) {
  const lines = text.split("\n");
  const blocks = blocksOf(lines, 0);
  let offset = 0;
  let line = 0;
  for (const block of blocks) {
    for (; line < block.line; line++) offset += lines[line].length + 1;
    block.start = offset;
  }
  return blocks;
}

function blocksOf(lines, depth) {
  const blocks = [];
  let at = 0;
  let gap = false; // whether an empty line comes before the block
  while (at < lines.length) {
    if (isBlank(lines[at])) {
      gap = true;
      at += 1;
      continue;
    }
    const [block, end] = blockAt(lines, at, depth);
    blocks.push({ ...block, line: at, gap: gap && blocks.length > 0 });
    gap = false;
    at = end;
  }
  return blocks;
}

/** The block that begins in a line, and the line after it. */
function blockAt(lines, at, depth) {
  const line = lines[at];
  if (indentOf(line) >= 4) return indentedCode(lines, at);
  const fence = fenceOf(line);
  if (fence) return fencedCode(lines, at, fence);
  const heading = headingOf(line);
  if (heading) return [heading, at + 1];
  if (isRule(line)) return [{ kind: "rule", children: [] }, at + 1];
  if (depth < DEEPEST) {
    if (quoted(line) !== null) return quote(lines, at, depth);
    if (markerOf(line)) return list(lines, at, depth);
  }
  if (isTable(lines, at)) return table(lines, at, depth);
  return paragraph(lines, at, depth);
}

/** Whether a block begins in a line that could go on with a paragraph. */
function interrupts(lines, at, depth) {
  const line = lines[at];
  if (indentOf(line) >= 4) return false;
  if (fenceOf(line) || headingOf(line) || isRule(line)) return true;
  if (depth < DEEPEST) {
    if (quoted(line) !== null) return true;
    const marker = markerOf(line);
    if (marker && !isBlank(marker.rest) && (marker.first ?? 1) === 1) return true;
  }
  return isTable(lines, at);
}

// -- the beginnings of lines

/** How far a line is indented, in columns. */
function indentOf(line, column = 0) {
  let width = column;
  for (let at = 0; at < line.length; at++) {
    if (line[at] === " ") width += 1;
    else if (line[at] === "\t") width += TAB - (width % TAB);
    else break;
  }
  return width - column;
}

/** A line without its first columns, as far as they are empty. */
function unindented(line, columns, column = 0) {
  const indent = indentOf(line, column);
  return " ".repeat(Math.max(0, indent - columns)) + line.trimStart();
}

function fenceOf(line) {
  const found = /^ {0,3}(`{3,}|~{3,})/.exec(line);
  if (!found) return null;
  const info = line.slice(found[0].length).trim();
  if (found[1][0] === "`" && info.includes("`")) return null; // code within a line
  return { indent: indentOf(line), mark: found[1], info };
}

function headingOf(line) {
  const found = /^ {0,3}(#{1,6})(?=[ \t]|$)/.exec(line);
  if (!found) return null;
  const text = line.slice(found[0].length).trim().replace(/(?:^|[ \t])#+$/, "");
  return { kind: "heading", level: found[1].length, children: spansOf(text.trim()) };
}

function isRule(line) {
  return indentOf(line) < 4 && /^(?:\*{3,}|-{3,}|_{3,})$/.test(line.replace(/[ \t]/g, ""));
}

/** A line of a quote without its mark, or null. */
function quoted(line) {
  const found = /^ {0,3}>/.exec(line);
  return found && unindented(line.slice(found[0].length), 1, found[0].length);
}

/** The mark of a list's item: `{kind, first, width, rest}`, or null. */
function markerOf(line) {
  const found = /^ {0,3}(?:([-+*])|(\d{1,9})([.)]))(?=[ \t]|$)/.exec(line);
  if (!found || isRule(line)) return null;
  const [{ length }, bullet, number, delimiter] = found;
  const rest = line.slice(length);
  const space = indentOf(rest, length);
  const taken = isBlank(rest) || space > 4 ? 1 : space; // more than 4: the item begins with code
  return {
    kind: bullet ?? delimiter,
    first: bullet ? null : Number(number),
    width: length + taken,
    rest: unindented(rest, taken, length),
  };
}

/** The underline of a heading: its level, or null. */
function underlineOf(line) {
  if (indentOf(line) >= 4) return null;
  const text = line.trim();
  if (/^=+$/.test(text)) return 1;
  return /^-+$/.test(text) ? 2 : null;
}

// -- blocks

function paragraph(lines, at, depth) {
  const own = [lines[at].trim()];
  for (at += 1; at < lines.length && !isBlank(lines[at]); at++) {
    const level = underlineOf(lines[at]);
    if (level) return [{ kind: "heading", level, children: spansOf(own.join("\n")) }, at + 1];
    if (interrupts(lines, at, depth)) break;
    own.push(lines[at].trim());
  }
  return [{ kind: "paragraph", children: spansOf(own.join("\n")) }, at];
}

/** Code between fences; without the second one, to the end. */
function fencedCode(lines, at, { indent, mark, info }) {
  const own = [];
  for (at += 1; at < lines.length; at++) {
    const end = fenceOf(lines[at]);
    if (end && end.mark[0] === mark[0] && end.mark.length >= mark.length && !end.info) break;
    own.push(indent ? withoutSpaces(lines[at], indent) : lines[at]);
  }
  return [{ kind: "code", language: info.split(/\s/)[0], text: own.join("\n"), children: [] }, at + 1];
}

const withoutSpaces = (line, most) => line.slice(Math.min(most, /^ */.exec(line)[0].length));

function indentedCode(lines, at) {
  const own = [];
  let end = at;
  for (; at < lines.length; at++) {
    const blank = isBlank(lines[at]);
    if (!blank && indentOf(lines[at]) < 4) break;
    own.push(unindented(lines[at], 4));
    if (!blank) end = at + 1;
  }
  own.length -= at - end; // the empty lines after it
  return [{ kind: "code", language: "", text: own.join("\n"), children: [] }, end];
}

function quote(lines, at, depth) {
  const inner = [];
  const text = new OpenParagraph();
  for (; at < lines.length; at++) {
    const rest = quoted(lines[at]);
    if (rest === null && !continues(lines, at, depth, text)) break;
    inner.push(rest ?? lines[at]);
    text.add(inner.at(-1));
  }
  return [{ kind: "quote", children: blocksOf(inner, depth + 1) }, at];
}

function list(lines, at, depth) {
  const { kind, first } = markerOf(lines[at]);
  const items = [];
  let isLoose = false; // then its texts are paragraphs
  let end = at;
  for (;;) {
    const marker = at < lines.length && indentOf(lines[at]) < 4 && markerOf(lines[at]);
    if (!marker || marker.kind !== kind) break;
    isLoose ||= items.length > 0 && end < at;
    const [inner, next] = itemLines(lines, at, marker, depth);
    const children = blocksOf(inner, depth + 1);
    isLoose ||= children.some((child) => child.gap);
    items.push({ kind: "item", children });
    end = next;
    for (at = next; at < lines.length && isBlank(lines[at]); ) at += 1;
  }
  if (!isLoose) for (const item of items) item.children = item.children.map(withoutParagraph);
  return [{ kind: "list", first, children: items }, end];
}

const withoutParagraph = (block) =>
  block.kind === "paragraph" ? { ...block, kind: "text" } : block;

/** The lines of an item without their indentation, and the line after the last. */
function itemLines(lines, at, marker, depth) {
  const inner = [marker.rest];
  const text = new OpenParagraph();
  text.add(marker.rest);
  let end = (at += 1);
  for (; at < lines.length; at++) {
    const line = lines[at];
    if (isBlank(line)) {
      if (inner.every(isBlank)) break; // an item begins with one empty line at most
      inner.push("");
    } else if (indentOf(line) >= marker.width) {
      inner.push(unindented(line, marker.width));
    } else if (continues(lines, at, depth, text) && !markerOf(line)) {
      inner.push(line);
    } else {
      break;
    }
    text.add(inner.at(-1));
    if (!isBlank(line)) end = at + 1;
  }
  inner.length -= at - end;
  return [inner, end];
}

/** Whether a line without its mark or indentation goes on with the paragraph before it. */
const continues = (lines, at, depth, text) =>
  text.isOpen && !isBlank(lines[at]) && !interrupts(lines, at, depth);

/** Whether the lines of a quote or an item end in a paragraph. */
class OpenParagraph {
  isOpen = false;
  #fence = null;

  add(line) {
    // A paragraph can be nested in quotes and lists: leave out their marks at the beginning.
    const bare = line.replace(/^(?:[ \t]*(?:>|[-+*][ \t]|\d{1,9}[.)][ \t]))*/, "");
    const fence = fenceOf(bare.trimStart());
    if (this.#fence) {
      if (fence?.mark.startsWith(this.#fence) && !fence.info) this.#fence = null;
      this.isOpen = false;
    } else {
      if (fence) this.#fence = fence.mark;
      const isText = !fence && !isBlank(bare) && !headingOf(bare) && !isRule(bare);
      this.isOpen = isText && (this.isOpen || indentOf(bare) < 4);
    }
  }
}

// -- tables

/** The cells of a row. A bar after a backslash is text. */
function cellsOf(line) {
  const text = line.trim();
  const cells = [];
  let from = text[0] === "|" ? 1 : 0;
  for (let at = from; at < text.length; at++) {
    if (text[at] === "\\") at += 1;
    else if (text[at] === "|") {
      cells.push(text.slice(from, at));
      from = at + 1;
    }
  }
  if (from < text.length) cells.push(text.slice(from));
  return cells.map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function isTable(lines, at) {
  if (at + 1 >= lines.length) return false;
  const [head, below] = [lines[at], lines[at + 1]];
  if (!head.includes("|") || !below.includes("|") || !/^[ \t|:-]+$/.test(below)) return false;
  const marks = cellsOf(below);
  return marks.every((mark) => /^:?-+:?$/.test(mark)) && marks.length === cellsOf(head).length;
}

function table(lines, at, depth) {
  const aligns = cellsOf(lines[at + 1]).map((mark) =>
    mark.endsWith(":") ? (mark[0] === ":" ? "center" : "right") : mark[0] === ":" ? "left" : "",
  );
  const rows = [row(lines[at], aligns, true)];
  for (at += 2; at < lines.length; at++) {
    if (isBlank(lines[at]) || interrupts(lines, at, depth)) break;
    rows.push(row(lines[at], aligns, false));
  }
  return [{ kind: "table", children: rows }, at];
}

// A short row gets no empty cells: in a wide table, many short rows would have too many.
const row = (line, aligns, isHead) => ({
  kind: "row",
  children: cellsOf(line)
    .slice(0, aligns.length)
    .map((cell, column) => ({
      kind: "cell",
      align: aligns[column],
      isHead,
      children: spansOf(cell),
    })),
});
