/**
 * Follows streamproxy's streams in a browser or in Node: one module, no dependency, no build step.
 *
 *     import { follow } from "http://proxy.example/client.js";
 *     for await (const event of follow(streamUrl)) picture.src = URL.createObjectURL(event.image);
 *
 * An event of 3 MB is one line of base64. `Cutter` decodes it as it arrives and never makes a string of it, so no task
 * on the page takes long, and the memory is that of the picture. Types and their docs are in client.d.ts.
 *
 *     Base64, Cutter      bytes -> events
 *     Feed, Line          one stream of a page; the connection that up to 64 of them share
 *     follow, order       what a page calls
 *
 * It is long so that a page has to import only one file.
 */

/** Least and most milliseconds before a lost connection is opened again, unless the server sends `retry`. */
const RETRY = { first: 1000, most: 15000 };

/** Milliseconds without a byte after which a connection counts as lost: six default heartbeats. */
const SILENCE = 30000;

/** Milliseconds in which new streams are gathered for one connection. */
const GATHER = 30;

/** Most streams of one connection: the proxy's limit. */
const TOGETHER = 64;

/** Most bytes of an event besides its picture. A longer one is not from the proxy. */
const TEXT_LIMIT = 1 << 20;

const LF = 10;
const CR = 13;
const BACKSLASH = 92;
const SLASH = 47;

/** Six bits by character code; 64 and more is not base64. */
const SEXTET = new Uint8Array(256).fill(64);
for (const [at, character] of [..."ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"].entries()) {
  SEXTET[character.charCodeAt(0)] = at;
}
SEXTET["-".charCodeAt(0)] = 62;
SEXTET["_".charCodeAt(0)] = 63;

/** Twelve bits by two characters' codes; 4096 and more is not base64. Half of the lookups take half of the time. */
const PAIR = new Uint16Array(65536).fill(4096);
for (let one = 0; one < 256; one++) {
  for (let two = 0; two < 256; two++) {
    if ((SEXTET[one] | SEXTET[two]) < 64) PAIR[(one << 8) | two] = (SEXTET[one] << 6) | SEXTET[two];
  }
}

const LATIN1 = new TextDecoder("latin1");
const Node = globalThis.process?.versions?.node ? globalThis.Buffer : undefined;
const buffer = (bytes) => Node.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);

function latin1(chunk, start, end) {
  const part = chunk.subarray(start, end);
  return Node ? buffer(part).toString("latin1") : LATIN1.decode(part); // Node's TextDecoder takes ten times as long
}

/** Decodes base64 that comes in pieces, cut anywhere. */
class Base64 {
  pieces = [];
  #bits = 0;
  #held = 0; // characters whose bits are in #bits
  #escaped = false;

