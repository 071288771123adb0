/** A client of OpenAI's audio API on the server of this page (serve/routes.py). */

/** An error response. `code` is the server's; `retryAfter` is in seconds, null without the header. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = "", retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

/** The models of the server, each with its languages, translations and capabilities. */
export async function listModels(key) {
  const response = await request("models", { headers: authorization(key) });
  return (await response.json()).data;
}

/**
 * Yields the events of one streamed transcript, the last of which is `transcript.text.done`.
 *
 * `fields` are the server's form fields. A list is sent as `name[]`, once for each item; empty values are not sent.
 */
export async function* transcribe(file, { translate, ...fields }, key, signal) {
  const form = new FormData();
  for (const [name, value] of Object.entries({ ...fields, stream: "true" })) {
    if (Array.isArray(value)) value.forEach((item) => form.append(`${name}[]`, item));
    else if (value) form.append(name, value);
  }
  form.append("file", file, file.name); // last, so that the server can reject a field before it receives the audio
  const path = translate ? "audio/translations" : "audio/transcriptions";
  const response = await request(path, { method: "POST", body: form, headers: authorization(key), signal });
  for await (const event of events(response.body)) {
    if (event.error) throw new ApiError(event.error.message, event.error);
    yield event;
    if (event.type === "transcript.text.done") return;
  }
  throw new ApiError("The connection was lost before the end of the transcript.");
}

const authorization = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

async function request(path, init) {
  const response = await fetch(new URL(`v1/${path}`, document.baseURI), init).catch((failure) => {
    if (failure.name === "AbortError") throw failure;
    throw new ApiError("The server cannot be reached.");
  });
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({})); // a proxy may answer in HTML
  throw new ApiError(error?.message ?? `The server answered ${response.status}.`, {
    status: response.status,
    code: error?.code,
    retryAfter: Number(response.headers.get("Retry-After")) || null,
  });
}

/** The JSON objects of a stream of server-sent events. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
      if (data.trim().startsWith("{")) yield JSON.parse(data); // skips keep-alive comments
    }
  }
}
