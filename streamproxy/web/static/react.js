/**
 * streamproxy's streams in React. `react` is the page's own.
 *
 *     const { order } = useImageOrder("hero", { model: "openai/gpt-image-2", prompt, partial_images: 3 });
 *     return <ProgressiveImage src={order?.stream_url} alt={prompt} />;
 *
 * Effects run twice under StrictMode, and again after a reload. The name in `useImageOrder` stands for one order in
 * sessionStorage, so neither orders or pays a second time. Types are in react.d.ts.
 */

import { createElement, useEffect, useRef, useState } from "react";

import { follow, forget, orderOnce } from "./client.js";
import "./element.js";

/** Order once under this name, if there is a request. */
export function useImageOrder(name, request, options) {
  const [state, setState] = useState({});
  const given = useRef({});
  given.current = { request, options };
  const wanted = Boolean(request);
  useEffect(() => {
    if (!wanted) return undefined;
    let live = true;
    setState({});
    orderOnce(name, given.current.request, given.current.options).then(
      (order) => live && setState({ order }),
      (error) => live && setState({ error }),
    );
    return () => {
      live = false;
    };
  }, [name, wanted]);
  return { ...state, forget: () => forget(name, given.current.options?.storage) };
}

const NOTHING = { status: "idle" };

/** Follow a stream: its status, the newest event, and the picture's URL, which is revoked when the next is there. */
export function useImageStream(streamUrl, { preview, previewFormat } = {}) {
  const [state, setState] = useState(NOTHING);
  useEffect(() => {
    if (!streamUrl) {
      setState(NOTHING);
      return undefined;
    }
    let url;
    const following = follow(streamUrl, { preview, previewFormat });
    setState({ status: "waiting" });
    (async () => {
      try {
        for await (const event of following) {
          const old = url;
          url = event.image && URL.createObjectURL(event.image);
          setState({ status: event.kind === "completed" ? "completed" : "forming", event, url: url ?? event.url });
          if (old) setTimeout(() => URL.revokeObjectURL(old), 1000); // by then the next one is painted
        }
      } catch (error) {
        if (error.name !== "AbortError") setState((last) => ({ ...last, status: "failed", error }));
      }
    })();
    return () => {
      following.leave();
      if (url) URL.revokeObjectURL(url);
    };
  }, [streamUrl, preview, previewFormat]);
  return state;
}

const EVENTS = { onPreview: "preview", onCompleted: "completed", onFailed: "failed", onAgain: "again" };

/** `<progressive-image>` with its events as properties. */
export function ProgressiveImage({ className, ...properties }) {
  const element = useRef(null);
  const handlers = useRef({});
  handlers.current = properties;
  useEffect(() => {
    const here = element.current;
    const ends = Object.entries(EVENTS).map(([property, type]) => {
      const listener = (event) => handlers.current[property]?.(event);
      here.addEventListener(type, listener);
      return () => here.removeEventListener(type, listener);
    });
    return () => ends.forEach((end) => end());
  }, []);
  const attributes = Object.fromEntries(Object.entries(properties).filter(([name]) => !(name in EVENTS)));
  return createElement("progressive-image", { ...attributes, class: className, ref: element });
}
