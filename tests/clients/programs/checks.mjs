// What the clients' programs for node share: checks.py says what each does.
import { readFileSync, writeFileSync } from "node:fs";
import { setTimeout } from "node:timers/promises";

export const URL = process.env.SERVER_URL;
export const V1 = `${URL}/v1`;
export const MODEL = process.env.SERVER_MODEL;
export const COUNT = "Count, please.";
export const COUNTED = "one, two, three, four, five, six, seven, eight, nine, ten";
export const WEATHER = "How is the weather in Paris?";
export const ENDLESS = "Tick for ever.";
export const LIMIT = 20_000;
export const PARAMETERS = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
};

async function metric(name) {
  const text = await (await fetch(`${URL}/metrics`)).text();
  return Number(text.match(new RegExp(`^${name}(?:\\{.*\\})? (\\S+)$`, "m"))[1]);
}

const tokensMade = () => metric("anystreamer_computed_tokens_total");

export async function untilRunning() {
  while (!(await metric("anystreamer_requests_running"))) await setTimeout(10);
}

let madeBefore = 0;

export async function untilStopped() {
  while (await metric("anystreamer_requests_running")) await setTimeout(50);
  const made = (await tokensMade()) - madeBefore;
  if (made >= LIMIT / 2) throw new Error(`the model made ${made} tokens`);
}

// A way is { uses, run }, or a string: why the client has none.
export async function tryAll(name, ways) {
  const results = {};
  for (const [way, value] of Object.entries(ways)) {
    if (typeof value === "string") {
      results[way] = { uses: "", outcome: value };
      continue;
    }
    console.error(way);
    madeBefore = await tokensMade();
    let outcome = "yes";
    try {
      await value.run();
    } catch (error) {
      console.error(error);
      outcome = `WRONG: ${error.name}: ${String(error.message).replaceAll(/\s+/g, " ").slice(0, 300)}`;
    }
    results[way] = { uses: value.uses, outcome };
  }
  // npm has installed it beside this file.
  const installed = new globalThis.URL(`node_modules/${name}/package.json`, import.meta.url);
  const { version } = JSON.parse(readFileSync(installed));
  writeFileSync(process.argv[2], JSON.stringify({ version, ways: results }));
  process.exit();
}
