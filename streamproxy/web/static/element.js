/**
 * <progressive-image src="STREAM_URL" alt="A lighthouse">: shows a stream's previews, then its picture.
 *
 * It only follows: no attribute orders anything. Attributes, events and parts are in element.d.ts. Two pictures lie on
 * each other: the one that is shown, and the one that fades in. Each is decoded before it is shown. Its Blob's URL is
 * revoked when the next one has replaced it. Styles are a constructed sheet and properties, so that a strict
 * Content-Security-Policy only has to allow `img-src blob:`.
 */

import { follow } from "./client.js";

const STYLE = `
:host { display: block; position: relative; max-inline-size: 100%; }
:host([hidden]) { display: none; }
[part="frame"] {
  position: relative; overflow: hidden; inline-size: 100%; border-radius: inherit;
  aspect-ratio: var(--progressive-image-ratio, 1); background: var(--progressive-image-background, #8883);
}
[part~="picture"] {
  position: absolute; inset: 0; inline-size: 100%; block-size: 100%;
  object-fit: var(--progressive-image-fit, cover); transition: opacity .3s;
}
:host([state="failed"]) [part~="picture"] { opacity: var(--progressive-image-failed-opacity, .35); }
[part="progress"] {
  position: absolute; inset: auto 0 0; block-size: 3px; transform-origin: 0 0;
  background: var(--progressive-image-accent, #3b82f6); transition: transform 1s linear;
}
:host(:not([aria-busy="true"])) [part="progress"], :host(:not([usual])) [part="progress"] { display: none; }
[part="status"] {
  display: flex; gap: .75em; align-items: baseline; justify-content: space-between; flex-wrap: wrap;
  margin-block-start: .4em; font: var(--progressive-image-font, .875em/1.4 system-ui, sans-serif);
}
[part="status"]:not(:has(:not(:empty))) { display: none; }
[part="elapsed"] { font-variant-numeric: tabular-nums; opacity: .75; }
[part="again"] { font: inherit; }
[hidden] { display: none; }
@media (prefers-reduced-motion: reduce) { [part~="picture"], [part="progress"] { transition: none; } }
`;

const FADE = 400;
const Base = globalThis.HTMLElement ?? class {}; // so that a server can import this module

let sheet;

export class ProgressiveImage extends Base {
  static observedAttributes = ["src", "alt", "index", "preview", "width", "height"];

  #parts;
  #following;
  #source; // the stream
  #shown; // {img, url}: the picture that is shown
  #next; // the newest event, which waits until the picture before it is shown
  #busy = false; // whether a picture is being decoded or fades in
  #began = 0;
  #clock;

  constructor() {
    super();
    const root = this.attachShadow({ mode: "open", delegatesFocus: true });
    if (!sheet) {
      sheet = new CSSStyleSheet();
      sheet.replaceSync(STYLE);
    }
    root.adoptedStyleSheets = [sheet];
    const frame = made("div", { part: "frame" });
    const progress = made("div", { part: "progress", "aria-hidden": "true" });
    const status = made("div", { part: "status" });
    const message = made("span", { part: "message", role: "status" });
    const again = made("button", { part: "again", type: "button", hidden: "" });
    const elapsed = made("span", { part: "elapsed", "aria-hidden": "true" }); // not to be read out each second
    again.textContent = "Try again";
    again.addEventListener(
      "click",
      () => this.dispatchEvent(new Event("again", { cancelable: true })) && this.#follow(),
    );
    frame.append(progress);
    status.append(message, again, elapsed);
    root.append(frame, status);
    this.#parts = { frame, progress, message, again, elapsed };
  }

  /** `waiting`, `forming`, `completed` or `failed`; null without a `src`. */
  get state() {
    return this.getAttribute("state");
  }

