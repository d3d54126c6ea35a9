// One card for each image or text: what it is, and what was said about it.

import { bytes, count, element, milliseconds, named, percent } from "./words.js";

const ANSWERED_FROM = {
  dense: "From a dense copy: a copy of the network had the task’s weights in place already.",
  packed: "From packed bits: the task’s bits were in memory and had to be written into the network.",
  disk: "From disk: the task’s file had to be read, then written into the network. It is quicker next time.",
};

const NONE = "None of these: no task is sure. Choose one to see what it says.";

export class Card {
  #said = element("div", { class: "said" });
  #preview = element("img", { alt: "" });
  #view = element("div", { class: "view" }, this.#preview);
  #map = element("img", { alt: "", class: "map" });
  #slider = element("input", { type: "range", min: 0, max: 100, value: 60 });
  #cover = element("label", { class: "soft" }, "Label map over it", this.#slider);

  /** ``source`` is an image file or a text. */
  constructor(source) {
    this.source = source;
    this.root = element("article", { class: "card" }, typeof source === "string" ? element("blockquote", {}, source) : this.#figure(source), this.#said);
  }

  #figure(file) {
    this.#preview.src = URL.createObjectURL(file);
    this.#preview.addEventListener("error", () => (this.#preview.hidden = true)); // the server says what is wrong with it
    const caption = element("figcaption", { class: "soft" }, named(file.name), ` · ${bytes(file.size)}`);
    this.#slider.addEventListener("input", () => (this.#map.style.opacity = this.#slider.value / 100));
    return element("figure", {}, this.#view, caption);
  }

  /** Why an image file is not to be sent, or null. A limit that the server does not tell is left to the server. */
  async tooLarge(limits = {}) {
    if (typeof this.source === "string") return null;
    if (this.source.size > limits.body_bytes) return this.#over(bytes(this.source.size), bytes(limits.body_bytes));
    await this.#preview.decode().catch(() => {});
    const { naturalWidth: width, naturalHeight: height } = this.#preview;
    return width * height > limits.pixels ? this.#over(`${width} x ${height} pixels`, count(limits.pixels, "pixel")) : null;
  }

  #over(found, most) {
    return `${this.source.name}: ${found}; this server takes at most ${most}. It was not sent: choose a smaller one.`;
  }

