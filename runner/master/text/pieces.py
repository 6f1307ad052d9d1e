"""The bytes of single tokens, for log probabilities: a token may hold part of a character."""

from __future__ import annotations

import re

from tokenizers import Tokenizer

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (openai/gpt-2, encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet.update({chr(256 + position): byte for position, byte in enumerate(others)})
    return alphabet


class TokenBytes:
    """Token id -> bytes, for byte-level vocabularies, byte fallback and plain pieces."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._alphabet = _byte_level_alphabet() if "ByteLevel" in repr(tokenizer.decoder) else None
        self._added = tokenizer.get_added_tokens_decoder()

    def of(self, token_id: int) -> bytes:
        """Ids outside the vocabulary (padding rows of the head) have no bytes."""
        piece = self._tokenizer.id_to_token(token_id)
        if piece is None:
            return b""
        if token_id in self._added:
            return piece.encode()
        if self._alphabet is not None:
            alphabet = self._alphabet
            if all(character in alphabet for character in piece):
                return bytes(alphabet[character] for character in piece)
            return piece.encode()
        if match := _BYTE_FALLBACK.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return piece.replace("\u2581", " ").encode()
