from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from runner.master.api.served_models import Texts
from runner.transport.control import Served
from tests.runner.master.serving import group_spec


def test_texts_of_models_that_nobody_serves_any_more_go(tmp_path: Path) -> None:
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("{}")
    models = [Served(group_spec(model_name=name), "commit") for name in "abcd"]
    first, second, third, last = models
    in_use: list[Served] = []
    texts = Texts(lambda: in_use)

    async def edits() -> None:
        await texts.make_ready(first, tmp_path)
        in_use[:] = [first]
        await texts.make_ready(second, tmp_path)
        text = texts.of(second)
        await texts.make_ready(second, tmp_path)
        assert texts.of(second) is text
        await texts.make_ready(third, tmp_path)  # the second one was taken back
        in_use.append(third)
        await texts.make_ready(last, tmp_path)

    asyncio.run(edits())
    for served in (first, third, last):
        assert texts.of(served).vocabulary_size == 1
    with pytest.raises(KeyError):
        texts.of(second)
