// What tests ask of the page. `report` is the test's: what is given to it arrives there. `?proxy=` says where it is.

const proxy = new URL(location.href).searchParams.get('proxy');
const { Cutter, follow, order } = await import(`${proxy}/client.js`);
await import(`${proxy}/element.js`);

const say = (value) => window.report(JSON.stringify(value));
const base = `${proxy}/v1`;
const root = (window.root = document.querySelector('#root'));

// URLs of Blobs that are not revoked yet.
const live = new Set();
const { createObjectURL, revokeObjectURL } = URL;
URL.createObjectURL = (blob) => {
  const url = createObjectURL.call(URL, blob);
  live.add(url);
  return url;
};
URL.revokeObjectURL = (url) => {
  live.delete(url);
  revokeObjectURL.call(URL, url);
};
window.blobs = () => live.size;

const hex = async (bytes) =>
  [...new Uint8Array(await crypto.subtle.digest('SHA-256', bytes))]
    .map((byte) => byte.toString(16).padStart(2, '0'))
    .join('');

// The hash of a picture's pixels, RGBA.
async function pixels(source) {
  const canvas = new OffscreenCanvas(source.naturalWidth ?? source.width, source.naturalHeight ?? source.height);
  const context = canvas.getContext('2d');
  context.drawImage(source, 0, 0);
  return hex(context.getImageData(0, 0, canvas.width, canvas.height).data);
}

window.ordered = async (members) =>
  (
    await order(
      { model: 'sim/gpt-image', prompt: 'a lighthouse at dusk', partial_images: 3, ...members },
      { baseUrl: base },
    )
  ).stream_url;

window.followed = async (url) => {
  const following = follow(url, { onlost: () => say({ kind: 'lost' }) });
  for await (const { kind, image_index, partial_image_index } of following)
    say({ kind, image_index, partial_image_index });
  const finals = await following.final;
  return Promise.all(finals.map(async ({ image }) => pixels(await createImageBitmap(image))));
};

// An element that follows; its events are reported with the state that they leave it in.
window.placed = (url, attributes = {}) => {
  const element = document.createElement('progressive-image');
  for (const [name, value] of Object.entries({ src: url, alt: 'A lighthouse', ...attributes }))
    element.setAttribute(name, value);
  for (const type of ['preview', 'completed', 'failed']) {
    element.addEventListener(type, ({ detail }) =>
      say({
        kind: type,
        state: element.state,
        busy: element.getAttribute('aria-busy'),
        charged: detail.charged ?? null,
      }),
    );
  }
  root.append(element);
  return seen(element);
};