  /** Take bytes[start:end], characters of a JSON string; `text` are the same. */
  feed(bytes, start, text) {
    const end = start + text.length;
    const made = new Uint8Array(Math.ceil(((end - start + this.#held) * 3) / 4));
    let size = 0;
    let at = start;
    let native = true;
    while (at < end) {
      if (this.#held || this.#escaped) {
        size = this.#one(bytes[at++], made, size); // up to a boundary of four characters
        continue;
      }
      if (native) {
        native = false; // it refuses unusual base64, so the rest of this chunk is decoded the slow way
        const taken = decoded(text.slice(at - start), made.subarray(size));
        at += taken.read;
        size += taken.written;
      }
      for (const last = end - 3; at < last; at += 4, size += 3) {
        const one = PAIR[(bytes[at] << 8) | bytes[at + 1]];
        const two = PAIR[(bytes[at + 2] << 8) | bytes[at + 3]];
        if ((one | two) > 4095) break;
        made[size] = one >> 4;
        made[size + 1] = (one << 4) | (two >> 8);
        made[size + 2] = two;
      }
      if (at < end) size = this.#one(bytes[at++], made, size);
    }
    if (size) this.pieces.push(made.subarray(0, size));
  }

  #one(byte, made, size) {
    if (byte === BACKSLASH && !this.#escaped) {
      this.#escaped = true;
      return size;
    }
    const ignored = this.#escaped && byte !== SLASH; // \n and \r: line breaks
    this.#escaped = false;
    const bits = SEXTET[byte];
    if (ignored || bits > 63) return size; // padding, white space
    this.#bits = (this.#bits << 6) | bits;
    if (++this.#held < 4) return size;
    made[size] = this.#bits >> 16;
    made[size + 1] = this.#bits >> 8;
    made[size + 2] = this.#bits;
    this.#bits = this.#held = 0;
    return size + 3;
  }

  /** The last one or two bytes of a picture, and all its pieces. */
  finish() {
    if (this.#held > 1) {
      const bits = this.#bits << (6 * (4 - this.#held));
      this.pieces.push(Uint8Array.of(bits >> 16, bits >> 8).subarray(0, this.#held - 1));
    }
    return this.pieces;
  }
}

const NOTHING = { read: 0, written: 0 };

/** Decode with the engine, all or nothing: it knows no escapes. */
function decoded(text, into) {
  if (Node) {
    const read = text.length & ~3;
    const written = buffer(into).write(text.slice(0, read), "base64"); // it skips unknown characters
    return written === (read / 4) * 3 ? { read, written } : NOTHING;
  }
  if (!into.setFromBase64) return NOTHING;
  try {
    return into.setFromBase64(text, { lastChunkHandling: "stop-before-partial" });
  } catch {
    return NOTHING;
  }
}

/** The member that holds the picture, with the quote that opens it. */
const MARK = /"b64_json"\s*:\s*"/;
const MARK_MOST = 256;

/**
 * Cuts bytes into events, by WHATWG's rules: `feed` yields the events that a chunk completes.
 *
 * An event is `{name, id, data, image}`: `data` is its JSON without the picture, `image` the picture's bytes in pieces.
 */
export class Cutter {
  retry = undefined;
  lastId = "";
  #decoder = new TextDecoder();
  #text = []; // pieces of the open line, without its picture
  #size = 0;
  #base64 = null; // the decoder of the open picture
  #image = null;
  #tail = ""; // the last characters before a chunk's end, in which a mark may have begun
  #name = "";
  #data = [];
  #cr = false; // the last byte was a CR, so an LF belongs to it

  *feed(chunk) {
    let start = 0;
    while (start < chunk.length) {
      if (this.#cr) {
        this.#cr = false;
        if (chunk[start] === LF && ++start === chunk.length) return;
      }
      if (this.#base64) {
        start = this.#picture(chunk, start);
        if (this.#base64) return;
      }
      const end = lineEnd(chunk, start, chunk.length);
      const mark = this.#markEnd(chunk, start, end);
      if (mark >= 0) {
        this.#keep(chunk, start, mark);
        this.#base64 = new Base64();
        start = mark;
        continue;
      }
      this.#keep(chunk, start, end);
      if (end === chunk.length) return;
      this.#cr = chunk[end] === CR;
      start = end + 1;
      const event = this.#line();
      if (event) yield event;
    }
  }

  /** Take the picture's characters. It ends with the quote, or, if the event is incomplete, with the line. */
  #picture(chunk, start) {
    const text = latin1(chunk, start, chunk.length); // engines search strings several times faster than bytes
    const found = until(until(until(text, '"'), "\n"), "\r");
    this.#base64.feed(chunk, start, found);
    if (found.length < text.length) {
      this.#image = this.#base64.finish();
      this.#base64 = null;
    }
    return start + found.length;
  }

  /** Where the picture begins in chunk[start:end], or -1. Only the first picture of an event is one. */
  #markEnd(chunk, start, end) {
    if (this.#image || end === start) return -1;
    const before = this.#tail;
    // Latin-1 has one character for each byte, so that offsets in the text are offsets of bytes.
    const text = before + latin1(chunk, start, end);
    this.#tail = end === chunk.length ? text.slice(-MARK_MOST) : "";
    const found = MARK.exec(text);
    if (!found) return -1;
    this.#tail = "";
    return start + found.index + found[0].length - before.length;
  }

  #keep(chunk, start, end) {
    if (end === start) return;
    this.#size += end - start;
    if (this.#size > TEXT_LIMIT) throw new StreamError("An event has over 1 MiB besides its picture.");
    this.#text.push(this.#decoder.decode(chunk.subarray(start, end), { stream: true }));
  }

  #line() {
    const line = this.#text.join("");
    this.#text = [];
    this.#tail = "";
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#name = value;
    else if (field === "id" && !value.includes("\0")) this.lastId = value;
    else if (field === "retry" && /^\d+$/.test(value)) this.retry = Number(value);
    if (!this.#data.length) this.#size = 0; // the number of comments is not limited
    return undefined;
  }

  #dispatch() {
    const event = this.#data.length && {
      name: this.#name || "message",
      id: this.lastId,
      data: this.#data.join("\n"),
      image: this.#image,
    };
    this.#name = "";
    this.#data = [];
    this.#image = null;
    this.#size = 0;
    return event;
  }
}

function until(text, character) {
  const at = text.indexOf(character);
  return at < 0 ? text : text.slice(0, at);
}

function lineEnd(chunk, start, end) {
  const lf = chunk.subarray(start, end).indexOf(LF);
  const last = lf < 0 ? end : start + lf;
  const cr = chunk.subarray(start, last).indexOf(CR);
  return cr < 0 ? last : start + cr;
}

/**
 * A generation that failed, an answer that refuses, or a stream that cannot be followed.
 *
 * `code` and `status` are the error body's. `charged`: whether the provider may have charged for the picture.
 */
export class StreamError extends Error {
  constructor(message, { code, status, param, charged = false, body } = {}) {
    super(message);
    this.name = "StreamError";
    this.code = code;
    this.status = status;
    this.param = param;
    this.charged = charged;
    this.body = body;
  }
}

async function refusal(response) {
  let body;
  try {
    body = await response.json();
  } catch {
    // The answer of an edge between: only its status is known.
  }
  const error = body?.error ?? {};
  return new StreamError(error.message ?? `The answer is ${response.status} ${response.statusText}`, {
    code: error.code,
    status: response.status,
    param: error.param,
    charged: response.headers.get("x-should-retry") === "false" && response.status >= 500,
    body,
  });
}

/** The `StreamEvent` of client.d.ts for a stream's event, with the picture as a Blob; undefined for other events. */
function read(cut) {
  const kind = /(?:^|\.)(partial_image|completed|error)$/.exec(cut.name)?.[1];
  if (kind === undefined) return undefined;
  let data;
  try {
    data = JSON.parse(cut.data);
  } catch {
    return undefined;
  }
  if (kind === "error") return { ...data, kind, type: "error" };
  const event = {
    ...data,
    kind: kind === "completed" ? kind : "preview",
    type: cut.name,
    several: data.image_index !== undefined,
    image_index: data.image_index ?? 0,
  };
  delete event.b64_json;
  if (cut.image) event.image = new Blob(cut.image, { type: `image/${data.output_format ?? "png"}` });
  return event;
}

const FORM = ["preview", "preview_format"];
const FETCH = (...request) => globalThis.fetch(...request);
const QUIET = { cache: "no-store", referrerPolicy: "no-referrer" }; // stream URLs hold tokens

/** One stream of a line, and its readers on this page. Its events so far are kept for later readers. */
class Feed {
  cursor = "";
  over = false; // its end is known, but readers may not have it yet
  readers = new Set();
  #fetch;
  #newest = new Map(); // the newest event of each image, delivered or not
  #delivered = new Map();
  #chain = Promise.resolve();
  #ended;

  constructor(url, fetch) {
    this.url = url;
    this.id = /\/streams\/([^/?]+)/.exec(url.pathname)[1];
    this.token = url.searchParams.get("token");
    this.#fetch = fetch;
  }

  add(reader) {
    this.readers.add(reader);
    for (const event of this.#delivered.values()) reader.onevent(event);
    if (this.#ended) reader.onend(this.#ended.error);
  }

  take(event) {
    if (event.kind === "error") {
      const { message, code, status, param, charged = true } = event.error ?? {};
      this.end(new StreamError(message ?? "The stream failed.", { code, status, param, charged, body: event }));
      return;
    }
    this.#newest.set(event.image_index, event);
    this.#chain = this.#chain.then(() => this.#deliver(event));
    if (event.kind === "completed" && !event.several) this.end();
  }

  end(error) {
    if (this.over) return;
    this.over = true;
    this.#chain = this.#chain.then(() => this.#end(error));
  }

  async #deliver(event) {
    const stale = () => event.kind === "preview" && this.#newest.get(event.image_index) !== event;
    if (this.#ended || stale()) return;
    if (event.image_url && !event.image) {
      try {
        event.image = await this.#picture(new URL(event.image_url, this.url), event.kind === "preview" ? 1 : 5);
      } catch (error) {
        if (event.kind === "completed") {
          this.over = true;
          this.#end(error);
        }
        return;
      }
      if (stale()) return;
    }
    this.#delivered.set(event.image_index, event);
    for (const reader of this.readers) reader.onevent(event);
  }

  #end(error) {
    if (this.#ended) return;
    this.#ended = { error };
    for (const reader of this.readers) reader.onend(error);
  }

  /** Fetch the picture of an event that only has its URL: a large one, where several streams share a connection. */
  async #picture(url, attempts) {
    for (let attempt = 1; ; attempt++) {
      let failure;
      try {
        const response = await this.#fetch(url, QUIET);
        if (response.ok) return await response.blob();
        failure = await refusal(response);
      } catch (error) {
        failure = error;
      }
      if (attempt === attempts || (failure.status < 500 && failure.status !== 429)) throw failure;
      await sleep(RETRY.first * attempt);
    }
  }
}

/** One connection's streams, of one proxy. */
class Line {
  static #lines = new Set();

  /** The feed of this stream, on a connection that it shares. */
  static join(url, fetch, reader) {
    const base = url.href.slice(0, url.href.indexOf("/streams/"));
    const form = formOf(url);
    const lines = [...Line.#lines].filter(
      (line) => line.#base === base && line.#fetch === fetch && `${line.#form}` === `${form}`,
    );
    const fresh = new Feed(url, fetch);
    const shared = lines.find((line) => line.#feeds.has(fresh.id)) ?? lines.find((line) => line.#feeds.size < TOGETHER);
    const line = shared ?? new Line(base, fetch, form);
    const feed = line.#feeds.get(fresh.id) ?? line.#add(fresh);
    feed.add(reader);
    return () => line.#leave(feed, reader);
  }

  #base;
  #fetch;
  #form;
  #feeds = new Map();
  #connection;
  #gathering;

  constructor(base, fetch, form) {
    this.#base = base;
    this.#fetch = fetch;
    this.#form = form;
    Line.#lines.add(this);
  }

  #add(feed) {
    this.#feeds.set(feed.id, feed);
    if (!this.#connection) this.#run();
    else this.#gathering ??= setTimeout(() => this.#connection?.abort("more"), GATHER);
    return feed;
  }

  #leave(feed, reader) {
    feed.readers.delete(reader);
    if (feed.readers.size || this.#feeds.get(feed.id) !== feed) return;
    this.#feeds.delete(feed.id);
    if (!this.#feeds.size) this.#connection?.abort("left");
  }

  #end(feed, error) {
    feed.end(error);
    this.#feeds.delete(feed.id);
  }

  async #run() {
    let pause = RETRY.first;
    this.#connection = new AbortController();
    while (this.#feeds.size) {
      await undefined; // streams that are followed in this turn share the connection
      clearTimeout(this.#gathering);
      this.#gathering = undefined;
      const feeds = [...this.#feeds.values()];
      const connection = (this.#connection = new AbortController());
      let retry;
      try {
        retry = await this.#follow(feeds, connection, () => (pause = RETRY.first));
      } catch (error) {
        if (error instanceof StreamError) this.#refused(feeds, error);
      }
      const reason = connection.signal.reason;
      if (reason === "more" || reason === "left" || !feeds.some((feed) => this.#feeds.get(feed.id) === feed)) continue;
      if (retry !== 0) for (const feed of feeds) for (const reader of feed.readers) reader.onlost();
      const waiting = (this.#connection = new AbortController());
      await sleep(retry ?? pause * (0.5 + Math.random()), waiting.signal);
      pause = Math.min(pause * 2, RETRY.most);
    }
    Line.#lines.delete(this);
  }

  /** Handle the refusal of the whole connection, or of one stream, which the error then names. */
  #refused(feeds, error) {
    const named = feeds.filter((feed) => error.param === `stream=${feed.id}`);
    for (const feed of named.length ? named : feeds) this.#end(feed, error);
  }

  /** Read one connection to its end. Returns the milliseconds until the next one. */
  async #follow(feeds, connection, onevent) {
    const watch = new Watch(() => connection.abort("silent"));
    try {
      const response = await this.#fetch(this.#url(feeds), {
        ...QUIET,
        signal: connection.signal,
        headers: { accept: "text/event-stream" },
      });
      if (response.status === 204) {
        for (const feed of feeds) this.#end(feed);
        return 0;
      }
      if (!response.ok) {
        const error = await refusal(response);
        if (response.status === 429 || response.status >= 500) throw new TypeError(error.message); // it comes back
        throw error;
      }
      return await this.#read(response.body.getReader(), feeds, watch, onevent);
    } finally {
      watch.end();
    }
  }

  async #read(bytes, feeds, watch, onevent) {
    const cutter = new Cutter();
    let heard = false;
    try {
      for (;;) {
        const { done, value } = await bytes.read();
        if (done) return heard ? 0 : cutter.retry; // if that was all, the next request is answered with 204
        watch.alive();
        for (const cut of cutter.feed(value)) {
          heard = true;
          onevent();
          this.#hand(cut, feeds);
        }
      }
    } finally {
      bytes.cancel().catch(() => {});
    }
  }

  /** With one stream, its own URL, so that events have their pictures. No header, which would cost a preflight. */
  #url(feeds) {
    const url = feeds.length === 1 ? new URL(feeds[0].url) : new URL(`${this.#base}/streams`);
    if (feeds.length > 1) {
      for (const { id, token } of feeds) url.searchParams.append("stream", `${id}:${token}`);
      for (const [name, value] of this.#form) url.searchParams.set(name, value);
    }
    if (feeds.some((feed) => feed.cursor)) {
      url.searchParams.set("last_event_id", feeds.map((feed) => feed.cursor || "0.0").join("-"));
    }
    return url;
  }

  #hand(cut, feeds) {
    const event = read(cut);
    const feed = feeds.length === 1 ? feeds[0] : feeds.find((one) => one.id === event?.stream);
    if (!event || !feed) return;
    for (const [at, cursor] of cut.id.split("-").entries()) if (feeds[at]) feeds[at].cursor = cursor;
    feed.take(event);
    if (feed.over) this.#feeds.delete(feed.id);
    else if (event.kind === "completed" && feeds.length > 1) this.#settle(feed);
  }

  /** Among several streams, the end of one with several images is not sent. Its status has it. */
  async #settle(feed) {
    const url = new URL(`${this.#base}/streams/${feed.id}/status`);
    url.searchParams.set("token", feed.token);
    url.searchParams.set("payload", "ref");
    const cursor = feed.cursor;
    for (const pause of [0, 1000, 4000]) {
      await sleep(pause);
      if (feed.over || feed.cursor !== cursor) return;
      const response = await this.#fetch(url, QUIET).catch(() => undefined);
      if (response?.ok && (await response.json()).status !== "in_progress" && feed.cursor === cursor) {
        this.#end(feed);
        return;
      }
    }
  }
}

/** The parameters of a stream's URL that say how its previews are wanted. */
function formOf(url) {
  return new URLSearchParams([...url.searchParams].filter(([name]) => FORM.includes(name)).sort());
}

/** Calls `onsilence` after SILENCE without a call of `alive`. */
class Watch {
  #heard = Date.now();
  #timer;

  constructor(onsilence) {
    this.#timer = setInterval(() => Date.now() - this.#heard > SILENCE && onsilence(), SILENCE / 6);
  }

  alive() {
    this.#heard = Date.now();
  }

  end() {
    clearInterval(this.#timer);
  }
}

/** Waits for a time, at most until the signal aborts or the machine is online again. */
function sleep(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(end, milliseconds);
    function end() {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
      globalThis.removeEventListener?.("online", end);
      resolve();
    }
    signal?.addEventListener("abort", end);
    if (signal) globalThis.addEventListener?.("online", end);
  });
}

/**
 * Follow a stream by its URL, or by the result of `order`. It is an async iterator of events; `final` is a promise of
 * the completed ones.
 *
 * A lost connection is resumed, and a slow reader gets only the newest preview. `leave` does not cancel the generation.
 */
export function follow(stream, options) {
  return new Following(stream, options);
}

class Following {
  #leave;
  #endUrl;
  #fetch;
  #queue = [];
  #wake;
  #ended;
  #completed = [];
  #settle;

  constructor(stream, { signal, fetch = FETCH, onlost = () => {}, preview, previewFormat } = {}) {
    const here = globalThis.location?.href;
    const url = new URL(typeof stream === "string" ? stream : stream.stream_url, here);
    if (!/\/streams\/[^/?]+$/.test(url.pathname)) {
      throw new TypeError("follow() takes a stream_url, or what order() gave.");
    }
    this.#endUrl = new URL(stream.cancel_url ?? url, here);
    for (const [at, value] of [preview, previewFormat].entries()) if (value) url.searchParams.set(FORM[at], value);
    this.#fetch = fetch;
    this.final = new Promise((resolve, reject) => (this.#settle = { resolve, reject }));
    this.final.catch(() => {}); // a page that only iterates gets the error from the iterator
    if (signal?.aborted) {
      this.leave();
      return;
    }
    this.#leave = Line.join(url, fetch, {
      onevent: (event) => this.#onevent(event),
      onend: (error) => this.#onend(error),
      onlost,
    });
    signal?.addEventListener("abort", () => this.leave(), { once: true });
  }

  /** Stop following. The order decides whether the generation goes on. */
  leave() {
    this.#leave?.();
    this.#onend(new DOMException("This stream is not followed any more.", "AbortError"));
  }

  /** End the generation for all its readers: DELETE. A stream_url only reads, so this needs what order() gave. */
  async cancel() {
    const response = await this.#fetch(this.#endUrl, { ...QUIET, method: "DELETE" });
    if (!response.ok && response.status !== 410) throw await refusal(response);
  }

  async *[Symbol.asyncIterator]() {
    try {
      for (;;) {
        while (this.#queue.length) yield this.#queue.shift();
        if (this.#ended?.error) throw this.#ended.error;
        if (this.#ended) return;
        await new Promise((resolve) => (this.#wake = resolve));
      }
    } finally {
      if (!this.#ended) this.leave();
    }
  }

  #onevent(event) {
    if (this.#ended) return;
    this.#queue = this.#queue.filter((old) => old.kind !== "preview" || old.image_index !== event.image_index);
    this.#queue.push(event);
    if (event.kind === "completed") this.#completed.push(event);
    this.#wake?.();
  }

  #onend(error) {
    if (this.#ended) return;
    this.#ended = { error };
    this.#leave?.();
    this.#completed.sort((one, other) => one.image_index - other.image_index);
    if (error) this.#settle.reject(error);
    else this.#settle.resolve(this.#completed);
    this.#wake?.();
  }
}

/**
 * Order pictures from the page's own backend. `follow` takes the result.
 *
 * `request` is the body of POST images/generations. One call is one generation: each POST carries the same
 * Idempotency-Key, so that no lost answer, and no reload with the same key, pays twice.
 */
export async function order(request, options = {}) {
  const { baseUrl = "/v1", idempotencyKey = unique(), headers, signal, fetch = FETCH } = options;
  const key = options.dangerouslyUseApiKeyInBrowser;
  const url = `${baseUrl.replace(/\/$/, "")}/images/${request.images || request.image ? "edits" : "generations"}`;
  const post = {
    method: "POST",
    signal,
    headers: {
      "content-type": "application/json",
      prefer: "respond-async",
      "idempotency-key": idempotencyKey,
      ...(key && { authorization: `Bearer ${key}` }),
      ...headers,
    },
    body: JSON.stringify({ ...request, stream: true }),
  };
  const response = await persistently(() => fetch(url, post), signal);
  if (!response.ok) throw await refusal(response);
  const ordered = await response.json();
  for (const name of ["stream_url", "status_url", "cancel_url"]) {
    ordered[name] = new URL(ordered[name], response.url).href; // absolute, for any page
  }
  return ordered;
}

/** Send up to three times while there is no answer. */
async function persistently(send, signal) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await send();
    } catch (error) {
      if (attempt === 3 || signal?.aborted) throw error;
      await sleep(RETRY.first * attempt, signal);
    }
  }
}

/** A UUID. `crypto.randomUUID` exists in secure contexts only. */
function unique() {
  if (crypto.randomUUID) return crypto.randomUUID();
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

const running = new Map();

/**
 * Order a picture once under a name: for this tab's session, the name stands for that one order.
 *
 * The key is stored before the POST, and the order after it. So a reload in between sends the same request with the
 * same key, and a reload after it sends nothing. `forget` makes the name free for another order.
 */
export function orderOnce(name, request, options = {}) {
  const { storage = globalThis.sessionStorage, ...others } = options;
  const place = `streamproxy:${name}`;
  if (running.has(place)) return running.get(place);
  const kept = stored(storage, place);
  if (kept?.ordered) return Promise.resolve(kept.ordered);
  const started = kept ?? { request, idempotencyKey: others.idempotencyKey ?? unique() };
  storage.setItem(place, JSON.stringify(started));
  const ordering = order(started.request, { ...others, idempotencyKey: started.idempotencyKey }).then(
    (ordered) => {
      if (running.get(place) === ordering) storage.setItem(place, JSON.stringify({ ordered }));
      return ordered;
    },
    (error) => {
      if (error instanceof StreamError && running.get(place) === ordering) storage.removeItem(place); // it is answered
      throw error;
    },
  );
  running.set(place, ordering);
  const done = () => running.get(place) === ordering && running.delete(place);
  ordering.then(done, done);
  return ordering;
}

/** Forget the order under this name. Its generation goes on. */
export function forget(name, storage = globalThis.sessionStorage) {
  running.delete(`streamproxy:${name}`);
  storage.removeItem(`streamproxy:${name}`);
}

function stored(storage, place) {
  try {
    const kept = JSON.parse(storage.getItem(place));
    return kept?.ordered?.expires_at * 1000 < Date.now() ? undefined : (kept ?? undefined);
  } catch {
    return undefined;
  }
}
