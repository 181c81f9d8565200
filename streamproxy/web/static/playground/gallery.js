// The grid: a <progressive-image> for each picture, with its caption, and what can be done with it.

import { bytes, seconds } from "./inspector.js";

/** Show `count` empty places. The button "Edit this" of a picture is the event `edit`, with its Blob. */
export function grid(root, count, { alt, width, height, began, usual }) {
  root.replaceChildren(
    ...Array.from({ length: count }, (_, at) => {
      const figure = document.createElement("figure");
      const picture = document.createElement("progressive-image");
      const attributes = {
        alt: count > 1 ? `${alt}, picture ${at + 1}` : alt,
        width,
        height,
        since: began / 1000,
        usual,
      };
      for (const [name, value] of Object.entries(attributes)) if (value) picture.setAttribute(name, value);
      figure.append(picture, caption(picture, alt));
      return figure;
    }),
  );
  root.dataset.count = Math.min(count, 4);
  return [...root.querySelectorAll("progressive-image")];
}

/** For a picture that the provider only gave by a URL elsewhere: the page may not show it, but its reader may open it. */
export function elsewhere(picture, url) {
  if (!/^https?:/.test(url)) return;
  const link = Object.assign(document.createElement("a"), { href: url, target: "_blank", rel: "noreferrer" });
  link.textContent = "Open it at the provider";
  picture.nextElementSibling.append(link);
}

function caption(picture, name) {
  const caption = document.createElement("figcaption");
  const said = document.createElement("span");
  const save = button("Download", () => download(picture.dataset.name ?? name, blob));
  const edit = button("Edit this", () =>
    picture.dispatchEvent(new CustomEvent("edit", { bubbles: true, detail: blob })),
  );
  let blob;
  save.hidden = edit.hidden = true;
  const take = ({ detail: event }) => {
    blob = event.image;
    const size = blob ? `, ${bytes(blob.size)}` : "";
    const since = seconds(Date.now() - Number(picture.getAttribute("since")) * 1000);
    const what = event.kind === "preview" ? `Preview ${(event.partial_image_index ?? 0) + 1}` : "Completed";
    said.textContent = `${what}${size}, ${since}`;
    if (event.kind === "completed") save.hidden = edit.hidden = !blob;
  };
  picture.addEventListener("preview", take);
  picture.addEventListener("completed", take);
  caption.append(said, save, edit);
  return caption;
}

function button(text, onclick) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
  made.addEventListener("click", onclick);
  return made;
}

/** Save it under a name made of the prompt. */
function download(name, blob) {
  const slug =
    name
      .toLowerCase()
      .replace(/[^\p{L}\p{N}]+/gu, "-")
      .replace(/^-|-$/g, "")
      .slice(0, 60) || "picture";
  const url = URL.createObjectURL(blob);
  const ending = blob.type.split("/")[1].replace("jpeg", "jpg");
  Object.assign(document.createElement("a"), { href: url, download: `${slug}.${ending}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
