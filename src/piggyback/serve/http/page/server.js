// What is said to the server. Whatever goes wrong is a Refusal, which carries one line to show.

export class Refusal extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status; // 0: there was no answer
    this.code = code;
  }
}

const TOKEN = "piggyback-token";
export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (text) => sessionStorage.setItem(TOKEN, text),
};

/** The tasks, the refused files, the backbone and the limits. */
export function listing() {
  return call("v1/tasks");
}

/** What ``task`` (null: every task, the surest first, if one is sure) says about an image file or a text, and the ms it took in all. */
export async function ask(source, task, signal) {
  const path = task === null ? "v1/predict" : `v1/tasks/${encodeURIComponent(task)}/predict`;
  const start = performance.now();
  const said = await call(`${path}?top_k=5`, { method: "POST", ...sent(source), signal });
  const roundTrip = performance.now() - start;
  if (!said.images) return { answers: said.answers, sure: true, roundTrip };
  const [{ task: surest, answers }] = said.images;
  return { answers, sure: surest !== null, roundTrip };
}

function sent(source) {
  if (typeof source === "string") return { body: JSON.stringify({ text: source }), headers: { "Content-Type": "application/json" } };
  const body = new FormData();
  body.append("image", source, source.name || "image");
  return { body };
}

async function call(path, options = {}) {
  const headers = { ...options.headers, ...(token.get() && { Authorization: `Bearer ${token.get()}` }) };
  const response = await fetch(new URL(path, document.baseURI), { ...options, headers, cache: "no-cache" }).catch(() => {
    const why = navigator.onLine ? "it cannot be reached, or it ended the connection" : "this device is offline";
    throw new Refusal(0, "offline", `no answer from the server: ${why}`);
  });
  const said = await response.json().catch(() => null);
  if (response.ok && said !== null) return said;
  const plain = response.ok ? "the server’s answer broke off: ask again" : `the server answered ${response.status}`;
  throw new Refusal(response.status, said?.error?.code, said?.error?.message ?? plain);
}
