// Must compile with `tsc --strict`; nothing runs it.

import { follow, forget, order, orderOnce, Cutter, StreamError } from 'streamproxy-client';
import type { CompletedEvent, Ordered } from 'streamproxy-client';
import { ProgressiveImage as Element } from 'streamproxy-client/element';
import { ProgressiveImage, useImageOrder, useImageStream } from 'streamproxy-client/react';

export async function plain(): Promise<number | null | undefined> {
  const ordered: Ordered = await order({ prompt: 'a', model: 'sim/gpt-image', partial_images: 3 }, { baseUrl: '/v1' });
  const following = follow(ordered, { signal: new AbortController().signal, preview: 512, previewFormat: 'avif' });
  for await (const event of following) {
    if (event.kind === 'preview') console.log(event.partial_image_index, event.image?.size);
    else console.log(event.usage?.total_tokens);
    // @ts-expect-error: only the completed event has a cost
    if (event.kind === 'preview') console.log(event.cost);
  }
  await following.cancel().catch((error: unknown) => error instanceof StreamError && error.charged);
  const finals: CompletedEvent[] = await following.final;
  // @ts-expect-error: a prompt is needed
  await orderOnce('a', { model: 'x' });
  // @ts-expect-error: the key's option says what it does
  await order({ prompt: 'a' }, { apiKey: 'sk-1' });
  forget('a');
  for (const cut of new Cutter().feed(new Uint8Array())) console.log(cut.data, cut.image?.length);
  return finals[0]?.cost;
}

export function element(picture: Element): void {
  picture.addEventListener('completed', ({ detail }) => console.log(detail.cost, picture.state));
  picture.addEventListener('failed', ({ detail }) => console.log(detail.message));
  document.createElement('progressive-image').addEventListener('preview', ({ detail }) => detail.partial_image_index);
}

export function Picture({ prompt }: { prompt: string }) {
  const { order, error } = useImageOrder('hero', { prompt });
  const { status, url } = useImageStream(order?.stream_url, { preview: 256 });
  if (error) return <p>{error.message}</p>;
  return (
    <figure>
      <ProgressiveImage src={order?.stream_url} alt={prompt} preview={512} usual={30} onCompleted={({ detail }) => detail.usage} />
      <img src={url ?? undefined} alt={status} />
    </figure>
  );
}
