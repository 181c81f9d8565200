// The panels beside the pictures: programs to copy, and the history.

import { expired } from "./history.js";
import { dollars, seconds } from "./inspector.js";
import { LANGUAGES } from "./snippets.js";

const NAMES = Object.keys(LANGUAGES);
const STEPS = { ArrowRight: 1, ArrowLeft: -1 };

/** The tabs with programs. */
export class CodePanel {
  #root;
  #language = NAMES[0];
  #about; // the request, and where it goes

  constructor(root) {
    this.#root = root;
    const list = root.querySelector("[role=tablist]");
    for (const name of NAMES) {
      const tab = Object.assign(document.createElement("button"), {
        type: "button",
        textContent: name,
        id: `tab-${name}`,
      });
      tab.setAttribute("role", "tab");
      tab.setAttribute("aria-controls", "snippet");
      tab.addEventListener("click", () => this.#select(name));
      list.append(tab);
    }
    list.addEventListener("keydown", ({ key }) => {
      if (!STEPS[key]) return;
      this.#select(NAMES.at((NAMES.indexOf(this.#language) + STEPS[key]) % NAMES.length));
      list.querySelector("[aria-selected=true]").focus();
    });
    this.#select(this.#language);
  }

  get text() {
    return this.#root.querySelector("code").textContent;
  }

  /** `about`: as `LANGUAGES` take it. */
  show(about) {
    this.#about = about;
    this.#root.querySelector("code").textContent = about ? LANGUAGES[this.#language](about) : "";
  }

  #select(name) {
    this.#language = name;
    for (const tab of this.#root.querySelectorAll("[role=tab]")) {
      tab.setAttribute("aria-selected", String(tab.textContent === name));
      tab.tabIndex = tab.textContent === name ? 0 : -1;
    }
    this.#root.querySelector("[role=tabpanel]").setAttribute("aria-labelledby", `tab-${name}`);
    this.show(this.#about);
  }
}

/** Show the history; a press on an entry is the event `open`. */
export function showHistory(root, entries) {
  root.querySelector("ol").replaceChildren(...entries.map(historyRow));
  root.querySelector("[name=forget]").hidden = !entries.length;
}

function historyRow(entry) {
  const item = document.createElement("li");
  const open = Object.assign(document.createElement("button"), { type: "button", textContent: entry.prompt });
  open.addEventListener("click", () => item.dispatchEvent(new CustomEvent("open", { bubbles: true, detail: entry })));
  item.append(
    open,
    Object.assign(document.createElement("small"), { textContent: facts(entry, Date.now()).join(" · ") }),
  );
  return item;
}

/** The facts of an entry besides its prompt. Pure. */
function facts(entry, now) {
  return [
    new Date(entry.began).toLocaleString([], { dateStyle: "short", timeStyle: "short" }),
    entry.model,
    ...(entry.pictures > 1 ? [`${entry.pictures} pictures`] : []),
    ...(entry.seconds ? [seconds(entry.seconds * 1000)] : []),
    ...(typeof entry.cost === "number" ? [dollars(entry.cost)] : []),
    ...(entry.failed ? [entry.failed] : []),
    ...(expired(entry, now) ? ["no longer kept"] : []),
  ];
}
