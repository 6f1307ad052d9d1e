// An answer on its way: its text, its thinking, its tokens and times.

export class Answer {
  constructor() {
    this.text = "";
    this.thinking = "";
    this.reason = "";
    this.usage = null;
    this.began = performance.now();
    this.first = this.last = 0;
  }

  /** True when the chunk brought text. */
  take(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const [choice] = chunk.choices;
    if (!choice) return false;
    this.reason = choice.finish_reason ?? this.reason;
    const text = choice.delta?.content ?? "";
    const thinking = choice.delta?.reasoning_content ?? "";
    if (!text && !thinking) return false;
    this.last = performance.now();
    this.first ||= this.last;
    this.text += text;
    this.thinking += thinking;
    return true;
  }

  /** What a message of a session has of it. */
  fields() {
    return {
      content: this.text,
      thinking: this.thinking || undefined,
      reason: this.reason,
      prompt_tokens: this.usage?.prompt_tokens,
      tokens: this.usage?.completion_tokens,
      first_ms: this.first ? Math.round(this.first - this.began) : undefined,
      writing_ms: Math.round(this.last - this.first),
    };
  }
}

export function figures({ tokens, prompt_tokens: prompt, first_ms: first, writing_ms: writing, reason }) {
  const shown = [];
  if (tokens !== undefined) shown.push(`${tokens} tokens`);
  if (prompt !== undefined) shown.push(`${prompt} in the prompt`);
  if (tokens > 1 && writing > 0) shown.push(`${(((tokens - 1) * 1000) / writing).toFixed(1)} tokens/s`);
  if (first !== undefined) shown.push(`first after ${first} ms`);
  if (reason === "stopped") shown.push("stopped");
  if (reason === "length") shown.push("ended at the most tokens allowed");
  return shown;
}
