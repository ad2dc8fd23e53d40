// LangChain for JavaScript: ChatOpenAI, with chat completions and with the Responses API.
import assert from "node:assert/strict";
import { HumanMessage, SystemMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI } from "@langchain/openai";
import { z } from "zod";
import * as checks from "./checks.mjs";

const models = (more = {}) =>
  [false, true].map(
    (useResponsesApi) =>
      new ChatOpenAI({
        model: checks.MODEL,
        useResponsesApi,
        maxRetries: 0,
        configuration: { baseURL: checks.V1 },
        ...more,
      }),
  );
const get_weather = tool(async ({ city }) => `Sunny in ${city}.`, {
  name: "get_weather",
  description: "The weather in a city.",
  schema: z.object({ city: z.string() }),
});
const Weather = z.object({ city: z.string(), degrees: z.number().int() });

await checks.tryAll("@langchain/openai", {
  whole: {
    uses: "`invoke`, also with `useResponsesApi: true`, and `batch`",
    async run() {
      for (const model of models()) {
        const { text, usage_metadata } = await model.invoke([
          new SystemMessage("Be short."),
          new HumanMessage(checks.COUNT),
        ]);
        assert.equal(text, checks.COUNTED);
        assert.ok(usage_metadata.output_tokens > 9);
        const answers = await model.batch([checks.COUNT, checks.COUNT]);
        assert.deepEqual(answers.map((each) => each.text), [checks.COUNTED, checks.COUNTED]);
      }
    },
  },
  stream: {
    uses: "`stream`",
    async run() {
      for (const model of models()) {
        let text = "";
        for await (const chunk of await model.stream(checks.COUNT)) text += chunk.text;
        assert.equal(text, checks.COUNTED);
      }
    },
  },
  tools: {
    uses: "`bindTools`, the result sent back, whole and streamed",
    async run() {
      for (const model of models()) {
        const bound = model.bindTools([get_weather]);
        let streamed;
        for await (const chunk of await bound.stream(checks.WEATHER))
          streamed = streamed === undefined ? chunk : streamed.concat(chunk);
        for (const answer of [await bound.invoke(checks.WEATHER), streamed]) {
          const [call] = answer.tool_calls;
          assert.deepEqual(call.args, { city: "Paris" });
          const result = new ToolMessage({ content: await get_weather.invoke(call.args), tool_call_id: call.id });
          const { text } = await bound.invoke([new HumanMessage(checks.WEATHER), answer, result]);
          assert.equal(text, checks.COUNTED);
        }
      }
    },
  },
  forced_tool: {
    uses: '`bindTools` with the tool\'s name, "any" and "required", which it only sends in chats; `strict: true`',
    async run() {
      const [chat, responses] = models();
      const pairs = [[chat, "any"], [chat, "required"], [chat, "get_weather"], [responses, "get_weather"]];
      for (const [model, tool_choice] of pairs)
        for (const strict of [undefined, true]) {
          const answer = await model.bindTools([get_weather], { tool_choice, strict }).invoke(checks.COUNT);
          assert.equal(answer.tool_calls[0].name, "get_weather");
        }
    },
  },
  structured: {
    uses: "`withStructuredOutput`, each method",
    async run() {
      for (const model of models()) {
        assert.deepEqual(await model.withStructuredOutput(Weather).invoke(checks.COUNT), { city: "", degrees: 0 });
        for (const method of ["functionCalling", "jsonSchema"]) {
          const found = await model.withStructuredOutput(Weather, { method }).invoke(checks.COUNT);
          assert.deepEqual(found, { city: "", degrees: 0 }, method);
        }
        const any = await model.withStructuredOutput(z.object({}), { method: "jsonMode" }).invoke(checks.COUNT);
        assert.deepEqual(any, {});
      }
    },
  },
  cancel: {
    uses: "leaving the loop of `stream`; a `signal` in `invoke`",
    async run() {
      for (const model of models({ maxTokens: checks.LIMIT })) {
        for await (const _ of await model.stream(checks.ENDLESS)) break;
        await checks.untilStopped();
        const controller = new AbortController();
        const refused = assert.rejects(model.invoke(checks.ENDLESS, { signal: controller.signal }));
        await checks.untilRunning();
        controller.abort();
        await refused;
        await checks.untilStopped();
      }
    },
  },
});
