// React as an ES module: npm's package is CommonJS, so it is run as what it expects to be.

const modules = new Map();
const FILES = {
  react: 'react/cjs/react.development.js',
  scheduler: 'scheduler/cjs/scheduler.development.js',
  'react-dom': 'react-dom/cjs/react-dom.development.js',
  'react-dom/client': 'react-dom/cjs/react-dom-client.development.js',
};

for (const [name, file] of Object.entries(FILES)) {
  const response = await fetch(`/node_modules/${file}`);
  const module = { exports: {} };
  const run = new Function('require', 'module', 'exports', 'process', await response.text());
  run((needed) => modules.get(needed), module, module.exports, { env: { NODE_ENV: 'development' } });
  modules.set(name, module.exports);
}

export const { createElement, StrictMode, useEffect, useRef, useState } = modules.get('react');
export const { createRoot } = modules.get('react-dom/client');
