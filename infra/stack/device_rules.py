"""Rules of the devices that ranks name: what each way of pinning needs, and one holder each."""

from __future__ import annotations

from collections.abc import Iterator

from contract.faults import MISSING, Fault
from infra.stack.config import DeploymentConfig, RankParams

_CLAIM_KEYS = ("device_uuid", "device_class", "device_selectors")
_DEVICE_KEYS = ("nvidia_visible_devices", "cuda_visible_devices", *_CLAIM_KEYS, "device_memory")
# What each mode needs of a rank and what it takes at all.
_NEEDED_KEYS = {
    "visible-devices": ("node_id", "nvidia_visible_devices"),
    "resource": (),
    "dra": (),
    "none": (),
}
_TAKEN_KEYS = {
    "visible-devices": ("nvidia_visible_devices", "cuda_visible_devices", "device_memory"),
    "resource": ("device_memory",),
    "dra": (*_CLAIM_KEYS, "device_memory"),
    "none": (),
}
_WHY_REFUSED = {
    "visible-devices": "it belongs to gpu_pinning dra",
    "resource": "the device plugin chooses and would overwrite it",
    "dra": "the claim chooses the device, by device_uuid or device_selectors",
    "none": "ranks compute on CPU; set gpu_pinning to visible-devices, resource or dra",
}


def device_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    """Faults of each rank's devices, then of devices that two ranks would hold."""
    for index, params in enumerate(deployment.per_rank_params):
        yield from _rank_faults(deployment, f"per_rank_params[{index}]", params)
    yield from _double_booking_faults(deployment)


def _rank_faults(deployment: DeploymentConfig, path: str, params: RankParams) -> Iterator[Fault]:
    mode = deployment.gpu_pinning
    for key in _NEEDED_KEYS[mode]:
        if not getattr(params, key):
            yield Fault(f"{path}.{key}", MISSING, f"is required with gpu_pinning {mode}")
    yield from _no_device_faults(deployment, path, params)
    for key in _DEVICE_KEYS:
        value = getattr(params, key)
        if value and key not in _TAKEN_KEYS[mode]:
            rule = f"is refused with gpu_pinning {mode}: {_WHY_REFUSED[mode]}"
            yield Fault(f"{path}.{key}", value, rule)
    wanted = deployment.devices_per_rank
    if mode == "visible-devices" and params.nvidia_visible_devices:
        yield from _visible_device_faults(path, params, wanted)
    if mode == "dra" and "," in params.device_uuid:
        yield Fault(f"{path}.device_uuid", params.device_uuid, "must name one device")
    elif mode == "dra" and params.device_uuid and wanted > 1:
        rule = f"names one device, and a rank uses {wanted} (tensor_parallel); use device_selectors"
        yield Fault(f"{path}.device_uuid", params.device_uuid, rule)


def _no_device_faults(
    deployment: DeploymentConfig, path: str, params: RankParams
) -> Iterator[Fault]:
    """Where nothing says which node's device it is, or which device."""
    mode = deployment.gpu_pinning
    placed = params.node_id or deployment.node_choice(params.rank).selects
    if mode == "resource" and not placed:
        rule = "is required with gpu_pinning resource, where placement selects no node"
        yield Fault(f"{path}.node_id", MISSING, rule)
    if mode == "dra" and not any(getattr(params, key) for key in _CLAIM_KEYS):
        rule = "is required with gpu_pinning dra, or device_class or device_selectors"
        yield Fault(f"{path}.device_uuid", MISSING, rule)


def _visible_device_faults(path: str, params: RankParams, wanted: int) -> Iterator[Fault]:
    devices = params.nvidia_visible_devices.split(",")
    if set(devices) & {"all", "none", "void"}:
        rule = 'must list devices by index or UUID, as in "0" or "0,1"'
        yield Fault(f"{path}.nvidia_visible_devices", params.nvidia_visible_devices, rule)
        return
    if all(device.isdecimal() for device in devices) and devices != sorted(devices, key=int):
        rule = "must list indices in ascending order: within a container they are numbered so"
        yield Fault(f"{path}.nvidia_visible_devices", params.nvidia_visible_devices, rule)
    if len(set(devices)) < len(devices):
        rule = "lists a device twice"
        yield Fault(f"{path}.nvidia_visible_devices", params.nvidia_visible_devices, rule)
    shown = params.cuda_visible_devices
    ordinals = [int(item) for item in shown.split(",") if item]
    beyond = [str(ordinal) for ordinal in ordinals if ordinal >= len(devices)]
    if beyond:
        rule = (
            f"ordinal {', '.join(beyond)} does not exist: it counts from 0 within "
            f'nvidia_visible_devices "{params.nvidia_visible_devices}" '
            f"({len(devices)} visible device{'s' if len(devices) > 1 else ''})"
        )
        yield Fault(f"{path}.cuda_visible_devices", shown, rule)
    elif wanted > 1:
        yield from _several_devices_faults(path, params, wanted)
    elif len(ordinals) > 1:
        yield Fault(f"{path}.cuda_visible_devices", shown, "a stage uses exactly one device")
    elif not ordinals and len(devices) > 1:
        rule = f"is required: one ordinal, 0 to {len(devices) - 1}, of the visible devices"
        yield Fault(f"{path}.cuda_visible_devices", MISSING, rule)


def _several_devices_faults(path: str, params: RankParams, wanted: int) -> Iterator[Fault]:
    used = params.physical_devices
    if len(set(used)) != wanted or len(used) != wanted:
        rule = (
            f"a rank uses exactly {wanted} devices (common_params.tensor_parallel), and these are "
            f"{len(set(used))}: name each of its ordinals once, or show it no others"
        )
        key = "cuda_visible_devices" if params.cuda_visible_devices else "nvidia_visible_devices"
        yield Fault(f"{path}.{key}", getattr(params, key), rule)


def _double_booking_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    holder: dict[tuple[str, str, str], int] = {}
    for index, params in enumerate(deployment.per_rank_params):
        cluster = params.cluster_id or deployment.cluster_of(params.rank)
        if deployment.gpu_pinning == "visible-devices":
            key, node = "nvidia_visible_devices", params.node_id
            held = params.physical_devices if deployment.devices_per_rank > 1 else ()
            devices = held or (params.physical_device,)
        elif deployment.gpu_pinning == "dra":
            key, devices, node = "device_uuid", (params.device_uuid,), ""
        else:
            return
        for device in devices:
            if not device or (key == "nvidia_visible_devices" and not node):
                continue
            if (other := holder.setdefault((cluster, node, device), params.rank)) != params.rank:
                where = f"device {device}" + (f" of node {node}" if node else "")
                rule = f"rank {params.rank} would hold {where}, which rank {other} holds"
                yield Fault(f"per_rank_params[{index}].{key}", getattr(params, key), rule)
