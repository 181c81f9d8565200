// The page at /: orders pictures from the proxy that serves it, and shows them as they form.
//
//     options.js      what a model can do -> controls -> requests       snippets.js     a request -> programs
//     inputs.js       pictures to edit, with mask.js                    history.js      localStorage, links for viewers
//     gallery.js      the pictures                                      inspector.js    the events
//
// A run is one press of Draw: `{id, began, prompt, model, pictures, requests}` before it is ordered, and `streams` with
// it. sessionStorage keeps it, so that a reload shows it again and orders nothing.

import { follow, forget, orderOnce, StreamError } from "../client.js";
import "../element.js";
import { grid } from "./gallery.js";
import * as memory from "./history.js";
import { Inputs } from "./inputs.js";
import { described, dollars, failed, remark, row, seconds } from "./inspector.js";
import { abilities, controls, ratio, requests, words } from "./options.js";
import { LANGUAGES } from "./snippets.js";

const RUN = "streamproxy:run";
const SIMULATED = "sim/";
const SIMULATED_SECONDS = 9;
const GONE = [401, 404, 410]; // the statuses of a stream that is no longer kept

const find = (selector) => document.querySelector(selector);
const form = find("form");
const { prompt, model, key, draw, cancel } = form.elements;
const options = find("#options");
const root = new URL("..", import.meta.url).href;
const base = `${root}v1`;
const inputs = new Inputs(find("#inputs"));

let models = [];
let entries = memory.load(localStorage);
let current; // {run, followings, ordering}: what is shown
let language = Object.keys(LANGUAGES)[0];

const headers = () => (key.value ? { authorization: `Bearer ${key.value}` } : undefined);
const note = (text) => (find("#note").textContent = text);
const can = () => abilities(models.find(({ id }) => id === model.value) ?? { id: model.value });
const values = () => Object.fromEntries([...new FormData(form)].filter(([, value]) => typeof value === "string"));

// The form.

async function showModels() {
  const response = await fetch(`${base}/images/models`, { headers: headers() });
  const body = await response.json();
  if (!response.ok) {
    complain(new StreamError(body.error.message, { status: response.status }));
    return;
  }
  models = body.data;
  const groups = Object.groupBy(models, ({ id, streams }) =>
    /^sim\/fault-/.test(id) ? "Failures to rehearse" : streams === false ? "Without previews" : "With previews",
  );
  const shown = ["With previews", "Without previews", "Failures to rehearse"].filter((name) => groups[name]);
  model.replaceChildren(
    ...shown.map((label) => {
      const group = Object.assign(document.createElement("optgroup"), { label });
      group.append(...groups[label].map(({ id }) => new Option(id)));
      return group;
    }),
  );
  if (entries[0] && models.some(({ id }) => id === entries[0].model)) model.value = entries[0].model;
  showOptions();
}

/** The controls of the model, with what was chosen before where it still can be. */
function showOptions() {
  const chosen = values();
  const able = can();
  options.replaceChildren(
    ...controls(able).map(({ name, label, choices }) => {
      const select = Object.assign(document.createElement("select"), { name });
      select.append(...choices.map(({ value, label: text }) => new Option(text, value)));
      if (choices.some(({ value }) => value === chosen[name])) select.value = chosen[name];
      const labelled = Object.assign(document.createElement("label"), { textContent: `${label} ` });
      labelled.append(select);
      return labelled;
    }),
  );
  find("#abilities").replaceChildren(
    ...words(able).map((text) => Object.assign(document.createElement("li"), { textContent: text })),
  );
  inputs.allow(able);
  showSnippet();
}

function ordered(references) {
  const { key: _, brush: __, ...chosen } = values();
  return requests(chosen, can(), references);
}

function complain(error) {
  if (error.status === 401) {
    find("#key").hidden = false;
    key.focus();
  }
  note(error instanceof StreamError ? error.message : "The proxy cannot be reached.");
}

// A run.

async function begin() {
  const began = Date.now();
  note(inputs.count ? "Uploading." : "");
  leave();
  draw.disabled = true;
  try {
    const references = await inputs.upload(base, headers());
    const wanted = ordered(references);
    const pictures = wanted.length > 1 ? wanted.length : (wanted[0].n ?? 1);
    const run = { id: String(began), began, prompt: prompt.value, model: model.value, pictures, requests: wanted };
    sessionStorage.setItem(RUN, JSON.stringify(run));
    note("");
    await show(run);
  } catch (error) {
    complain(error);
  } finally {
    draw.disabled = false;
  }
}

/** Let go of what is shown; it goes on at the proxy, and stays in the history. */
function leave() {
  for (const following of current?.followings ?? []) following.leave();
  const before = JSON.parse(sessionStorage.getItem(RUN) ?? "null");
  before?.requests?.forEach((_, at) => forget(name(before, at)));
  sessionStorage.removeItem(RUN);
  if (location.hash) history.replaceState(null, "", location.pathname);
  current = undefined;
}

