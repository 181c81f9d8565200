// Follows one stream until it is ended from outside, and prints one JSON line per report.
//
//   node follow.mjs eventsource | undici | parser <url>

import { follow } from '../browser/follow.mjs';
import { Parsed } from './parsed.mjs';

const CLIENTS = {
  eventsource: async () => (await import('eventsource')).EventSource,
  undici: async () => (await import('undici')).EventSource,
  parser: async () => Parsed,
};

const [client, url] = process.argv.slice(2);
follow(await CLIENTS[client](), url, (report) => process.stdout.write(JSON.stringify(report) + '\n'));
setInterval(() => {}, 60_000); // a client that has stopped must not look like one that has crashed
