"""How clusters are reached, as far as a file can say it wrongly."""

import pytest

from tests.infra.deployments import fault_lines, parsed

STACK = "organization/clusters/test"


@pytest.mark.parametrize(
    ("cluster", "told"),
    [
        ({"kubeconfig": "x", "kubeconfig_stack": STACK}, "kubeconfig_stack = 'organization/"),
        ({"kubeconfig_output": "admin"}, "kubeconfig_output = 'admin': needs kubeconfig_stack"),
        ({"kubeconfig_stack": "test"}, "kubeconfig_stack = 'test': must be ORGANIZATION/PROJ"),
        ({"kubeconfig_stack": STACK, "kubeconfig_output": ""}, "kubeconfig_output = '': "),
    ],
)
def test_a_kubeconfig_that_is_in_no_place_or_in_two(cluster, told):
    (line,) = fault_lines(clusters={"home": cluster})
    assert line.startswith(f"clusters.home.{told}")


def test_an_output_is_called_kubeconfig_unless_it_is_said():
    (cluster,) = parsed(clusters={"home": {"kubeconfig_stack": STACK}}).clusters.values()
    assert cluster.kubeconfig_output == "kubeconfig"
