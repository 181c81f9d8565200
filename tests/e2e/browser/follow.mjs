// Follows one stream with any EventSource and reports what its user would see, in the words of tests/support/scenes.py.

const EVENTS = ['image_generation.partial_image', 'image_generation.completed', 'message'];

export function follow(EventSource, url, report) {
  const source = new EventSource(url);
  source.addEventListener('open', () => report({ kind: 'open' }));
  for (const type of EVENTS) source.addEventListener(type, (event) => report(seen(type, event)));
  source.addEventListener('error', (event) => {
    if (event.data === undefined) report({ kind: 'lost', state: source.readyState });
    else report({ kind: 'failed', code: JSON.parse(event.data).error.code, id: event.lastEventId });
  });
  return source;
}

function seen(type, event) {
  const data = JSON.parse(event.data);
  return {
    kind: 'event',
    type,
    id: event.lastEventId,
    index: data.partial_image_index ?? null,
    size: data.b64_json?.length ?? 0,
    image_url: data.image_url ?? null,
  };
}
