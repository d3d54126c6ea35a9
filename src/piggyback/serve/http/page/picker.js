// A search field with a list under it, after ARIA's combobox: arrows move, Enter takes, Escape puts back.

import { count, element, named } from "./words.js";

const DECIDE = "Let the tasks decide";
export const MOST = 200; // options or rows shown at once; a search finds the others

/** The tasks with ``query`` in their name or in a class: first the names that begin with it, last the classes. */
export function matching(tasks, query) {
  const wanted = query.trim().toLowerCase();
  if (!wanted) return tasks;
  const rank = (task) => {
    const at = task.name.toLowerCase().indexOf(wanted);
    return at >= 0 ? Math.min(at, 1) : fittingClass(task, wanted) ? 2 : 3;
  };
  const ranked = tasks.map((task) => [rank(task), task]).filter(([place]) => place < 3);
  return ranked.sort(([a], [b]) => a - b).map(([, task]) => task);
}

/** A note on what a list of ``found`` tasks leaves out; empty if it shows all. */
export function leftOut(found) {
  if (!found.length) return "No task has this in its name or its classes.";
  return found.length > MOST ? `${count(found.length - MOST, "more task")}: search to find them` : "";
}

export class Picker {
  #input = document.querySelector("#task");
  #menu = document.querySelector("#task-menu");
  #list = document.querySelector("#task-list");
  #tasks = [];
  #mayDecide = false;
  #choices = []; // what the options stand for: task names, and null for letting the tasks decide
  #active = -1;
  #chosen; // undefined until there is a choice
  #onChoose;

  constructor(onChoose) {
    this.#onChoose = onChoose;
    this.#input.addEventListener("input", () => this.#open(this.#input.value));
    this.#input.addEventListener("click", () => this.#open(""));
    this.#input.addEventListener("focus", () => this.#input.select());
    this.#input.addEventListener("blur", () => this.show(this.#chosen));
    this.#input.addEventListener("keydown", (event) => this.#key(event));
    this.#menu.addEventListener("pointerdown", (event) => event.preventDefault()); // the field keeps the focus
    this.#list.addEventListener("click", (event) => this.#take([...this.#list.children].indexOf(event.target.closest("li"))));
  }

  /** Replaces the tasks on offer; a list that is open stays as it is until the next key. */
  offer(tasks, mayDecide) {
    this.#tasks = tasks;
    this.#mayDecide = mayDecide;
  }

  /** Shows ``choice`` in the field, and closes the list. */
  show(choice) {
    this.#chosen = choice;
    this.#input.value = choice === null ? DECIDE : (choice ?? "");
    this.#menu.hidden = true;
    this.#input.setAttribute("aria-expanded", "false");
    this.#input.removeAttribute("aria-activedescendant");
  }

  #open(query) {
    const wanted = query.trim().toLowerCase();
    const found = matching(this.#tasks, wanted);
    const options = found.slice(0, MOST).map((task) => [task.name, named(task.name), fit(task, wanted)]);
    if (!wanted && this.#mayDecide) options.unshift([null, DECIDE, ""]);
    this.#choices = options.map(([choice]) => choice);
    this.#list.replaceChildren(...options.map(([, label, detail], i) => option(i, label, detail)));
    document.querySelector("#task-more").textContent = leftOut(found);
    this.#menu.hidden = false;
    this.#input.setAttribute("aria-expanded", "true");
    this.#activate(wanted ? 0 : this.#choices.indexOf(this.#chosen));
  }

  #activate(index) {
    this.#list.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
    this.#active = index;
    const active = this.#list.children[index];
    this.#input.setAttribute("aria-activedescendant", active?.id ?? "");
    active?.setAttribute("aria-selected", "true");
    active?.scrollIntoView({ block: "nearest" });
  }

  #take(index) {
    if (index in this.#choices) this.#onChoose(this.#choices[index]);
  }

  #key(event) {
    const open = !this.#menu.hidden;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const many = this.#choices.length;
    if (step && !open) this.#open("");
    else if (step) this.#activate(this.#active < 0 && step < 0 ? many - 1 : (this.#active + step + many) % many);
    else if (event.key === "Enter" && open) this.#take(this.#active);
    else if (event.key === "Escape" && open) this.show(this.#chosen);
    else return;
    event.preventDefault();
  }
}

function option(i, label, detail) {
  const attributes = { role: "option", id: `task-option-${i}`, "aria-selected": "false" };
  return element("li", attributes, element("span", {}, label), element("small", {}, detail));
}

/** Beside a task's name: how many classes it has, or the class it was found by. */
function fit(task, wanted) {
  const byName = task.name.toLowerCase().includes(wanted);
  return byName ? count(task.classes.length, "class", "classes") : named(fittingClass(task, wanted));
}

function fittingClass(task, wanted) {
  return task.classes.find((name) => name.toLowerCase().includes(wanted));
}
