// Continue: its command, with a model of its configuration.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import * as checks from "./checks.mjs";

const home = mkdtempSync(join(tmpdir(), "continue-"));
const config = join(home, "config.yaml");
const model = { name: checks.MODEL, provider: "openai", model: checks.MODEL, apiBase: checks.V1, apiKey: "key", roles: ["chat"], defaultCompletionOptions: { maxTokens: checks.LIMIT } };
// Each JSON is YAML.
writeFileSync(config, JSON.stringify({ name: "local", version: "1.0.0", schema: "v1", models: [model] }));
const env = { ...process.env, HOME: home, CONTINUE_GLOBAL_DIR: join(home, ".continue"), CONTINUE_TELEMETRY_ENABLED: "0" };
const command = join(dirname(fileURLToPath(import.meta.url)), "node_modules", ".bin", "cn");
const start = (text) => spawn(command, ["-p", "--config", config, text], { cwd: home, env, stdio: ["ignore", "pipe", "inherit"] });

async function answerTo(text) {
  let said = "";
  for await (const part of start(text).stdout) said += part;
  return said.trim();
}

await checks.tryAll("@continuedev/cli", {
  whole: "it always streams",
  stream: {
    uses: "`cn -p`",
    async run() {
      assert.equal(await answerTo(checks.COUNT), checks.COUNTED);
    },
  },
  tools: {
    uses: "`cn -p`: its own tools are in every request, and what came of a call is sent back",
    async run() {
      assert.ok((await answerTo(checks.WEATHER)).endsWith(checks.COUNTED));
    },
  },
  forced_tool: "it lets the model choose",
  structured: "it asks for no form",
  cancel: {
    uses: "ending the command",
    async run() {
      const running = start(checks.ENDLESS);
      await checks.untilRunning();
      running.kill("SIGINT");
      await checks.untilStopped();
    },
  },
});
