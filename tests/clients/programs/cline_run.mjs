// Cline: its command, with its provider for APIs like OpenAI's.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import * as checks from "./checks.mjs";

const home = mkdtempSync(join(tmpdir(), "cline-"));
const env = { ...process.env, HOME: home };
const command = join(dirname(fileURLToPath(import.meta.url)), "node_modules", ".bin", "cline");
const start = (...args) => spawn(command, args, { cwd: home, env, stdio: ["ignore", "pipe", "inherit"] });

// The last line that the command prints, which says what came of it.
async function resultOf(text) {
  let said = "";
  for await (const part of start("--json", text).stdout) said += part;
  return JSON.parse(said.trim().split("\n").at(-1));
}

await once(start("auth", "-p", "openai-compatible", "-k", "key", "-m", checks.MODEL, "-b", checks.V1), "exit");

await checks.tryAll("cline", {
  whole: "it always streams",
  stream: {
    uses: "`cline --json`, with its provider `openai-compatible`",
    async run() {
      assert.equal((await resultOf(checks.COUNT)).text, checks.COUNTED);
    },
  },
  tools: {
    uses: "`cline --json`: its own tools are in every request, and what came of a call is sent back",
    async run() {
      const { text, iterations } = await resultOf(checks.WEATHER);
      assert.ok(iterations > 1);
      assert.equal(text, checks.COUNTED);
    },
  },
  forced_tool: "it lets the model choose",
  structured: "it asks for no form",
  cancel: {
    uses: "ending the command",
    async run() {
      const running = start("--json", checks.ENDLESS);
      await checks.untilRunning();
      running.kill("SIGINT");
      await checks.untilStopped();
    },
  },
});
