"""Kubernetes, through kubectl: what jobs.submitting.manifests makes of a job."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from infra.errors import UserError
from jobs.submitting import Job, State
from jobs.submitting.checks import planned
from jobs.submitting.manifests import INDEX, identifier, manifests
from jobs.submitting.site import Contained
from pipeline.settings import check as require


@dataclass(frozen=True)
class Options(Contained):
    namespace: str = ""
    """Namespace; kubectl's own where not given."""
    directory: str = "/work"
    """Working directory in the container; a mount, since runs must outlive the pods."""
    ray: str = "2.50.0"
    """Version of Ray in the image, for KubeRay."""


def plan(inner: list[str], options: Options) -> Job:
    require(bool(options.image), "--image: Kubernetes runs containers; name one (infra/docker/Dockerfile makes it)")
    mounted = [mount.partition(":")[2] for mount in options.mounts]
    here = PurePosixPath(options.directory)

    def sees(path: str) -> list[str]:
        place = here / path
        require(
            any(place.is_relative_to(target) for target in mounted),
            f"{place} is on none of the container's mounts ({', '.join(mounted) or 'there are none'}), so that pods do "
            "not see it: add --mounts SOURCE:/TARGET, or take data behind a URL",
        )
        return []

    return planned(inner, "kubernetes", options, sees)


def render(job: Job, options: Options) -> str:
    import yaml

    return yaml.safe_dump_all(manifests(job, options), sort_keys=False, width=1000)


def check(job: Job, options: Options) -> None:
    """The manifests against the API's schemas, where kubernetes-validate is installed (extra `cluster`)."""
    if not shutil.which("kubectl"):
        raise UserError("there is no kubectl here to submit with: install it, or take the manifest of --dry-run")
    if find_spec("kubernetes_validate"):  # else the API server alone is the judge
        validate(manifests(job, options))


def submit(job: Job, options: Options, text: str) -> dict[str, Any]:
    _kubectl(options.namespace, "apply", "--filename=-", given=text)
    kind = "rayjob" if "kind: RayJob" in text else "job"
    return {"id": identifier(job), "kind": kind, "namespace": options.namespace}


def state(record: dict[str, Any], directory: Path) -> State:
    try:
        said = _kubectl(record["namespace"], "get", record["kind"], record["id"], "--output=json")
    except UserError as error:
        return State("killed" if "NotFound" in str(error) else "unknown")
    status = json.loads(said).get("status", {})
    return _of_ray(status) if record["kind"] == "rayjob" else _of_job(status)


def logs(record: dict[str, Any], directory: Path, follow: bool) -> None:
    """Of the first node. A Job's pods keep them until they are deleted."""
    label = f"job-name={record['id']}" + (f",{INDEX}=0" if record["kind"] == "job" else "")
    words = ["logs", f"--selector={label}", "--tail=-1"]
    if follow:  # kubectl itself prints, line by line
        _need_kubectl()
        namespace = [f"--namespace={record['namespace']}"] if record["namespace"] else []
        subprocess.run(["kubectl", *namespace, *words, "--follow"], check=False)
    else:
        print(_kubectl(record["namespace"], *words), end="", flush=True)


def cancel(record: dict[str, Any], directory: Path) -> None:
    """Suspend it: pods get TERM and --lead to save; suspend: false, by hand, would let it go on."""
    change = json.dumps({"spec": {"suspend": True}})
    _kubectl(record["namespace"], "patch", record["kind"], record["id"], "--type=merge", f"--patch={change}")


def validate(documents: Iterable[dict[str, Any]]) -> None:
    """Raise UserError where a manifest does not fit Kubernetes' schemas. Of KubeRay's, the pods are validated."""
    import kubernetes_validate

    for manifest in documents:
        parts = [manifest]
        if manifest["kind"] == "RayJob":
            cluster = manifest["spec"]["rayClusterSpec"]
            groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
            parts = [{"apiVersion": "v1", "kind": "Pod", **group["template"]} for group in groups]
        for part in parts:
            try:
                kubernetes_validate.validate(part, kubernetes_validate.latest_version(), strict=True)
            except kubernetes_validate.ValidationError as error:
                where = ".".join(str(name) for name in error.path)
                raise UserError(f"{part['kind']} {where}: {error.message}") from None


def _of_job(status: dict[str, Any]) -> State:
    """What a Job's status means; each of its conditions says since when."""
    since = {
        one["type"]: one.get("lastTransitionTime") for one in status.get("conditions", []) if one["status"] == "True"
    }
    for condition, name in {"Complete": "finished", "Failed": "failed"}.items():
        if condition in since:
            return State(name, 0 if name == "finished" else None, _time(since[condition]))
    if "Suspended" in since and not status.get("active"):
        return State("preempted", None, _time(since["Suspended"]))
    return State("running" if status.get("ready") else "queued")


def _of_ray(status: dict[str, Any]) -> State:
    """What a RayJob's status means."""
    ended = {"SUCCEEDED": "finished", "FAILED": "failed", "STOPPED": "preempted"}.get(status.get("jobStatus", ""))
    deployment = status.get("jobDeploymentStatus", "")
    if ended or deployment in ("Failed", "Suspended"):
        name = ended or {"Failed": "failed", "Suspended": "preempted"}[deployment]
        return State(name, 0 if name == "finished" else None, _time(status.get("endTime")))
    return State("running" if status.get("jobStatus") == "RUNNING" else "queued")


def _time(text: str | None) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None


def _need_kubectl() -> None:
    if not shutil.which("kubectl"):
        raise UserError("there is no kubectl here: install it")


def _kubectl(namespace: str, *words: str, given: str | None = None) -> str:
    """What kubectl prints. Raises UserError with what it complained of."""
    _need_kubectl()
    command = ["kubectl", *([f"--namespace={namespace}"] if namespace else []), *words]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"kubectl {words[0]}: {done.stderr.strip()}")
    return done.stdout
