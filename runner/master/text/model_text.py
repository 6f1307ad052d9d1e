"""The served model's text: tokenizer, chat template, end-of-sequence ids, default sampling."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from contract.generation import MEANS_SAMPLING
from runner.errors import InvalidField, ModelUnavailable, NoChatTemplate
from runner.master.text.chat_template import ChatTemplate
from runner.master.text.model_files import read_object
from runner.master.text.named_tokens import NamedTokens
from runner.master.text.reasoning import Harmony, ReasoningFormat, reasoning_format
from runner.master.text.tools.families import HARMONY, CallForm

_log = logging.getLogger(__name__)
_DEFAULT_PARAMETERS = ("do_sample", *MEANS_SAMPLING, "repetition_penalty")
# transformers' names of a model's templates.
_USUAL, _FOR_TOOLS = "default", "tool_use"
_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class ModelText:
    """What lies beside the API because stages know token ids only.

    `longest_token` is in characters: a text of n times as many has at least n tokens. Byte-level
    pieces have a character for each byte, so they are never shorter than their text.
    `special_tokens` are texts by name. `chat_template` is None for a base model, `reasoning` for a
    model whose template marks none, `calls` for one whose calls are in no form that is known, or
    whose template reads no tools. `eos_ids` end a text; a turn in a chat ends at
    `chat_eos_ids`, which has the tokenizer's eos_token too. `generation_defaults` are the sampling
    values of the model's generation_config.json, those that it sets. `files` say which file has an
    id that tokenizer.json has not. `tool_template` is the one for conversations with tools, of a
    model that has one of its own for them.
    """

    tokenizer: Tokenizer
    longest_token: int
    token_bytes: TokenBytes
    special_tokens: Mapping[str, str]
    chat_template: ChatTemplate | None
    reasoning: ReasoningFormat | None
    calls: CallForm | None
    eos_ids: tuple[int, ...]
    chat_eos_ids: tuple[int, ...]
    generation_defaults: Mapping[str, Any]
    files: Mapping[int, str]
    tool_template: ChatTemplate | None = None

    @classmethod
    def load(cls, folder: Path) -> ModelText:
        """Read from a model folder; raises ModelUnavailable naming the file that is wrong."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelUnavailable(
                f"{folder} has no tokenizer.json; models whose tokenizer exists only in another "
                "format are not served: save it with transformers' save_pretrained first"
            )
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelUnavailable(f"{path} cannot be read: {error}") from error
        _check_ids(path, tokenizer)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        generation = read_object(folder / "generation_config.json")
        named_tokens = NamedTokens.read(folder)
        had = tokenizer.get_added_tokens_decoder()
        named_tokens.add_to(tokenizer)
        special_tokens = named_tokens.contents()
        own_eos_ids = _own_eos_ids(special_tokens, tokenizer)
        eos_ids = _eos_ids(folder, generation) or own_eos_ids
        template = _chat_template(folder, special_tokens)
        tool_template = _chat_template(folder, special_tokens, _FOR_TOOLS)
        reasoning = reasoning_format(template.source, tokenizer) if template else None
        text = cls(
            tokenizer=tokenizer,
            longest_token=max(map(len, tokenizer.get_vocab()), default=1),
            token_bytes=TokenBytes(tokenizer),
            special_tokens=special_tokens,
            chat_template=template,
            reasoning=reasoning,
            calls=_calls(tool_template or template, reasoning, tokenizer),
            tool_template=tool_template,
            eos_ids=eos_ids,
            chat_eos_ids=tuple(dict.fromkeys(eos_ids + own_eos_ids)),
            generation_defaults={
                name: generation[name]
                for name in _DEFAULT_PARAMETERS
                if generation.get(name) is not None
            },
            files={
                token_id: named_tokens.file_of(token.content)
                for token_id, token in tokenizer.get_added_tokens_decoder().items()
                if token_id not in had and tokenizer.model.id_to_token(token_id) is None
            },
        )
        _check_vocabulary(folder, text)
        return text

    @property
    def vocabulary_size(self) -> int:
        """One more than the last id: a vocabulary may have gaps."""
        return self.token_bytes.last_id + 1

    def beyond(self, vocabulary: int, ids: Collection[int]) -> str:
        """What is wrong with `ids` for a model that knows so many: "" for nothing. A padded model
        knows more than there are tokens; one with fewer has no embedding for the last."""
        last = max(ids, default=0)
        if last < vocabulary:
            return ""
        token, file = self.tokenizer.id_to_token(last), self.files.get(last, "tokenizer.json")
        return f"{token!r} has the id {last} in {file}, and the model knows {vocabulary} ids"

    def decode(self, ids: Sequence[int]) -> str:
        """All of `ids` as text, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        """Ids of a bare prompt, with the tokens that the model's tokenizer adds around one."""
        return self._encode(text, add_special_tokens=True)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        arguments: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[int, ...]:
        """Ids of a conversation up to where the assistant's answer begins; raises InvalidField.

        `arguments` are the request's own names for the template (chat_template_kwargs).

        The template writes the begin-of-sequence token itself, so none is added.
        """
        template = (self.tool_template if tools else None) or self.chat_template
        if template is None:
            rule = (
                "the served model has no chat template (it is a base model): "
                "use /v1/completions or /generate, of a block the mode completions"
            )
            raise NoChatTemplate("messages", f"{len(messages)} messages", rule)
        text = template.render(messages, arguments, tools)
        return self._encode(text, add_special_tokens=False)

    def _encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        # Of tokenizers' ways to encode, encode() holds the interpreter's lock and this one does
        # not: a long prompt in a thread lets the event loop run.
        [encoding] = self.tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return tuple(encoding.ids)


