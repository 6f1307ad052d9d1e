"""What clients send and this server has no work for: the values that pass, and why others do not.

One rule for every field: a value that asks for what is done anyway passes, one that would change
the answer and is not served is refused by name. null is "not given" and always passes.
docs/compatibility.md is written from these tables.
"""

from __future__ import annotations

from web.unserved import Table, Unserved

_NO_FUNCTIONS = "is not supported: it is the older form of tools and tool_choice"
_NO_STORE = "is not supported: answers are not stored"
_NO_CACHE = "is not supported: prompts are not kept for later requests"
_NO_BEAMS = "is not supported: there is no beam search"
_NO_WHITE_SPACE = "is not supported: use structured_outputs.grammar"
_TEXT_ONLY = "is not supported: text only"
_AS_TEXT = "is not supported: an answer is text, not token ids"
_FOR_OTHERS = "is for the tiers in front: whom a request is for, what belongs together"
_CACHE_CONTROL = Unserved("is a hint for a cache of prompts, and none is kept here", anything=True)

# What OpenAI's clients and those of other engines send to both endpoints.
OPENAI: Table = {
    "user": Unserved(_FOR_OTHERS, anything=True),
    "min_tokens": Unserved("is not supported: the model says where an answer ends", (0,)),
    "skip_special_tokens": Unserved("must be true: texts have no special tokens", (True,)),
    "spaces_between_special_tokens": Unserved("must be true or false", (True, False)),
    "include_stop_str_in_output": Unserved("must be false: an answer ends before it", (False,)),
    "use_beam_search": Unserved(_NO_BEAMS, (False,)),
    "length_penalty": Unserved(_NO_BEAMS, (1,)),
    "early_stopping": Unserved(_NO_BEAMS, (False,)),
    "bad_words": Unserved("is not supported: use logit_bias", ([],)),
    "allowed_token_ids": Unserved("is not supported: use logit_bias"),
    "truncate_prompt_tokens": Unserved("is not supported: a prompt is taken whole or refused"),
    "prompt_logprobs": Unserved("is not supported: ask for echo and logprobs at completions"),
    "priority": Unserved("is not supported: requests are served in the order they come", (0,)),
    "return_token_ids": Unserved(_AS_TEXT, (False,)),
    "return_tokens_as_token_ids": Unserved(_AS_TEXT, (False,)),
    "guided_decoding_backend": Unserved("is this server's to choose", anything=True),
    "guided_whitespace_pattern": Unserved(_NO_WHITE_SPACE),
    "structural_tag": Unserved("is not supported: use structured_outputs.grammar"),
}

COMPLETION: Table = {
    **OPENAI,
    "suffix": Unserved("is not supported: the text is written from left to right", ("",)),
    "best_of": Unserved("is not supported: ask for n choices", (1,)),
    "add_special_tokens": Unserved("must be true: ask with token ids to choose them", (True,)),
    "logprobs": Unserved(None, (False,)),
}

CHAT: Table = {
    **OPENAI,
    "safety_identifier": Unserved(_FOR_OTHERS, anything=True),
    "prompt_cache_key": Unserved(_FOR_OTHERS, anything=True),
    "functions": Unserved(_NO_FUNCTIONS, ([],)),
    "function_call": Unserved(_NO_FUNCTIONS, ("none", "auto")),
    "store": Unserved(_NO_STORE, (False,)),
    "metadata": Unserved(_NO_STORE, ({},)),
    "prompt_cache_retention": Unserved(_NO_CACHE),
    "prompt_cache_options": Unserved(_NO_CACHE),
    "service_tier": Unserved("is not supported: there is one tier", ("auto", "default")),
    "moderation": Unserved("is not supported: nothing is moderated here"),
    "modalities": Unserved('is not supported: only ["text"] is', (["text"],)),
    "audio": Unserved(_TEXT_ONLY),
    "prediction": Unserved("is not supported"),
    "reasoning_effort": Unserved("is not supported: use chat_template_kwargs", ("none",)),
    "verbosity": Unserved("is not supported"),
    "web_search_options": Unserved("is not supported: this server does not search"),
    "add_generation_prompt": Unserved("must be true: the assistant answers", (True,)),
    "continue_final_message": Unserved("must be false: the assistant answers", (False,)),
    "add_special_tokens": Unserved("must be false: the chat template writes them", (False,)),
    "chat_template": Unserved("is not supported: the model's own is used"),
    "documents": Unserved("is not supported: put them into a message", ([],)),
}

# Of a message: what the official client's own dump of an answer has beside role and content.
MESSAGE: Table = {
    "refusal": Unserved("is not supported: an answer's words are its content", ("",)),
    "annotations": Unserved("is not supported: this server does not search", ([],)),
    "audio": Unserved(_TEXT_ONLY),
    "function_call": Unserved("is not supported: it is the older form of tool_calls"),
    "parsed": Unserved("is not supported: an answer's words are its content"),
    "cache_control": _CACHE_CONTROL,
}

# Of a content part of type text.
PART: Table = {"cache_control": _CACHE_CONTROL}

# Of a tool, its function, a call in an earlier answer, and its function: what clients' own dumps
# and those of other servers have beside what is served.
TOOL: Table = {"cache_control": _CACHE_CONTROL}
FUNCTION: Table = {}
CALL: Table = {"index": Unserved("says the call's place, which it has", anything=True)}
CALLED: Table = {
    "parsed_arguments": Unserved("is what the client made of arguments", anything=True),
}
