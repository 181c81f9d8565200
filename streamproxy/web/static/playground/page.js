// The page at /: orders pictures from the proxy that serves it, and shows them as they form.
//
//     options.js      a model's abilities -> controls -> requests       snippets.js     a request -> programs
//     inputs.js       pictures to edit, with mask.js                    history.js      localStorage, links for viewers
//     run.js          the pictures and streams that are shown           panels.js       programs, history
//     gallery.js      the pictures                                      inspector.js    the events
//
// sessionStorage keeps this tab's run, so that a reload shows it again and orders nothing.

import { StreamError } from "../client.js";
import "../element.js";
import * as memory from "./history.js";
import { Inputs } from "./inputs.js";
import { dollars, seconds } from "./inspector.js";
import { abilities, controls, requests, words } from "./options.js";
import { CodePanel, showHistory } from "./panels.js";
import { forgetRun, Shown } from "./run.js";

const RUN = "streamproxy:run";
const SIMULATED = "sim/";
const SIMULATED_SECONDS = 9; // the simulator's, at its usual pace
const GONE = [401, 404, 410]; // the statuses of a stream that is no longer kept
const GROUPS = ["With previews", "Without previews", "Failures to rehearse"];
const FAULT = /^sim\/fault-/;

const find = (selector) => document.querySelector(selector);
const form = find("form");
const { prompt, model, key, draw, cancel } = form.elements;
const share = find("[name=share]");
const total = find("#total");
const root = new URL("..", import.meta.url).href;
const base = `${root}v1`;
const inputs = new Inputs(find("#inputs"));
const code = new CodePanel(find("#code"));

let models = [];
let entries = memory.load(localStorage);
let shown;

const headers = () => (key.value ? { authorization: `Bearer ${key.value}` } : undefined);
const note = (text) => (find("#note").textContent = text);
const able = () => abilities(models.find(({ id }) => id === model.value) ?? { id: model.value });
const made = (name, properties) => Object.assign(document.createElement(name), properties);

// The form.

async function listed() {
  const response = await fetch(`${base}/images/models`, { headers: headers() });
  const body = await response.json();
  if (!response.ok) throw new StreamError(body.error.message, { status: response.status });
  return body.data.filter(({ surfaces }) => surfaces?.includes("images") ?? true);
}

async function showModels() {
  try {
    models = await listed();
    note("");
  } catch (error) {
    complain(error);
  }
  const kind = ({ id, streams }) => (FAULT.test(id) ? 2 : streams === false ? 1 : 0);
  const lists = GROUPS.map((label, at) => [label, models.filter((one) => kind(one) === at)]);
  const groups = lists
    .filter(([, list]) => list.length)
    .map(([label, list]) => {
      const group = made("optgroup", { label });
      group.append(...list.map(({ id }) => new Option(id)));
      return group;
    });
  model.replaceChildren(...groups);
  if (models.some(({ id }) => id === entries[0]?.model)) model.value = entries[0].model;
  showOptions();
}

/** The controls of the model. Earlier choices stay where the model has them. */
function showOptions() {
  const chosen = new FormData(form);
  const can = able();
  find("#options").replaceChildren(
    ...controls(can).map(({ name, label, choices }) => {
      const select = made("select", { name });
      select.append(...choices.map(({ value, label: text }) => new Option(text, value)));
      if (choices.some(({ value }) => value === chosen.get(name))) select.value = chosen.get(name);
      const labelled = made("label", { textContent: `${label} ` });
      labelled.append(select);
      return labelled;
    }),
  );
  find("#abilities").replaceChildren(...words(can).map((textContent) => made("li", { textContent })));
  inputs.allow(can);
  showCode();
}

/** The requests that the form stands for, with these uploads. */
function wanted(uploads) {
  const chosen = Object.fromEntries([...new FormData(form)].filter(([, value]) => typeof value === "string"));
  delete chosen.key;
  delete chosen.brush;
  return requests(chosen, able(), uploads);
}

function showCode() {
  const images = Array.from({ length: inputs.count }, () => ({ file_id: "upl_..." }));
  const [request] = wanted({ images, mask: able().masks ? images[0] : undefined });
  code.show({ request, base, origin: root.replace(/\/$/, ""), key: !find("#key").hidden });
}

function complain(error) {
  if (error.status === 401) {
    find("#key").hidden = false;
    key.focus();
    showCode();
  }
  note(error instanceof StreamError ? error.message : "The proxy cannot be reached.");
}

// Runs.

/** One run at a time. The button keeps the keyboard's focus, so it is not disabled as a whole. */
async function alone(work) {
  if (busy()) return;
  draw.setAttribute("aria-disabled", "true");
  try {
    await work();
  } catch (error) {
    complain(error);
  } finally {
    draw.removeAttribute("aria-disabled");
  }
}

const busy = () => draw.hasAttribute("aria-disabled");

/** Upload the pictures to edit, and order as the form says. */
async function press() {
  note(inputs.count ? "Uploading." : "");
  const orders = wanted(await inputs.upload(base, headers()));
  note("");
  await begin(orders, prompt.value, model.value);
}

async function begin(orders, text, used) {
  leave();
  const began = Date.now();
  const pictures = orders.length > 1 ? orders.length : (orders[0].n ?? 1);
  const run = { id: String(began), began, prompt: text, model: used, pictures, requests: orders };
  sessionStorage.setItem(RUN, JSON.stringify(run));
  await order(run);
}

const stored = () => JSON.parse(sessionStorage.getItem(RUN) ?? "null");