  /** Leaves what was there, paler, until the next answer: nothing jumps. */
  wait() {
    this.root.setAttribute("aria-busy", "true");
    if (!this.#said.hasChildNodes()) this.#said.append(element("p", { class: "soft" }, "Asking …"));
  }

  answer({ answers, sure, roundTrip }) {
    const [best] = answers;
    this.#lay(sure ? best.label_map : null);
    const others = answers.length > 1 ? [comparison(answers)] : [];
    const spent = times(best.timing_ms, roundTrip, typeof this.source === "string" ? "text" : "image");
    if (!sure) return this.#put(element("p", {}, NONE), spent, ...others);
    const shown = best.spans ? marked(this.source, best.spans) : best.values ? numbers(best) : bars(best);
    this.#put(shown, source(best), spent, ...others);
  }

  refuse(message) {
    this.#lay(null);
    this.#put(element("p", { class: "error" }, message));
  }

  /** Lays a label map over the picture; without one, takes away what lay there. */
  #lay(map) {
    URL.revokeObjectURL(this.#map.src);
    this.root.classList.toggle("mapped", Boolean(map));
    if (!map) return [this.#map, this.#cover].forEach((part) => part.remove());
    const png = Uint8Array.from(atob(map.png), (letter) => letter.charCodeAt(0));
    this.#map.src = URL.createObjectURL(new Blob([png], { type: "image/png" }));
    this.#preview.after(this.#map);
    this.#view.after(this.#cover);
  }

  #put(...parts) {
    this.root.setAttribute("aria-busy", "false");
    this.#said.replaceChildren(...parts);
  }

  forget() {
    this.#lay(null);
    URL.revokeObjectURL(this.#preview.src);
  }
}

/** An answer in a sentence, for those who listen. */
export function spoken({ answers: [best], sure, roundTrip }) {
  if (!sure) return NONE;
  return `${best.abstained ? "Not sure: " : ""}${said(best)}, says ${best.task}, in ${milliseconds(roundTrip)}.`;
}

/** What a task of any kind says, in words: spans, the largest classes of a map, numbers, labels, or the likeliest class. */
function said({ spans, values, labels, label_map: map, classes: [top] }) {
  if (spans) return spans.map(({ text, label }) => `${text}: ${label}`).join(", ") || "no spans";
  if (map) return shares(map).slice(0, 3).map((one) => `${one.class} ${percent(one.probability)}`).join(", ");
  if (values) return values.map(({ name, value, unit }) => `${name} ${round(value)} ${unit}`.trim()).join(", ");
  if (labels) return labels.join(", ") || "no label";
  return `${top.class}, ${percent(top.probability)}`;
}

function round(value) {
  return value.toLocaleString("en", { maximumSignificantDigits: 4 });
}

/** A text with its spans marked, each with its label. Their places count letters, not what JavaScript counts. */
function marked(text, spans) {
  const letters = Array.from(text);
  const parts = [];
  let at = 0;
  for (const { start, end, label, probability } of spans) {
    const mark = element("mark", { title: percent(probability) }, letters.slice(start, end).join(""), " ", element("small", {}, named(label)));
    parts.push(letters.slice(at, start).join(""), mark);
    at = end;
  }
  return element("p", { class: "marked" }, ...parts, letters.slice(at).join(""));
}

function numbers({ task, values }) {
  const row = ({ name, value, unit }) =>
    element("li", {}, named(name), element("span", { class: "number" }, `${round(value)} ${unit}`.trim()));
  return element("ol", { class: "bars", "aria-label": `Numbers of ${task}` }, ...values.map(row));
}

/** The classes of a label map with their shares as numbers up to 1. */
function shares({ classes }) {
  return classes.map((one) => ({ ...one, probability: one.percent / 100 }));
}

/** Likeliest classes with their bars, or the legend of a label map: its classes, each in its colour. */
function bars({ task, classes, labels, label_map: map, abstained }) {
  const given = labels ? new Set(labels) : null;
  const row = ({ class: name, probability, colour }) => {
    const fill = element("span", {});
    fill.style.width = `${100 * probability}%`;
    const bar = element("div", { class: "bar", "aria-hidden": "true" }, fill);
    const number = element("span", { class: "number" }, percent(probability));
    const item = element("li", given && !given.has(name) ? { class: "soft" } : {}, named(name), number, bar);
    if (colour) item.style.setProperty("--colour", colour);
    return item;
  };
  const what = map ? `Shares of the picture, says ${task}` : `Likeliest classes of ${task}`;
  const list = element("ol", { class: map ? "bars shares" : "bars", "aria-label": what }, ...(map ? shares(map) : classes).map(row));
  const notes = [];
  if (abstained) notes.push(element("p", { class: "soft" }, "Not sure: below the confidence that this task was given."));
  if (labels) notes.push(element("p", { class: "soft" }, `Labels: ${labels.join(", ") || "none"}.`));
  return element("div", {}, ...notes, list);
}

function source({ task, version, tier }) {
  const who = element("p", {}, "Answered by ", element("strong", {}, named(task)), ", version ", element("code", {}, version));
  return element("div", {}, who, element("p", { class: "soft", "data-tier": tier }, ANSWERED_FROM[tier]));
}

/** The parts of the round trip as a strip and in numbers, then their sums. */
function times(timing, roundTrip, what) {
  const parts = {
    [`Reading ${what}`]: timing.prepare,
    "Waiting": timing.queue,
    "Loading task": timing.load,
    "Running": timing.run,
    "On the way": Math.max(0, roundTrip - timing.total),
  };
  const sums = {
    "In the server": milliseconds(timing.total),
    "Round trip": milliseconds(roundTrip),
    "Batch of": count(timing.batch, what),
  };
  const strip = element("div", { class: "parts", "aria-hidden": "true" });
  const list = element("dl", { class: "times soft" });
  const add = (label, text, attributes) => list.append(element("div", {}, element("dt", attributes, label), element("dd", {}, text)));
  Object.entries(parts).forEach(([label, ms], i) => {
    const part = element("span", { class: `part-${i + 1}` });
    part.style.flexGrow = ms;
    strip.append(part);
    add(label, milliseconds(ms), { class: `part-${i + 1}` });
  });
  for (const [label, text] of Object.entries(sums)) add(label, text, {});
  return element("div", {}, strip, list);
}

function comparison(answers) {
  const row = (one) =>
    element("li", {}, named(one.task), named(one.spans || one.values || one.labels ? said(one) : one.classes[0].class), element("span", { class: "number" }, percent(one.confidence)));
  const title = element("summary", {}, `How sure each of ${count(answers.length, "task")} is`);
  return element("details", { class: "others soft" }, title, element("ul", {}, ...answers.map(row)));
}
