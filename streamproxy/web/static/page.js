// The page at /: orders pictures from the proxy that serves it, and shows them with their previews.

import { forget, orderOnce, StreamError } from "./client.js";
import "./element.js";

const NAME = "page"; // this tab's one order: a reload shows it again and orders nothing
const SIMULATED = "sim/";
const PREVIEWS = 3;
const SIMULATED_SECONDS = 9;

const form = document.querySelector("form");
const picture = document.querySelector("progressive-image");
const note = document.querySelector(".note");
const log = document.querySelector(".log");
const { prompt, model, key } = form.elements;
const base = new URL("v1", location.href).href;
let began = 0;
let restored = sessionStorage.getItem(`streamproxy:${NAME}`) !== null;

function headers() {
  return key.value ? { authorization: `Bearer ${key.value}` } : undefined;
}

async function showModels() {
  const response = await fetch(`${base}/models`, { headers: headers() });
  const body = await response.json();
  if (!response.ok) {
    key.parentElement.hidden = response.status !== 401 && key.parentElement.hidden;
    note.textContent = body.error.message;
    return;
  }
  const found = body.data.filter(({ id }) => !/^sim\/fault-/.test(id));
  found.sort((one, other) => Number(other.streams ?? false) - Number(one.streams ?? false));
  model.replaceChildren(...found.map(({ id }) => new Option(id)));
  writeSnippets();
}

async function draw() {
  log.replaceChildren();
  note.textContent = "Asking the model.";
  began = performance.now();
  const simulated = model.value.startsWith(SIMULATED);
  picture.setAttribute("alt", prompt.value);
  picture.setAttribute("since", Date.now() / 1000);
  picture.toggleAttribute("usual", simulated);
  if (simulated) picture.setAttribute("usual", SIMULATED_SECONDS);
  const request = { model: model.value, prompt: prompt.value, partial_images: PREVIEWS };
  try {
    const ordered = await orderOnce(NAME, request, { baseUrl: base, headers: headers() });
    picture.setAttribute("src", ordered.stream_url);
    note.textContent = "";
  } catch (error) {
    if (error.status === 401) key.parentElement.hidden = false;
    note.textContent = error instanceof StreamError ? error.message : "The proxy cannot be reached.";
  }
}

function row({ detail: event }) {
  const number = (event.partial_image_index ?? 0) + 1;
  const size = event.image ? `${Math.round(event.image.size / 1000)} kB` : "";
  const cost = typeof event.cost === "number" ? `, $${event.cost}` : "";
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  const words = [event.kind === "preview" ? `preview ${number}` : "completed", size, `${seconds} s${cost}`];
  const item = document.createElement("li");
  for (const word of words) item.append(Object.assign(document.createElement("span"), { textContent: word }));
  log.append(item);
}

function writeSnippets() {
  const name = model.value;
  const snippets = {
    curl: `curl -N ${base}/images/generations -H 'content-type: application/json' \\
  -d '{"model": "${name}", "prompt": "a lighthouse", "stream": true, "partial_images": 3}'`,
    python: `from openai import OpenAI

client = OpenAI(base_url="${base}", api_key="none")
for event in client.images.generate(model="${name}", prompt="a lighthouse", stream=True, partial_images=3):
    print(event.type, len(event.b64_json))`,
    page: `<progressive-image id="picture" width="1024" height="1024" alt="A lighthouse"></progressive-image>
<script type="module">
  import { order } from "${location.origin}/client.js";
  import "${location.origin}/element.js";

  const { stream_url } = await order(
    { model: "${name}", prompt: "a lighthouse", partial_images: 3 },
    { baseUrl: "${base}" },
  );
  document.querySelector("#picture").setAttribute("src", stream_url);
</script>`,
    npm: `npm install ${location.origin}/client.tgz`,
  };
  for (const place of document.querySelectorAll("[data-snippet]")) place.textContent = snippets[place.dataset.snippet];
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  forget(NAME);
  restored = false;
  draw();
});
model.addEventListener("change", writeSnippets);
key.addEventListener("change", showModels);
picture.addEventListener("preview", row);
picture.addEventListener("completed", row);
picture.addEventListener("failed", ({ detail: error }) => {
  if (!restored || ![401, 404, 410].includes(error.status)) return;
  forget(NAME); // the proxy no longer keeps this tab's order
  restored = false;
  if (model.value.startsWith(SIMULATED)) draw();
});

writeSnippets();
await showModels();
// A simulated picture costs nothing, so one is ordered at once. Others wait for the button.
if (model.value.startsWith(SIMULATED) || restored) draw();