const name = (run, at) => `playground:${run.id}:${at}`;

/** Order what the run wants, or has ordered before; show it, and write it down. */
async function show(run) {
  const shown = stage(run);
  cancel.hidden = false;
  const options = { baseUrl: base, headers: headers() };
  shown.ordering = Promise.allSettled(run.requests.map((request, at) => orderOnce(name(run, at), request, options)));
  const settled = await shown.ordering;
  if (current !== shown) return;
  const orders = settled.filter(({ status }) => status === "fulfilled").map(({ value }) => value);
  const refused = settled.find(({ status }) => status === "rejected")?.reason;
  if (!orders.length) {
    clear();
    leave();
    throw refused;
  }
  if (refused) {
    complain(refused); // and show those that are ordered: they are paid for
    shown.places.splice(orders.length).forEach((place) => place.parentElement.remove());
  }
  const { requests: wanted, ...facts } = { ...run, pictures: shown.places.length, size: run.requests[0].size };
  const streams = orders.map(({ stream_url: url }) => url);
  remember({ ...entries.find(({ id }) => id === run.id), ...facts, streams, expires: orders[0].expires_at });
  await watch(shown, orders);
}

/** The place for a run's pictures, empty; it is what is shown from now on. */
function stage(run) {
  const usual = memory.usual(entries, run.model) ?? (run.model?.startsWith(SIMULATED) ? SIMULATED_SECONDS : undefined);
  const { width, height } = ratio(run.requests?.[0] ?? run);
  const { began = Date.now(), prompt: alt = "A shared picture" } = run;
  const places = grid(find(".grid"), run.pictures, { alt, width, height, began, usual });
  for (const place of places) place.addEventListener("again", again);
  find("#events ol").replaceChildren();
  find("#total").textContent = "";
  document.body.dataset.shown = "";
  current = { run: { ...run, began }, places, followings: [], left: 0, cost: 0, unknown: false };
  return current;
}

/** The button of a failed picture orders the whole run again. */
function again(event) {
  event.preventDefault();
  begin();
}

function clear() {
  find(".grid").replaceChildren();
  find("#total").textContent = "";
  cancel.hidden = find("[name=share]").hidden = true;
  delete document.body.dataset.shown;
}

/** Follow each of the streams, for its pictures and for the list of events. */
async function watch(shown, streams) {
  const { run, places } = shown;
  find("[name=share]").hidden = false;
  shown.streams = streams.map((stream) => stream.stream_url ?? stream);
  shown.left = streams.length;
  places.forEach((place, at) => {
    if (streams.length === 1) place.setAttribute("index", at);
    place.setAttribute("src", shown.streams[at] ?? shown.streams[0]);
  });
  const ends = streams.map((stream) => {
    const onlost = () => list(shown, remark("connection lost", Date.now() - run.began));
    const following = follow(stream, { onlost });
    shown.followings.push(following);
    return read(shown, following);
  });
  const done = await Promise.all(ends);
  if (current === shown) end(shown, done);
}

/** List a stream's events to its end; whether it has its pictures. */
async function read(shown, following) {
  const { run } = shown;
  const since = () => Date.now() - run.began;
  try {
    for await (const event of following) {
      list(shown, described(event, since()), event.image);
      if (event.kind === "completed") account(shown, event);
    }
    return true;
  } catch (error) {
    if (error.name !== "AbortError") list(shown, failed(error, since()));
    return error;
  }
}

function list(shown, what, picture) {
  if (current === shown) find("#events ol").append(row(what, picture));
}

function account(shown, { cost }) {
  if (typeof cost === "number") shown.cost += cost;
  else shown.unknown = true;
}

function end(shown, done) {
  const { run, cost, unknown } = shown;
  cancel.hidden = true;
  const failures = done.filter((result) => result !== true);
  if (failures.length && failures.every(({ status }) => GONE.includes(status))) {
    const restored = sessionStorage.getItem(RUN) !== null;
    remember({ ...entries.find(({ id }) => id === run.id), expires: 0 });
    note("The proxy does not keep this one any more.");
    if (restored) leave();
    return;
  }
  if (failures.length) return;
  const known = entries.find(({ id }) => id === run.id);
  const took = known?.seconds ?? (Date.now() - run.began) / 1000;
  const price = unknown ? "cost not known" : dollars(cost);
  find("#total").textContent = run.id ? `${seconds(took * 1000)}, ${price}` : price;
  if (known) remember({ ...known, seconds: took, cost: unknown ? undefined : cost });
}

async function stop() {
  const { ordering, followings } = current;
  cancel.disabled = true;
  note("Cancelling.");
  await ordering;
  const ends = await Promise.allSettled(followings.map((following) => following.cancel()));
  const refused = ends.find(({ status }) => status === "rejected");
  note("");
  if (refused) complain(refused.reason);
  cancel.disabled = false;
}

// History, links and snippets.

