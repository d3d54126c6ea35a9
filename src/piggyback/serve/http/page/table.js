// The list of tasks: sorted and searched here, and brought up to date without moving what did not change.

import { MOST, leftOut, matching } from "./picker.js";
import { bytes, element, named } from "./words.js";

const TIERS = ["dense", "packed", "disk"];
const inWords = new Intl.Collator("en", { numeric: true }); // task-2 before task-10
const COLUMNS = {
  name: (a, b) => inWords.compare(a.name, b.name),
  classes: (a, b) => a.classes.length - b.classes.length,
  file: (a, b) => a.file_bytes - b.file_bytes,
  memory: (a, b) => a.memory_bytes - b.memory_bytes,
  input: (a, b) => (a.image_size ?? 0) - (b.image_size ?? 0),
  tier: (a, b) => TIERS.indexOf(a.tier) - TIERS.indexOf(b.tier),
  version: (a, b) => inWords.compare(a.version, b.version),
};

export class Table {
  #body = document.querySelector("#tasks tbody");
  #filter = document.querySelector("#filter");
  #tasks = [];
  #rows = new Map(); // by the task's JSON text: what did not change keeps its row
  #key = "name";
  #sign = 1;
  #chosen;
  #onChoose;

  constructor(onChoose) {
    this.#onChoose = onChoose;
    this.#filter.addEventListener("input", () => this.#draw());
    for (const header of document.querySelectorAll("#tasks th")) {
      header.querySelector("button").addEventListener("click", () => this.#sort(header));
    }
  }

  show(tasks) {
    this.#tasks = tasks;
    this.#draw();
  }

  mark(name) {
    this.#chosen = name;
    this.#draw();
  }

  #sort(header) {
    this.#sign = header.dataset.key === this.#key ? -this.#sign : 1;
    this.#key = header.dataset.key;
    document.querySelector("#tasks th[aria-sort]").removeAttribute("aria-sort");
    header.setAttribute("aria-sort", this.#sign < 0 ? "descending" : "ascending");
    this.#draw();
  }

  #draw() {
    const found = matching(this.#tasks, this.#filter.value);
    const sorted = [...found].sort((a, b) => this.#sign * COLUMNS[this.#key](a, b) || COLUMNS.name(a, b));
    const row = (task, text) => [text, this.#rows.get(text) ?? this.#newRow(task)];
    this.#rows = new Map(sorted.slice(0, MOST).map((task) => row(task, JSON.stringify(task))));
    this.#put([...this.#rows.values()]);
    document.querySelector("#tasks-more").textContent = leftOut(found);
  }

  /** Puts the rows in place where they are not; a name's button keeps the focus although its row is new or moves. */
  #put(rows) {
    const now = this.#body.children;
    const focused = this.#body.contains(document.activeElement) ? document.activeElement.textContent : null;
    if (rows.length !== now.length || rows.some((row, i) => row !== now[i])) this.#body.replaceChildren(...rows);
    for (const button of this.#body.querySelectorAll("button")) {
      const chosen = button.textContent === this.#chosen;
      button.setAttribute("aria-pressed", chosen);
      button.closest("tr").classList.toggle("chosen", chosen);
      if (button.textContent === focused) button.focus({ preventScroll: true });
    }
  }

  #newRow(task) {
    const button = element("button", { type: "button" }, named(task.name));
    button.addEventListener("click", () => this.#onChoose(task.name));
    const number = (text, where = "number") => element("td", { class: where }, text);
    return element("tr", {},
      element("td", {}, button),
      number(task.classes.length.toLocaleString("en")),
      number(bytes(task.file_bytes)),
      number(task.memory_bytes ? bytes(task.memory_bytes) : "–", "number wide"),
      number(task.image_size ? `${task.image_size} px` : "–", "number wide"),
      element("td", { "data-tier": task.tier }, task.tier),
      element("td", { class: "wide" }, element("code", {}, task.version)),
    );
  }
}
