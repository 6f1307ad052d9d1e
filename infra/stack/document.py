"""A stack file's document as YAML, with the comments and quotes that people gave it."""

from __future__ import annotations

import io
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import RoundTripConstructor

_OCTAL = re.compile(r"[-+]?0[0-7]+")


class _Constructor(RoundTripConstructor):
    """Numbers as Pulumi reads them: YAML 1.2, but 010 is 8."""


def _integer(constructor: _Constructor, node: Any) -> Any:
    octal = _OCTAL.fullmatch(node.value)
    return int(node.value, 8) if octal else constructor.construct_yaml_int(node)


_Constructor.add_constructor("tag:yaml.org,2002:int", _integer)
# Else `!!str 5` would be no string.
_Constructor.add_constructor("tag:yaml.org,2002:str", RoundTripConstructor.construct_scalar)


def _yaml() -> YAML:
    yaml = YAML()
    yaml.Constructor = _Constructor
    yaml.preserve_quotes = True
    yaml.width = 100
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def read_yaml(text: str) -> Any:
    """The document; raises ruamel's YAMLError, for a key that is given twice too."""
    return _yaml().load(text)


def yaml_text(document: Any) -> str:
    """The document as text, keys in its order."""
    stream = io.StringIO()
    _yaml().dump(document, stream)
    return stream.getvalue()
