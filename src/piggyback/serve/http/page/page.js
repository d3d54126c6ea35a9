// The page: a question (a task and images), its answers, and the list of tasks, looked at again every few seconds.

import { Card, spoken } from "./answer.js";
import { Picker } from "./picker.js";
import { ask, listing, token } from "./server.js";
import { Table } from "./table.js";
import { bytes, count, curl, element, named } from "./words.js";

const EVERY = 3000; // ms between two looks at the list
const AT_ONCE = 4; // images on the way together
const $ = (selector) => document.querySelector(selector);
const picker = new Picker(choose);
const table = new Table((name) => {
  choose(name);
  $(".ask").scrollIntoView(); // the list may be far below it
});

let choice; // a task's name; null: the tasks decide; undefined: nothing is chosen yet
let known = null; // the server's list, as last told
let refused; // of that list, as text
let cards = [];
let asking = new AbortController();
let timer;

/** Writes a text where it is not there already: what a user selects or hears is left alone otherwise. */
function write(selector, text) {
  if ($(selector).textContent !== text) $(selector).textContent = text;
}

// The task

function choose(name) {
  choice = name;
  picker.show(name);
  table.mark(name);
  describe();
  askAll();
}

function describe() {
  const task = known.tasks.find(({ name }) => name === choice);
  write("#task-about", aboutChoice(task));
  $("#curl").hidden = choice === undefined;
  write("#command", choice === undefined ? "" : curl(choice, token.get() !== null, readsTexts(task)));
  $("#task-classes").hidden = !task;
  if (!task || $("#task-classes").dataset.version === task.version) return;
  $("#task-classes").dataset.version = task.version;
  $("#task-classes ul").replaceChildren(...task.classes.map((name) => element("li", {}, named(name))));
}

/** Whether a task, or where none is chosen the network, reads texts. */
function readsTexts(task) {
  return Boolean((task ?? known?.tasks[0])?.max_tokens);
}

/** How many classes a task has, or types of spans, each of which has two tags. */
function outputs({ kind, classes }) {
  const types = new Set(classes.filter((name) => name !== "O").map((name) => name.slice(2)));
  return kind === "tokens" ? count(types.size, "type") : count(classes.length, "class", "classes");
}

function aboutChoice(task) {
  if (known.tasks.length === 0) return "There are no tasks yet. Put task files into the server’s folder; they appear here by themselves.";
  if (choice === undefined) return `There are ${count(known.tasks.length, "task")}.`;
  if (choice === null) return "Every task is asked, and the surest answers, if one is sure. That is a guess: it needs tasks that look unlike each other.";
  return task ? `${outputs(task)}, a file of ${bytes(task.file_bytes)}, version ${task.version}` : "This task is no longer there.";
}

// The images, or a text

function give(sources) {
  if (sources.length === 0) return;
  cards.forEach((card) => card.forget());
  cards = [...sources].map((source) => new Card(source));
  $("#cards").replaceChildren(...cards.map((card) => card.root));
  if (matchMedia("(max-width: 52rem)").matches) $("#answer").scrollIntoView(); // it is below the fold there
  askAll();
}

async function askAll() {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  const complete = choice !== undefined && cards.length > 0;
  $("#again").hidden = !complete;
  $("#hint").hidden = complete;
  const missing = [choice === undefined && "choose a task", cards.length === 0 && `give it ${readsTexts() ? "a text" : "an image"}`].filter(Boolean);
  write("#hint", `To see an answer here, ${missing.join(" and ")}.`);
  if (!complete) return;
  cards.forEach((card) => card.wait());
  const waiting = [...cards];
  const oneByOne = async () => {
    while (waiting.length && !signal.aborted) await askOne(waiting.shift(), signal);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, oneByOne));
}

async function askOne(card, signal) {
  try {
    const problem = await card.tooLarge(known.limits);
    if (problem) return refuse(card, problem);
    const said = await ask(card.source, choice, signal);
    card.answer(said);
    $("#spoken").textContent = spoken(said);
  } catch (error) {
    if (signal.aborted) return;
    refuse(card, error.message);
    if (error.status === 401) look();
  }
}

