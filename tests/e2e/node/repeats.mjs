// Clients that send a POST again by themselves, each in one call; prints one JSON line per report.
//
//   node repeats.mjs fetch-event-source | ai <base_url>  < {"options": {...}, "body": {...}}

import { readFileSync } from 'node:fs';

const [client, base] = process.argv.slice(2);
const { options, body } = JSON.parse(readFileSync(0, 'utf8'));
const report = (value) => process.stdout.write(JSON.stringify(value) + '\n');

const CLIENTS = {
  // A page whose tab is hidden and shown when it has its first event.
  'fetch-event-source': async () => {
    globalThis.window = globalThis;
    globalThis.document = Object.assign(new EventTarget(), { hidden: false });
    const { fetchEventSource } = await import('@microsoft/fetch-event-source');
    const visible = (shown) => {
      document.hidden = !shown;
      document.dispatchEvent(new Event('visibilitychange'));
      return 'shown';
    };
    let seen = 0;
    await fetchEventSource(`${base}/images/generations`, {
      ...options,
      method: 'POST',
      headers: { ...options.headers, 'content-type': 'application/json' },
      body: JSON.stringify({ ...body, stream: true }),
      onmessage({ event }) {
        report(event);
        if (seen++ > 0) return;
        visible(false);
        setTimeout(() => report(visible(true)), 20); // a tab is never shown in the instant in which it is hidden
      },
      onerror(error) {
        throw error; // the library would try again
      },
    });
  },
  ai: async () => {
    const { generateImage } = await import('ai');
    const { createOpenAI } = await import('@ai-sdk/openai');
    const model = createOpenAI({ baseURL: base, apiKey: 'none' }).image(body.model);
    try {
      const { images } = await generateImage({ ...options, model, prompt: body.prompt });
      report(images.map((image) => image.base64));
    } catch (error) {
      report({ attempts: error.errors?.length ?? 1, message: error.message });
    }
  },
};

await CLIENTS[client]();
