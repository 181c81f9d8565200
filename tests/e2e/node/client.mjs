// Checks of client.js that need no proxy. Each prints nothing, or throws; `node client.mjs NAME` runs one.

import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';

const url = new URL('../../../streamproxy/web/static/client.js', import.meta.url);
const { Cutter, StreamError, follow, order, orderOnce } = await import(url);

const utf8 = new TextEncoder();
const picture = Uint8Array.from({ length: 61 }, (_, at) => (at * 37) & 255);
const b64 = Buffer.from(picture).toString('base64');

// What was cut out of these chunks, pictures joined.
function cut(chunks) {
  const cutter = new Cutter();
  const found = [];
  for (const chunk of chunks) {
    for (const { name, id, data, image } of cutter.feed(chunk)) {
      found.push({ name, id, data, image: image && Buffer.concat(image).toString('hex') });
    }
  }
  return { found, retry: cutter.retry };
}

function* splits(bytes) {
  for (let at = 1; at < bytes.length; at++) yield [bytes.subarray(0, at), bytes.subarray(at)];
  yield Array.from(bytes, (_, at) => bytes.subarray(at, at + 1));
  for (let size = 2; size < 9; size++) {
    yield Array.from({ length: Math.ceil(bytes.length / size) }, (_, at) =>
      bytes.subarray(at * size, at * size + size),
    );
  }
}

// The same events wherever the stream is cut; each event's picture is the whole one, or none.
function everywhere(text, expected) {
  const bytes = utf8.encode(text);
  const whole = cut([bytes]);
  assert.deepEqual(
    whole.found.map(({ data }) => data),
    expected.map(([data]) => data),
  );
  assert.deepEqual(
    whole.found.map(({ image }) => image),
    expected.map(([, image]) => image),
  );
  for (const chunks of splits(bytes)) assert.deepEqual(cut(chunks), whole);
  return whole;
}

const hex = Buffer.from(picture).toString('hex');
const NAME = 'event: image_generation.completed\n';

