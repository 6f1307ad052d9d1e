// The server's HTTP API: requests with the key, errors as the server words them, event streams.

import { browser, tab } from "/page/storage.js";

const KEY = "splitstack.key";

export class ApiError extends Error {
  constructor(status, message, requestId) {
    super(message);
    this.status = status;
    this.requestId = requestId;
  }
}

/** The key: in this tab only, or kept in this browser when it was asked for. */
export const key = {
  get: () => tab.get(KEY) ?? browser.get(KEY) ?? "",
  set(value, remember) {
    tab.remove(KEY);
    browser.remove(KEY);
    if (value) (remember ? browser : tab).set(KEY, value);
  },
  remembered: () => browser.get(KEY) !== null,
};

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server cannot be reached.", "");
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  const requestId = answer.headers.get("x-request-id") ?? "";
  try {
    const { error } = await answer.json();
    return new ApiError(answer.status, error.message, error.request_id ?? requestId);
  } catch {
    return new ApiError(answer.status, `The server answered with HTTP ${answer.status}.`, requestId);
  }
}

export async function getJson(path) {
  return (await request(path)).json();
}

/** Chunks of a chat completion as they come; ends after [DONE]. */
export async function* chatCompletion(body, signal) {
  const answer = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const requestId = answer.headers.get("x-request-id") ?? "";
  for await (const data of events(answer.body, requestId)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) {
      const { message, request_id: id } = chunk.error;
      throw new ApiError(502, message, id ?? requestId);
    }
    yield chunk;
  }
  throw new ApiError(502, "The answer broke off before its end.", requestId);
}

/** Documents of a stream that has no end. fetch rather than EventSource: that sends no key. */
export async function* liveEvents(path, signal) {
  const answer = await request(path, { signal });
  for await (const data of events(answer.body, "")) yield JSON.parse(data);
}

/** The data of server-sent events, as the HTML standard's event streams, of one data line each. */
async function* events(body, requestId) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      held += value;
      const whole = held.split("\n\n");
      held = whole.pop();
      for (const event of whole) {
        if (event.startsWith("data:")) yield event.slice(5).trim();
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The connection to the server was lost.", requestId);
  } finally {
    reader.cancel().catch(() => {});
  }
}
