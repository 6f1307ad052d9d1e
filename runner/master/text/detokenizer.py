"""Text of a growing list of token ids, piece by piece, without broken characters."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"
# A run of undecodable tokens longer than this is what the model wrote, not a character that is
# still to be completed; only its end (a character has at most 4 bytes) is held back then.
_MAX_UNDECODED_TOKENS = 8
_MAX_INCOMPLETE = 3


class Detokenizer:
    """Decodes one request's ids. The pieces joined are the decoding of all ids at once.

    Ids are decoded in a short window: the ids of the last piece, for context (where a decoder
    strips the first token's leading space, the window's first token is never new), and the ids
    that gave no whole character yet. `context` are the last ids of the prompt, when the text
    continues the prompt; special tokens give no text.

    With a byte-fallback vocabulary (Llama 2) ids that end inside a character differ from decoding
    all at once, which turns the whole run of byte tokens into replacement characters: here the
    characters that were whole stay.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = list(context)
        self._sent = len(self._decode().rstrip(_REPLACEMENT))
        self._context_length = len(self._window)

    def push(self, token_id: int) -> str:
        """The text that is certain now and was not before; "" while a character is incomplete."""
        self._window.append(token_id)
        text = self._decode()
        undecoded = len(self._window) - self._context_length
        if not text.endswith(_REPLACEMENT):
            return self._take(text)
        if undecoded <= _MAX_UNDECODED_TOKENS:
            return ""
        trailing = len(text) - len(text.rstrip(_REPLACEMENT))
        certain = max(self._sent, len(text) - min(trailing, _MAX_INCOMPLETE))
        piece, self._sent = text[self._sent : certain], certain
        return piece

    def flush(self) -> str:
        """The rest at the end of generation: an incomplete character as a replacement character."""
        return self._take(self._decode())

    def _take(self, text: str) -> str:
        piece = text[self._sent :]
        if piece:
            # Only ids that gave text are context enough: a window of special tokens decodes to
            # nothing, and the next token would again be the first.
            self._window = self._window[self._context_length :]
            self._context_length = len(self._window)
            self._sent = len(self._decode())
        return piece

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, skip_special_tokens=True)
