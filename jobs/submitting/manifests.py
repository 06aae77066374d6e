"""A job as Kubernetes' manifests: a Job, indexed where many nodes train together; KubeRay's RayJob for sweeps on many.

A training's pods are nodes: each starts its own ranks (`infra.allocation.nodes`), which meet at the first pod. An
indexed Job needs nothing installed in the cluster, where a JobSet would, and it is enough: ranks that are told to stop
agree, so that all pods end with 75 together, and come back without that counting as a failure (podFailurePolicy).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from infra.allocation import NODE, NODES
from infra.preemption import REQUEUE
from jobs.submitting import Job
from jobs.submitting.site import seconds

if TYPE_CHECKING:
    from jobs.submitting.kubernetes import Options

PORT = 29400
"""At which the ranks of several nodes meet, at the first of them."""
INDEX = "batch.kubernetes.io/job-completion-index"
LABELS = {"app.kubernetes.io/name": "pairstream"}


def manifests(job: Job, options: Options) -> list[dict[str, Any]]:
    """What is applied, in this order."""
    if job.command[0] == "sweep" and options.nodes > 1:
        return [_ray_job(job, options)]
    return [*([_service(job)] if job.nodes > 1 else []), _job(job, options)]


def identifier(job: Job) -> str:
    """The job's name as DNS takes it, with room for a pod's index."""
    return re.sub(r"[^a-z0-9]+", "-", job.name.lower())[-52:].strip("-")


def _job(job: Job, options: Options) -> dict[str, Any]:
    name = identifier(job)
    several: dict[str, Any] = {}
    if job.nodes > 1:
        several = {"completions": job.nodes, "parallelism": job.nodes}
    words = [*job.command, *(["--ranks", str(job.ranks)] if job.ranks > 1 else [])]
    container = {"command": _process(options, words), "env": _environment(job, options)}
    rules = [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
        {"action": "Ignore", "onExitCodes": {"containerName": "job", "operator": "In", "values": [REQUEUE]}},
        {"action": "FailJob", "onExitCodes": {"containerName": "job", "operator": "In", "values": [2]}},
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": LABELS},
        "spec": {
            "completionMode": "Indexed",
            **several,
            "backoffLimit": options.restarts * job.nodes,
            "podFailurePolicy": {"rules": rules},
            "template": {
                "spec": {"restartPolicy": "Never"} | ({"subdomain": name} if several else {}) | _pod(options, container)
            },
        },
    }


def _service(job: Job) -> dict[str, Any]:
    """What gives the pods names by which they find each other before they are ready."""
    name = identifier(job)
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"job-name": name}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def _ray_job(job: Job, options: Options) -> dict[str, Any]:
    """A cluster of as many nodes as were asked for, made for this sweep and gone with it."""
    words = [*job.command, *([] if "--ray" in job.command else ["--ray", "auto"])]
    head, worker = ({"template": {"spec": _pod(options, {"env": _environment(job, options)})}} for _ in range(2))
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": identifier(job), "labels": LABELS},
        "spec": {
            "entrypoint": shlex.join(_process(options, words)),
            "shutdownAfterJobFinishes": True,
            "backoffLimit": options.restarts,
            "runtimeEnvYAML": f"env_vars:\n  RAY_JOB_STOP_WAIT_TIME_S: '{seconds(options.lead)}'\n",
            "rayClusterSpec": {
                "rayVersion": options.ray,
                "headGroupSpec": {"rayStartParams": {}, **head},
                "workerGroupSpecs": [
                    {"groupName": "workers", "replicas": options.nodes - 1, "rayStartParams": {}, **worker},
                ],
            },
        },
    }


def _pod(options: Options, container: dict[str, Any]) -> dict[str, Any]:
    """A pod that gets one node's share (limits are requests, too), and --lead to save in."""
    limits = {"cpu": str(options.cpus * options.per_node)}
    if options.memory:
        limits["memory"] = options.memory + "i"
    if options.gpus:
        limits["nvidia.com/gpu"] = str(options.gpus)
    volumes, mounts = [{"name": "shm", "emptyDir": {"medium": "Memory"}}], [{"name": "shm", "mountPath": "/dev/shm"}]
    for number, mount in enumerate(options.mounts):
        source, _, target = mount.partition(":")
        host = source.startswith("/")
        volume = {"hostPath": {"path": source}} if host else {"persistentVolumeClaim": {"claimName": source}}
        volumes.append({"name": f"mount-{number}", **volume})
        mounts.append({"name": f"mount-{number}", "mountPath": target})
    job = {
        "name": "job",
        "image": options.image,
        "workingDir": options.directory,
        **container,
        "resources": {"limits": limits},
        "volumeMounts": mounts,
    }
    return {"terminationGracePeriodSeconds": seconds(options.lead), "containers": [job], "volumes": volumes}


def _process(options: Options, words: Sequence[str]) -> list[str]:
    return [options.python or "python", "-m", "jobs.submitting.process", "kubernetes", "-", *words]


def _environment(job: Job, options: Options) -> list[dict[str, Any]]:
    name, values = identifier(job), {"PYTHONUNBUFFERED": "1"}
    if job.trains:
        values["OMP_NUM_THREADS"] = str(options.cpus)
    several: list[dict[str, Any]] = []
    if job.nodes > 1:
        values |= {NODES: str(job.nodes), "MASTER_ADDR": f"{name}-0.{name}", "MASTER_PORT": str(PORT)}
        several = [{"name": NODE, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}}}]
    return [{"name": key, "value": value} for key, value in (values | options.environment).items()] + several
