"""What has every rank go before others come: the engine itself deletes last.

Two markers in the engine's state, nothing in a cluster. Another value replaces them, and each takes
the ranks with it that were declared to be replaced with it, those that the program no longer names
too. Rank 0 goes first: its master ends what is being answered while every stage is still there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pulumi

from infra.cluster.objects import Place

# The same for every stack: under another deployment_name the ranks before have to go as well.
ROOM = "ranks-room"
_MASTER_ROOM = "rank-0-room"
FIRST_ROOM = "first"  # not "": without a value there would be nothing to differ from


@dataclass(frozen=True)
class RankRoom:
    """The markers; every rank depends on both."""

    of_master: pulumi.Stash
    of_others: pulumi.Stash

    @property
    def markers(self) -> list[pulumi.Resource]:
        return [self.of_master, self.of_others]

    def of(self, rank: int) -> pulumi.Resource:
        """The marker that takes a rank with it."""
        return self.of_others if rank else self.of_master


def rank_room(value: str, providers: Iterable[pulumi.ProviderResource], place: Place) -> RankRoom:
    """Ranks that were declared with another value go before any rank comes.

    `providers` are those of the clusters: the engine has to know them to delete there.
    """
    master = _marker(_MASTER_ROOM, value, [*providers], place)
    return RankRoom(master, _marker(ROOM, value, [master], place))


def _marker(name: str, value: str, before: Sequence[pulumi.Resource], place: Place) -> pulumi.Stash:
    return pulumi.Stash(
        f"{place.prefix}{name}",
        input=value,
        opts=pulumi.ResourceOptions(
            parent=place.parent,
            replacement_trigger=value,
            delete_before_replace=True,
            depends_on=[*before],
        ),
    )
