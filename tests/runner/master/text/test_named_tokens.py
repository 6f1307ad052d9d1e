"""Ids, texts and names are transformers', whichever of a folder's files has a token."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import AutoTokenizer, GPT2Tokenizer, LlamaTokenizer, Qwen2Tokenizer

from runner.errors import ModelUnavailable
from runner.master.text.model_text import ModelText

Document = dict[str, Any]

LETTERS = "abcdefghijklmnopqrstuvwxyz"
# In the vocabularies of some, where they keep their ids.
IN_VOCABULARY = ("<unk>", "<s>", "</s>")
TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|eot|>",
    "[PAD]",
    "<image>",
    "<extra 0>",
    "Wort",
    "<think>",
)
TEXTS = (
    "<|im_start|>user\nhello world<|im_end|>\n<|im_start|>assistant\n",
    "hello [PAD] <image>  <extra 0> Wort wort<think>a</think> <|eot|></s><s>",
    "x<unk>Wortx <|im_end|><|im_end|> [pad] <IMAGE>",
    "plain words only",
)
NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "image_token", "think_token")


def _byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: place for place, piece in enumerate([*alphabet, "he", "ll", "wo"])}
    made = Tokenizer(models.BPE(vocabulary, [("h", "e"), ("l", "l"), ("w", "o")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def _byte_fallback() -> Tokenizer:
    pieces = [*IN_VOCABULARY, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS, "he"]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    model = models.BPE(
        vocabulary, [("h", "e")], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    made = Tokenizer(model)
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return made


def _unigram() -> Tokenizer:
    pieces = [*IN_VOCABULARY, "▁", *LETTERS, "▁hello", "<|im_end|>"]
    made = Tokenizer(
        models.Unigram([(piece, -1.0 - place) for place, piece in enumerate(pieces)], 0)
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return made


def _word_pieces() -> Tokenizer:
    pieces = [*IN_VOCABULARY, *LETTERS, *(f"##{letter}" for letter in LETTERS), "hello", "[PAD]"]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return made


def _words() -> Tokenizer:
    vocabulary = {piece: place for place, piece in enumerate([*IN_VOCABULARY, "hello", "Wort"])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    return made


KINDS = {
    "byte-level": _byte_level,
    "byte fallback": _byte_fallback,
    "unigram": _unigram,
    "word pieces": _word_pieces,
    "words": _words,
}


def _marked(draw: random.Random, content: str) -> Document:
    marks = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"content": content, **{mark: draw.random() < 0.4 for mark in marks}}


def _said(draw: random.Random, content: str) -> Any:
    """One of the ways in which files say a special token."""
    return content if draw.random() < 0.6 else {"__type": "AddedToken", **_marked(draw, content)}


def _scatter(draw: random.Random, tokenizer: Tokenizer, folder: Path) -> None:
    """Each token into some of the folder's files, at ids with gaps, in any order."""
    tokens = [*TOKENS, *IN_VOCABULARY]
    draw.shuffle(tokens)
    document = json.loads(tokenizer.to_str())
    free = max(document_ids(document)) + 1
    inside = [content for content in tokens if draw.random() < 0.4]
    for content in inside:
        place = tokenizer.token_to_id(content)
        if place is None:
            place, free = free, free + 1
        document["added_tokens"].append({"id": place, **_marked(draw, content)})
    document["added_tokens"].sort(key=lambda token: token["id"])
    (folder / "tokenizer.json").write_text(json.dumps(document))
    ids = {content: free + place * 3 for place, content in enumerate(draw.sample(tokens, 5))}
    configuration: Document = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name in NAMES:
        if draw.random() < 0.5:
            configuration[name] = _said(draw, draw.choice(tokens))
    for name in ("additional_special_tokens", "extra_special_tokens"):
        if draw.random() < 0.3:
            configuration[name] = draw.sample(tokens, 2)
    if draw.random() < 0.1:
        configuration["extra_special_tokens"] = {"audio": "<image>"}
    if draw.random() < 0.6:
        configuration["added_tokens_decoder"] = {
            str(place): _marked(draw, content) for content, place in ids.items()
        }
    elif draw.random() < 0.7:
        (folder / "added_tokens.json").write_text(json.dumps(ids))
    if draw.random() < 0.5:
        older: Document = {name: draw.choice(tokens) for name in draw.sample(NAMES, 3)}
        older["pad_token"] = _marked(draw, draw.choice(tokens))
        if draw.random() < 0.5:
            older["additional_special_tokens"] = draw.sample(tokens, 2)
        (folder / "special_tokens_map.json").write_text(json.dumps(older))
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration))


