"""The files of examples/cluster: the RayJob against KubeRay's schema, the documents and itself, and the image against the project."""

import copy
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rl.log.runs import RunPaths
from tests.ring import ROOT

FOLDER = ROOT / "examples" / "cluster"
IMAGE = "registry.example.com/codeworld-rl:0.1.0"


@pytest.fixture
def job() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())
    return found


@pytest.fixture
def groups(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The groups of nodes by name; the head's name is `head`."""
    cluster = job["spec"]["rayClusterSpec"]
    return {"head": cluster["headGroupSpec"], **{group["groupName"]: group for group in cluster["workerGroupSpecs"]}}


def snippet(document: str, title: str) -> dict[str, Any]:
    """The configuration that a document shows under this title."""
    found = re.search(rf"```yaml title={re.escape(title)}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    assert found is not None
    values: dict[str, Any] = yaml.safe_load(found[1])
    return values


def requirements(*, extra: str = "") -> dict[str, Requirement]:
    """Of the project, by name."""
    source = (ROOT / "setup.py").read_text()
    found = [Requirement(text) for text in re.findall(r'"([a-zA-Z-]+(?:\[\w+\])?[=<>][^"]*)"', source)]
    return {found_one.name: found_one for found_one in found if extra in ("", *found_one.extras)}


def test_the_job_is_what_kuberay_takes(job: dict[str, Any]) -> None:
    schema = json.loads((ROOT / "tests/data/kuberay_rayjob.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert [error.message for error in validator.iter_errors(job)] == []
    wrong = copy.deepcopy(job)
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]["maxReplica"] = 4
    wrong["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["img"] = "a"
    assert len(list(validator.iter_errors(wrong))) == 2, "the schema is one that finds mistakes"


def test_all_nodes_have_one_image_with_the_projects_ray(job: dict[str, Any], groups: dict[str, dict[str, Any]]) -> None:
    images = {container["image"] for group in groups.values() for container in group["template"]["spec"]["containers"]}
    assert images == {IMAGE}
    dockerfile = (FOLDER / "Dockerfile").read_text()
    assert f"docker build -f examples/cluster/Dockerfile -t {IMAGE} ." in dockerfile
    assert f'version="{IMAGE.rpartition(":")[2]}"' in (ROOT / "setup.py").read_text()
    assert job["spec"]["rayClusterSpec"]["rayVersion"] in requirements()["ray"].specifier


def test_what_a_pod_mounts_is_there_and_shared_by_all(groups: dict[str, dict[str, Any]]) -> None:
    claims = set()
    for group in groups.values():
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounted.values()) == set(volumes)
        claims.add(volumes[mounted["/shared"]]["persistentVolumeClaim"]["claimName"])
        assert container["resources"]["limits"] == container["resources"]["requests"]
        if "nvidia.com/gpu" in container["resources"]["limits"]:
            assert "/dev/shm" in mounted, "weights go through shared memory"
    assert len(claims) == 1
    assert f"claim `{claims.pop()}`" in (ROOT / "docs/cluster.md").read_text()


def test_groups_can_grow_and_have_what_the_documents_pin_parts_to(groups: dict[str, dict[str, Any]]) -> None:
    started = {}
    for name, group in groups.items():
        if name == "head":
            continue
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        started[name] = json.loads(json.loads(group["rayStartParams"]["resources"]))
    assert groups["trainer"]["minReplicas"] == groups["trainer"]["maxReplicas"], "ranks cannot come and go"
    assert groups["generator"]["maxReplicas"] > groups["generator"]["replicas"]
    pinned = snippet("docs/cluster.md", "elastic.yaml")["cluster"]
    assert set(pinned["learner_resources"]) <= set(started["trainer"])
    assert set(pinned["generator_resources"]) <= set(started["generator"])


def test_the_entry_point_begins_and_goes_on(job: dict[str, Any], tmp_path: Path) -> None:
    config = snippet("README.md", "cluster.yaml")
    run = RunPaths(root=Path(config["run"]["dir"]) / config["run"]["name"])
    said = tmp_path / "said"
    (tmp_path / "rl").write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    (tmp_path / "rl").chmod(0o755)
    entry_point = job["spec"]["entrypoint"].replace("/shared/", f"{tmp_path}/shared/")
    assert f"{tmp_path}{run.root}" in entry_point, "the run of the documents"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(entry_point, shell=True, check=True, env=environment)
    identity = Path(f"{tmp_path}{run.root}") / "run.json"
    identity.parent.mkdir(parents=True)
    identity.touch()
    subprocess.run(entry_point, shell=True, check=True, env=environment)
    config_file = f"{tmp_path}/shared/cluster.yaml"
    assert said.read_text().splitlines() == [f"train {config_file}", f"train {config_file} --resume"]
    variables = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    assert all(f"`{name}`" in (ROOT / "docs/cluster.md").read_text() for name in variables)


def test_the_image_has_what_the_project_needs() -> None:
    lines = [line for line in (FOLDER / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    words = [line.split() for line in lines]
    assert [each[0] for each in words] == ["FROM", "RUN", "COPY", "RUN", "WORKDIR"]
    python = words[0][1].removeprefix("python:").partition("-")[0]
    setup = (ROOT / "setup.py").read_text()
    wanted = re.search(r'python_requires="([^"]+)"', setup)
    assert wanted is not None and python in SpecifierSet(wanted[1])
    needed = set(re.findall(r"^[^#\n]*wanted\+=\((\S+)\)", (ROOT / ".ci/system").read_text(), re.MULTILINE))
    # Debian's names for what an image of Python has anyway.
    assert needed - {"python3-venv", "python3-dev"} <= set(words[1])
    source, target = words[2][1:]
    assert source == "." and f'"{target}[cluster]"' in words[3]
    assert "default" in requirements(extra="default")["ray"].extras, "the extra has Ray's dashboard, which takes jobs"
    assert 'pip install "codeworld-rl[cluster]"' in (ROOT / "docs/cluster.md").read_text()


def test_the_image_takes_sources_only() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    kept_from_git = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split() if line.endswith("/")]
    bare = {line.removeprefix("**/") for line in ignored}
    missing = [name for name in kept_from_git if name not in bare and not (name.endswith("_cache") and ".*_cache" in bare)]
    assert not missing, "what git leaves out, the image leaves out"
