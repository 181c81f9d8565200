// Runs calls against the proxy with the real SDK and prints one JSON line per call: what its user would have seen.
//
//   node calls.mjs <base_url>  < [{"method": see send(), "body": {...}, "files": n, "retries": n}]
//
// An outcome is {"events": [...], "answer": ..., "error": null | {...}}; pictures stay in, they are small.

import { readFileSync } from 'node:fs';
import OpenAI, { APIError, toFile } from 'openai';

const base = process.argv[2];
const calls = JSON.parse(readFileSync(0, 'utf8'));

for (const call of calls) {
  process.stdout.write(JSON.stringify(await outcome(call)) + '\n');
}

async function outcome(call) {
  const client = new OpenAI({ apiKey: 'sk-none', baseURL: base, maxRetries: call.retries ?? 0, timeout: 20_000 });
  const seen = { events: [], answer: null, error: null };
  try {
    const result = await send(client, call);
    if (call.body?.stream) {
      for await (const event of result) seen.events.push(event);
    } else {
      seen.answer = result;
    }
  } catch (error) {
    seen.error = {
      name: error.constructor.name,
      api: error instanceof APIError,
      status: error.status ?? null,
      code: error.code ?? null,
      type: error.type ?? null,
      param: error.param ?? null,
      message: error.message,
      body: error.error ?? null,
      request_id: error.requestID ?? null,
    };
  }
  return seen;
}

async function send(client, call) {
  switch (call.method) {
    case 'generate':
      return client.images.generate(call.body);
    case 'edit': {
      const picture = Buffer.from(call.picture, 'base64');
      const files = await Promise.all(
        Array.from({ length: call.files }, (_, at) => toFile(picture, `in-${at}.png`, { type: 'image/png' })),
      );
      return client.images.edit({ ...call.body, image: call.files === 1 ? files[0] : files });
    }
    case 'vary':
      return client.images.createVariation({ ...call.body, image: await toFile(Buffer.from(call.picture, 'base64'), 'in.png') });
    case 'files': {
      const file = await toFile(Buffer.from(call.picture, 'base64'), 'in.png');
      const made = await client.files.create({ file, purpose: 'vision' });
      const retrieved = await client.files.retrieve(made.id);
      const listed = [];
      for await (const one of client.files.list()) listed.push(one.id);
      const content = Buffer.from(await (await client.files.content(made.id)).arrayBuffer()).toString('base64');
      return { made, retrieved, listed, content, deleted: await client.files.delete(made.id) };
    }
    case 'respond':
      return client.responses.create(call.body);
    case 'chat':
      return client.chat.completions.create(call.body);
    case 'models': {
      const ids = [];
      for await (const model of client.models.list()) ids.push(model.id);
      return ids;
    }
    default:
      throw new Error(`no such method: ${call.method}`);
  }
}