class TokenBytes:
    """Token id -> bytes, for log probabilities: a token may hold part of a character.

    For byte-level vocabularies, byte fallback and plain pieces.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._alphabet = _byte_level_alphabet() if "ByteLevel" in repr(tokenizer.decoder) else None
        self._added = tokenizer.get_added_tokens_decoder()
        self.last_id = max(tokenizer.get_vocab().values(), default=-1)

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


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (openai/gpt-2, encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet.update({chr(256 + position): byte for position, byte in enumerate(others)})
    return alphabet


def _check_ids(path: Path, tokenizer: Tokenizer) -> None:
    """Raises ModelUnavailable where two tokens have one id, or an added one another than it says:
    tokenizers gives those the next free id, and takes the former as they are."""
    texts: dict[int, str] = {}
    for text, token_id in tokenizer.get_vocab().items():
        if (other := texts.setdefault(token_id, text)) != text:
            rule = "a token's id must be its own"
            raise ModelUnavailable(f"{path}: {other!r} and {text!r} have the id {token_id}: {rule}")
    document = json.loads(path.read_text("utf-8"))  # tokenizers has read it already
    for said in document.get("added_tokens") or ():
        given = tokenizer.token_to_id(said["content"])
        if given != said["id"]:
            rule = "must be a free one, the next after the vocabulary's"
            text = f"{said['content']!r} in added_tokens has the id {said['id']}"
            raise ModelUnavailable(f"{path}: {text}: {rule}; it would get {given}")


def _check_vocabulary(folder: Path, text: ModelText) -> None:
    """Raises ModelUnavailable where the chat template writes tokens that the model does not know;
    others are warned of: who does not send them is served."""
    config = read_object(folder / "config.json")
    inner = config.get("text_config")
    vocabulary = {**(inner if isinstance(inner, dict) else {}), **config}.get("vocab_size")
    if not isinstance(vocabulary, int) or text.vocabulary_size <= vocabulary:
        return
    _log.warning(
        "%s: %s; prompts with it are refused",
        folder,
        text.beyond(vocabulary, [text.vocabulary_size - 1]),
    )
    try:
        ids = text.encode_chat([{"role": "user", "content": ""}])
    except InvalidField:  # a base model, or a template that wants other messages
        return
    if fault := text.beyond(vocabulary, ids):
        raise ModelUnavailable(f"{folder}: {fault}: the chat template writes it")


def _chat_template(
    folder: Path, special_tokens: Mapping[str, str], name: str = _USUAL
) -> ChatTemplate | None:
    """chat_template.jinja goes before the templates inside tokenizer_config.json, of which there
    may be several with names."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        if name != _USUAL:
            return None
        try:
            source: Any = file.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ModelUnavailable(f"{file} is no UTF-8 text: {error}") from error
    else:
        file = folder / "tokenizer_config.json"
        source = read_object(file).get("chat_template")
    if isinstance(source, list):  # several named ones
        if not all(isinstance(item, dict) for item in source):
            raise ModelUnavailable(f"{file}: chat_template must be a text, or objects with one")
        named = {item.get("name"): item.get("template") for item in source}
        source = named.get(name)
    elif name != _USUAL:
        return None
    if not isinstance(source, str):
        return None
    try:
        return ChatTemplate(source, special_tokens, file.name)
    except ModelUnavailable as error:
        raise ModelUnavailable(f"{file}: {error}") from error


def _calls(
    template: ChatTemplate | None, reasoning: ReasoningFormat | None, tokenizer: Tokenizer
) -> CallForm | None:
    if template is None or not template.takes_tools:
        return None
    form = CallForm.found(template.source, tokenizer)
    if form is not None and form.family is HARMONY and not isinstance(reasoning, Harmony):
        return None  # its tokens are not special
    return form


def _eos_ids(folder: Path, generation: Mapping[str, Any]) -> tuple[int, ...]:
    """generation_config.json's, else config.json's: as in transformers, the first that names any
    decides."""
    for source in (generation, read_object(folder / "config.json")):
        value = source.get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        known = tuple(item for item in ids if isinstance(item, int) and item >= 0)
        if known:
            return known
    return ()


def _own_eos_ids(special_tokens: Mapping[str, str], tokenizer: Tokenizer) -> tuple[int, ...]:
    """The id of the tokenizer's eos_token, if it has one.

    Fine-tunes for chat often make their end of a turn the eos_token and leave the base model's
    generation_config.json as it was.
    """
    token = special_tokens.get("eos_token")
    token_id = tokenizer.token_to_id(token) if token is not None else None
    return () if token_id is None else (token_id,)
