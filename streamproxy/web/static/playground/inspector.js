// The list of a stream's events: when each came, how large it was, and its JSON, in which a picture is its size.

/** One event as the list shows it. Pure. `milliseconds`: since the order; `number`: of its stream, if there are several. */
export function described(event, milliseconds, number = 0) {
  const { image, kind, several, stream, ...data } = event;
  const name = kind === "preview" ? `preview ${(event.partial_image_index ?? 0) + 1}` : "completed";
  return {
    name: name + ofPicture(several ? event.image_index + 1 : number),
    size: image ? bytes(image.size) : "",
    time: seconds(milliseconds),
    json: JSON.stringify(image ? { ...data, b64_json: `(${bytes(image.size)} of ${image.type})` } : data, null, 2),
  };
}

const ofPicture = (number) => (number ? ` of picture ${number}` : "");

/** An error as the list shows it. */
export function failed(error, milliseconds, number = 0) {
  const { code, status, param, charged, message } = error;
  const { kind, ...body } = error.body ?? { error: { message, code, status, param, charged } };
  return {
    name: `error${ofPicture(number)}`,
    size: "",
    time: seconds(milliseconds),
    json: JSON.stringify(body, null, 2),
  };
}

/** Something that is no event of the stream, like a lost connection. */
export const remark = (text, milliseconds) => ({ name: text, size: "", time: seconds(milliseconds), json: "" });

export const bytes = (size) =>
  size < 1000 ? `${size} B` : size < 1e6 ? `${Math.round(size / 1000)} kB` : `${(size / 1e6).toFixed(1)} MB`;
export const seconds = (milliseconds) => `${(milliseconds / 1000).toFixed(1)} s`;
export const dollars = (cost) => `$${Number(cost.toPrecision(3))}`;

const THUMB = 72;

/** A row of the list, with the picture in small where there is one. */
export function row({ name, size, time, json }, picture) {
  const item = document.createElement("li");
  const line = document.createElement(json ? "summary" : "div");
  const canvas = Object.assign(document.createElement("canvas"), { width: THUMB, height: THUMB });
  canvas.setAttribute("aria-hidden", "true");
  for (const text of [time, name, size]) {
    line.append(Object.assign(document.createElement("span"), { textContent: text }));
  }
  line.prepend(canvas);
  if (json) {
    const details = document.createElement("details");
    const code = Object.assign(document.createElement("pre"), { textContent: json, tabIndex: 0 });
    code.setAttribute("aria-label", `JSON of ${name}`);
    details.append(line, code);
    item.append(details);
  } else item.append(line);
  if (picture) thumbnail(canvas, picture);
  return item;
}

/** Draw the picture in small; its Blob is not held. */
async function thumbnail(canvas, picture) {
  try {
    const bitmap = await createImageBitmap(picture);
    const scale = Math.max(THUMB / bitmap.width, THUMB / bitmap.height);
    const [width, height] = [bitmap.width * scale, bitmap.height * scale];
    canvas.getContext("2d").drawImage(bitmap, (THUMB - width) / 2, (THUMB - height) / 2, width, height);
    bitmap.close();
  } catch {
    // It cannot be decoded, and so has no thumbnail. The element says so.
  }
}
