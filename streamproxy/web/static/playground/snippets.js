// "Copy as": a request as a program in several languages. Pure; a prompt is always a quoted string of its language.

/** The tabs: a name, and the program for `{request, base, origin, key}`. `key`: callers need one. */
export const LANGUAGES = {
  curl,
  Python: python,
  JavaScript: javascript,
  EventSource: eventSource,
  React: react,
  HTML: html,
};

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const json = (value, indent = 0) => JSON.stringify(value, null, 2).replaceAll("\n", `\n${" ".repeat(indent)}`);
const inHtml = (text) => text.replaceAll("<", "\\u003c"); // "</script>" in a prompt ends no script
const FILE_NOTE = "// file_id: POST the picture to /v1/files as `file`, with purpose=vision\n";
const note = ({ images }) => (images ? FILE_NOTE : "");

/** Uploaded pictures are of this page; a program has its own. */
function withFiles({ images, mask, ...request }) {
  if (!images) return request;
  const own = { ...request, images: images.map(() => ({ file_id: "upl_..." })) };
  return mask ? { ...own, mask: { file_id: "upl_..." } } : own;
}

function curl({ request, base, key }) {
  const { images, mask, ...members } = { ...request, stream: true };
  const auth = key ? ` \\\n  -H "authorization: Bearer $STREAMPROXY_KEY"` : "";
  if (!images) {
    return `curl -N ${base}/images/generations${auth} \\\n  -H 'content-type: application/json' \\\n  -d ${shell(json(members, 2))}`;
  }
  const texts = Object.entries(members).map(([name, value]) => `--form-string ${shell(`${name}=${value}`)}`);
  const files = [
    ...images.map((_, at) => `-F 'image[]=@picture${at || ""}.png'`),
    ...(mask ? ["-F mask=@mask.png"] : []),
  ];
  return [`curl -N ${base}/images/edits${auth}`, ...texts, ...files].join(" \\\n  ");
}

function python({ request, base, key }) {
  const { images, mask, ...members } = request;
  const opened = images && images.map((_, at) => `open("picture${at || ""}.png", "rb")`).join(", ");
  const given = Object.entries(members).map(([name, value]) => `${name}=${JSON.stringify(value)}`);
  if (images) given.push(`image=[${opened}]`);
  if (images && mask) given.push('mask=open("mask.png", "rb")');
  return `from base64 import b64decode
from pathlib import Path
${key ? "import os\n" : ""}
from openai import OpenAI

client = OpenAI(base_url="${base}", api_key=${key ? 'os.environ["STREAMPROXY_KEY"]' : '"none"'})
events = client.images.${images ? "edit" : "generate"}(
    stream=True,
    ${given.join(",\n    ")},
)
for event in events:
    print(event.type, len(event.b64_json))
    Path("picture.${members.output_format ?? "png"}").write_bytes(b64decode(event.b64_json))`;
}

function javascript({ request, base, origin }) {
  return `${note(request)}import { follow, order } from "${origin}/client.js";

const ordered = await order(${json(withFiles(request))}, { baseUrl: "${base}" });
for await (const event of follow(ordered)) {
  console.log(event.kind, event.image?.size, event.cost);
}`;
}

function eventSource({ request, base, origin }) {
  const path = request.images ? "edits" : "generations";
  return `${note(request)}const response = await fetch("${base}/images/${path}", {
  method: "POST",
  headers: { "content-type": "application/json", prefer: "respond-async" },
  body: JSON.stringify(${json({ ...withFiles(request), stream: true }, 2)}),
});
const { stream_url } = await response.json();
const source = new EventSource(new URL(\`\${stream_url}&payload=ref\`, "${origin}"));
const show = ({ data }) => console.log(new URL(JSON.parse(data).image_url, "${origin}").href);
for (const end of ["partial_image", "completed"]) {
  source.addEventListener(\`${request.images ? "image_edit" : "image_generation"}.\${end}\`, show);
}
source.addEventListener("error", ({ data }) => data && console.error(JSON.parse(data).error.message));`;
}

function react({ request, base, origin }) {
  const { width, height } = size(request);
  return `// npm install ${origin}/client.tgz
${note(request)}import { ProgressiveImage, useImageOrder } from "streamproxy-client/react";

const request = ${json(withFiles(request))};

export function Picture() {
  const { order, error } = useImageOrder("picture", request, { baseUrl: "${base}" });
  if (error) return <p role="alert">{error.message}</p>;
  return <ProgressiveImage src={order?.stream_url} alt={request.prompt} width={${width}} height={${height}} />;
}`;
}

function html({ request, base, origin }) {
  const { width, height } = size(request);
  return `<progressive-image width="${width}" height="${height}"></progressive-image>
<script type="module">
  import { order } from "${origin}/client.js";
  import "${origin}/element.js";

  ${note(request)}${request.images ? "  " : ""}const request = ${inHtml(json(withFiles(request), 2))};
  const picture = document.querySelector("progressive-image");
  picture.setAttribute("alt", request.prompt);
  const { stream_url } = await order(request, { baseUrl: "${base}" });
  picture.setAttribute("src", stream_url);
</script>`;
}

function size(request) {
  const [width, height] = /^(\d+)x(\d+)$/.exec(request.size ?? "")?.slice(1) ?? [1024, 1024];
  return { width, height };
}
