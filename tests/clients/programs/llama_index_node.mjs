// LlamaIndex for TypeScript: its model for OpenAI's APIs, alone and in an agent.
import assert from "node:assert/strict";
import { openai, OpenAIResponses } from "@llamaindex/openai";
import { agent, agentStreamEvent } from "@llamaindex/workflow";
import { tool } from "llamaindex";
import { z } from "zod";
import * as checks from "./checks.mjs";

const model = (rest = {}) => openai({ model: checks.MODEL, baseURL: checks.V1, apiKey: "key", maxRetries: 0, ...rest });
const user = (content) => [{ role: "user", content }];
const schema = z.object({ city: z.string() });
const get_weather = tool({
  name: "get_weather",
  description: "The weather in a city.",
  parameters: schema,
  execute: ({ city }) => `Sunny in ${city}.`,
});

await checks.tryAll("llamaindex", {
  whole: {
    uses: "`chat`, `complete`",
    async run() {
      assert.equal((await model().chat({ messages: user(checks.COUNT) })).message.content, checks.COUNTED);
      assert.equal((await model().complete({ prompt: checks.COUNT })).text, checks.COUNTED);
    },
  },
  stream: {
    uses: "`chat({ stream: true })`",
    async run() {
      let text = "";
      for await (const part of await model().chat({ messages: user(checks.COUNT), stream: true })) text += part.delta;
      assert.equal(text, checks.COUNTED);
    },
  },
  tools: {
    uses: "`agent({ tools })`, which streams, and sends the result back",
    async run() {
      const done = await agent({ llm: model(), tools: [get_weather] }).run(checks.WEATHER);
      assert.equal(done.data.result, checks.COUNTED);
    },
  },
  forced_tool: {
    uses: '`additionalChatOptions: { tool_choice }`: "required" and the tool\'s name',
    async run() {
      for (const tool_choice of ["required", { type: "function", function: { name: "get_weather" } }]) {
        const asked = { messages: user(checks.COUNT), tools: [get_weather], additionalChatOptions: { tool_choice } };
        assert.equal((await model().chat(asked)).message.options.toolCall[0].name, "get_weather");
      }
    },
  },
  structured: {
    uses: "`chat({ responseFormat })` with a schema of zod",
    async run() {
      const asked = { messages: user(checks.COUNT), responseFormat: schema };
      assert.deepEqual(JSON.parse((await model().chat(asked)).message.content), { city: "" });
    },
  },
  cancel: "it has no way: a stream that is left stays open",
});
