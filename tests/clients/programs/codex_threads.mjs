// Codex, the agent for code, by its SDK: it starts the command, which talks the Responses API.
import assert from "node:assert/strict";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Codex } from "@openai/codex-sdk";
import * as checks from "./checks.mjs";

const home = mkdtempSync(join(tmpdir(), "codex-"));
const codex = new Codex({
  env: { ...process.env, CODEX_HOME: home, LOCAL_KEY: "key" },
  config: {
    model_provider: "local",
    model_providers: {
      local: { name: "local", base_url: checks.V1, env_key: "LOCAL_KEY", wire_api: "responses", request_max_retries: 0, stream_max_retries: 0 },
    },
  },
});
const thread = () =>
  codex.startThread({ model: checks.MODEL, workingDirectory: home, skipGitRepoCheck: true, sandboxMode: "read-only" });

await checks.tryAll("@openai/codex-sdk", {
  whole: "it always streams",
  stream: {
    uses: "`thread.run`, `thread.runStreamed`; a second question",
    async run() {
      const talk = thread();
      for (let turn = 0; turn < 2; turn++) assert.equal((await talk.run(checks.COUNT)).finalResponse, checks.COUNTED);
      const { events } = await thread().runStreamed(checks.COUNT);
      const texts = [];
      for await (const event of events)
        if (event.type === "item.completed" && event.item.type === "agent_message") texts.push(event.item.text);
      assert.deepEqual(texts, [checks.COUNTED]);
    },
  },
  tools: {
    uses: "`thread.run`: its own tools are in every request, and what came of a call is sent back",
    async run() {
      assert.equal((await thread().run(checks.WEATHER)).finalResponse, checks.COUNTED);
    },
  },
  forced_tool: "it lets the model choose",
  structured: {
    uses: "`outputSchema`",
    async run() {
      const schema = { ...checks.PARAMETERS, additionalProperties: false };
      const { finalResponse } = await thread().run(checks.COUNT, { outputSchema: schema });
      assert.deepEqual(JSON.parse(finalResponse), { city: "" });
    },
  },
  cancel: {
    uses: "a `signal`, which ends the command",
    async run() {
      const controller = new AbortController();
      const running = thread().run(checks.ENDLESS, { signal: controller.signal }).catch(() => {});
      await checks.untilRunning();
      controller.abort();
      await running;
      await checks.untilStopped();
    },
  },
});
