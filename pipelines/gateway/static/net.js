// Talking to the gateway: JSON requests, and server-sent events that resume where they were.

const SILENCE_MS = 45000; // the gateway sends at least a beat every 15 s

let token = sessionStorage.getItem("longstream-token");

export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export function setToken(given) {
  token = given;
  sessionStorage.setItem("longstream-token", given);
}

function headers(more = {}) {
  return token ? { authorization: `Bearer ${token}`, ...more } : more;
}

async function checked(answer) {
  if (answer.ok || answer.status === 304) return answer;
  let detail = answer.statusText;
  try {
    detail = (await answer.json()).detail ?? detail;
  } catch { /* not ours: a proxy's page */ }
  throw new Refused(answer.status, detail);
}

export function streamPath(id, rest = "") {
  return `/v1/streams/${encodeURIComponent(id)}${rest}`;
}

export async function get(path) {
  const answer = await checked(await fetch(path, { headers: headers() }));
  return answer.json();
}

export async function send(method, path, body) {
  const answer = await checked(await fetch(path, {
    method,
    headers: headers({ "content-type": "application/json" }),
    body: JSON.stringify(body),
  }));
  return answer.json();
}

export async function download(path) {
  const answer = await checked(await fetch(path, { headers: headers() }));
  return answer.blob();
}

/**
 * Follow a stream's events from a cursor until stop() is called. `onState` is told "open", "lost" or
 * "starting"; a `reset` or `forgotten` event ends it, the caller starts anew.
 */
export function follow(id, cursor, onEvent, onState) {
  const stopped = new AbortController();
  let wait = 500;
  let wake = () => {};

  async function once() {
    const cut = new AbortController();
    stopped.signal.addEventListener("abort", () => cut.abort());
    let timer = setTimeout(() => cut.abort(), SILENCE_MS);
    try {
      const more = cursor ? { "last-event-id": cursor } : {};
      const answer = await checked(await fetch(streamPath(id, "/events"), { headers: headers(more), signal: cut.signal }));
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let held = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        clearTimeout(timer);
        timer = setTimeout(() => cut.abort(), SILENCE_MS);
        wait = 500;
        const blocks = (held + value).split("\n\n");
        held = blocks.pop();
        for (const block of blocks) {
          const event = parsed(block);
          if (!event) continue;
          if (event.kind === "hello") onState("open");
          cursor = event.id ?? (event.kind === "hello" ? cursor ?? event.data.cursor : cursor);
          onEvent(event.kind, event.data);
          if (stopped.signal.aborted) return;
        }
      }
    } finally {
      clearTimeout(timer);
      cut.abort();
    }
  }

  async function loop() {
    while (!stopped.signal.aborted) {
      try {
        await once();
      } catch (error) {
        if (stopped.signal.aborted) return;
        if (error instanceof Refused && [401, 403, 404].includes(error.status)) {
          onEvent("refused", error);
          return;
        }
        onState(error instanceof Refused ? "starting" : "lost");
      }
      if (stopped.signal.aborted) return;
      if (wait > 500) onState("lost");
      await new Promise((resolve) => {
        wake = resolve;
        setTimeout(resolve, wait * (0.75 + Math.random() / 2));
      });
      wait = Math.min(wait * 2, 15000);
    }
  }

  loop();
  return { stop: () => stopped.abort(), again: () => wake() };
}

function parsed(block) {
  let id = null, kind = "message", data = null;
  for (const line of block.split("\n")) {
    if (line.startsWith("id: ")) id = line.slice(4);
    else if (line.startsWith("event: ")) kind = line.slice(7);
    else if (line.startsWith("data: ")) data = JSON.parse(line.slice(6));
  }
  return data === null ? null : { id, kind, data };
}
