// The AI SDK's Responses model with its image tool: prints what its user would have seen, one JSON line.
//
//   node tool.mjs <base_url> <model> stream|whole

import { createOpenAI } from '@ai-sdk/openai';
import { generateText, streamText } from 'ai';

const [base, drawn, how] = process.argv.slice(2);
const openai = createOpenAI({ apiKey: 'sk-none', baseURL: base });
const call = {
  model: openai.responses('gpt-5'),
  prompt: 'a lighthouse at dusk',
  maxRetries: 0,
  tools: { image_generation: openai.tools.imageGeneration({ model: drawn, partialImages: 2, size: '1024x1024' }) },
};
const seen = { results: [], errors: [], finish: null, usage: null };
const note = (part) => seen.results.push(part.output.result);

if (how === 'stream') {
  const result = streamText({ ...call, onError: ({ error }) => seen.errors.push(String(error.message ?? error)) });
  for await (const part of result.fullStream) if (part.type === 'tool-result') note(part);
  if (!seen.errors.length) {
    seen.finish = await result.finishReason;
    seen.usage = await result.usage;
  }
} else {
  const result = await generateText(call);
  for (const part of result.staticToolResults) note(part);
  seen.finish = result.finishReason;
  seen.usage = result.usage;
}
process.stdout.write(JSON.stringify(seen) + '\n');
