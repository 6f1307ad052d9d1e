"""A stack file's document as text, as people write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Indented lists, and quotes around strings that look like numbers."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _quoted_where_numeric(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if text[:1].isdigit() else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _quoted_where_numeric)


def stack_text(document: Mapping[str, Any]) -> str:
    """YAML, keys in the document's order."""
    text: str = yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, width=100)
    return text
