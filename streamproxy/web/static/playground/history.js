// The orders of this browser: prompts and stream URLs in localStorage, and no pictures. And the links for viewers.

const PLACE = "streamproxy:history";
const MOST = 50;

/** The entries that are kept, newest first: `{id, prompt, model, began, streams, pictures, expires, seconds, cost, failed}`. */
export function load(storage) {
  try {
    const found = JSON.parse(storage.getItem(PLACE));
    return Array.isArray(found) ? found.filter(({ streams }) => Array.isArray(streams)) : [];
  } catch {
    return []; // another program's, or a browser that keeps nothing
  }
}

export function save(storage, entries) {
  try {
    if (entries.length) storage.setItem(PLACE, JSON.stringify(entries));
    else storage.removeItem(PLACE);
  } catch {
    // A full or forbidden storage: the page works without a history.
  }
}

/** With this entry: in the place of the one with the same id, or first. */
export function put(entries, entry) {
  const known = entries.some(({ id }) => id === entry.id);
  return known ? entries.map((one) => (one.id === entry.id ? entry : one)) : [entry, ...entries].slice(0, MOST);
}

/** The seconds that this model took the last time, if it is known. */
export function usual(entries, model) {
  return entries.find((entry) => entry.model === model && entry.seconds)?.seconds;
}

/** Whether the proxy can still have it. */
export const expired = (entry, now) => entry.expires * 1000 < now;

/**
 * The URL by which others watch, read-only. Tokens are in its fragment, which no browser sends to a server.
 *
 * `streams` are stream URLs, `pictures` how many pictures each makes.
 */
export function link(page, streams, pictures) {
  const named = streams.map((stream) => {
    const url = new URL(stream);
    return ["stream", `${url.pathname.split("/").pop()}:${url.searchParams.get("token")}`];
  });
  const url = new URL(page);
  url.hash = new URLSearchParams([...named, ["pictures", pictures]]);
  return url.href;
}

/** The streams and the number of pictures in such a URL's fragment, or undefined. */
export function linked(hash, base) {
  const found = new URLSearchParams(hash.replace(/^#/, ""));
  const streams = found.getAll("stream").map((word) => {
    const [id, ...token] = word.split(":");
    return `${base}/streams/${encodeURIComponent(id)}?token=${encodeURIComponent(token.join(":"))}`;
  });
  const pictures = Math.max(1, Math.min(10, Number(found.get("pictures")) || 1));
  return streams.length ? { streams: streams.slice(0, 10), pictures } : undefined;
}
