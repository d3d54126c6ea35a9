// Numbers and names in plain words, and elements made of text. What the server tells is text here, never markup.

export function bytes(n) {
  if (n < 1000) return `${n} B`;
  const power = Math.floor(Math.log10(n) / 3);
  const value = n / 1000 ** power;
  return `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ${["", "kB", "MB", "GB", "TB"][power]}`;
}

export function percent(p) {
  if (p > 0 && p < 0.001) return "<0.1%";
  if (p < 1 && p > 0.999) return ">99.9%";
  return `${(100 * p).toFixed(1)}%`;
}

export function milliseconds(ms) {
  return ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
}

export function count(n, noun, plural = `${noun}s`) {
  return `${n.toLocaleString("en")} ${n === 1 ? noun : plural}`;
}

/** An element with these attributes and children; a child that is a string becomes text. */
export function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A name that somebody else chose, kept apart from the text around it, whatever its direction. */
export function named(text) {
  return element("bdi", {}, text);
}

/** The shell line that asks ``task`` (null: all of them) about a file, or a text. The token itself is never part of it. */
export function curl(task, withToken, texts = false) {
  const path = task === null ? "v1/predict" : `v1/tasks/${encodeURIComponent(task).replaceAll("'", "%27")}/predict`;
  const header = withToken ? '-H "Authorization: Bearer $PIGGYBACK_TOKEN" ' : "";
  const sent = texts ? "-H 'Content-Type: text/plain' --data-binary 'a text'" : "-F image=@photo.jpg";
  return `curl ${header}${sent} '${new URL(path, document.baseURI)}?top_k=5'`;
}
