"""What `pairstream submit kubernetes` renders, refuses and asks kubectl, which is stood in for."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import pytest
import yaml

from jobs.cli import main
from tests.jobs.clusters import Capture, Place, answer, refused

KUBERNETES = ["kubernetes", "--image", "pairstream:1", "--mounts", "runs:/work"]


def manifests(capsys: Capture, *words: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(answer(capsys, *words)["submits"]))


def test_training_on_many_nodes_is_an_indexed_job(capsys: Capture, place: Place) -> None:
    words = [*KUBERNETES, "--dry-run", "--json", "--nodes", "2", "--gpus", "2", "--cpus", "4", "--memory", "64G"]
    service, job = manifests(capsys, *words, "--lead", "5m", "--", "train", "digits", "--data", "data/digits")
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    environment = {one["name"]: one.get("value", one) for one in container["env"]}
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    assert environment["MASTER_ADDR"] == f"{name}-0.{pod['subdomain']}"
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert environment["PAIRSTREAM_NODES"] == "2"
    assert "job-completion-index" in environment["PAIRSTREAM_NODE"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert container["command"][-2:] == ["--ranks", "2"]
    assert container["resources"]["limits"] == {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "2"}
    assert pod["terminationGracePeriodSeconds"] == 300
    rules = {rule["onExitCodes"]["values"][0]: rule["action"] for rule in spec["podFailurePolicy"]["rules"][1:]}
    assert rules == {75: "Ignore", 2: "FailJob"}
    assert len(f"{name}-1") <= 63


def test_one_node_needs_no_service_and_a_sweep_on_many_is_a_ray_job(capsys: Capture, place: Place) -> None:
    (job,) = manifests(capsys, *KUBERNETES, "--dry-run", "--json", "--", "train", "digits", "--data", "s3://b/digits")
    assert "completions" not in job["spec"]
    (ray,) = manifests(capsys, *KUBERNETES, "--dry-run", "--json", "--nodes", "3", "--", "sweep", "digits")
    assert ray["kind"] == "RayJob"
    assert ray["spec"]["entrypoint"].endswith("--ray auto")
    (workers,) = ray["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert workers["replicas"] == 2


@pytest.mark.skipif(not find_spec("kubernetes_validate"), reason="kubernetes-validate is not installed (extra cluster)")
def test_manifests_fit_the_api_s_schemas(capsys: Capture, place: Place) -> None:
    from infra.errors import UserError
    from jobs.submitting.kubernetes import validate

    nodes = ["--dry-run", "--json", "--nodes", "2", "--gpus", "2", "--memory", "8G"]
    for job in (["train", "digits", "--data", "d"], ["sweep", "digits"], ["recipes"]):
        documents = manifests(capsys, *KUBERNETES, *nodes, "--", *job)
        validate(documents)
        spoilt = documents[-1]["spec"]
        spoilt = spoilt["rayClusterSpec"]["headGroupSpec"] if "rayClusterSpec" in spoilt else spoilt
        spoilt["template"]["spec"]["containers"][0]["imge"] = "typo"
        with pytest.raises(UserError, match="imge"):
            validate(documents)


def test_kubernetes_refuses_what_pods_would_not_see(capsys: Capture, place: Place) -> None:
    assert "--image: Kubernetes runs containers" in refused(capsys, "kubernetes", "--", "recipes")
    error = refused(capsys, *KUBERNETES, "--", "train", "digits", "--data", "/data/digits")
    assert "/data/digits is on none of the container's mounts (/work)" in error
    error = refused(capsys, "kubernetes", "--image", "p:1", "--", "recipes")
    assert "/work/runs is on none of the container's mounts (there are none)" in error


def test_kubectl_is_asked_and_believed(capsys: Capture, place: Place) -> None:
    place.command("kubectl", f'[ "$2" != apply ] || /bin/cat > "{place.path}/applied"\n/bin/cat "{place.path}/said"')
    said = place.path / "said"
    said.write_text("")
    job = answer(capsys, *KUBERNETES, "--namespace", "lab", "--json", "--", "recipes")
    assert (place.path / "applied").read_text() == job["submits"]
    for status, state in (
        ({}, "queued"),
        ({"active": 1, "ready": 0}, "queued"),
        ({"active": 1, "ready": 1}, "running"),
        ({"conditions": [condition("Complete")]}, "finished"),
        ({"conditions": [condition("Failed")]}, "failed"),
        ({"conditions": [condition("Suspended")], "active": 1, "ready": 1}, "running"),
        ({"conditions": [condition("Suspended")]}, "preempted"),
    ):
        said.write_text(json.dumps({"status": status}))
        assert answer(capsys, "status", job["job"], "--json")["state"] == state
    assert place.called[-1] == f"kubectl --namespace=lab get job {job['id']} --output=json"
    said.write_text(json.dumps({"status": {"active": 1, "ready": 1}}))
    assert main(["submit", "cancel", job["job"], "--timeout", "0"]) == 1
    assert f'patch job {job["id"]} --type=merge --patch={{"spec": {{"suspend": true}}}}' in "".join(place.called)
    place.command("kubectl", "echo 'jobs.batch not found (NotFound)' >&2; exit 1")
    assert answer(capsys, "status", job["job"], "--json")["state"] == "killed"


def test_no_kubectl_is_a_sentence(capsys: Capture, place: Place) -> None:
    assert "there is no kubectl here" in refused(capsys, *KUBERNETES, "--", "recipes")


def condition(kind: str) -> dict[str, str]:
    return {"type": kind, "status": "True", "lastTransitionTime": "2026-01-31T12:00:00Z"}
