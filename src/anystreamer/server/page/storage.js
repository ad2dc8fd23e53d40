// Keeps texts in the browser. If the browser forbids that, they last as long as the page.

class Kept {
  #texts = new Map();
  #storage;

  /** *storage* returns a Storage, or throws. */
  constructor(storage) {
    this.#storage = storage;
  }

  get(name) {
    if (this.#texts.has(name)) return this.#texts.get(name);
    try {
      return this.#storage().getItem(name);
    } catch {
      return null;
    }
  }

  /** Null forgets it. */
  set(name, text) {
    this.#texts.set(name, text);
    try {
      if (text === null) this.#storage().removeItem(name);
      else this.#storage().setItem(name, text);
    } catch {
      return; // the storage is forbidden, or full
    }
    this.#texts.delete(name);
  }
}

/** Until the tab is closed. */
export const inTab = new Kept(() => sessionStorage);

/** For all later visits. Any page with the same scheme, host and port can read it. */
export const inBrowser = new Kept(() => localStorage);
