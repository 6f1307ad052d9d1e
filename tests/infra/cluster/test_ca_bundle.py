"""Whose pods trust the site's own authorities, and how they are told."""

from __future__ import annotations

import pytest

from tests.infra.deployments import fault_lines
from tests.infra.program_stacks import stack
from tests.infra.recorded_program import run_program

FILE = "/etc/splitstack-ca/ca.crt"


def trusting(program):
    """(workload, container) -> the file that it trusts."""
    found = {}
    for item, pod in program.pods():
        for container in pod["containers"]:
            variables = {one["name"]: one["value"] for one in container["env"]}
            if "SSL_CERT_FILE" in variables:
                mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
                assert mounts["/etc/splitstack-ca"] == "ca-bundle"
                assert variables["REQUESTS_CA_BUNDLE"] == variables["SSL_CERT_FILE"]
                found[item.name, container["name"]] = variables["SSL_CERT_FILE"]
    return found


def volume(program):
    pod = program.rank_pod(1)
    return next(one for one in pod["volumes"] if one["name"] == "ca-bundle")


def test_nobody_without_the_key(tmp_path):
    assert trusting(run_program(stack(tmp_path))) == {}


def test_ranks_which_fetch_models(tmp_path):
    program = run_program(stack(tmp_path, ca_bundle={"config_map": "site"}))
    assert trusting(program) == {
        ("small-rank-0", "master"): FILE,
        ("small-rank-0", "stage"): FILE,
        ("small-rank-1", "stage"): FILE,
    }
    assert volume(program)["configMap"]["name"] == "site"


def test_proxy_blocks_whose_store_is_elsewhere(tmp_path):
    store = {"mode": "url", "url": "rediss://store.test:6380/0"}
    bundle = {"secret": "site", "key": "all.pem"}
    program = run_program(stack(tmp_path, session_store=store, ca_bundle=bundle))
    file = "/etc/splitstack-ca/all.pem"
    assert trusting(program)["small-proxy-block", "proxy-block"] == file
    assert volume(program)["secret"]["secretName"] == "site"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ca_bundle": {"config_map": "a", "secret": "b"}}, "ca_bundle.secret = 'b': is refused"),
        ({"ca_bundle": {"key": "all.pem"}}, "ca_bundle.key = 'all.pem': needs config_map or"),
        ({"ca_bundle": {"config_map": "a", "key": "x/y"}}, "ca_bundle.key = 'x/y': must be a key"),
        (
            {"ca_bundle": {"config_map": "a"}, "extra_env": {"SSL_CERT_FILE": "/x"}},
            "extra_env.SSL_CERT_FILE = '/x': is refused beside ca_bundle",
        ),
        (
            {
                "pod_template": {
                    "volumes": [{"name": "ca-bundle", "mount_path": "/x", "secret": "s"}]
                }
            },
            "pod_template.volumes[0].name = 'ca-bundle': is a volume of our own",
        ),
    ],
)
def test_what_is_refused(changes, told):
    (line,) = fault_lines(**changes)
    assert line.startswith(told)
