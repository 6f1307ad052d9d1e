"""The list of images against what the program has pods run, and against the Dockerfiles."""

from __future__ import annotations

import json

import pytest
import yaml

from infra.stack.file import parse_deployment
from infra.stack.mirror import MirroredImage, mirrored_images
from tests.infra.cli.test_app import splitstack
from tests.infra.deployments import parsed
from tests.infra.program_stacks import NAMES, matrix
from tests.infra.recorded_program import DIGEST, run_program

BASE = "python:3.11-slim-bookworm"
ALL = ("runner", "proxy_block", "inference_server")


@pytest.mark.parametrize("name", NAMES)
def test_every_image_that_a_pod_runs_is_listed_and_no_other(name, tmp_path):
    mapping = matrix(tmp_path)[name]
    run = {
        container["image"]
        for _, pod in run_program(mapping).pods()
        for container in [*pod["containers"], *pod.get("initContainers", [])]
    }
    if mapping["images"]["builder"] == "docker":  # its push gives it the digest
        run = {image.partition("@")[0] for image in run}
    listed = mirrored_images(parse_deployment(mapping))
    assert {image.name for image in listed if image.use == "pods"} == run


def test_what_builds_begin_with_and_the_argument_that_names_another():
    built = {"builder": "docker"}
    (base,) = (image for image in mirrored_images(parsed(images=built)) if image.use == "build")
    assert base == MirroredImage(BASE, "build", ALL, ("BASE_IMAGE",))
    own = built | {"build_arguments": {"BASE_IMAGE": f"mirror.test/python@{DIGEST}"}}
    (base,) = (image for image in mirrored_images(parsed(images=own)) if image.use == "build")
    assert (base.name, base.digest) == (f"mirror.test/python@{DIGEST}", DIGEST)


def test_the_command_lists_names_a_table_or_json(tmp_path):
    deployment = {
        "deployment_name": "small",
        "nnodes": 1,
        "common_params": {
            "model_name": "org/model",
            "image": "registry.test/splitstack-runner:1",
        },
        "inference_server": {"enabled": False},
    }
    path = tmp_path / "Pulumi.small.yaml"
    path.write_text(yaml.safe_dump({"config": {"splitstack:deployment": deployment}}))
    done = splitstack(tmp_path, "images", "-s", str(path), "--list")
    assert done.stdout.splitlines() == ["registry.test/splitstack-runner:1", BASE]
    done = splitstack(tmp_path, "images", "-s", str(path))
    assert done.stdout.splitlines()[-1] == f"{BASE}          base of runner"
    done = splitstack(tmp_path, "images", "-s", str(path), "--json")
    assert [item["use"] for item in json.loads(done.stdout)] == ["pods", "build"]
