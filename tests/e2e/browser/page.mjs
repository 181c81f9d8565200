// What tests ask of the page. `report` is the test's: what is given to it arrives there.

import { follow } from './follow.mjs';

const say = (value) => window.report(JSON.stringify(value));
const order = (origin, headers, members) =>
  fetch(`${origin}/v3/images/generations`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: JSON.stringify({ model: 'sim/gpt-image', prompt: 'a lighthouse at dusk', stream: true, ...members }),
  });

// Follow a stream by its URL.
window.followed = (url) => void follow(EventSource, url, say);

// Order with one request, follow with another: the page never has the caller's key in a URL.
window.ordered = async (origin, query, key) => {
  const headers = { prefer: 'respond-async', authorization: `Bearer ${key}` };
  const response = await order(origin, headers, { partial_images: 1 });
  const { stream_url } = await response.json();
  say({ kind: 'ordered', status: response.status, same: response.headers.get('location') === stream_url });
  follow(EventSource, origin + stream_url + query, say);
};

// Show a picture by its URL; its width in pixels, once it is there.
window.shown = (url) =>
  new Promise((resolve, reject) => {
    const picture = document.querySelector('#picture');
    picture.onload = () => resolve([picture.naturalWidth, picture.naturalHeight]);
    picture.onerror = () => reject(new Error('the picture cannot be shown'));
    picture.src = url;
  });

// Read the POST's own stream; each event is shown as it comes.
window.posted = async (origin) => {
  const response = await order(origin, {}, { partial_images: 2 });
  say({ kind: 'open', stream: response.headers.get('stream-id'), location: response.headers.get('location') });
  let pieces = [];
  for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
    const parts = text.split('\n');
    pieces.push(parts.shift());
    for (const part of parts) {
      const line = pieces.join('');
      pieces = [part];
      if (!line.startsWith('data: ')) continue;
      const data = JSON.parse(line.slice(6));
      const size = await window.shown(`data:image/png;base64,${data.b64_json}`);
      say({ kind: 'event', type: data.type, id: '', size });
    }
  }
  say({ kind: 'end' });
};

// Say what becomes visible: pictures of the one <img>, and what the page tells its user.
window.observed = () => {
  const picture = document.querySelector('img');
  picture.onload = () => say({ kind: 'shown', width: picture.naturalWidth });
  window.alert = (text) => say({ kind: 'told', text });
};

// The same without a stream: show these pictures at once, each as a data URL or by its URL. How long the slowest took.
window.bare = async (sources) => {
  const began = performance.now();
  const one = async (source) => {
    const picture = document.body.appendChild(document.createElement('img'));
    picture.src = source;
    await picture.decode();
    await new Promise(requestAnimationFrame);
    picture.remove();
    return performance.now() - began;
  };
  return Math.max(...(await Promise.all(sources.map(one))));
};

// Follow several streams on one EventSource, each in an <img> of its own; when a picture is on the screen, say so.
window.together = (origin, url) => {
  const pictures = new Map();
  const show = async (event) => {
    const came = performance.now();
    const data = JSON.parse(event.data);
    if (!pictures.has(data.stream)) pictures.set(data.stream, document.body.appendChild(document.createElement('img')));
    const picture = pictures.get(data.stream);
    picture.src = data.image_url ? origin + data.image_url : `data:image/png;base64,${data.b64_json}`;
    say({ kind: 'event', type: event.type, id: event.lastEventId, stream: data.stream, ref: 'image_url' in data });
    await picture.decode().catch(() => {}); // another one has taken its place
    await new Promise(requestAnimationFrame);
    say({ kind: 'shown', stream: data.stream, ms: performance.now() - came, width: picture.naturalWidth });
  };
  const source = new EventSource(origin + url);
  source.addEventListener('image_generation.partial_image', show);
  source.addEventListener('image_generation.completed', show);
  source.addEventListener('error', () => say({ kind: 'lost', state: source.readyState }));
};

say({ kind: 'ready' });
