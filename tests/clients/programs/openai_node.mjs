// The openai client for node.
import assert from "node:assert/strict";
import OpenAI from "openai";
import * as checks from "./checks.mjs";

const client = new OpenAI({ baseURL: checks.V1, maxRetries: 0 });
const { MODEL: model } = checks;
const user = (content) => [{ role: "user", content }];
const tool = {
  type: "function",
  function: { name: "get_weather", description: "The weather in a city.", parameters: checks.PARAMETERS },
};
const format = { name: "weather", strict: true, schema: checks.PARAMETERS };

await checks.tryAll("openai", {
  whole: {
    uses: "`chat.completions.create`, `responses.create`",
    async run() {
      const done = await client.chat.completions.create({ model, messages: user(checks.COUNT) });
      assert.equal(done.choices[0].message.content, checks.COUNTED);
      const response = await client.responses.create({ model, input: checks.COUNT });
      assert.equal(response.output_text, checks.COUNTED);
    },
  },
  stream: {
    uses: "`create({stream: true})`, `chat.completions.stream`, `responses.stream`",
    async run() {
      let text = "";
      const messages = user(checks.COUNT);
      for await (const each of await client.chat.completions.create({ model, messages, stream: true }))
        text += each.choices[0].delta.content ?? "";
      assert.equal(text, checks.COUNTED);
      const events = client.chat.completions.stream({ model, messages });
      assert.equal(await events.finalContent(), checks.COUNTED);
      const response = await client.responses.stream({ model, input: checks.COUNT }).finalResponse();
      assert.equal(response.output_text, checks.COUNTED);
    },
  },
  tools: {
    uses: "`chat.completions.runTools`, `responses.create({tools})`",
    async run() {
      const runner = client.chat.completions.runTools({
        model,
        messages: user(checks.WEATHER),
        tools: [{ ...tool, function: { ...tool.function, parse: JSON.parse, function: ({ city }) => `Sunny in ${city}.` } }],
      });
      assert.equal(await runner.finalContent(), checks.COUNTED);
      assert.ok(runner.messages.some((each) => each.content === "Sunny in Paris."));
      const response = await client.responses.create({
        model,
        input: checks.WEATHER,
        tools: [{ type: "function", ...tool.function }],
      });
      assert.deepEqual(JSON.parse(response.output[0].arguments), { city: "Paris" });
    },
  },
  forced_tool: {
    uses: '`tool_choice: "required"`, and the tool\'s name',
    async run() {
      for (const tool_choice of ["required", { type: "function", function: { name: "get_weather" } }]) {
        const done = await client.chat.completions.create({ model, messages: user(checks.COUNT), tools: [tool], tool_choice });
        assert.equal(done.choices[0].message.tool_calls[0].function.name, "get_weather");
      }
    },
  },
  structured: {
    uses: "`chat.completions.parse` and `responses.parse` with a schema",
    async run() {
      const response_format = { type: "json_schema", json_schema: format };
      const done = await client.chat.completions.parse({ model, messages: user(checks.COUNT), response_format });
      assert.deepEqual(JSON.parse(done.choices[0].message.content), { city: "" });
      const text = { format: { type: "json_schema", ...format } };
      const response = await client.responses.parse({ model, input: checks.COUNT, text });
      assert.deepEqual(JSON.parse(response.output_text), { city: "" });
    },
  },
  cancel: {
    uses: "`stream.controller.abort`, leaving the loop; a `signal` without a stream",
    async run() {
      const endless = { model, messages: user(checks.ENDLESS), max_tokens: checks.LIMIT };
      const aborted = await client.chat.completions.create({ ...endless, stream: true });
      for await (const _ of aborted) aborted.controller.abort();
      await checks.untilStopped();
      for await (const _ of await client.chat.completions.create({ ...endless, stream: true })) break;
      await checks.untilStopped();
      const controller = new AbortController();
      const done = client.chat.completions.create(endless, { signal: controller.signal });
      const refused = assert.rejects(done, OpenAI.APIUserAbortError);
      await checks.untilRunning();
      controller.abort();
      await refused;
      await checks.untilStopped();
    },
  },
});
