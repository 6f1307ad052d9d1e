from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from runner.errors import InvalidField, ModelUnavailable
from runner.master.text.model_text import ModelText

CONVERSATIONS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "  Grüße 東京 👩‍👩‍👧\n"},
        {"role": "assistant", "content": "<|im_end|>"},
        {"role": "user", "content": ""},
    ],
]
PROMPTS = ["The capital of France is", " leading", "", "<|im_start|>user\nx<|im_end|>", "a\n\n b"]


@pytest.fixture(scope="module")
def reference(demo_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(demo_folder)


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_a_conversation_has_transformers_ids(
    demo_text: ModelText, reference: Any, messages: list[dict[str, str]]
) -> None:
    expected = reference.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert list(demo_text.encode_chat(messages)) == expected


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_has_transformers_ids_and_text(
    demo_text: ModelText, reference: Any, prompt: str
) -> None:
    ids = demo_text.encode_prompt(prompt)
    assert list(ids) == reference(prompt)["input_ids"]
    assert demo_text.decode(ids) == reference.decode(list(ids), skip_special_tokens=True)


def test_generation_ends_where_transformers_ends(demo_text: ModelText, demo_folder: Path) -> None:
    expected = GenerationConfig.from_pretrained(demo_folder).eos_token_id
    assert list(demo_text.eos_ids) == (expected if isinstance(expected, list) else [expected])


@pytest.fixture
def folder(tmp_path: Path, demo_folder: Path) -> Path:
    """The demo model's text files alone, to change."""
    for file in demo_folder.iterdir():
        if file.suffix in (".json", ".jinja") and "safetensors" not in file.name:
            shutil.copy(file, tmp_path)
    return tmp_path


def write(path: Path, **values: Any) -> None:
    document = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(document | values))


def test_several_end_ids_and_the_models_sampling_values_are_read(folder: Path) -> None:
    write(
        folder / "generation_config.json",
        eos_token_id=[2, 0],
        do_sample=True,
        temperature=0.6,
        top_k=40,
        max_length=20,
    )
    text = ModelText.load(folder)
    assert text.eos_ids == (2, 0)
    assert text.generation_defaults == {"do_sample": True, "temperature": 0.6, "top_k": 40}


def test_the_tokenizers_own_end_token_is_the_last_resort(folder: Path) -> None:
    (folder / "generation_config.json").unlink(missing_ok=True)
    write(folder / "config.json", eos_token_id=None)
    write(folder / "tokenizer_config.json", eos_token={"content": "<|im_end|>"})
    text = ModelText.load(folder)
    assert text.eos_ids == (text.tokenizer.token_to_id("<|im_end|>"),)


def test_a_turn_in_a_chat_ends_at_the_tokenizers_own_end_token_too(folder: Path) -> None:
    write(folder / "generation_config.json", eos_token_id=[0])
    write(folder / "tokenizer_config.json", eos_token="<|im_end|>")
    text = ModelText.load(folder)
    assert text.eos_ids == (0,)
    assert text.chat_eos_ids == (0, text.tokenizer.token_to_id("<|im_end|>"))
    write(folder / "generation_config.json", eos_token_id=list(text.chat_eos_ids))
    assert ModelText.load(folder).chat_eos_ids == text.chat_eos_ids


def test_a_base_model_has_no_conversation(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InvalidField, match="no chat template"):
        ModelText.load(folder).encode_chat(CONVERSATIONS[0])


