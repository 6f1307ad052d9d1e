"""A stack file's document as YAML, with the comments and quotes that people gave it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.constructor import ConstructorError, RoundTripConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.scalarstring import PlainScalarString, ScalarString

_TAG = "tag:yaml.org,2002:"
_TEXT = f"{_TAG}str"
_TAGS = {
    ScalarNode: {f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str", "timestamp")},
    SequenceNode: {f"{_TAG}seq"},
    MappingNode: {f"{_TAG}map"},
}
_OCTAL = re.compile(r"[-+]?0[0-7]+")
_LEAST_FLOAT = 10**21  # Pulumi hands on smaller whole numbers as integers
_MOST_NESTED = 100
# What a reader makes of a text that it does not take for YAML: numbers too long for Python, dates
# that no calendar has, characters beyond Unicode.
_READER_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)


class _Composer(Composer):
    """Refuses what a stack file has no use for, with its line and without its value."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.parser.peek_event()
        known = self.anchors.get(event.anchor) if event.anchor else None
        if isinstance(event, AliasEvent):
            if known is None:
                raise ComposerError(None, None, "found an undefined alias", event.start_mark)
            if known.end_mark is None:
                raise ComposerError(None, None, "found an alias of itself", event.start_mark)
        elif known is not None:
            raise ComposerError(None, None, "found a duplicate anchor", event.start_mark)
        node = super().compose_node(parent, index)
        tag = str(node.tag)
        if isinstance(parent, MappingNode) and index is None:
            if not isinstance(node, ScalarNode):
                raise ComposerError(None, None, "found unhashable key", event.start_mark)
            if tag == f"{_TAG}merge":
                problem = "found a merge key (<<); write the keys out"
                raise ComposerError(None, None, problem, event.start_mark)
        if tag == f"{_TAG}value":  # a plain =
            node.ctag = self.resolver.DEFAULT_SCALAR_TAG
        elif tag not in _TAGS[type(node)]:
            problem = f"could not determine a constructor for the tag {tag!r}"
            raise ConstructorError(None, None, problem, event.start_mark)
        return node


class _Written(int):
    """A whole number that is written otherwise than Python would."""

    text: str


class _Constructor(RoundTripConstructor):
    """Numbers as Pulumi reads them: YAML 1.2, but 010 is 8 and 1.0 is 1."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (YAMLError, *_READER_ERRORS):
            if not isinstance(node, ScalarNode):
                raise
            problem = f"found no {str(node.tag).removeprefix(_TAG)}"
            raise ConstructorError(None, None, problem, node.start_mark) from None


def _written(value: int, text: str) -> _Written:
    number = _Written(value)
    number.text = text
    return number


def _integer(constructor: _Constructor, node: Any) -> Any:
    if _OCTAL.fullmatch(node.value):
        return _written(int(node.value, 8), node.value)
    return constructor.construct_yaml_int(node)


def _float(constructor: _Constructor, node: Any) -> Any:
    value = constructor.construct_yaml_float(node)
    if value.is_integer() and abs(value) < _LEAST_FLOAT:
        return _written(int(value), node.value)
    return value


def _text(constructor: _Constructor, node: Any) -> ScalarString:
    text = constructor.construct_scalar(node)
    return text if isinstance(text, ScalarString) else PlainScalarString(text)


_Constructor.add_constructor(f"{_TAG}int", _integer)
_Constructor.add_constructor(f"{_TAG}float", _float)
_Constructor.add_constructor(_TEXT, _text)
# With an anchor too, where ruamel would make an int of it.
_Constructor.add_constructor(f"{_TAG}bool", RoundTripConstructor.construct_yaml_bool)


class _Representer(RoundTripRepresenter):
    """Texts that no person wrote here are quoted where a reader of YAML 1.1 would see no text."""


_YAML_1_1 = VersionedResolver(version=(1, 1))


def _quoted_where_misread(representer: _Representer, text: str) -> Any:
    misread = str(_YAML_1_1.resolve(ScalarNode, text, (True, False))) != _TEXT
    style = '"' if text[:1].isdigit() else "'" if misread else None
    return representer.represent_scalar(_TEXT, text, style=style)


def _as_written(representer: _Representer, number: _Written) -> Any:
    tag = VersionedResolver().resolve(ScalarNode, number.text, (True, False))
    return representer.represent_scalar(str(tag), number.text)


_Representer.add_representer(str, _quoted_where_misread)
_Representer.add_representer(_Written, _as_written)


def _yaml() -> YAML:
    yaml = YAML()
    yaml.Composer = _Composer
    yaml.Constructor = _Constructor
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.max_depth = _MOST_NESTED
    yaml.brace_single_entry_mapping_in_flow_sequence = True
    yaml.width = 2**20
    return yaml


def read_yaml(text: str) -> Any:
    """The document; raises ruamel's YAMLError, for a key that is given twice too."""
    try:
        return _yaml().load(text)
    except (*_READER_ERRORS, RecursionError):
        raise YAMLError from None


def yaml_text(document: Any) -> str:
    """The document as text, keys in its order, indented throughout as it first is."""
    yaml, stream = _yaml(), io.StringIO()
    found = dict(reversed(list(_indents(document))))
    offset = found.get(CommentedSeq, 2)
    yaml.indent(mapping=found.get(CommentedMap, 2), sequence=offset + 2, offset=offset)
    yaml.dump(document, stream)
    return stream.getvalue()


def _indents(place: object) -> Iterator[tuple[type, int]]:
    """How far each list and mapping is to the right of the mapping that it is in."""
    for item in place.values() if isinstance(place, dict) else ():
        # Not one in braces, nor one whose anchor is where it would begin, nor one made since.
        if isinstance(item, CommentedMap | CommentedSeq) and item and not item.fa.flow_style():
            if isinstance(place, CommentedMap) and item.anchor.value is None and item.lc.line:
                yield type(item), item.lc.col - place.lc.col
            yield from _indents(item)
