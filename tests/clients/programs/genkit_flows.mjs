// Genkit: its plugin for APIs like OpenAI's.
import assert from "node:assert/strict";
import { openAICompatible } from "@genkit-ai/compat-oai";
import { genkit, z } from "genkit";
import * as checks from "./checks.mjs";

const plugin = openAICompatible({ name: "local", apiKey: "key", baseURL: checks.V1 });
const ai = genkit({ plugins: [plugin] });
const model = `local/${checks.MODEL}`;
const get_weather = ai.defineTool(
  { name: "get_weather", description: "The weather in a city.", inputSchema: z.object({ city: z.string() }), outputSchema: z.string() },
  async ({ city }) => `Sunny in ${city}.`,
);

await checks.tryAll("genkit", {
  whole: {
    uses: "`ai.generate`, with `@genkit-ai/compat-oai`",
    async run() {
      assert.equal((await ai.generate({ model, prompt: checks.COUNT, system: "Be short." })).text, checks.COUNTED);
    },
  },
  stream: {
    uses: "`ai.generateStream`",
    async run() {
      let text = "";
      const { stream, response } = ai.generateStream({ model, prompt: checks.COUNT });
      for await (const part of stream) text += part.text;
      assert.equal(text, checks.COUNTED);
      assert.equal((await response).text, checks.COUNTED);
    },
  },
  tools: {
    uses: "`ai.generate({ tools })`, which sends the result back, whole and streamed",
    async run() {
      const asked = { model, prompt: checks.WEATHER, tools: [get_weather] };
      assert.equal((await ai.generate(asked)).text, checks.COUNTED);
      assert.equal((await ai.generateStream(asked).response).text, checks.COUNTED);
    },
  },
  forced_tool: "its plugin does not send the choice",
  structured: "it writes the form into the prompt",
  cancel: {
    uses: "`abortSignal`, with and without a stream",
    async run() {
      for (const streams of [false, true]) {
        const controller = new AbortController();
        const config = { max_tokens: checks.LIMIT };
        const asked = { model, prompt: checks.ENDLESS, config, abortSignal: controller.signal };
        const done = streams ? readAll(ai.generateStream(asked)) : [ai.generate(asked)];
        await checks.untilRunning();
        controller.abort();
        await Promise.allSettled(done);
        await checks.untilStopped();
      }
    },
  },
});

// Both fail when they are aborted.
function readAll({ stream, response }) {
  const parts = (async () => {
    for await (const _ of stream);
  })();
  return [parts, response];
}
