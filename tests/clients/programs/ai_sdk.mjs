// The AI SDK: the package ai, with its providers for OpenAI (the Responses API) and for APIs like it.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, jsonSchema, Output, stepCountIs, streamObject, streamText, tool } from "ai";
import * as checks from "./checks.mjs";

const openai = createOpenAI({ baseURL: checks.V1 });
const like = createOpenAICompatible({ baseURL: checks.V1, name: "local", supportsStructuredOutputs: true });
const models = [openai(checks.MODEL), openai.chat(checks.MODEL), like(checks.MODEL)];
const schema = jsonSchema(checks.PARAMETERS);
const get_weather = tool({
  description: "The weather in a city.",
  inputSchema: schema,
  execute: async ({ city }) => `Sunny in ${city}.`,
});
const settings = { maxRetries: 0 };

await checks.tryAll("ai", {
  whole: {
    uses: "`generateText`, with `@ai-sdk/openai` (responses and chat) and `@ai-sdk/openai-compatible`",
    async run() {
      for (const model of models) {
        const { text, usage } = await generateText({ ...settings, model, prompt: checks.COUNT });
        assert.equal(text, checks.COUNTED);
        assert.ok(usage.outputTokens > 9);
      }
    },
  },
  stream: {
    uses: "`streamText`",
    async run() {
      for (const model of models) {
        let text = "";
        for await (const part of streamText({ ...settings, model, prompt: checks.COUNT }).textStream) text += part;
        assert.equal(text, checks.COUNTED);
      }
    },
  },
  tools: {
    uses: "`generateText` and `streamText` with `tools`, which send the result back",
    async run() {
      for (const model of models) {
        const asked = { ...settings, model, prompt: checks.WEATHER, tools: { get_weather }, stopWhen: stepCountIs(3) };
        const whole = await generateText(asked);
        assert.equal(whole.steps[0].toolResults[0].output, "Sunny in Paris.");
        assert.equal(whole.text, checks.COUNTED);
        const streamed = streamText(asked);
        assert.equal(await streamed.text, checks.COUNTED);
        assert.equal((await streamed.steps)[0].toolResults[0].output, "Sunny in Paris.");
      }
    },
  },
  forced_tool: {
    uses: '`toolChoice: "required"`, and the tool\'s name',
    async run() {
      for (const model of models)
        for (const toolChoice of ["required", { type: "tool", toolName: "get_weather" }]) {
          const asked = { ...settings, model, prompt: checks.COUNT, tools: { get_weather }, toolChoice };
          assert.equal((await generateText(asked)).toolCalls[0].toolName, "get_weather");
        }
    },
  },
  structured: {
    uses: "`generateObject`, `streamObject`, `Output.object`, also beside tools",
    async run() {
      for (const model of models) {
        const asked = { ...settings, model, prompt: checks.COUNT };
        assert.deepEqual((await generateObject({ ...asked, schema })).object, { city: "" });
        const streamed = streamObject({ ...asked, schema });
        let latest;
        for await (const partial of streamed.partialObjectStream) latest = partial;
        assert.deepEqual(latest, { city: "" });
        const output = Output.object({ schema });
        assert.deepEqual((await generateText({ ...asked, output })).output, { city: "" });
        const beside = { ...asked, prompt: checks.WEATHER, output, tools: { get_weather }, stopWhen: stepCountIs(3) };
        const { steps, output: found } = await generateText(beside);
        assert.equal(steps[0].toolResults[0].output, "Sunny in Paris.");
        assert.deepEqual(found, { city: "" });
      }
    },
  },
  cancel: {
    uses: "`abortSignal`, with and without a stream",
    async run() {
      for (const model of models) {
        const asked = { ...settings, model, prompt: checks.ENDLESS, maxOutputTokens: checks.LIMIT };
        const first = new AbortController();
        for await (const _ of streamText({ ...asked, abortSignal: first.signal }).textStream) first.abort();
        await checks.untilStopped();
        const second = new AbortController();
        const refused = assert.rejects(generateText({ ...asked, abortSignal: second.signal }));
        await checks.untilRunning();
        second.abort();
        await refused;
        await checks.untilStopped();
      }
    },
  },
});
