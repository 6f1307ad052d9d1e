"""What pods get beside their own: nothing of it shadows ours."""

from __future__ import annotations

import pytest

from tests.infra.deployments import fault_lines, parsed


def volume(**changes: object) -> dict[str, object]:
    return {"name": "mine", "mount_path": "/mnt/mine", "secret": "certificates"} | changes


@pytest.mark.parametrize(
    ("template", "path", "rule"),
    [
        ({"annotations": {"splitstack.dev/a": "b"}}, "annotations.", "is this stack's own"),
        ({"annotations": {"pulumi.com/skipAwait": "true"}}, "annotations.", "this stack's own"),
        ({"labels": {"app.kubernetes.io/instance": "x"}}, "labels.", "is this stack's own"),
        ({"labels": {"team": "a b"}}, "labels.", "must be a label's value"),
        ({"volumes": [volume(name="spec")]}, "volumes[0].name", "is a volume of our own"),
        ({"volumes": [volume(), volume(mount_path="/b")]}, "volumes[0].name", "is listed twice"),
        ({"volumes": [volume(secret="")]}, "volumes[0]", "it has none"),
        ({"volumes": [volume(claim="c")]}, "volumes[0]", "it has secret, claim"),
        (
            {"volumes": [volume(mount_path="/etc/splitstack/x")]},
            "volumes[0].",
            "in the way of /etc",
        ),
        ({"volumes": [volume(mount_path="/etc")]}, "volumes[0].", "in the way of /etc/splitstack"),
        ({"volumes": [volume(mount_path="/usr/lib/mine")]}, "volumes[0].", "in the way of /usr"),
        ({"volumes": [volume(mount_path="../a")]}, "volumes[0].mount_path", "must be a path from"),
        (
            {"volumes": [volume(), volume(name="b", mount_path="/mnt/mine/b")]},
            "volumes[1].mount_path",
            "in the way of volume mine at /mnt/mine",
        ),
        (
            {"volumes": [volume(secret="", host_path="/data")]},
            "volumes[0].host_path",
            "needs namespaces.create: false",
        ),
        ({"env_from": [{}]}, "env_from[0]", "must name a config_map or a secret"),
        ({"env_from": [{"config_map": "a", "secret": "b"}]}, "env_from[0]", "one of them"),
        ({"env_from": [{"secret": "a", "prefix": "1"}]}, "env_from[0].prefix", "match pattern"),
    ],
)
@pytest.mark.parametrize("tier", ["pod_template", "inference_server", "session_store"])
def test_what_would_shadow_ours(
    tier: str, template: dict[str, object], path: str, rule: str
) -> None:
    value = template if tier == "pod_template" else {"pod_template": template}
    prefix = tier if tier == "pod_template" else f"{tier}.pod_template"
    lines = fault_lines(**{tier: value})
    assert lines[0].startswith(f"{prefix}.{path}")
    assert rule in lines[0]


def test_what_is_taken() -> None:
    template = {
        "annotations": {"sidecar.istio.io/inject": "false"},
        "labels": {"kueue.x-k8s.io/queue-name": "gpus"},
        "volumes": [volume(), volume(name="scratch", mount_path="/b", secret="", empty_dir="1Gi")],
        "env_from": [{"secret": "proxy", "prefix": "HTTP_"}],
    }
    assert parsed(pod_template=template).pod_template.volumes[1].empty_dir == 2**30
