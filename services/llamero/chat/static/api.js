// Talks to the chat service: the models it has, and answers as they stream in.

/** The public models: [{id, description, kind: "base" | "adapter"}]. */
export async function listModels() {
  const response = await fetch("/v1/models");
  if (!response.ok) throw new Error(await problemOf(response));
  return (await response.json()).data;
}

/**
 * Streams one answer. `onText(piece)` is called for each piece; resolves to {finish, usage}.
 * Throws an Error with a sentence where the service refuses or breaks off, and an AbortError on abort.
 */
export async function streamAnswer({ model, messages, signal, onText }) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ model, messages, stream: true, stream_options: { include_usage: true }, temperature: 0 }),
    signal,
  });
  if (!response.ok) throw new Error(await problemOf(response));
  let finish = null;
  let usage = null;
  let isDone = false;
  for await (const data of eventsOf(response.body)) {
    if (data === "[DONE]") {
      isDone = true;
      continue;
    }
    const event = JSON.parse(data);
    if (event.error) throw new Error(event.error.message);
    if (event.usage) usage = event.usage;
    const choice = event.choices && event.choices[0];
    if (!choice) continue;
    if (choice.delta && choice.delta.content) onText(choice.delta.content);
    if (choice.finish_reason) finish = choice.finish_reason;
  }
  if (!isDone) throw new Error("The connection broke off before the answer was done.");
  return { finish, usage };
}

async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    let end;
    while ((end = rest.indexOf("\n\n")) >= 0) {
      const event = rest.slice(0, end);
      rest = rest.slice(end + 2);
      if (event.startsWith("data:")) yield event.slice(5).trim();
    }
  }
}

async function problemOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The service answered with status ${response.status}.`;
  }
}
