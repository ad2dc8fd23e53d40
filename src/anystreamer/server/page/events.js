// Parses a text/event-stream by the HTML standard. It does not read what the events contain.

/** The events of a response's body, each as `{type, data}`. Leaving the loop cancels the body. */
export async function* eventsOf(body) {
  // The decoder drops a byte order mark.
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  const parser = new EventParser();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return; // an event without its blank line does not count
      yield* parser.push(value);
    }
  } finally {
    reader.cancel().catch(() => {}); // it fails if the body has failed
  }
}

export class EventParser {
  #line = ""; // the line that has not ended yet
  #endedInReturn = false; // the text ended with CR: an LF that comes next ends the same line
  #type = "";
  #data = [];

  /** The events that are complete with `text`, wherever it was cut. */
  *push(text) {
    if (text === "") return;
    if (this.#endedInReturn && text[0] === "\n") text = text.slice(1);
    this.#endedInReturn = text.endsWith("\r");
    const lines = (this.#line + text).split(/\r\n|\r|\n/);
    this.#line = lines.pop();
    for (const line of lines) {
      if (line !== "") {
        this.#field(line);
        continue;
      }
      if (this.#data.length) yield { type: this.#type || "message", data: this.#data.join("\n") };
      this.#type = "";
      this.#data = [];
    }
  }

  #field(line) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon); // "" in a comment
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#type = value;
  }
}