export const checks = {
  'the URL says how previews are wanted': async () => {
    const asked = [];
    const fetch = async (to) => {
      asked.push(new URL(to));
      return new Response(null, { status: 204 });
    };
    const at = (id, form = '') => `http://h/v1/streams/${id}?token=t${form}`;
    await Promise.all([
      follow(at('a'), { fetch, preview: 512 }).final,
      follow(at('b'), { fetch, preview: 512 }).final,
      follow(at('c', '&preview=64&preview_format=avif'), { fetch }).final,
      follow(at('d', '&preview=64'), { fetch, preview: '128', previewFormat: 'png' }).final,
      follow(at('e'), { fetch, preview: null }).final,
    ]);
    const forms = asked.map(({ pathname, searchParams }) => [
      pathname.slice('/v1/streams'.length),
      searchParams.getAll('stream').join(),
      searchParams.getAll('preview').join(),
      searchParams.getAll('preview_format').join(),
    ]);
    assert.deepEqual(forms, [
      ['', 'a:t,b:t', '512', ''],
      ['/c', '', '64', 'avif'],
      ['/d', '', '128', 'png'],
      ['/e', '', '', ''],
    ]);
  },
  'the picture is first, last, and between': () => {
    everywhere(`${NAME}data: {"b64_json":"${b64}","size":"1x1"}\n\n`, [['{"b64_json":"","size":"1x1"}', hex]]);
    everywhere(`${NAME}data: {"size":"1x1","b64_json":"${b64}"}\n\n`, [['{"size":"1x1","b64_json":""}', hex]]);
    everywhere(`${NAME}data: {"a":1, "b64_json" : "${b64}" ,"b":2}\n\n`, [['{"a":1, "b64_json" : "" ,"b":2}', hex]]);
  },
  'lengths of every remainder': () => {
    for (let size = 0; size < 9; size++) {
      const some = Buffer.from(picture.subarray(0, size));
      for (const text of [
        some.toString('base64'),
        some.toString('base64').replace(/=/g, ''),
        some.toString('base64url'),
      ]) {
        everywhere(`data: {"b64_json":"${text}"}\n\n`, [['{"b64_json":""}', some.toString('hex')]]);
      }
    }
  },
  'white space and escaped slashes in it': () => {
    const odd = `${b64.slice(0, 5)}\\n${b64.slice(5, 22)} \\r\\n${b64.slice(22)}`.replaceAll('/', '\\/');
    assert.ok(odd.includes('\\/'));
    everywhere(`data: {"b64_json":"${odd}","x":1}\n\n`, [['{"b64_json":"","x":1}', hex]]);
  },
  'line ends, a BOM and comments': () => {
    const lines = [
      '\ufeffretry: 1500',
      ':',
      'id: 1.7',
      `data: {"b64_json":"${b64}"}`,
      'event: x.completed',
      '',
      ': häß €',
      'data',
      '',
    ];
    for (const end of ['\n', '\r\n', '\r']) {
      const { found, retry } = everywhere(lines.join(end) + end, [
        ['{"b64_json":""}', hex],
        ['', null],
      ]);
      assert.equal(retry, 1500);
      assert.deepEqual(
        found.map(({ name, id }) => [name, id]),
        [
          ['x.completed', '1.7'],
          ['message', '1.7'],
        ],
      );
    }
  },
  'several data lines are one event': () => {
    everywhere(`data: {"b64_json":\ndata: "AA==",\ndata:"a":"ä"}\n\ndata: {\ndata: "b64_json":"${b64}"\ndata: }\n\n`, [
      ['{"b64_json":\n"AA==",\n"a":"ä"}', null],
      ['{\n"b64_json":""\n}', hex],
    ]);
  },
  'a preview that is broken off ends with its line': () => {
    const text = `data: {"b64_json":"${b64.slice(0, 30)}\nevent: superseded\n\ndata: {"b64_json":"${b64}"}\nid: 1.2\n\n`;
    const { found } = everywhere(text, [
      ['{"b64_json":"', Buffer.from(b64.slice(0, 30), 'base64').toString('hex')],
      ['{"b64_json":""}', hex],
    ]);
    assert.deepEqual(
      found.map(({ name, id }) => [name, id]),
      [
        ['superseded', ''],
        ['message', '1.2'],
      ],
    );
  },
  'words in a prompt are no picture': () => {
    const data = JSON.stringify({ revised_prompt: 'say "b64_json":"AAAA" twice, ä€😀', size: '1x1' });
    everywhere(`data: ${data}\n\n`, [[data, null]]);
  },
  'what is unfinished is no event': () => {
    assert.deepEqual(cut([utf8.encode(`data: {"b64_json":"${b64}"}\n`)]).found, []);
    assert.deepEqual(cut([utf8.encode('event: x\n\nid: 3\n\n')]).found, []);
  },
  'ten megabytes without a line end are refused': () => {
    const cutter = new Cutter();
    const junk = new Uint8Array(1 << 16).fill(65);
    assert.throws(() => {
      for (let count = 0; count < 160; count++) [...cutter.feed(junk)];
    }, StreamError);
  },
  'nothing needs a window': async () => {
    assert.equal(globalThis.window, undefined);
    await import(new URL('element.js', url));
    assert.throws(() => follow('http://127.0.0.1:9/v1/images'), TypeError);
  },
  'an order is sent again with its key only': async () => {
    const seen = [];
    const fetch = async (to, { headers, body }) => {
      seen.push([to, headers['idempotency-key'], JSON.parse(body).stream, headers.authorization]);
      if (seen.length === 1) throw new TypeError('reset');
      return answer();
    };
    const made = await order({ prompt: 'p' }, { baseUrl: 'http://h/v1/', fetch });
    assert.equal(made.stream_url, 'http://h/v1/streams/s?token=t');
    assert.equal(seen.length, 2);
    assert.deepEqual(seen[0], seen[1]);
    assert.deepEqual([seen[0][0], seen[0][2], seen[0][3]], ['http://h/v1/images/generations', true, undefined]);
    await order({ prompt: 'p', images: [] }, { baseUrl: 'http://h/v1', fetch, dangerouslyUseApiKeyInBrowser: 'k' });
    assert.equal(seen[2][0], 'http://h/v1/images/edits');
    assert.equal(seen[2][3], 'Bearer k');
    assert.notEqual(seen[2][1], seen[0][1]);
  },
  'a name is one order, and a reload sends the same key': async () => {
    const kept = new Map();
    const storage = {
      getItem: (name) => kept.get(name) ?? null,
      setItem: (name, value) => kept.set(name, value),
      removeItem: (name) => kept.delete(name),
    };
    const seen = [];
    let reply;
    const fetch = (to, { headers, body }) => {
      seen.push([headers['idempotency-key'], body]);
      return new Promise((resolve) => (reply = resolve));
    };
    const options = { baseUrl: 'http://h/v1', fetch, storage };
    for (let count = 0; count < 2; count++) void orderOnce('a', { prompt: 'p' }, options);
    assert.equal(seen.length, 1);
    const again = await import(`${url}?reloaded`); // the page is gone before the answer
    const later = again.orderOnce('a', { prompt: 'another' }, options);
    assert.equal(seen.length, 2);
    assert.deepEqual(seen[0], seen[1]);
    reply(answer());
    const ordered = await later;
    assert.deepEqual(await (await import(`${url}?once-more`)).orderOnce('a', { prompt: 'p' }, options), ordered);
    assert.equal(seen.length, 2);
    again.forget('a', storage);
    again.orderOnce('a', { prompt: 'p' }, options);
    assert.equal(seen.length, 3);
    assert.notEqual(seen[2][0], seen[0][0]);
  },
};

function answer() {
  const body = {
    id: 's',
    stream_url: '/v1/streams/s?token=t',
    status_url: '/v1/streams/s/status?token=t',
    cancel_url: '/v1/streams/s?token=c',
    expires_at: 4e9,
  };
  const response = new Response(JSON.stringify(body), { status: 202 });
  Object.defineProperty(response, 'url', { value: 'http://h/v1/images/generations' });
  return response;
}

const [name] = process.argv.slice(2);
if (name === '--list') console.log(Object.keys(checks).join('\n'));
else if (name) await checks[name]();