  connectedCallback() {
    this.#size(this.getAttribute("width"), this.getAttribute("height"));
    if (this.getAttribute("src") !== this.#source) this.#follow();
  }

  disconnectedCallback() {
    // An element that is only moved is connected again in the same turn.
    queueMicrotask(() => this.isConnected || this.#stop());
  }

  attributeChangedCallback(name, old, value) {
    if (!this.isConnected || old === value) return;
    if (name === "src" || name === "index" || name === "preview") this.#follow();
    else if (name === "alt") this.#describe();
    else this.#size(this.getAttribute("width"), this.getAttribute("height"));
  }

  /** Follow the stream of `src`, and show the last picture until there is another. */
  #follow() {
    this.#following?.leave();
    clearInterval(this.#clock);
    this.#source = this.getAttribute("src");
    this.#next = undefined;
    if (!this.#source) {
      this.#stop();
      return;
    }
    this.#began = Number(this.getAttribute("since")) * 1000 || Date.now();
    this.#state("waiting", "");
    this.#clock = setInterval(() => this.#tick(), 1000);
    this.#tick();
    try {
      this.#following = follow(this.#source, { preview: this.getAttribute("preview") });
    } catch (error) {
      this.#fail(error);
      return;
    }
    this.#run(this.#following);
  }

  async #run(following) {
    const index = Number(this.getAttribute("index") ?? 0);
    try {
      for await (const event of following) {
        if (following !== this.#following) return;
        if (event.image_index !== index) continue;
        this.#take(event);
        if (event.kind === "completed") return;
      }
      if (following === this.#following) throw new Error("The stream ended without this picture.");
    } catch (error) {
      if (following === this.#following && error.name !== "AbortError") this.#fail(error);
    }
  }

  #take(event) {
    if (!this.hasAttribute("width") && event.size) this.#size(...event.size.split("x"));
    this.#next = event;
    if (!this.#busy) this.#show();
  }

  /** Show the newest picture, and then any newer one. */
  async #show() {
    this.#busy = true;
    while (this.#next) {
      const event = this.#next;
      this.#next = undefined;
      const url = event.image ? URL.createObjectURL(event.image) : event.url;
      const img = made("img", { part: "picture", alt: "" });
      img.src = url ?? "";
      try {
        await img.decode();
      } catch {
        release(url);
        if (event.kind === "completed") this.#fail(new Error("The picture cannot be decoded."));
        continue;
      }
      if (!this.#source) {
        release(url); // the source has changed meanwhile
        break;
      }
      await this.#replace({ img, url }, event);
    }
    this.#busy = false;
  }

  async #replace(picture, event) {
    const old = this.#shown;
    this.#shown = picture;
    if (!this.hasAttribute("width") && !/^\d+x\d+$/.test(event.size)) {
      this.#size(picture.img.naturalWidth, picture.img.naturalHeight);
    }
    this.#parts.frame.insertBefore(picture.img, this.#parts.progress);
    this.#describe();
    if (event.kind === "completed") {
      clearInterval(this.#clock);
      this.#state("completed", "");
      this.#parts.elapsed.textContent = "";
    } else if (this.state === "waiting") this.#state("forming", "");
    this.dispatchEvent(new CustomEvent(event.kind, { detail: event }));
    const still = !old || matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (!still) await picture.img.animate({ opacity: [0, 1] }, this.#fade()).finished.catch(() => {});
    remove(old);
  }

  #fade() {
    const said = parseFloat(getComputedStyle(this).getPropertyValue("--progressive-image-fade"));
    return { duration: Number.isNaN(said) ? FADE : said, easing: "ease-in-out" };
  }

  #fail(error) {
    clearInterval(this.#clock);
    const charged = error.charged ? " It may have been charged." : " Nothing was charged.";
    this.#state("failed", error.message + (error.charged === undefined ? "" : charged));
    this.#parts.elapsed.textContent = "";
    this.dispatchEvent(new CustomEvent("failed", { detail: error }));
  }

  #state(state, message) {
    this.setAttribute("state", state);
    this.setAttribute("aria-busy", String(state === "waiting" || state === "forming"));
    this.#parts.message.textContent = message;
    this.#parts.again.hidden = state !== "failed";
  }

  #tick() {
    const seconds = Math.floor((Date.now() - this.#began) / 1000);
    const usual = Number(this.getAttribute("usual"));
    this.#parts.elapsed.textContent = usual ? `${seconds} s of about ${usual} s` : `${seconds} s`;
    // The bar slows down, and is never full before the picture is there.
    const share = usual ? 1 - Math.exp((-1.5 * seconds) / usual) : 0;
    this.#parts.progress.style.transform = `scaleX(${share})`;
  }

  #size(width, height) {
    if (!(width > 0 && height > 0)) return;
    this.#parts.frame.style.setProperty("--progressive-image-ratio", `${Number(width)} / ${Number(height)}`);
  }

  /** Only the picture that is shown has a description. */
  #describe() {
    for (const img of this.#parts.frame.querySelectorAll("img")) img.alt = "";
    if (this.#shown) this.#shown.img.alt = this.getAttribute("alt") ?? "";
  }

  #stop() {
    this.#following?.leave();
    this.#following = this.#source = this.#next = undefined;
    clearInterval(this.#clock);
    this.removeAttribute("state");
    this.removeAttribute("aria-busy");
    remove(this.#shown);
    this.#shown = undefined;
  }
}

function made(name, attributes) {
  const element = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
  return element;
}

function remove(picture) {
  picture?.img.remove();
  release(picture?.url);
}

function release(url) {
  if (url?.startsWith("blob:")) URL.revokeObjectURL(url);
}

if (globalThis.customElements && !customElements.get("progressive-image")) {
  customElements.define("progressive-image", ProgressiveImage);
}
