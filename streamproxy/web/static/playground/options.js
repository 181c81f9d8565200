// The abilities of a model, the controls that follow from them, and the requests that the controls stand for. Pure.

const FORMATS = ["png", "jpeg", "webp"];
const SIZES = ["1024x1024", "1536x1024", "1024x1536"];
const MOST = 10; // pictures of one press, as many as OpenAI's schema has
const GPT_IMAGE = /(^|\/)(chatgpt|gpt)-image/; // the models that `quality` and `background` are for

/** The abilities in an entry of GET images/models. A member that it does not have is taken to be possible. */
export function abilities(entry = {}) {
  const streams = entry.streams ?? true;
  const own = GPT_IMAGE.test(entry.id ?? "");
  return {
    streams,
    previews: streams ? (entry.partial_images ?? 3) : 0,
    edits: entry.edits ?? true,
    masks: (entry.edits ?? true) && (entry.masks ?? true),
    sizes: (entry.sizes ?? true) ? SIZES : [],
    formats: entry.formats ?? FORMATS,
    qualities: own ? ["low", "medium", "high"] : [],
    backgrounds: own ? ["transparent", "opaque"] : [],
    n: Math.min(entry.n ?? MOST, MOST),
    price: entry.price ?? null,
    retired: entry.retired ?? null,
  };
}

/** The same in a few words each. */
export function words(can) {
  const most = can.streams ? MOST : can.n;
  return [
    can.previews ? "shows previews" : "no previews",
    can.edits ? (can.masks ? "edits, with a mask" : "edits") : "no edits",
    most > 1 ? `up to ${most} pictures` : "one picture",
    ...(can.price ? [priced(can.price)] : []),
    ...(can.retired ? [`retired ${can.retired}`] : []),
  ];
}

const UNITS = {
  per_image: "a picture",
  first_megapixel: "for the first megapixel",
  per_megapixel: "a megapixel",
  image_output: "a million tokens",
  per_second: "a second",
};

/** A price in a few words: USD of the unit that a picture is counted in. */
function priced(price) {
  const unit = Object.keys(UNITS).find((name) => typeof price[name] === "number");
  return unit ? `$${price[unit]} ${UNITS[unit]}` : "price not known";
}

const AUTO = { value: "", label: "auto" };
const named = (values) => values.map((value) => ({ value: String(value), label: String(value) }));
const upTo = (first, last) => Array.from({ length: last - first + 1 }, (_, at) => first + at);

/** The select boxes of a model. One that leaves no choice is left out. */
export function controls(can) {
  const found = [
    { name: "n", label: "Pictures", choices: named(upTo(1, can.streams ? MOST : can.n)) },
    { name: "partial_images", label: "Previews", choices: named(upTo(0, can.previews).reverse()) },
    { name: "size", label: "Size", choices: [AUTO, ...named(can.sizes)] },
    { name: "quality", label: "Quality", choices: [AUTO, ...named(can.qualities)] },
    { name: "output_format", label: "Format", choices: [AUTO, ...named(can.formats)] },
    { name: "background", label: "Background", choices: [AUTO, ...named(can.backgrounds)] },
  ];
  return found.filter(({ choices }) => choices.length > 1);
}

/**
 * The bodies of the orders: `values` by the controls' names, `images` and `mask` as `{file_id}`.
 *
 * A model that shows previews is asked for one picture at a time, because most refuse to stream several. So each
 * picture of the grid has its own stream. Any other model gets one request for all.
 */
export function requests(values, can, { images = [], mask } = {}) {
  const { n = "1", partial_images: previews, model, prompt, ...others } = values;
  const request = { model, prompt };
  if (can.previews) request.partial_images = Number(previews ?? can.previews);
  for (const [name, value] of Object.entries(others)) if (value) request[name] = value;
  if (images.length) request.images = images;
  if (images.length && mask) request.mask = mask;
  const count = Number(n);
  if (can.streams) return Array.from({ length: count }, () => request);
  return [count > 1 ? { ...request, n: count } : request];
}

/** Width and height that are known before the picture, or a square. */
export function ratio({ size } = {}) {
  const [width, height] = /^(\d+)x(\d+)$/
    .exec(size ?? "")
    ?.slice(1)
    .map(Number) ?? [1024, 1024];
  return { width, height };
}
