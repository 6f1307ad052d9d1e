"""Rules of the inference server."""

import pytest

from tests.infra.deployments import fault_lines, parsed


def front(**server):
    return {"inference_server": server}


def test_an_alias_names_blocks_of_any_stack():
    aliases = {"gpt-4.1": {"block": 9, "of-another-stack": 1}, "org/model": {"block": 1}}
    assert parsed(**front(aliases=aliases)).inference_server.aliases == aliases


@pytest.mark.parametrize(
    ("aliases", "line"),
    [
        ({"block": {"block": 1}}, "aliases.block = {'block': 1}: is the id of a block of this"),
        ({"block": {"other": 1}}, "aliases.block = {'other': 1}: is the id of a block of this"),
        ({"chat": {"chat": 1}}, "aliases.chat.chat = 1: names itself; an alias names blocks"),
        ({"chat": {}}, "aliases.chat = {}: must give a block a share above 0"),
        ({"chat": {"block": 0}}, "aliases.chat = {'block': 0}: must give a block a share above 0"),
        ({"chat": {"block": -1}}, "aliases.chat.block = -1: must be"),
        ({"a b": {"block": 1}}, "aliases.a b"),
        (
            {"chat": {"talk": 1}, "talk": {"block": 1}},
            "aliases.chat.talk = 1: is an alias too; an alias names blocks",
        ),
    ],
)
def test_what_an_alias_may_not_be(aliases, line):
    (found,) = fault_lines(**front(aliases=aliases))
    assert found.startswith(f"inference_server.{line}")


def test_an_alias_to_nothing_where_no_other_block_is_found():
    (found,) = fault_lines(**front(aliases={"chat": {"blokc": 1}}, discovery="static"))
    assert found.startswith(
        "inference_server.aliases.chat.blokc = 1: is no block of this stack (block)"
    )
