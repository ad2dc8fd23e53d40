// The OpenAI Agents SDK for JavaScript, with its models for both of OpenAI's APIs.
import assert from "node:assert/strict";
import { Agent, OpenAIProvider, Runner, setTracingDisabled, tool } from "@openai/agents";
import { z } from "zod";
import * as checks from "./checks.mjs";

setTracingDisabled(true);
const runners = [true, false].map(
  (useResponses) =>
    new Runner({ modelProvider: new OpenAIProvider({ baseURL: checks.V1, apiKey: "key", useResponses }) }),
);
const get_weather = tool({
  name: "get_weather",
  description: "The weather in a city.",
  parameters: z.object({ city: z.string() }),
  execute: async ({ city }) => `Sunny in ${city}.`,
});
const agent = (more = {}) => new Agent({ name: "agent", instructions: "Be short.", model: checks.MODEL, ...more });
const Weather = z.object({ city: z.string(), degrees: z.number().int() });

await checks.tryAll("@openai/agents", {
  whole: {
    uses: "`Runner.run`, with the Responses API and with chat completions",
    async run() {
      for (const runner of runners) assert.equal((await runner.run(agent(), checks.COUNT)).finalOutput, checks.COUNTED);
    },
  },
  stream: {
    uses: "`run(agent, input, { stream: true })`",
    async run() {
      for (const runner of runners) {
        const result = await runner.run(agent(), checks.COUNT, { stream: true });
        let text = "";
        for await (const part of result.toTextStream()) text += part;
        await result.completed;
        assert.equal(text, checks.COUNTED);
      }
    },
  },
  tools: {
    uses: "`new Agent({ tools })`, whole and streamed; a schema is strict by default; a handoff",
    async run() {
      for (const runner of runners) {
        const other = agent({ name: "other" });
        for (const more of [{}, { handoffs: [other] }]) {
          const asked = agent({ tools: [get_weather], ...more });
          const whole = await runner.run(asked, checks.WEATHER);
          assert.equal(whole.finalOutput, checks.COUNTED);
          assert.match(JSON.stringify(whole.history), /Sunny in Paris/);
          const streamed = await runner.run(asked, checks.WEATHER, { stream: true });
          await streamed.completed;
          assert.equal(streamed.finalOutput, checks.COUNTED);
        }
      }
    },
  },
  forced_tool: {
    uses: '`modelSettings.toolChoice`: "required" and the tool\'s name',
    async run() {
      for (const runner of runners)
        for (const toolChoice of ["required", "get_weather"]) {
          const asked = agent({ tools: [get_weather], modelSettings: { toolChoice } });
          const result = await runner.run(asked, checks.COUNT);
          assert.match(JSON.stringify(result.history), /Sunny in/);
          assert.equal(result.finalOutput, checks.COUNTED);
        }
    },
  },
  structured: {
    uses: "`outputType`, also beside tools",
    async run() {
      for (const runner of runners)
        for (const tools of [[], [get_weather]]) {
          const input = tools.length ? checks.WEATHER : checks.COUNT;
          const result = await runner.run(agent({ outputType: Weather, tools }), input);
          assert.deepEqual(result.finalOutput, { city: "", degrees: 0 });
        }
    },
  },
  cancel: {
    uses: "a `signal`, with and without a stream",
    async run() {
      for (const runner of runners) {
        const asked = agent({ modelSettings: { maxTokens: checks.LIMIT } });
        for (const stream of [true, false]) {
          const controller = new AbortController();
          const running = (async () => {
            const result = await runner.run(asked, checks.ENDLESS, { stream, signal: controller.signal });
            if (stream) for await (const _ of result.toTextStream());
          })().catch(() => {});
          await checks.untilRunning();
          controller.abort();
          await running;
          await checks.untilStopped();
        }
      }
    },
  },
});
