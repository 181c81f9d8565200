/** Types of client.js. */

interface Common {
  /** The wire's name, like `image_generation.completed`. */
  type: string;
  /** Which of the request's images; 0 where there is one. */
  image_index: number;
  /** Whether the request makes more than one image. */
  several: boolean;
  /** The picture's bytes; absent where the provider only gave a URL. */
  image?: Blob;
  url?: string | null;
  created_at?: number;
  size?: string;
  quality?: string;
  background?: string;
  output_format?: string;
}

export interface PreviewEvent extends Common {
  kind: "preview";
  partial_image_index?: number;
}

export interface CompletedEvent extends Common {
  kind: "completed";
  /** Tokens; of a request for several images the last one has them. */
  usage?: {
    total_tokens: number;
    input_tokens: number;
    output_tokens: number;
    input_tokens_details: { text_tokens: number; image_tokens: number };
  };
  /** USD of the whole request; null where it is not known. */
  cost?: number | null;
  provider?: string;
  revised_prompt?: string | null;
}

export type StreamEvent = PreviewEvent | CompletedEvent;

/** A generation that failed, an answer that refuses, or a stream that cannot be followed. */
export declare class StreamError extends Error {
  constructor(message: string, about?: Partial<Pick<StreamError, "code" | "status" | "param" | "charged" | "body">>);
  readonly code: string | undefined;
  readonly status: number | undefined;
  readonly param: string | null | undefined;
  /** Whether the provider may have charged for it all the same. */
  readonly charged: boolean;
  readonly body: unknown;
}

/** The answer to an order. Its URLs are absolute. */
export interface Ordered {
  id: string;
  object: "image.stream";
  status: "in_progress" | "completed" | "failed" | "cancelled";
  /** Reads; it can be shared. */
  stream_url: string;
  status_url: string;
  /** Also ends the generation. */
  cancel_url: string;
  /** When the URLs stop working, in seconds since 1970. */
  expires_at: number;
}

export interface FollowOptions {
  /** Aborting it stops the following, not the generation. */
  signal?: AbortSignal;
  /** Instead of the global one. */
  fetch?: typeof globalThis.fetch;
  /** The connection is lost; it will be resumed. */
  onlost?: () => void;
  /** Previews have at most so many pixels on their longer side, 16 to 2048, or come as they are. */
  preview?: number | `${number}` | "full" | null;
  /** Default: webp. */
  previewFormat?: "webp" | "jpeg" | "avif" | "png";
}

/** The events of one stream, conflated: a preview that a newer one replaces is skipped. */
export interface Following extends AsyncIterable<StreamEvent> {
  /** The completed events, once there is one for each image; rejects with a StreamError, or an AbortError. */
  readonly final: Promise<CompletedEvent[]>;
  /** Stop following. The generation is not cancelled by that. */
  leave(): void;
  /** End the generation for all its readers. Of a stream_url, which only reads, it is refused. */
  cancel(): Promise<void>;
  [Symbol.asyncIterator](): AsyncGenerator<StreamEvent, void, undefined>;
}

export declare function follow(stream: string | Ordered, options?: FollowOptions): Following;

/** The body of POST images/generations, or of images/edits where there are `images`. */
export interface ImageRequest {
  prompt: string;
  model?: string;
  /** Previews, 0 to 3. */
  partial_images?: number;
  n?: number;
  size?: string;
  quality?: string;
  output_format?: "png" | "jpeg" | "webp";
  [member: string]: unknown;
}

export interface OrderOptions {
  /** With its version, like http://127.0.0.1:8080/v1. Default: /v1 of the page's own origin. */
  baseUrl?: string;
  /** Orders with the same key and body are one generation. Default: a new one for each call. */
  idempotencyKey?: string;
  /** More headers of the POST. */
  headers?: Record<string, string>;
  signal?: AbortSignal;
  fetch?: typeof globalThis.fetch;
  /** Every visitor can read a key in a page, and spend it: for tools on one's own machine only. */
  dangerouslyUseApiKeyInBrowser?: string;
}

export declare function order(request: ImageRequest, options?: OrderOptions): Promise<Ordered>;

export interface OrderOnceOptions extends OrderOptions {
  /** Where the order is remembered. Default: sessionStorage. */
  storage?: Pick<Storage, "getItem" | "setItem" | "removeItem">;
}

/** Order once under a name: after a reload the same name is the same order, and nothing is paid again. */
export declare function orderOnce(name: string, request: ImageRequest, options?: OrderOnceOptions): Promise<Ordered>;

/** Let go of the order under this name. */
export declare function forget(name: string, storage?: Pick<Storage, "removeItem">): void;

/** One event as it was cut out of the bytes. */
export interface Cut {
  name: string;
  id: string;
  /** The data without the picture. */
  data: string;
  /** The picture's bytes in pieces. */
  image: Uint8Array[] | null;
}

/** Cuts bytes into events; the base64 of a picture is decoded as it arrives. */
export declare class Cutter {
  /** What the server last said in `retry`, in milliseconds. */
  retry: number | undefined;
  lastId: string;
  feed(chunk: Uint8Array): Generator<Cut, void, undefined>;
}