/** Leave the run that is shown. It goes on at the proxy, and stays in the history. */
function leave() {
  shown?.leave();
  const before = stored();
  if (before) forgetRun(before);
  sessionStorage.removeItem(RUN);
  if (location.hash) history.replaceState(null, "", location.pathname);
}

/** Order a run, or find its orders of before a reload. Show it, and write it down. */
async function order(run) {
  const here = show(run);
  cancel.hidden = false;
  const { orders, refused } = await here.order({ baseUrl: base, headers: headers() });
  if (here !== shown) return;
  if (!orders.length) {
    leave();
    clear();
    throw refused;
  }
  if (refused) complain(refused); // those that are ordered are shown all the same: they are paid for
  const { requests: wanted, ...facts } = { ...run, pictures: here.pictures, size: run.requests[0].size };
  const streams = orders.map(({ stream_url: url }) => url);
  remember({ ...entry(run.id), ...facts, streams, expires: orders[0].expires_at });
  await watch(here, orders);
}

const entry = (id) => entries.find((one) => one.id === id);

/** Give the run the place of the one before. */
function show(run) {
  shown?.leave();
  const usual = memory.usual(entries, run.model) ?? (run.model?.startsWith(SIMULATED) ? SIMULATED_SECONDS : undefined);
  shown = new Shown(run, find(".grid"), find("#events ol"), usual);
  total.textContent = "";
  cancel.hidden = share.hidden = true;
  document.body.dataset.shown = "";
  find("#pictures").scrollIntoView({ block: "nearest" });
  return shown;
}

function clear() {
  find(".grid").replaceChildren();
  cancel.hidden = share.hidden = true;
  delete document.body.dataset.shown;
}

async function watch(here, streams) {
  const ending = here.watch(streams);
  share.hidden = false;
  const { failures, cost } = await ending;
  if (here === shown) end(here.run, failures, cost);
}

function end(run, failures, cost) {
  const known = entry(run.id);
  if (document.activeElement === cancel) draw.focus();
  cancel.hidden = true;
  if (failures.length && failures.every(({ status }) => GONE.includes(status))) {
    if (known) remember({ ...known, expires: 0 });
    if (stored()) leave();
    note("The proxy does not keep this one any more.");
    return;
  }
  if (failures.length) {
    if (known) remember({ ...known, failed: failures[0].code === "cancelled" ? "cancelled" : "failed" });
    return;
  }
  const price = cost === undefined ? "cost not known" : dollars(cost);
  const took = known?.seconds ?? (Date.now() - run.began) / 1000;
  total.textContent = known ? `${seconds(took * 1000)}, ${price}` : price;
  if (known) remember({ ...known, seconds: took, cost });
}

async function stop() {
  cancel.disabled = true;
  note("Cancelling.");
  try {
    await shown.cancel();
    note("");
  } catch (error) {
    complain(error);
  } finally {
    cancel.disabled = false;
  }
}

// History and links.

/** Write an entry down; one that is there already keeps its place. */
function remember(one) {
  entries = memory.put(memory.load(localStorage), one);
  memory.save(localStorage, entries);
  showHistory(find("#history"), entries);
}

/** Show an earlier run, and take its prompt into the form. */
function reopen(one) {
  prompt.value = one.prompt;
  if (models.some(({ id }) => id === one.model)) model.value = one.model;
  showOptions();
  if (memory.expired(one, Date.now())) return;
  leave();
  note("");
  watch(show(one), one.streams);
}

/** Show the streams that the URL names: to read, not to cancel. */
function view() {
  const linked = memory.linked(location.hash, base);
  if (!linked) return false;
  note("You watch pictures that were shared by a link.");
  watch(show({ pictures: linked.pictures }), linked.streams);
  return true;
}

async function copy(button, text) {
  button.dataset.label ??= button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = button.dataset.label), 2000);
  } catch {
    note(text); // no clipboard: the context is not secure
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  alone(press);
});
form.addEventListener("inputs", showCode);
prompt.addEventListener("input", showCode);
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
model.addEventListener("change", showOptions);
find("#options").addEventListener("change", showCode);
key.addEventListener("change", showModels);
cancel.addEventListener("click", stop);
find(".grid").addEventListener("edit", ({ detail: blob }) => {
  inputs.add(new File([blob], `picture.${blob.type.split("/")[1]}`, { type: blob.type }));
  find("#inputs").scrollIntoView({ block: "nearest" });
  prompt.focus();
  prompt.select();
});
find(".grid").addEventListener(
  "again",
  (event) => {
    const { requests: orders, prompt: text, model: used } = shown.run;
    if (!orders) return; // a viewer looks again, and orders nothing
    event.preventDefault();
    alone(() => begin(orders, text, used));
  },
  { capture: true }, // it does not bubble
);
share.addEventListener("click", () => copy(share, memory.link(root, shown.streams, shown.pictures)));
find("[name=copy]").addEventListener("click", ({ target }) => copy(target, code.text));
find("[name=forget]").addEventListener("click", () => {
  entries = [];
  memory.save(localStorage, entries);
  showHistory(find("#history"), entries);
});
find("#history").addEventListener("open", ({ detail }) => reopen(detail));
addEventListener("hashchange", view);
addEventListener("storage", () => {
  entries = memory.load(localStorage); // another tab has ordered
  showHistory(find("#history"), entries);
});

showHistory(find("#history"), entries);
await showModels();
const run = stored();
if (!view()) {
  if (run) alone(() => order(run));
  // A simulated picture costs nothing, so a first visit has one at once. Any other waits for the button.
  else if (!entries.length && model.value.startsWith(SIMULATED)) alone(press);
}