const seen = (element) => {
  const frame = element.shadowRoot.querySelector('[part=frame]').getBoundingClientRect();
  const pictures = [...element.shadowRoot.querySelectorAll('img')];
  return {
    ratio: Math.round((frame.width / frame.height) * 100) / 100,
    pictures: pictures.length,
    alts: pictures.map(({ alt }) => alt),
    message: element.shadowRoot.querySelector('[part=message]').textContent,
    button: !element.shadowRoot.querySelector('[part=again]').hidden,
    opacity: pictures.length ? Number(getComputedStyle(pictures.at(-1)).opacity) : null,
  };
};
window.element = () => seen(root.querySelector('progressive-image'));
window.shownPixels = () => pixels(root.querySelector('progressive-image').shadowRoot.querySelector('img:last-of-type'));
window.until = async (test) => {
  const ends = performance.now() + 20_000;
  while (!(await test())) {
    if (performance.now() > ends) throw new Error(`never: ${test}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
};

// The live `img`s of the one element, and whether each is animated now.
window.layers = () =>
  [...root.querySelector('progressive-image').shadowRoot.querySelectorAll('img')].map((img) => ({
    ready: img.complete && img.naturalWidth > 0,
    fading: img.getAnimations().some(({ effect }) => effect.getKeyframes().some(({ opacity }) => opacity === '0')),
  }));

// Watches the element while its stream runs: every set of pictures that it had, at once when it changed.
window.layered = (url, attributes) => {
  window.placed(url, attributes);
  const seen = (window.layersSeen = []);
  const { shadowRoot } = root.querySelector('progressive-image');
  new MutationObserver(() => seen.push(window.layers())).observe(shadowRoot, { childList: true, subtree: true });
};

// The page's tasks of over 50 ms while the element shows what comes, in milliseconds.
window.longTasks = async (url) => {
  const tasks = [];
  const observer = new PerformanceObserver((list) => tasks.push(...list.getEntries().map(({ duration }) => duration)));
  observer.observe({ type: 'longtask' });
  window.placed(url);
  await window.until(() => root.querySelector('progressive-image').state === 'completed');
  await new Promise((resolve) => setTimeout(resolve, 200)); // entries come in a later task
  observer.disconnect();
  return tasks;
};

// One element, one picture after the other; the most Blobs that were held at a time, and those held at the end.
window.oneAfterTheOther = async (count, edge = 64) => {
  let most = 0;
  const element = document.createElement('progressive-image');
  element.style.setProperty('--progressive-image-fade', '1');
  root.append(element);
  for (let number = 0; number < count; number++) {
    const done = new Promise((resolve) => element.addEventListener('completed', resolve, { once: true }));
    element.setAttribute('src', await window.ordered({ size: `${edge}x${edge}`, prompt: `picture ${number}` }));
    await done;
    most = Math.max(most, live.size);
  }
  await window.until(() => live.size === 1);
  element.remove();
  await window.until(() => live.size === 0);
  return most;
};

// As many elements as streams, all at once, and one more that shows the first stream; the pixels of each.
window.together = async (count, size) => {
  const prompts = Array.from({ length: count }, (_, number) => `picture ${number}`);
  const urls = await Promise.all(prompts.map((prompt) => window.ordered({ size: `${size}x${size}`, prompt })));
  const elements = [...urls, urls[0]].map((url) => {
    const element = document.createElement('progressive-image');
    element.setAttribute('src', url);
    return element;
  });
  root.append(...elements);
  await window.until(() => elements.every(({ state }) => state === 'completed'));
  const hashes = [];
  for (const { shadowRoot } of elements) hashes.push(await pixels(shadowRoot.querySelector('img:last-of-type')));
  if (hashes.pop() !== hashes[0]) throw new Error('two readers of one stream show different pictures');
  return hashes;
};

// Two streams on one connection, of which the first makes two images: how many of them each reader has in the end.
window.several = async () => {
  const orders = [
    { model: 'sim/plain', n: 2, size: '64x64' },
    { prompt: 'another', size: '64x64' },
  ];
  const urls = await Promise.all(orders.map((members) => window.ordered(members)));
  const finals = await Promise.all(urls.map((url) => follow(url).final));
  return finals.map(({ length }) => length);
};

// Follow these streams; what is on the screen is reported with the time of day. Each stream says its number.
window.watched = (urls, options) => {
  for (const [number, url] of urls.entries()) {
    const img = document.createElement('img');
    root.append(img);
    (async () => {
      for await (const { kind, image } of follow(url, options)) {
        img.src = URL.createObjectURL(image);
        await img.decode();
        await new Promise(requestAnimationFrame);
        const at = Date.now();
        const hash = kind === 'completed' ? await hex(await image.arrayBuffer()) : null;
        say({ kind: 'shown', number, type: kind, at, bytes: image.size, width: img.naturalWidth, hash });
      }
    })();
  }
};

// The same events with the engine's own base64, wherever they are cut.
window.cutEverywhere = () => {
  const bytes = Uint8Array.from({ length: 61 }, (_, at) => (at * 37) & 255);
  const b64 = btoa(String.fromCharCode(...bytes));
  const odd = `${b64.slice(0, 5)}\\n${b64.slice(5, 22)} ${b64.slice(22)}`.replaceAll('/', '\\/');
  const wire = new TextEncoder().encode(`data: {"b64_json":"${b64}"}\n\ndata: {"b64_json":"${odd}","a":"ä"}\r\n\r\n`);
  const want = JSON.stringify([
    ['{"b64_json":""}', [...bytes]],
    ['{"b64_json":"","a":"ä"}', [...bytes]],
  ]);
  for (let one = 0; one < wire.length; one++) {
    for (let two = one; two < wire.length; two += 7) {
      const cutter = new Cutter();
      const found = [];
      for (const chunk of [wire.subarray(0, one), wire.subarray(one, two), wire.subarray(two)]) {
        for (const { data, image } of cutter.feed(chunk)) found.push([data, image.flatMap((piece) => [...piece])]);
      }
      if (JSON.stringify(found) !== want) throw new Error(`cut at ${one} and ${two}`);
    }
  }
  return typeof Uint8Array.prototype.setFromBase64;
};

// An application in StrictMode, whose component orders by itself. `?react` is what a reload of it does.
window.mounted = async (request) => {
  const { createElement, StrictMode } = await import('react');
  const { createRoot } = await import('/react-dom.mjs');
  const { ProgressiveImage, useImageOrder, useImageStream } = await import(`${proxy}/react.js`);
  function App() {
    const { order: made, error } = useImageOrder('hero', request, { baseUrl: base });
    const { status, url } = useImageStream(made?.stream_url);
    return createElement(
      'main',
      { 'data-status': error ? error.message : status },
      createElement(ProgressiveImage, {
        src: made?.stream_url,
        alt: 'Hero',
        onCompleted: () => say({ kind: 'shown' }),
      }),
      createElement('img', { id: 'plain', src: url ?? undefined, alt: '' }),
    );
  }
  createRoot(root).render(createElement(StrictMode, null, createElement(App)));
  await window.until(() => document.querySelector('main')?.dataset.status === 'completed');
  await window.until(() => document.querySelector('progressive-image').state === 'completed');
  return pixels(document.querySelector('progressive-image').shadowRoot.querySelector('img:last-of-type'));
};

say({ kind: 'ready' });
