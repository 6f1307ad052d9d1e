// The present request as a program: what the page would send, for a terminal or a script.
// The key is never in it, only the name of the variable that has it.

import { key } from "/page/api.js";

const OPENAI = new Set(["temperature", "top_p", "seed", "max_completion_tokens", "presence_penalty", "frequency_penalty"]);

export function asCurl(body) {
  const lines = [`curl ${location.origin}/v1/chat/completions`, "-H 'Content-Type: application/json'"];
  if (key.get()) lines.push('-H "Authorization: Bearer $API_KEY"');
  lines.push(`-d '${JSON.stringify(body, null, 2).replaceAll("'", "'\\''")}'`);
  return `${lines.join(" \\\n  ")}\n`;
}

/** With OpenAI's client. JSON's texts and numbers are Python's too. */
export function asPython({ model, messages, ...sampling }) {
  const names = Object.keys(sampling);
  const own = names.filter((name) => OPENAI.has(name)).map((name) => `    ${name}=${sampling[name]},`);
  const others = names.filter((name) => !OPENAI.has(name)).map((name) => `"${name}": ${sampling[name]}`);
  if (others.length) own.push(`    extra_body={${others.join(", ")}},`);
  const said = messages.map((message) => `        ${JSON.stringify(message)},`);
  const secret = key.get() ? 'os.environ["API_KEY"]' : '"none"';
  return [
    ...(key.get() ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${location.origin}/v1", api_key=${secret})`,
    "answer = client.chat.completions.create(",
    `    model=${JSON.stringify(model)},`,
    "    messages=[",
    ...said,
    "    ],",
    ...own,
    ")",
    "print(answer.choices[0].message.content)",
    "",
  ].join("\n");
}
