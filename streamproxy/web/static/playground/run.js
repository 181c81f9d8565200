// One run on the screen: its pictures, and the streams that they come from.
//
// A run is one press of Draw: `{id, began, prompt, model, pictures, requests}`. A shared link, or an entry of the
// history, has no requests: it is watched, and nothing is ordered.

import { follow, forget, orderOnce } from "../client.js";
import { elsewhere, grid } from "./gallery.js";
import { described, failed, remark, row } from "./inspector.js";
import { ratio } from "./options.js";

const SMALL = 512; // pixels of a preview's longer side where there are several pictures: they share one connection

const place = (run, at) => `playground:${run.id}:${at}`;

/** Let go of a run's orders, so that a reload does not show them again. They go on at the proxy. */
export function forgetRun(run) {
  run.requests?.forEach((_, at) => forget(place(run, at)));
}

export class Shown {
  streams = []; // their URLs
  #events;
  #places; // the elements
  #followings = [];
  #ordering; // a promise of all answers
  #begin; // ends `#begun`
  #begun = new Promise((resolve) => (this.#begin = resolve)); // it is followed, or left
  #left = false;

  /** Take the place of the run before. `usual`: the seconds that the model usually takes. */
  constructor(run, pictures, events, usual) {
    this.run = { ...run, began: run.began ?? Date.now() };
    this.#events = events;
    const { width, height } = ratio(run.requests?.[0] ?? run);
    const alt = run.prompt ?? "A shared picture";
    this.#places = grid(pictures, run.pictures, { alt, width, height, began: this.run.began, usual });
    events.replaceChildren();
  }

  get pictures() {
    return this.#places.length;
  }

  /** Send the orders that were not sent before a reload: `{orders, refused}`. Those that succeed are shown. */
  async order(options) {
    const asked = this.run.requests.map((request, at) => orderOnce(place(this.run, at), request, options));
    this.#ordering = Promise.allSettled(asked);
    const settled = await this.#ordering;
    const orders = settled.filter(({ status }) => status === "fulfilled").map(({ value }) => value);
    const refused = settled.find(({ status }) => status === "rejected")?.reason;
    if (refused) this.#places.splice(orders.length).forEach((place) => place.parentElement.remove());
    return { orders, refused };
  }

  /** Follow streams, URLs or orders, to their ends: `{failures, cost}`. `cost` is undefined where one is not known. */
  async watch(streams) {
    this.streams = streams.map((stream) => stream.stream_url ?? stream);
    const preview = streams.length > 1 ? SMALL : undefined;
    this.#places.forEach((place, at) => {
      if (preview) place.setAttribute("preview", preview);
      else place.setAttribute("index", at);
      place.setAttribute("src", this.streams[at] ?? this.streams[0]);
    });
    const followings = streams.map((stream) => {
      const onlost = () => this.#list(remark("connection lost", Date.now() - this.run.began));
      return follow(stream, { preview, onlost });
    });
    this.#followings = followings;
    this.#begin();
    const ends = await Promise.all(followings.map((one, at) => this.#read(one, streams.length > 1 ? at + 1 : 0)));
    const costs = ends.flatMap(({ costs }) => costs);
    const known = costs.every((cost) => typeof cost === "number");
    return {
      failures: ends.map(({ error }) => error).filter(Boolean),
      cost: known ? costs.reduce((sum, cost) => sum + cost, 0) : undefined,
    };
  }

  /** List a stream's events to its end. `number`: which of several streams it is, from 1. */
  async #read(following, number) {
    const since = () => Date.now() - this.run.began;
    const costs = [];
    try {
      for await (const event of following) {
        this.#list(described(event, since(), number), event.image);
        if (event.kind !== "completed") continue;
        costs.push(event.cost);
        if (!event.image && event.url) elsewhere(this.#places[number ? number - 1 : event.image_index], event.url);
      }
      return { costs };
    } catch (error) {
      if (error.name !== "AbortError") this.#list(failed(error, since(), number));
      return { costs, error };
    }
  }

  #list(what, picture) {
    if (!this.#left) this.#events.append(row(what, picture));
  }

  /** Follow it no more. */
  leave() {
    this.#left = true;
    this.#begin();
    for (const following of this.#followings) following.leave();
  }

  /** End its generations for all their readers. Raises the first refusal. */
  async cancel() {
    const settled = await this.#ordering;
    if (settled.some(({ status }) => status === "fulfilled")) await this.#begun;
    const ends = await Promise.allSettled(this.#followings.map((following) => following.cancel()));
    const refused = ends.find(({ status }) => status === "rejected");
    if (refused) throw refused.reason;
  }
}
