// CPU of one event of 3 MB, from its bytes to the picture's: ours, and eventsource-parser with JSON.parse and Buffer.
//
//   node bench.mjs         one JSON object: milliseconds of each, the best of the rounds, and their ratio

import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import { randomBytes } from 'node:crypto';
import process from 'node:process';

import { createParser } from 'eventsource-parser';

import { Cutter } from '../../../streamproxy/web/static/client.js';

const SIZE = 3_000_000; // characters of base64: a PNG of 1024x1024 is up to that
const CHUNK = 65536; // as undici and Chromium give them
const ROUNDS = 15;

const picture = randomBytes((SIZE / 4) * 3);
const data = JSON.stringify({
  type: 'image_generation.completed',
  b64_json: picture.toString('base64'),
  size: '1024x1024',
});
const wire = Buffer.from(`data: ${data}\nevent: image_generation.completed\nid: 1.1\n\n`);
const chunks = [];
for (let at = 0; at < wire.length; at += CHUNK) chunks.push(new Uint8Array(wire.subarray(at, at + CHUNK)));

function ours() {
  const cutter = new Cutter();
  let found;
  for (const chunk of chunks) for (const { image } of cutter.feed(chunk)) found = image;
  return found;
}

// `decoded`: to the picture's bytes, as ours; else only to the event's text.
function theirs(decoded) {
  const decoder = new TextDecoder();
  let found;
  const parser = createParser({
    onEvent: (event) => (found = decoded ? [Buffer.from(JSON.parse(event.data).b64_json, 'base64')] : [event.data]),
  });
  for (const chunk of chunks) parser.feed(decoder.decode(chunk, { stream: true }));
  return found;
}

const parsers = { ours, theirs: () => theirs(true), text: () => theirs(false) };
assert.ok(Buffer.concat(ours()).equals(picture));
assert.ok(Buffer.concat(theirs(true)).equals(picture));
const best = {};
for (let round = 0; round < ROUNDS; round++) {
  for (const [name, parse] of Object.entries(parsers)) {
    const before = process.cpuUsage();
    parse();
    const { user, system } = process.cpuUsage(before);
    best[name] = Math.min(best[name] ?? Infinity, (user + system) / 1000);
  }
}
console.log(JSON.stringify({ ...best, ratio: best.ours / best.theirs }));