function refuse(card, message) {
  card.refuse(message);
  $("#spoken").textContent = message;
}

// The server

async function look() {
  const start = performance.now();
  try {
    learn(await listing());
    tell("ready", "Ready");
  } catch (error) {
    tell(error.code === "starting" ? "starting" : "trouble", error.message);
    if (error.status === 401) wantToken(error.message);
  }
  // A long list over a slow line is looked at less often: it takes a twentieth of the time at most.
  clearTimeout(timer);
  if ($("#token").hidden && !document.hidden) timer = setTimeout(look, Math.max(EVERY, 19 * (performance.now() - start)));
}

function tell(state, text) {
  $("#state").dataset.state = state;
  write("#state", text);
}

function learn(list) {
  known = list;
  const { tasks, backbone, speed, limits } = list;
  const whole = tasks.some(({ kind }) => kind !== "segmentation"); // a label map has no confidence
  const mayDecide = whole && tasks.length > 1 && tasks.length <= (limits?.tasks ?? Infinity);
  const sum = (key) => bytes(tasks.reduce((total, task) => total + task[key], 0));
  $("#token").hidden = true;
  write("#about", [count(tasks.length, "task"), "one network", backbone.source, speed].filter(Boolean).join(" · "));
  $("#tasks").hidden = tasks.length === 0;
  $("#write").hidden = !readsTexts();
  $("#drop").hidden = readsTexts();
  write("#image-title", readsTexts() ? "Text" : "Image");
  write("#tasks-about", `${sum("file_bytes")} of files, ${sum("memory_bytes")} in memory. Choose a task by its name.`);
  picker.offer(tasks, mayDecide);
  table.show(tasks);
  listRefused(list.refused);
  if (choice === undefined && tasks.length > 0) choose(tasks[0].name);
  else describe();
}

function listRefused(reasons) {
  if (JSON.stringify(reasons) === refused) return;
  refused = JSON.stringify(reasons);
  const files = Object.entries(reasons);
  $("#refused").hidden = files.length === 0;
  $("#refused dl").replaceChildren(...files.flatMap(([file, why]) => [element("dt", {}, named(file)), element("dd", {}, why)]));
}

function wantToken(message) {
  write("#token-why", message);
  if ($("#token").hidden) {
    $("#token").hidden = false;
    $("#token-text").focus();
  }
}

async function useToken(event) {
  event.preventDefault();
  token.set($("#token-text").value);
  $("#token-text").value = "";
  await look();
  if (!$("#token").hidden) return;
  $("#task").focus();
  askAll();
}

async function copy() {
  try {
    await navigator.clipboard.writeText($("#command").textContent);
    $("#copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("#command")); // a page that came without https may not write the clipboard
    $("#copy").textContent = "Selected";
  }
  setTimeout(() => ($("#copy").textContent = "Copy"), 2500);
}

// What the user does

function drag(event) {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  const leaves = event.type === "drop" || (event.type === "dragleave" && event.relatedTarget === null);
  $("#drop").classList.toggle("over", !leaves);
  if (event.type === "drop") give(event.dataTransfer.files);
}

for (const [button, input] of [[$("#choose"), $("#files")], [$("#photograph"), $("#camera")]]) {
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    give(input.files);
    input.value = ""; // so that the same file can be chosen again
  });
}
for (const kind of ["dragover", "dragleave", "drop"]) document.addEventListener(kind, drag);
document.addEventListener("paste", (event) => give(event.clipboardData.files));
$("#write").addEventListener("submit", (event) => {
  event.preventDefault();
  give([$("#text").value]);
});
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : look()));
addEventListener("online", look);
$("#again").addEventListener("click", askAll);
$("#token").addEventListener("submit", useToken);
$("#copy").addEventListener("click", copy);
askAll();
look();
