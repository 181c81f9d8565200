// Serves the recipes of a folder, built as their frameworks' users build them: node recipes.mjs FOLDER
//
// A page at /NAME for each of PAGES, and the two backends. The first line of output is the server's URL.

import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

import { build } from 'esbuild';
import { compile } from 'svelte/compiler';
import { compileScript, parse } from 'vue/compiler-sfc';

const [folder] = process.argv.slice(2);
const MODULES = join(fileURLToPath(new URL('.', import.meta.url)), 'node_modules');

const REACT = `import { createElement } from 'react'; import { createRoot } from 'react-dom/client';
const root = createRoot(document.querySelector('#root'));`;

const PAGES = {
  next: `${REACT} import { Picture } from './app/picture.tsx'; root.render(createElement(Picture));`,
  vue: `import { createApp } from 'vue'; import Picture from './Picture.vue'; createApp(Picture).mount('#root');`,
  svelte: `import { mount } from 'svelte'; import Picture from './Picture.svelte';
mount(Picture, { target: document.querySelector('#root') });`,
  chat: `${REACT} import { DefaultChatTransport, readUIMessageStream } from 'ai'; import { Message } from './app/message.tsx';
const transport = new DefaultChatTransport({ api: '/api/chat' });
window.send = async (text) => {
  const messages = [{ id: '1', role: 'user', parts: [{ type: 'text', text }] }];
  const stream = await transport.sendMessages({ chatId: '1', messages, trigger: 'submit-message' });
  for await (const message of readUIMessageStream({ stream })) root.render(createElement(Message, { message }));
};`,
};

const vue = {
  name: 'vue',
  setup({ onLoad }) {
    onLoad({ filter: /\.vue$/ }, async ({ path }) => {
      const { descriptor } = parse(await readFile(path, 'utf8'), { filename: path });
      const compilerOptions = { isCustomElement: (tag) => tag === 'progressive-image' };
      const { content } = compileScript(descriptor, {
        id: 'p',
        inlineTemplate: true,
        templateOptions: { compilerOptions },
      });
      return { contents: content };
    });
  },
};

const svelte = {
  name: 'svelte',
  setup({ onLoad }) {
    onLoad({ filter: /\.svelte$/ }, async ({ path }) => {
      const { js, warnings } = compile(await readFile(path, 'utf8'), { filename: path, generate: 'client' });
      if (warnings.length) throw new Error(warnings[0].message);
      return { contents: js.code };
    });
  },
};

const common = {
  absWorkingDir: folder,
  nodePaths: [MODULES],
  bundle: true,
  write: false,
  format: 'esm',
  jsx: 'automatic',
};

async function page(contents) {
  const stdin = { contents, resolveDir: folder, loader: 'js' };
  const define = {
    'process.env.NODE_ENV': '"development"',
    __VUE_OPTIONS_API__: 'true',
    __VUE_PROD_DEVTOOLS__: 'false',
  };
  const defined = { ...define, __VUE_PROD_HYDRATION_MISMATCH_DETAILS__: 'false' };
  const conditions = ['browser', 'development'];
  const made = await build({
    ...common,
    stdin,
    define: defined,
    conditions,
    platform: 'browser',
    plugins: [vue, svelte],
  });
  return made.outputFiles[0].text;
}

async function backend(file) {
  const made = join(folder, `${file.replaceAll('/', '-')}.mjs`);
  await build({ ...common, entryPoints: [file], platform: 'node', write: true, outfile: made });
  return (await import(pathToFileURL(made))).POST;
}

const scripts = Object.fromEntries(
  await Promise.all(Object.entries(PAGES).map(async ([name, text]) => [name, await page(text)])),
);
const backends = {
  '/api/pictures': await backend('app/api/pictures/route.ts'),
  '/api/chat': await backend('app/api/chat/route.ts'),
};

const html = (body) => ['text/html; charset=utf-8', `<!doctype html><link rel=icon href=data:,>${body}`];
const pages = {
  '/plain': html(await readFile(join(folder, 'plain.html'), 'utf8')),
  ...Object.fromEntries(
    Object.entries(scripts).flatMap(([name, script]) => [
      [`/${name}`, html(`<div id=root></div><script type=module src=/${name}.js></script>`)],
      [`/${name}.js`, ['text/javascript; charset=utf-8', script]],
    ]),
  ),
};

const server = createServer(async (request, response) => {
  const post = backends[request.url];
  if (request.method === 'POST' && post) {
    const body = [];
    for await (const chunk of request) body.push(chunk);
    const answer = await post(
      new Request(`http://backend${request.url}`, { method: 'POST', body: Buffer.concat(body) }),
    );
    response.writeHead(answer.status, Object.fromEntries(answer.headers));
    response.end(Buffer.from(await answer.arrayBuffer()));
    return;
  }
  const [type, body] = pages[request.url] ?? ['text/plain', undefined];
  response.writeHead(body === undefined ? 404 : 200, { 'content-type': type });
  response.end(body);
});
server.listen(0, '127.0.0.1', () => console.log(`http://127.0.0.1:${server.address().port}`));