def document_ids(document: Document) -> Iterator[int]:
    vocabulary = document["model"]["vocab"]
    yield from vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    yield from (token["id"] for token in document["added_tokens"])


def _compare(folder: Path) -> int:
    """How many of the texts' ids are those of added tokens."""
    (folder / "config.json").write_text("{}")
    reference = AutoTokenizer.from_pretrained(folder)
    text = ModelText.load(folder)
    assert text.tokenizer.get_vocab() == reference.get_vocab()
    assert text.special_tokens == reference.special_tokens_map
    added = text.tokenizer.get_added_tokens_decoder()
    assert repr(sorted(added.items())) == repr(sorted(reference.added_tokens_decoder.items()))
    for prompt in TEXTS:
        ids = text.encode_prompt(prompt)
        assert list(ids) == reference(prompt)["input_ids"]
        assert text.decode(ids) == reference.decode(list(ids), skip_special_tokens=True)
    return sum(place in added for prompt in TEXTS for place in text.encode_prompt(prompt))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_transformers_wherever_a_token_stands(kind: str, tmp_path: Path) -> None:
    seen = 0
    for seed in range(60):
        folder = tmp_path / str(seed)
        folder.mkdir()
        _scatter(random.Random(f"{kind} {seed}"), KINDS[kind](), folder)
        seen += _compare(folder)
    assert seen > 60 * 5


def _of_class(kind: type[Any]) -> Any:
    """A tokenizer that transformers builds anew from the vocabulary, with this class's rules."""
    source = _byte_fallback() if kind is LlamaTokenizer else _byte_level()
    model = json.loads(source.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return kind(vocab=model["vocab"], merges=merges, pad_token="[PAD]")


@pytest.mark.parametrize("kept", [0, 2, 99])
@pytest.mark.parametrize("kind", [LlamaTokenizer, Qwen2Tokenizer, GPT2Tokenizer])
def test_so_they_are_with_the_classes_that_build_anew(
    kind: type[Any], kept: int, tmp_path: Path
) -> None:
    """`kept`: how many added tokens tokenizer.json still has; tokenizer_config.json has all."""
    made = _of_class(kind)
    made.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    made.add_tokens(["Wort", "<think>"])
    made.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text())
    listed, document["added_tokens"] = document["added_tokens"], document["added_tokens"][:kept]
    path.write_text(json.dumps(document))
    path = tmp_path / "tokenizer_config.json"
    configuration = json.loads(path.read_text())
    configuration["added_tokens_decoder"] = {str(token.pop("id")): token for token in listed}
    path.write_text(json.dumps(configuration))
    assert _compare(tmp_path) > 5


@pytest.mark.parametrize(
    ("name", "document", "fault"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": []}, "added_tokens_decoder must be"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": "<a>"}}, "by their ids"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9": {}}}, r"decoder\[9\] is {}"),
        ("tokenizer_config.json", {"pad_token": {"content": 5}}, "pad_token is"),
        ("special_tokens_map.json", {"pad_token": {"content": "x", "lstrip": 1}}, "true or false"),
        ("added_tokens.json", {"<a>": "9"}, "must be an integer"),
    ],
)
def test_a_file_that_is_wrong_is_named(
    name: str, document: Document, fault: str, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text(_words().to_str())
    (tmp_path / name).write_text(json.dumps(document))
    with pytest.raises(ModelUnavailable, match=fault) as refused:
        ModelText.load(tmp_path)
    assert str(tmp_path / name) in str(refused.value)
