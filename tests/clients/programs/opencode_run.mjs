// opencode, an agent for code: its command, with a provider of its configuration.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import * as checks from "./checks.mjs";

const home = mkdtempSync(join(tmpdir(), "opencode-"));
const provider = {
  npm: "@ai-sdk/openai-compatible",
  options: { baseURL: checks.V1, apiKey: "key" },
  models: { [checks.MODEL]: { name: checks.MODEL, limit: { context: 200_000, output: checks.LIMIT } } },
};
const model = `local/${checks.MODEL}`;
const config = { provider: { local: provider }, model, small_model: model, autoupdate: false, share: "disabled" };
const env = {
  ...process.env,
  HOME: home,
  OPENCODE_CONFIG_CONTENT: JSON.stringify(config),
  ...Object.fromEntries(["CACHE", "CONFIG", "DATA", "STATE"].map((each) => [`XDG_${each}_HOME`, join(home, each)])),
};
const command = join(dirname(fileURLToPath(import.meta.url)), "node_modules", ".bin", "opencode");
const start = (text) =>
  spawn(command, ["run", "--format", "json", text], { cwd: home, env, stdio: ["ignore", "pipe", "inherit"] });

// The texts of its answers, and the tools that the model called.
async function answersTo(text) {
  let said = "";
  for await (const part of start(text).stdout) said += part;
  const parts = said.trim().split("\n").map((line) => JSON.parse(line).part);
  return {
    texts: parts.filter((each) => each?.type === "text").map((each) => each.text),
    tools: parts.filter((each) => each?.type === "tool"),
  };
}

await checks.tryAll("opencode-ai", {
  whole: "it always streams",
  stream: {
    uses: "`opencode run`, with `@ai-sdk/openai-compatible`",
    async run() {
      assert.deepEqual((await answersTo(checks.COUNT)).texts, [checks.COUNTED]);
    },
  },
  tools: {
    uses: "`opencode run`: its own tools are in every request, and what came of a call is sent back",
    async run() {
      const { texts, tools } = await answersTo(checks.WEATHER);
      assert.ok(tools.length);
      assert.equal(texts.at(-1), checks.COUNTED);
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
