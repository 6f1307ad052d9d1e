"""Tokens that the files beside tokenizer.json name: the special ones by name, and further ones.

Many folders have some only there, and without them these tokens are split into letters. They are
taken in the order and with the marks that transformers' TokenizersBackend gives them, so that their
ids are its ids; transformers itself is not imported, and a test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from tokenizers import AddedToken, Tokenizer

from runner.errors import ModelUnavailable
from runner.master.text.model_files import read_object

_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
Said: TypeAlias = str | AddedToken  # a token as its text alone is a special one
_MARKS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True)
class NamedTokens:
    """`special` by name, as templates may use them; `further` special ones; `listed` by the id
    that the files say, which orders them: the id itself is the tokenizer's next free one. With
    `decides` the marks listed go before those in tokenizer.json. `files` say, by text, which one
    has a token that tokenizer_config.json has not."""

    special: Mapping[str, Said]
    further: Sequence[Said]
    listed: Mapping[int, AddedToken]
    decides: bool
    files: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> NamedTokens:
        """Raises ModelUnavailable naming the file that is wrong.

        tokenizer_config.json alone decides when it has an `added_tokens_decoder`; older folders
        have special_tokens_map.json, which goes before it, and added_tokens.json.
        """
        path = folder / "tokenizer_config.json"
        values = read_object(path)
        further = values.get("extra_special_tokens")
        # Names of a model's own that stand as text come after those that stand as objects.
        own: dict[str, Said] = {
            name: value for name, value in values.items() if _is_own(name, value)
        }
        if isinstance(further, dict):
            own |= {name: _said(path, name, value) for name, value in further.items()}
            further = []
        else:
            further = _all_said(path, further or values.pop("additional_special_tokens", []))
        special = _by_name(path, {name: values[name] for name in values if name not in own})
        if "added_tokens_decoder" in values:
            listed = _listed(path, values["added_tokens_decoder"])
            further = further or _all_said(path, values.get("additional_special_tokens"))
            return cls(special | own, further, listed, decides=True)
        return cls._older(folder, values, special, own, further)

    @classmethod
    def _older(
        cls,
        folder: Path,
        values: dict[str, Any],
        special: dict[str, Said],
        own: dict[str, Said],
        further: list[Said],
    ) -> NamedTokens:
        path = folder / "special_tokens_map.json"
        older = read_object(path)
        from_older = _by_name(path, older)
        special = {name: token for name, token in special.items() if name not in older}
        further = [*further, *_all_said(path, older.get("extra_special_tokens"))]
        # An object in tokenizer_config.json does not make its token in added_tokens.json special.
        marked = {token for token in special.values() if isinstance(token, str)}
        marked |= {_text(from_older[name]) for name in _NAMES if name in from_older}
        listed = _added(folder / "added_tokens.json", marked | set(map(_text, further)))
        if not further:
            both = {**values, **older}
            further = _all_said(path, both.get("additional_special_tokens"))
        in_older = [*from_older.values()]
        for name in ("extra_special_tokens", "additional_special_tokens"):
            in_older += _all_said(path, older.get(name))
        files = {_text(token): path.name for token in in_older}
        files |= {token.content: "added_tokens.json" for token in listed.values()}
        return cls(special | from_older | own, further, listed, decides=False, files=files)

    def contents(self) -> dict[str, str]:
        """The special tokens' texts by name."""
        return {name: _text(token) for name, token in self.special.items()}

    def file_of(self, text: str) -> str:
        """The name of the file that has the token with this text."""
        return self.files.get(text, "tokenizer_config.json")

    def add_to(self, tokenizer: Tokenizer) -> None:
        """To what `tokenizer` has already only marks are added, such as that it is special."""
        has = tokenizer.get_added_tokens_decoder()
        listed = self.listed if self.decides else {**self.listed, **has}
        new: list[Said] = [token for _, token in sorted(listed.items())]
        known = {token.content for token in (*has.values(), *listed.values())}
        ordered = [self.special[name] for name in _NAMES if name in self.special]
        ordered += [token for name, token in self.special.items() if name not in _NAMES]
        for token in (*ordered, *self.further):
            if _text(token) not in known and token not in new:
                new.append(token)
        special = set(self.contents().values())
        made = [
            AddedToken(token, special=True) if isinstance(token, str) else token for token in new
        ]
        for token in made:
            token.special = token.special or token.content in special
        tokenizer.add_tokens(made)


def _text(token: Said) -> str:
    return token if isinstance(token, str) else token.content


def _is_own(name: str, value: object) -> bool:
    return name.endswith("_token") and name not in _NAMES and isinstance(value, str)


def _by_name(path: Path, values: Mapping[str, Any]) -> dict[str, Said]:
    """What stands as text or as an object with `content`; `add_bos_token` and such do not."""
    return {
        name: _said(path, name, value)
        for name, value in values.items()
        if name.endswith("_token") and isinstance(value, str | dict)
    }


def _all_said(path: Path, values: Any) -> list[Said]:
    items = values if isinstance(values, list) else []
    return [_said(path, "a special token", item) for item in items]


def _listed(path: Path, values: Any) -> dict[int, AddedToken]:
    try:
        entries = [(int(index), value) for index, value in values.items()]
    except (AttributeError, ValueError) as error:
        rule = "must be an object of tokens by their ids"
        raise ModelUnavailable(f"{path}: added_tokens_decoder {rule}") from error
    return {
        index: _token(path, f"added_tokens_decoder[{index}]", value) for index, value in entries
    }


def _added(path: Path, special: set[str]) -> dict[int, AddedToken]:
    """added_tokens.json: ids by text. Nothing else is said of them."""
    tokens: dict[int, AddedToken] = {}
    for content, index in read_object(path).items():
        if not isinstance(index, int):
            raise ModelUnavailable(f"{path}: {content!r} has the id {index!r}: must be an integer")
        marked = content in special
        tokens[index] = AddedToken(content, normalized=not marked, special=marked)
    return tokens


def _said(path: Path, name: str, value: Any) -> Said:
    return value if isinstance(value, str) else _token(path, name, value)


def _token(path: Path, name: str, value: Any) -> AddedToken:
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(content, str):
        rule = 'must be a string or an object with "content"'
        raise ModelUnavailable(f"{path}: {name} is {value!r}: {rule}")
    marks = {mark: value[mark] for mark in _MARKS if value.get(mark) is not None}
    try:
        return AddedToken(content, **marks)
    except TypeError as error:
        raise ModelUnavailable(
            f"{path}: {name} is {value!r}: its marks are true or false"
        ) from error