def test_the_template_inside_tokenizer_config_serves_too(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": file.read_text()}]
    expected = ModelText.load(folder).encode_chat(CONVERSATIONS[0])
    file.unlink()
    write(folder / "tokenizer_config.json", chat_template=named)
    assert ModelText.load(folder).encode_chat(CONVERSATIONS[0]) == expected


def test_a_model_without_tokenizer_json_is_refused_by_file_name(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelUnavailable, match=r"no tokenizer\.json"):
        ModelText.load(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_a_broken_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("{nonsense")
    with pytest.raises(ModelUnavailable, match=name.replace(".", r"\.")):
        ModelText.load(folder)


def test_bytes_of_single_tokens_join_to_the_text(demo_text: ModelText) -> None:
    text = "Grüße 東京 👩‍👩‍👧 x\n"
    ids = demo_text.encode_prompt(text)
    assert b"".join(demo_text.token_bytes.of(token_id) for token_id in ids) == text.encode()
    assert demo_text.token_bytes.of(demo_text.eos_ids[0]) == b"<|im_end|>"
    assert demo_text.token_bytes.of(10_000_000) == b""


def changed_tokenizer(folder: Path, change: Any) -> None:
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text("utf-8"))
    change(document)
    path.write_text(json.dumps(document), "utf-8")


def test_two_tokens_with_one_id_are_refused_by_name(folder: Path) -> None:
    changed_tokenizer(folder, lambda document: document["model"]["vocab"].update(hello=100))
    with pytest.raises(ModelUnavailable, match=r"tokenizer\.json: .*'hello'.* have the id 100"):
        ModelText.load(folder)


@pytest.mark.parametrize("token_id", [5, 10**6])
def test_an_added_token_whose_id_it_cannot_have_is_refused_by_name(
    folder: Path, token_id: int
) -> None:
    token = {"id": token_id, "content": "<x>", "special": True}
    marks = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    changed_tokenizer(folder, lambda document: document["added_tokens"].append(token | marks))
    with pytest.raises(ModelUnavailable, match=rf"'<x>' in added_tokens has the id {token_id}"):
        ModelText.load(folder)


def test_a_vocabulary_may_have_gaps(folder: Path) -> None:
    changed_tokenizer(folder, lambda document: document["model"]["vocab"].update(hello=60_000))
    text = ModelText.load(folder)
    assert text.encode_prompt("hello") == (60_000,)
    assert text.vocabulary_size == 60_001


def test_ids_beyond_the_models_are_warned_of_with_their_file(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that was given tokens, and no rows of its embedding for them."""
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config = {key: config[key] for key in config if key != "added_tokens_decoder"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    text = ModelText.load(folder)
    assert not caplog.text
    size = text.vocabulary_size
    assert text.beyond(size, [0, size - 1]) == ""
    write(folder / "added_tokens.json", **{"<new>": size})
    write(folder / "config.json", vocab_size=size)
    text = ModelText.load(folder)
    fault = f"'<new>' has the id {size} in added_tokens.json, and the model knows {size} ids"
    assert fault in caplog.text
    assert text.beyond(size, text.encode_prompt("a <new> one")) == fault
    assert text.beyond(size, text.encode_prompt("another")) == ""
    last = text.tokenizer.id_to_token(size - 1)
    assert text.beyond(size - 1, [size - 1]) == (
        f"{last!r} has the id {size - 1} in tokenizer.json, and the model knows {size - 1} ids"
    )


def test_a_chat_template_whose_tokens_the_model_does_not_know_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("<turn>{{ messages[0].content }}")
    write(folder / "tokenizer_config.json", additional_special_tokens=["<turn>"])
    with pytest.raises(
        ModelUnavailable, match=r"'<turn>' has the id \d+ in tokenizer_config\.json"
    ):
        ModelText.load(folder)
    write(folder / "config.json", vocab_size=60_000)
    assert ModelText.load(folder).beyond(60_000, [59_999]) == ""


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("tokenizer.json", "[" * 100_000, "tokenizer.json cannot be read"),
        ("tokenizer_config.json", "[" * 100_000, "tokenizer_config.json is no JSON text"),
        ("tokenizer_config.json", '{"eos_token": "\\ud800"}', "tokenizer_config.json is no JSON"),
        ("tokenizer_config.json", '{"chat_template": [1]}', "chat_template must be"),
        (
            "tokenizer_config.json",
            '{"chat_template": "{{ "}',
            r"tokenizer_config\.json: .* does not compile",
        ),
        (
            "chat_template.jinja",
            2 * "{% for i in range(99999) %}" + 2 * "{% endfor %}",
            r"chat_template\.jinja: .* does not come to an end",
        ),
        ("chat_template.jinja", "{{ 'a' * 10 ** 10 }}", r"chat_template\.jinja: .* too much"),
    ],
)
def test_files_that_cannot_be_read_are_named(
    folder: Path, file: str, content: str, told: str
) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / file).write_text(content)
    with pytest.raises(ModelUnavailable, match=told):
        ModelText.load(folder)


def test_a_template_file_that_is_no_text_is_named(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelUnavailable, match=r"chat_template\.jinja is no UTF-8 text"):
        ModelText.load(folder)
