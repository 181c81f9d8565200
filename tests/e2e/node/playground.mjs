// Checks of the playground's pure modules. `node playground.mjs NAME` runs one; `--snippets` prints programs as JSON.

import assert from 'node:assert/strict';

const folder = new URL('../../../streamproxy/web/static/playground/', import.meta.url);
const { abilities, controls, ratio, requests, words } = await import(new URL('options.js', folder));
const { LANGUAGES } = await import(new URL('snippets.js', folder));
const { link, linked, load, put, save, usual } = await import(new URL('history.js', folder));
const { bytes, described, failed } = await import(new URL('inspector.js', folder));

const names = (entry) => controls(abilities(entry)).map(({ name }) => name);

export const checks = {
  'the options are those of the model': () => {
    const all = { id: 'openai/gpt-image-2', streams: true };
    assert.deepEqual(names(all), ['n', 'partial_images', 'size', 'quality', 'output_format', 'background']);
    const least = { id: 'a/b', streams: false, edits: false, sizes: false, formats: [], n: 1 };
    assert.deepEqual(names(least), []);
    assert.equal(abilities(least).masks, false);
    const some = controls(abilities({ id: 'a/b', streams: false, sizes: false, formats: ['webp'], n: 2 }));
    assert.deepEqual(
      some.map(({ choices }) => choices.map(({ value }) => value)),
      [
        ['1', '2'],
        ['', 'webp'],
      ],
    );
    assert.ok(words(abilities(least)).includes('no edits'));
    assert.ok(words(abilities({ price: { per_image: 0.04 } })).includes('$0.04 a picture'));
    const sized = { first_megapixel: 0.07, per_megapixel: 0.03 };
    assert.ok(words(abilities({ price: sized })).includes('$0.07 for the first megapixel'));
    assert.ok(words(abilities({ price: { text_input: 5, image_output: 30 } })).includes('$30 a million tokens'));
  },
  'a model that streams gets an order for each picture': () => {
    const values = { model: 'm', prompt: 'p', n: '2', partial_images: '1', size: '', quality: 'low' };
    const one = { model: 'm', prompt: 'p', partial_images: 1, quality: 'low' };
    assert.deepEqual(requests(values, abilities({ streams: true })), [one, one]);
    const whole = { model: 'm', prompt: 'p', quality: 'low', n: 2 };
    assert.deepEqual(requests({ ...values, partial_images: undefined }, abilities({ streams: false })), [whole]);
    const images = [{ file_id: 'a' }];
    const [edit] = requests({ model: 'm', prompt: 'p' }, abilities({}), { images, mask: { file_id: 'b' } });
    assert.deepEqual(edit, { model: 'm', prompt: 'p', partial_images: 3, images, mask: { file_id: 'b' } });
    assert.deepEqual(
      requests({ model: 'm', prompt: 'p' }, abilities({}), { mask: { file_id: 'b' } })[0].mask,
      undefined,
    );
    assert.deepEqual(
      [ratio({ size: '3x2' }), ratio({})],
      [
        { width: 3, height: 2 },
        { width: 1024, height: 1024 },
      ],
    );
  },
  'a link is what it was made of': () => {
    const streams = ['http://h:1/v1/streams/str_1?token=a.b-c', 'http://h:1/v1/streams/str_2?token=d%3Ae'];
    const made = link('http://h:1/', streams, 2);
    assert.ok(made.startsWith('http://h:1/#stream=str_1'));
    assert.deepEqual(linked(new URL(made).hash, 'http://h:1/v1'), { streams, pictures: 2 });
    assert.equal(linked('', 'http://h:1/v1'), undefined);
    assert.equal(linked('#pictures=3', 'http://h:1/v1'), undefined);
    const odd = linked('#stream=..%2F..%2Fa%3Fb:c&pictures=99', 'http://h:1/v1');
    assert.deepEqual(odd, { streams: ['http://h:1/v1/streams/..%2F..%2Fa%3Fb?token=c'], pictures: 10 });
  },
  'a history survives other writers': () => {
    const kept = new Map();
    const storage = {
      getItem: (name) => kept.get(name) ?? null,
      setItem: (name, value) => kept.set(name, value),
      removeItem: (name) => kept.delete(name),
    };
    let entries = [];
    for (let id = 0; id < 60; id++) entries = put(entries, { id, streams: [], model: 'm' });
    assert.equal(entries.length, 50);
    entries = put(entries, { id: 30, streams: [], model: 'm', seconds: 4 });
    assert.equal(
      entries.findIndex(({ id }) => id === 30),
      29,
    );
    assert.deepEqual([usual(entries, 'm'), usual(entries, 'x')], [4, undefined]);
    save(storage, entries);
    assert.deepEqual(load(storage), entries);
    for (const odd of ['{', 'null', '{}', '[{"streams":1}]']) {
      kept.set('streamproxy:history', odd);
      assert.deepEqual(load(storage), []);
    }
    save(storage, []);
    assert.equal(kept.size, 0);
    save({ setItem: () => { throw new Error('full'); } }, entries); // prettier-ignore
  },
  'an event is shown without its picture': () => {
    const image = new Blob([new Uint8Array(1_234_567)], { type: 'image/png' });
    const event = { kind: 'preview', type: 't', several: false, image_index: 0, partial_image_index: 1, image };
    const shown = described(event, 1234, 2);
    assert.deepEqual([shown.name, shown.size, shown.time], ['preview 2 of picture 2', '1.2 MB', '1.2 s']);
    assert.equal(JSON.parse(shown.json).b64_json, '(1.2 MB of image/png)');
    assert.deepEqual([bytes(999), bytes(1500)], ['999 B', '2 kB']);
    const error = Object.assign(new Error('no'), { code: 'c', charged: true });
    assert.deepEqual(JSON.parse(failed(error, 0).json), { error: { message: 'no', code: 'c', charged: true } });
  },
};

const [name, base] = process.argv.slice(2);
if (name === '--list') console.log(Object.keys(checks).join('\n'));
else if (name === '--snippets') {
  const request = JSON.parse(process.argv[4]);
  const about = { request, base: `${base}/v1`, origin: base, key: false };
  console.log(JSON.stringify(Object.fromEntries(Object.entries(LANGUAGES).map(([key, made]) => [key, made(about)]))));
} else if (name) await checks[name]();
