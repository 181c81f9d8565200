// The pictures to edit: chosen, pasted, dropped, or taken from those that were made; and their upload.

import { StreamError } from "../client.js";
import { Brush } from "./mask.js";

const MOST = 16; // as OpenAI's edits take

/** The fieldset. It tells of a change with the event `inputs`. */
export class Inputs {
  #root;
  #list;
  #frame;
  #brush;
  #files = []; // {file, url}
  #masks = true;

  constructor(root) {
    this.#root = root;
    this.#list = root.querySelector(".thumbs");
    this.#frame = root.querySelector("#brush");
    this.#brush = new Brush(root.querySelector("canvas"), root.querySelector("[name=brush]"));
    const chooser = root.querySelector("[type=file]");
    chooser.addEventListener("change", () => {
      this.add(...chooser.files);
      chooser.value = "";
    });
    root.querySelector("[name=undo]").addEventListener("click", () => this.#brush.undo());
    root.querySelector("[name=clear]").addEventListener("click", () => this.#brush.clear());
    document.addEventListener("paste", ({ clipboardData }) => this.add(...(clipboardData?.files ?? [])));
    root.addEventListener("dragover", (event) => event.preventDefault());
    root.addEventListener("drop", (event) => {
      event.preventDefault();
      this.add(...event.dataTransfer.files);
    });
  }

  get count() {
    return this.#root.hidden ? 0 : this.#files.length;
  }

  /** Show what the model takes. */
  allow({ edits, masks }) {
    this.#root.hidden = !edits;
    this.#masks = masks;
    this.#frame.hidden = !masks || !this.#files.length;
  }

  add(...files) {
    const pictures = files.filter(({ type }) => type.startsWith("image/")).slice(0, MOST - this.#files.length);
    if (!pictures.length || this.#root.hidden) return;
    const first = !this.#files.length;
    for (const file of pictures) this.#files.push({ file, url: URL.createObjectURL(file) });
    this.#show(first);
  }

  #remove(one) {
    const first = this.#files[0] === one;
    this.#files = this.#files.filter((other) => other !== one);
    URL.revokeObjectURL(one.url);
    this.#show(first);
    this.#root.querySelector("[type=file]").focus();
  }

  /** `anew`: another picture is the first, which is the one that the mask is for. */
  async #show(anew) {
    this.#list.replaceChildren(
      ...this.#files.map((one, at) => {
        const name = one.file.name ?? `picture ${at + 1}`;
        const item = document.createElement("li");
        const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Remove" });
        button.setAttribute("aria-label", `Remove ${name}`);
        button.addEventListener("click", () => this.#remove(one));
        item.append(Object.assign(document.createElement("img"), { src: one.url, alt: name }), button);
        return item;
      }),
    );
    this.#root.dispatchEvent(new CustomEvent("inputs", { bubbles: true }));
    this.#frame.hidden = !this.#masks || !this.#files.length;
    if (!anew) return;
    const first = this.#files[0];
    const picture = first && (await createImageBitmap(first.file).catch(() => undefined));
    if (first !== this.#files[0]) picture?.close();
    else this.#brush.open(picture);
    this.#frame.hidden ||= !picture;
  }

  /** Upload all, and give their references for the order: `{images, mask}`. Raises StreamError. */
  async upload(base, headers) {
    if (!this.count) return {};
    const images = [];
    for (const { file } of this.#files) images.push(await uploaded(file, file.name ?? "picture.png", base, headers));
    const mask = this.#masks ? await this.#brush.mask() : undefined;
    return mask ? { images, mask: await uploaded(mask, "mask.png", base, headers) } : { images };
  }
}

async function uploaded(file, name, base, headers) {
  const form = new FormData();
  form.append("purpose", "vision");
  form.append("file", file, name);
  const response = await fetch(`${base}/files`, { method: "POST", body: form, headers });
  const body = await response.json().catch(() => ({}));
  if (response.ok) return { file_id: body.id };
  const { message = `The upload was answered ${response.status}.`, code } = body.error ?? {};
  throw new StreamError(message, { code, status: response.status, body });
}
