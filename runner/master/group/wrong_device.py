"""Whether a stage computes on the device that the stack file gives to its rank. Pure."""

from __future__ import annotations

from runner.transport.control import Join

_KINDS = ("GPU-", "MIG-")


def wrong_device(rank: int, join: Join) -> str:
    """One sentence; "" where the file names none by UUID, or nobody tells which one it is.

    NVIDIA's tools take the beginning of a UUID for it, and CUDA does not tell a part of a GPU (MIG)
    from a whole one: what counts is what follows the first dash.
    """
    wanted = [item for item in join.devices.split(",") if item.startswith(_KINDS)]
    if not wanted or not join.device_uuid:
        return ""
    found = _digits(join.device_uuid)
    if any(found.startswith(_digits(item)) for item in wanted):
        return ""
    return (
        f"rank {rank} has the device {join.device_uuid}, and {' or '.join(wanted)} is asked for "
        "(per_rank_params[].device_uuid or nvidia_visible_devices)"
    )


def _digits(device: str) -> str:
    return device.partition("-")[2].lower()
