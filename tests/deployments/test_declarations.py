"""What no engine here can run is checked by its own linter or schema."""

import json
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prefect.utilities.templating import apply_values

from tests.prefect_server import REPOSITORY

DEPLOYMENTS = REPOSITORY / "deployments"
MANIFESTS = sorted((DEPLOYMENTS / "kubernetes").glob("*.yaml"))
LOCK_OF_IMAGE = DEPLOYMENTS / "docker" / "requirements.lock"
KUBERNETES = "1.31"


def run(program: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [Path(sysconfig.get_path("scripts")) / program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)


def render(pool: str, **variables: object) -> dict[str, Any]:
    """A run's job configuration as Prefect fills in a pool's template.

    With Prefect's own function, but without prefect-docker and prefect-kubernetes, which every
    `prefect` command of these tests would then import, two seconds each.
    """
    template = json.loads((DEPLOYMENTS / "pools" / f"{pool}.json").read_text())
    properties = template["variables"]["properties"]
    unknown = variables.keys() - properties.keys()
    assert not unknown
    defaults = {name: each["default"] for name, each in properties.items() if "default" in each}
    of_worker = {"name": "screw-1a2b3c4d", "labels": {"prefect.io/flow-run-name": "screw"}}
    values = {**defaults, **of_worker, **variables}
    filled: dict[str, Any] = apply_values(template["job_configuration"], values)
    return filled


def test_linter_of_the_dockerfile_has_nothing_to_say() -> None:
    done = run("hadolint", "deployments/docker/Dockerfile")

    assert (done.returncode, done.stdout) == (0, "")


def test_linter_rejects_what_it_should(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN apt-get install curl\n")

    assert run("hadolint", bad).returncode == 1


def test_compose_file_is_of_the_compose_specification(tmp_path: Path) -> None:
    schema = ("--builtin-schema", "vendor.compose-spec")
    bad = tmp_path / "compose.yaml"
    bad.write_text("services:\n  server:\n    imgae: etstpm\n")

    done = run("check-jsonschema", *schema, "deployments/docker/compose.yaml")

    assert done.returncode == 0, done.stdout
    assert run("check-jsonschema", *schema, bad).returncode == 1


def test_compose_takes_every_secret_from_the_environment() -> None:
    text = (DEPLOYMENTS / "docker" / "compose.yaml").read_text()
    example = (DEPLOYMENTS / "docker" / "example.env").read_text()
    names = {line.split("=")[0] for line in example.splitlines() if "=" in line}

    for service in yaml.safe_load(text)["services"].values():
        for name, value in service.get("environment", {}).items():
            if any(word in name for word in ("PASSWORD", "SECRET", "AUTH", "KEY")):
                assert value.startswith("${"), name
    assert all(f"${{{name}:" in text for name in names)
    assert all(line.endswith("=") for line in example.splitlines() if "=" in line)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_kubernetes_knows_every_field(manifest: Path) -> None:
    for document in yaml.safe_load_all(manifest.read_text()):
        if document["kind"] != "Kustomization":
            kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_kustomization_names_every_manifest() -> None:
    (kustomization,) = (path for path in MANIFESTS if path.stem == "kustomization")
    named = yaml.safe_load(kustomization.read_text())["resources"]

    assert set(named) == {path.name for path in MANIFESTS} - {"kustomization.yaml"}


@pytest.mark.parametrize(("pool", "gpus"), [("kubernetes-cpu", 0), ("kubernetes-gpu", 1)])
def test_kubernetes_pool_makes_a_job_with_its_gpu(pool: str, gpus: int) -> None:
    job = render(pool)["job_manifest"]

    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == gpus
    assert [t["key"] for t in pod["tolerations"]] == ["nvidia.com/gpu"] * gpus
    assert pod["securityContext"]["runAsNonRoot"]
    shared = {volume["name"]: volume for volume in pod["volumes"]}["shm"]["emptyDir"]
    assert shared["medium"] == "Memory"
    assert job["spec"]["activeDeadlineSeconds"] > 0
    assert job["spec"]["backoffLimit"] == 0, "the parent starts a child again, not Kubernetes"


def test_kubernetes_pool_takes_a_runs_own_variables() -> None:
    selector = {"gpu": "h100"}
    job = render("kubernetes-gpu", gpu_count=4, node_selector=selector)["job_manifest"]

    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    pod = job["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["requests"]["nvidia.com/gpu"] == 4
    assert pod["nodeSelector"] == {"gpu": "h100"}


@pytest.mark.parametrize(("pool", "gpus"), [("docker-cpu", 0), ("docker-gpu", 1)])
def test_docker_pool_asks_for_its_gpu(pool: str, gpus: int) -> None:
    configuration = render(pool)
    created = configuration["container_create_kwargs"]

    assert [request["count"] for request in created.get("device_requests", [])] == [1] * gpus
    assert created["shm_size"]
    assert created["cap_drop"] == ["ALL"]
    assert configuration["mem_limit"]


def test_image_has_the_versions_that_the_tests_ran_with() -> None:
    tested, image = pins(REPOSITORY / "requirements.lock"), pins(LOCK_OF_IMAGE)

    differing = {name for name in image.keys() & tested.keys() if image[name] != tested[name]}
    assert not differing, "'make lock' writes both"
    assert image["torch"] == tested["torch"]
    assert not image.keys() & {"pytest", "mypy"}


def pins(lock: Path) -> dict[str, str]:
    lines = [line.split(" ")[0] for line in lock.read_text().splitlines()]
    return dict(line.split("==") for line in lines if line[:1].isalnum() and "==" in line)
