/** Types of react.js. */

import type { CSSProperties, ReactElement } from "react";

import type { FollowOptions, ImageRequest, OrderOnceOptions, Ordered, StreamError, StreamEvent } from "./client.js";
import type { ProgressiveImageEvents } from "./element.js";

export interface ImageOrder {
  order?: Ordered;
  error?: StreamError | Error;
  /** Make the name free for another order. */
  forget(): void;
}

/** Order once under this name, as soon as there is a request. Another order needs another name, or `forget`. */
export declare function useImageOrder(
  name: string,
  request: ImageRequest | null | undefined,
  options?: OrderOnceOptions,
): ImageOrder;

export interface ImageStream {
  status: "idle" | "waiting" | "forming" | "completed" | "failed";
  /** The newest event. */
  event?: StreamEvent;
  /** The newest picture, for `<img src>`. */
  url?: string | null;
  error?: StreamError | Error;
}

/** Follow a stream. It orders nothing. `preview`: the most pixels of a preview's longer side. */
export declare function useImageStream(
  streamUrl: string | null | undefined,
  options?: Pick<FollowOptions, "preview" | "previewFormat">,
): ImageStream;

export interface ProgressiveImageProperties {
  src?: string;
  alt?: string;
  width?: number;
  height?: number;
  index?: number;
  /** The most pixels of a preview's longer side. */
  preview?: number;
  /** Seconds that the model usually takes. */
  usual?: number;
  /** When it was ordered, in seconds since 1970. Default: now. */
  since?: number;
  id?: string;
  className?: string;
  style?: CSSProperties;
  onPreview?: (event: ProgressiveImageEvents["preview"]) => void;
  onCompleted?: (event: ProgressiveImageEvents["completed"]) => void;
  onFailed?: (event: ProgressiveImageEvents["failed"]) => void;
  onAgain?: (event: ProgressiveImageEvents["again"]) => void;
}

export declare function ProgressiveImage(properties: ProgressiveImageProperties): ReactElement;
