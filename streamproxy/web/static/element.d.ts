/**
 * Types of element.js.
 *
 *     <progressive-image src="STREAM_URL" alt="..." width="1024" height="1024" usual="30"></progressive-image>
 *
 * Attributes: `src` is a stream_url, `alt` the picture's description, `width` and `height` reserve its ratio before the
 * first byte, `index` is which of the stream's images (0), `preview` the most pixels of a preview's longer side (512),
 * `usual` the seconds that the model usually takes, and `since` when it was ordered, in seconds since 1970 (now).
 * It sets `state` (waiting, forming, completed, failed) and `aria-busy`.
 *
 * Parts: frame, picture, progress, status, message, again, elapsed.
 * Properties: --progressive-image-background, -accent, -fit, -fade (milliseconds), -failed-opacity, -font.
 */

import type { CompletedEvent, PreviewEvent, StreamError } from "./client.js";

export interface ProgressiveImageEvents {
  /** A preview is seen. */
  preview: CustomEvent<PreviewEvent>;
  /** The picture is seen. */
  completed: CustomEvent<CompletedEvent>;
  /** The stream has failed, or cannot be followed. */
  failed: CustomEvent<StreamError | Error>;
  /** The button was pressed. Unless it is prevented, the same stream is followed again; nothing is ordered. */
  again: Event;
}

export declare class ProgressiveImage extends HTMLElement {
  readonly state: "waiting" | "forming" | "completed" | "failed" | null;
  addEventListener<Name extends keyof ProgressiveImageEvents>(
    type: Name,
    listener: (this: ProgressiveImage, event: ProgressiveImageEvents[Name]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

declare global {
  interface HTMLElementTagNameMap {
    "progressive-image": ProgressiveImage;
  }
}