function remember(entry) {
  if (!entry.id) return;
  entries = memory.put(memory.load(localStorage), entry);
  memory.save(localStorage, entries);
  showHistory();
}

function showHistory() {
  find("#history ol").replaceChildren(...entries.map(historyRow));
  find("[name=forget]").hidden = !entries.length;
}

function historyRow(entry) {
  const item = document.createElement("li");
  const open = Object.assign(document.createElement("button"), { type: "button", textContent: entry.prompt });
  const kept = !memory.expired(entry, Date.now());
  const facts = [
    new Date(entry.began).toLocaleString([], { dateStyle: "short", timeStyle: "short" }),
    entry.model,
    ...(entry.pictures > 1 ? [`${entry.pictures} pictures`] : []),
    ...(entry.seconds ? [seconds(entry.seconds * 1000)] : []),
    ...(typeof entry.cost === "number" ? [dollars(entry.cost)] : []),
    ...(kept ? [] : ["no longer kept"]),
  ];
  open.addEventListener("click", () => reopen(entry, kept));
  item.append(open, Object.assign(document.createElement("small"), { textContent: facts.join(" · ") }));
  return item;
}

/** Show what was ordered before, and take its words into the form. */
function reopen(entry, kept) {
  prompt.value = entry.prompt;
  if (models.some(({ id }) => id === entry.model)) model.value = entry.model;
  showOptions();
  if (!kept) return;
  leave();
  note("");
  find("#pictures").scrollIntoView({ block: "nearest" });
  watch(stage(entry), entry.streams);
}

/** Show what a link names: to read, not to cancel. */
function view() {
  const found = memory.linked(location.hash, base);
  if (!found) return false;
  for (const following of current?.followings ?? []) following.leave();
  note("You watch pictures that were shared by a link.");
  watch(stage({ pictures: found.pictures }), found.streams);
  return true;
}

async function copy(text, said) {
  try {
    await navigator.clipboard.writeText(text);
    note(said);
  } catch {
    note(text); // no clipboard without a secure context
  }
}

function showTabs() {
  const tabs = Object.keys(LANGUAGES).map((name) => {
    const tab = Object.assign(document.createElement("button"), { type: "button", textContent: name, id: `tab-${name}` });
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", "snippet");
    tab.addEventListener("click", () => select(name));
    return tab;
  });
  find("[role=tablist]").replaceChildren(...tabs);
  select(language);
}

function select(name) {
  language = name;
  for (const tab of document.querySelectorAll("[role=tab]")) {
    tab.setAttribute("aria-selected", String(tab.textContent === name));
    tab.tabIndex = tab.textContent === name ? 0 : -1;
  }
  find("#snippet").setAttribute("aria-labelledby", `tab-${name}`);
  showSnippet();
}

function showSnippet() {
  const images = Array.from({ length: inputs.count }, () => ({ file_id: "upl_..." }));
  const [request] = ordered({ images, mask: can().masks && images.length ? images[0] : undefined });
  const origin = root.replace(/\/$/, "");
  const text = LANGUAGES[language]({ request, base, origin, key: !find("#key").hidden });
  find("#snippet code").textContent = text;
}

find("[role=tablist]").addEventListener("keydown", ({ key: pressed }) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[pressed];
  if (!step) return;
  const names = Object.keys(LANGUAGES);
  select(names.at((names.indexOf(language) + step) % names.length));
  find("[role=tab][aria-selected=true]").focus();
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  begin();
});
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
model.addEventListener("change", showOptions);
options.addEventListener("change", showSnippet);
prompt.addEventListener("input", showSnippet);
form.addEventListener("inputs", showSnippet);
key.addEventListener("change", showModels);
cancel.addEventListener("click", stop);
find(".grid").addEventListener("edit", ({ detail: blob }) => {
  inputs.add(new File([blob], `picture.${blob.type.split("/")[1]}`, { type: blob.type }));
  find("#inputs").scrollIntoView({ block: "nearest" });
  prompt.focus();
  prompt.select();
});
find("[name=share]").addEventListener("click", () => {
  copy(memory.link(root, current.streams, current.places.length), "The link is copied. It shows the pictures, and cannot cancel.");
});
find("[name=copy]").addEventListener("click", () => copy(find("#snippet code").textContent, "Copied."));
find("[name=forget]").addEventListener("click", () => {
  entries = [];
  memory.save(localStorage, entries);
  showHistory();
});
addEventListener("hashchange", view);
addEventListener("storage", ({ storageArea }) => {
  if (storageArea !== localStorage) return;
  entries = memory.load(localStorage); // another tab has ordered
  showHistory();
});

showHistory();
showTabs();
await showModels();
const run = JSON.parse(sessionStorage.getItem(RUN) ?? "null");
if (!view()) {
  if (run) show(run).catch(complain);
  // A simulated picture costs nothing, so a first visit has one at once. Any other waits for the button.
  else if (!entries.length && model.value.startsWith(SIMULATED)) begin();
}
