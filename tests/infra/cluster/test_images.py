"""Images: names, build arguments, Dockerfiles, and what the engine is asked to build."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from infra.cluster.images import build_arguments
from infra.cluster.platforms import build_platform, platform_faults
from infra.cluster.pods import USER_ID
from infra.stack.file import parse_deployment
from infra.stack.image_names import image_names, registry_of
from tests.infra.program_stacks import DEMO, stack, vllm_stack
from tests.infra.recorded_program import DIGEST, run_program

REPOSITORY = Path(__file__).parents[3]
TIERS = ("runner", "proxy_block", "inference_server")
BUILT = {"builder": "docker"}


def deployment(folder, image="registry.test:5000/team/runner:1", **changes):
    common = {"model_name": DEMO, "image": image}
    return parse_deployment(stack(folder, **{"common_params": common, "images": BUILT} | changes))


def test_images_lie_beside_the_runners(tmp_path):
    assert image_names(deployment(tmp_path)) == {
        "runner": "registry.test:5000/team/runner:1",
        "proxy_block": "registry.test:5000/team/splitstack-proxy-block:1",
        "inference_server": "registry.test:5000/team/splitstack-inference-server:1",
    }


def test_images_without_a_tag_or_a_folder(tmp_path):
    names = image_names(deployment(tmp_path, "localhost:5001/runner"))
    assert names["proxy_block"] == "localhost:5001/splitstack-proxy-block"


def test_an_image_of_ones_own_is_taken(tmp_path):
    given = BUILT | {"proxy_block": "registry.test/other/proxy:2"}
    names = image_names(deployment(tmp_path, images=given))
    assert names["proxy_block"] == "registry.test/other/proxy:2"


def test_tiers_that_a_deployment_has_not_need_no_image(tmp_path):
    without = deployment(tmp_path, proxy_blocks=[], inference_server={"enabled": False})
    assert set(image_names(without)) == {"runner"}


@pytest.mark.parametrize(
    ("image", "registry"),
    [
        ("MANAGEMENTMASTER:31280/example/runner:demo", "MANAGEMENTMASTER:31280"),
        ("localhost/runner", "localhost"),
        ("docker.io/me/runner:1", "docker.io"),
        ("MYHOST/runner", "MYHOST"),
        ("me/runner:1", ""),
        ("runner:1", ""),
    ],
)
def test_the_registry_of_a_name(image, registry):
    assert registry_of(image) == registry


def test_build_arguments_follow_from_the_stack_file(tmp_path):
    assert build_arguments(deployment(tmp_path), "runner") == {"TORCH": "cpu"}
    assert build_arguments(deployment(tmp_path), "proxy_block") == {}
    ranks = [{"rank": rank, "node_id": "n"} for rank in range(2)]
    on_gpus = deployment(
        tmp_path,
        gpu_pinning="resource",
        per_rank_params=ranks,
        common_params={"model_name": "some/model", "image": "registry.test/runner:1"},
        images=BUILT | {"build_arguments": {"TORCH": "cu126", "BASE_IMAGE": "python:3.12-slim"}},
    )
    assert build_arguments(on_gpus, "runner") == {
        "TORCH": "cu126",
        "BASE_IMAGE": "python:3.12-slim",
    }
    assert build_arguments(on_gpus, "proxy_block")["BASE_IMAGE"] == "python:3.12-slim"


def test_images_are_built_for_what_the_nodes_are(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    built = deployment(tmp_path)
    assert build_platform(built, {"amd64"}) == "linux/amd64"
    assert build_platform(built, ()) == "linux/arm64"  # where no cluster tells: this machine's
    given = deployment(tmp_path, images=BUILT | {"platform": "linux/s390x"})
    assert build_platform(given, {"amd64", "arm64"}) == "linux/s390x"
    assert not list(platform_faults(given, {"amd64", "arm64"}))
    assert not list(platform_faults(built, {"amd64"}))
    (fault,) = platform_faults(built, {"arm64", "amd64"})
    assert str(fault).startswith("images.platform: must be given: the nodes are amd64 and arm64, ")
    taken = parse_deployment(stack(tmp_path))
    assert build_platform(taken, ()) == ""
    assert not list(platform_faults(taken, {"amd64", "arm64"}))


def test_leaving_the_demo_model_makes_no_other_image(tmp_path):
    baked = BUILT | {"build_arguments": {"DEMO_MODEL": DEMO}}
    arguments = [
        build_arguments(
            deployment(
                tmp_path,
                images=baked,
                common_params={"model_name": name, "image": "registry.test/runner:1"},
            ),
            "runner",
        )
        for name in (DEMO, "some/model")
    ]
    assert arguments[0] == arguments[1] == {"TORCH": "cpu", "DEMO_MODEL": DEMO}


def test_every_build_argument_is_one_of_the_dockerfiles():
    declared = {
        name
        for tier in TIERS
        for name in re.findall(r"^ARG (\w+)", (REPOSITORY / tier / "Dockerfile").read_text(), re.M)
    }
    assert {"BASE_IMAGE", "TORCH", "TORCH_INDEX", "DEMO_MODEL"} <= declared


def test_the_engine_builds_every_image_and_pods_name_digests_only(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY / "infra")  # where Pulumi runs the program
    common = {"model_name": DEMO, "image": "registry.test:5000/team/runner:1"}
    images = BUILT | {"platform": "linux/amd64", "build_arguments": {"DEMO_MODEL": DEMO}}
    program = run_program(stack(tmp_path, common_params=common, images=images))
    built = {
        item.name: item.properties
        for item in program.resources
        if item.kind.startswith("docker:") and item.kind.endswith(":Image")
    }
    assert set(built) == {
        "small-runner-image",
        "small-proxy-block-image",
        "small-inference-server-image",
    }
    build = built["small-runner-image"]["build"]
    # Relative, so that another checkout builds nothing anew.
    assert (build["context"], build["dockerfile"]) == ("..", "../runner/Dockerfile")
    assert (REPOSITORY / "infra" / build["dockerfile"]).is_file()
    assert build["platform"] == "linux/amd64"
    for _, spec in program.pods():
        assert all(container["image"].endswith(f"@{DIGEST}") for container in spec["containers"])


@pytest.mark.parametrize("tier", [*TIERS, "runner/keeper"])
def test_hadolint_finds_nothing(tier):
    hadolint = shutil.which("hadolint") or str(Path(sys.executable).with_name("hadolint"))
    found = subprocess.run(
        [hadolint, REPOSITORY / tier / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


@pytest.mark.parametrize("tier", TIERS)
def test_an_image_holds_its_own_tier_and_its_dependencies_only(tier):
    dockerfile = (REPOSITORY / tier / "Dockerfile").read_text()
    assert f"'.[{tier.replace('_', '-')}]'" in dockerfile
    copied = set(re.findall(r"^COPY ([\w/.]+)", dockerfile, re.M))
    assert not {other for other in {*TIERS, "infra"} - {tier} if other in copied}
    with_rollout = tier in ("runner", "proxy_block")
    assert ("rollout" in copied) == with_rollout
    allowed = (REPOSITORY / tier / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in allowed
    assert {line for line in allowed if line.startswith("!")} == {
        "!LICENSE",
        "!pyproject.toml",
        "!constraints.txt",
        "!contract",
        "!web",
        f"!{tier}",
        *(["!rollout"] if with_rollout else []),
    }


def test_the_keepers_image_is_the_engines_with_our_own_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY / "infra")
    base = f"docker.io/vllm/vllm-openai@{DIGEST}"
    images = BUILT | {"build_arguments": {"VLLM_IMAGE": base}}
    mapping = vllm_stack(tmp_path, images=images)
    mapping["common_params"] |= {"image": "registry.test:5000/team/keeper:1"}
    program = run_program(mapping)
    (build,) = [
        item.properties["build"] for item in program.resources if item.name == "small-runner-image"
    ]
    assert build["dockerfile"] == "../runner/keeper/Dockerfile"
    assert build["args"] == {"VLLM_IMAGE": base}
    text = (REPOSITORY / "runner" / "keeper" / "Dockerfile").read_text()
    assert "'.[keeper]'" in text
    assert text.count("FROM ${VLLM_IMAGE}") == 2
    ignored = [
        (REPOSITORY / folder / "Dockerfile.dockerignore").read_text()
        for folder in ("runner", "runner/keeper")
    ]
    assert ignored[0] == ignored[1]


def test_the_stage_that_bakes_a_model_copies_what_that_imports():
    """Less breaks the build; more makes the model anew with every edit."""
    program = (
        "import sys, runner.models.demo\n"
        "for name, module in sorted(sys.modules.items()):\n"
        "    if name.partition('.')[0] in ('contract', 'web', 'runner'): print(module.__file__)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    imported = {str(Path(line).relative_to(REPOSITORY)) for line in found.stdout.split()}
    dockerfile = (REPOSITORY / "runner" / "Dockerfile").read_text()
    (stage,) = re.findall(r"^FROM packages AS model$(.*?)^FROM", dockerfile, re.M | re.S)
    lines = [line.split() for line in re.findall(r"^COPY (.*)", stage, re.M)]
    assert {file for *files, _ in lines for file in files} == imported
    assert all(f"{Path(file).parent}/" == folder for *files, folder in lines for file in files)


@pytest.mark.parametrize("tier", TIERS)
def test_images_run_as_the_user_of_the_pods(tier):
    dockerfile = (REPOSITORY / tier / "Dockerfile").read_text()
    assert f"USER {USER_ID}:{USER_ID}" in dockerfile
    assert f"--uid {USER_ID} " in dockerfile


def test_the_constraints_pin_every_dependency_of_the_images():
    """An image built next year is the one that was tested."""
    groups = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    text = (REPOSITORY / "constraints.txt").read_text()
    pinned = {_normal(line.partition("==")[0]) for line in text.splitlines() if "==" in line}
    for group in ("web", "runner", "proxy-block", "inference-server"):
        for requirement in groups["optional-dependencies"][group]:
            name = _normal(re.match(r"[\w.-]+", requirement)[0])
            assert name == "splitstack" or name in pinned, requirement


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
