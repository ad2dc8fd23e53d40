// Mastra: its agents, with its own router of models, and with a model of the AI SDK.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Agent } from "@mastra/core/agent";
import { createTool } from "@mastra/core/tools";
import { z } from "zod";
import * as checks from "./checks.mjs";

const like = createOpenAICompatible({ baseURL: checks.V1, name: "local", supportsStructuredOutputs: true });
const models = [{ id: `local/${checks.MODEL}`, url: checks.V1, apiKey: "key" }, like(checks.MODEL)];
const get_weather = createTool({
  id: "get_weather",
  description: "The weather in a city.",
  inputSchema: z.object({ city: z.string() }),
  execute: async () => "Sunny in Paris.",
});
const agent = (model, rest = {}) => new Agent({ id: "helper", name: "helper", instructions: "Be short.", model, maxRetries: 0, ...rest });
const schema = z.object({ city: z.string() });

await checks.tryAll("@mastra/core", {
  whole: {
    uses: "`Agent.generate`, with a model's address and with `@ai-sdk/openai-compatible`",
    async run() {
      for (const model of models) assert.equal((await agent(model).generate(checks.COUNT)).text, checks.COUNTED);
    },
  },
  stream: {
    uses: "`Agent.stream`",
    async run() {
      for (const model of models) {
        let text = "";
        for await (const part of (await agent(model).stream(checks.COUNT)).textStream) text += part;
        assert.equal(text, checks.COUNTED);
      }
    },
  },
  tools: {
    uses: "`new Agent({ tools })`, which sends the result back, whole and streamed",
    async run() {
      for (const model of models) {
        const helper = agent(model, { tools: { get_weather } });
        assert.equal((await helper.generate(checks.WEATHER)).text, checks.COUNTED);
        assert.match(await (await helper.stream(checks.WEATHER)).text, /ten$/);
      }
    },
  },
  forced_tool: {
    uses: '`toolChoice`: "required" and the tool\'s name',
    async run() {
      for (const model of models)
        for (const toolChoice of ["required", { type: "tool", toolName: "get_weather" }]) {
          const done = await agent(model, { tools: { get_weather } }).generate(checks.COUNT, { toolChoice, maxSteps: 1 });
          assert.equal(done.toolCalls[0].payload.toolName, "get_weather");
        }
    },
  },
  structured: {
    uses: "`structuredOutput: { schema }`, whole and streamed",
    async run() {
      for (const model of models) {
        const asked = { structuredOutput: { schema } };
        assert.deepEqual((await agent(model).generate(checks.COUNT, asked)).object, { city: "" });
        assert.deepEqual(await (await agent(model).stream(checks.COUNT, asked)).object, { city: "" });
      }
    },
  },
  cancel: {
    uses: "`abortSignal`, with and without a stream",
    async run() {
      for (const model of models) {
        const asked = { modelSettings: { maxOutputTokens: checks.LIMIT } };
        const first = new AbortController();
        const streamed = await agent(model).stream(checks.ENDLESS, { ...asked, abortSignal: first.signal });
        for await (const _ of streamed.textStream) first.abort();
        await checks.untilStopped();
        const second = new AbortController();
        const done = agent(model).generate(checks.ENDLESS, { ...asked, abortSignal: second.signal }).catch(() => {});
        await checks.untilRunning();
        second.abort();
        await done;
        await checks.untilStopped();
      }
    },
  },
});
