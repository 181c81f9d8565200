// An EventSource of a few lines, as people write it with fetch() and eventsource-parser.

import { createParser } from 'eventsource-parser';

export class Parsed extends EventTarget {
  readyState = 0;
  #id = '';
  #retry = 3000;

  constructor(url) {
    super();
    this.#run(url);
  }

  async #run(url) {
    while (this.readyState !== 2) {
      try {
        await this.#once(url);
      } catch {
        // the connection was cut: what is in the parser is forgotten with it
      }
      this.dispatchEvent(new Event('error'));
      if (this.readyState !== 2) await new Promise((resolve) => setTimeout(resolve, this.#retry));
    }
  }

  async #once(url) {
    this.readyState = 0;
    const headers = { accept: 'text/event-stream', ...(this.#id && { 'last-event-id': this.#id }) };
    const response = await fetch(url, { headers, cache: 'no-store' });
    if (response.status !== 200) {
      this.readyState = 2;
      return;
    }
    this.readyState = 1;
    this.dispatchEvent(new Event('open'));
    const parser = createParser({ onEvent: (event) => this.#deliver(event), onRetry: (ms) => (this.#retry = ms) });
    try {
      for await (const text of response.body.pipeThrough(new TextDecoderStream())) parser.feed(text);
    } finally {
      this.readyState = 0;
    }
  }

  #deliver({ event = 'message', data, id }) {
    if (id !== undefined) this.#id = id;
    this.dispatchEvent(new MessageEvent(event, { data, lastEventId: this.#id }));
  }
}
