"""The objects of a run on Google Kubernetes Engine, as one stream of YAML: what launch/gke.sh applies.

    python launch/gke/manifests.py --name=NAME --slice=v5e-16 --image=IMAGE --claim=CLAIM --workers=4 --slots=8 \
        --environment=SECRET --storage=10Gi -- ARGUMENT ...

    JobSet NAME             the trainer: a pod a host of the slice, with the arguments after `--`
    Deployment NAME-worker  workers, which execute and grade
    StatefulSet, Service NAME-queue, Job NAME-roles   PostgreSQL, and the workers' role in it

Tasks, store and checkpoints are on one volume (`claim`) that many hosts mount. Printed, nothing is changed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml

from mlagent_jax.parallelism import slices
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.runtime.interruption import PREEMPTED

Object = dict[str, Any]

TPU_MACHINES = {"v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice"}
GPU_MACHINES = {"h100": "nvidia-h100-80gb", "h200": "nvidia-h200-141gb"}
MAX_RESTARTS = 20
"""Of the whole trainer, for failures that are no pre-emption: a lost host takes the others' processes along."""
DATA = "/var/lib/mlagent-queue"


def accelerators(name: str) -> tuple[Object, Object, int]:
    """Node labels, a pod's resources and the number of pods for a slice of this name."""
    found = slices.find(name)
    hosts = found.devices // found.devices_a_host
    if found.platform == "tpu":
        kind, _, topology = found.topology.partition(":")
        labels = {
            "cloud.google.com/gke-tpu-accelerator": TPU_MACHINES[kind],
            "cloud.google.com/gke-tpu-topology": topology,
        }
        return labels, {"google.com/tpu": found.devices_a_host}, hosts
    labels = {"cloud.google.com/gke-accelerator": GPU_MACHINES[name.partition("-")[0]]}
    return labels, {"nvidia.com/gpu": found.devices_a_host}, hosts


def objects(options: argparse.Namespace) -> list[Object]:
    """All of them, in the order in which they are made."""
    return [*queue(options), roles(options), workers(options), trainer(options)]


def trainer(options: argparse.Namespace) -> Object:
    """The JobSet. SIGTERM of one pod stops all with PREEMPTED, which starts them again and counts as no failure."""
    labels, resources, hosts = accelerators(options.slice)
    command = [
        *("launch/images/unmasked.sh", "python", "-m", "mlagent_jax.train", *options.arguments),
        *("--config.workers.slots=0", "--config.workers.sandbox=bubblewrap"),
        f"--config.workers.queue=postgresql://trainer@{options.name}-queue/mlagent",
        f"--config.workers.store=/runs/{options.name}/store",
        f"--workdir=/runs/{options.name}",
    ]
    if labels.get("cloud.google.com/gke-tpu-topology"):
        command.append("--distributed" if hosts > 1 else "--nodistributed")
    container = _container(options, "trainer", command, "TRAINER_PASSWORD", sandboxes=True)
    if "google.com/tpu" in resources:
        container["securityContext"] = {"privileged": True}  # or a TPU's memory cannot be locked
    container["resources"] = {"limits": resources}
    pod = _pod(options, container, restart="Never", grace_seconds=300, claim=True)
    pod["nodeSelector"] = labels | ({"cloud.google.com/gke-spot": "true"} if options.spot else {})
    pod["tolerations"] = [{"key": key, "operator": "Exists"} for key in resources]
    if options.spot:
        pod["tolerations"].append({"key": "cloud.google.com/gke-spot", "operator": "Exists"})
    rules = [
        {
            "action": "Ignore",
            "onExitCodes": {"containerName": "trainer", "operator": "In", "values": [PREEMPTED]},
        },
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": rules},
        "template": {"metadata": {"labels": _labels(options, "trainer")}, "spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(options, options.name, "trainer")
        | {"annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}},
        "spec": {
            "failurePolicy": {"maxRestarts": MAX_RESTARTS},
            "replicatedJobs": [{"name": "trainer", "replicas": 1, "template": {"spec": job}}],
        },
    }


def workers(options: argparse.Namespace) -> Object:
    """The Deployment. A pod that is taken away gives back what it cannot finish."""
    command = [
        *("launch/images/unmasked.sh", "launch/images/worker.sh"),
        *(f"/runs/{options.name}/tasks", f"--store=/runs/{options.name}/store"),
        *(f"--slots={options.slots}", f"--cores={options.slots}", "--sandbox=bubblewrap"),
    ]
    container = _container(options, "worker", command, "WORKER_PASSWORD", sandboxes=True)
    container["env"].append({"name": "MLAGENT_QUEUE", "value": f"postgresql://worker@{options.name}-queue/mlagent"})
    container["resources"] = {"requests": {"cpu": str(options.slots), "memory": f"{2 * options.slots}Gi"}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(options, f"{options.name}-worker", "worker"),
        "spec": {
            "replicas": options.workers,
            "selector": {"matchLabels": _labels(options, "worker")},
            "template": {
                "metadata": {"labels": _labels(options, "worker")},
                "spec": _pod(options, container, restart="Always", grace_seconds=60, claim=True),
            },
        },
    }


def queue(options: argparse.Namespace) -> list[Object]:
    """PostgreSQL with a disk of its own."""
    container = _container(options, "queue", ["launch/images/queue.sh"], None)
    container["env"] = [_password(options, name, name) for name in ("TRAINER_PASSWORD", "WORKER_PASSWORD")]
    container["ports"] = [{"containerPort": 5432}]
    container["readinessProbe"] = {"tcpSocket": {"port": 5432}}
    container["resources"] = {"requests": {"cpu": "1", "memory": "2Gi"}}
    container["volumeMounts"] = [{"name": "data", "mountPath": DATA}]
    pod = _pod(options, container, restart="Always", grace_seconds=60, claim=False)
    pod["containers"][0]["env"].append({"name": "QUEUE_DATA", "value": f"{DATA}/data"})
    labels, name = _labels(options, "queue"), f"{options.name}-queue"
    disk = {
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": options.storage}}},
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": _metadata(options, name, "queue"),
            "spec": {"selector": labels, "ports": [{"port": 5432}], "clusterIP": "None"},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": _metadata(options, name, "queue"),
            "spec": {
                "serviceName": name,
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
                "volumeClaimTemplates": [disk],
            },
        },
    ]


def roles(options: argparse.Namespace) -> Object:
    """The Job that gives the workers' role what it needs, once the trainer has made its tables."""
    script = "until python -m environments.queue grant - worker; do sleep 5; done"
    container = _container(options, "roles", ["bash", "-c", script], "TRAINER_PASSWORD")
    container["env"].append({"name": "MLAGENT_QUEUE", "value": f"postgresql://trainer@{options.name}-queue/mlagent"})
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(options, f"{options.name}-roles", "roles"),
        "spec": {
            "template": {
                "metadata": {"labels": _labels(options, "roles")},
                "spec": _pod(options, container, restart="OnFailure", grace_seconds=5, claim=False),
            }
        },
    }


def _labels(options: argparse.Namespace, part: str) -> Object:
    return {"app.kubernetes.io/name": "mlagent", "app.kubernetes.io/instance": options.name, "mlagent/part": part}


def _metadata(options: argparse.Namespace, name: str, part: str) -> Object:
    return {"name": name, "labels": _labels(options, part)}


def _password(options: argparse.Namespace, variable: str, key: str) -> Object:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": f"{options.name}-queue", "key": key}}}


SANDBOXES = {
    "capabilities": {"add": ["SYS_ADMIN"]},
    "seccompProfile": {"type": "Unconfined"},
    "appArmorProfile": {"type": "Unconfined"},
}
"""What launch/images/unmasked.sh needs, and gives up before it starts the program."""


def _container(
    options: argparse.Namespace, name: str, command: list[str], password: str | None, sandboxes: bool = False
) -> Object:
    """One of the image; `sandboxes`: it makes some."""
    container: Object = {"name": name, "image": options.image, "command": command, "env": []}
    if password:
        container["env"].append(_password(options, "PGPASSWORD", password))
    if options.environment and name in ("trainer", "worker"):
        container["envFrom"] = [{"secretRef": {"name": options.environment}}]
    container["securityContext"] = SANDBOXES if sandboxes else {"allowPrivilegeEscalation": False}
    return container


def _pod(options: argparse.Namespace, container: Object, restart: str, grace_seconds: int, claim: bool) -> Object:
    pod: Object = {
        "containers": [container],
        "restartPolicy": restart,
        "terminationGracePeriodSeconds": grace_seconds,
        "automountServiceAccountToken": False,
    }
    if claim:
        container["volumeMounts"] = [
            {"name": "runs", "mountPath": "/runs"},
            {"name": "memory", "mountPath": "/dev/shm"},  # noqa: S108 - the kernel's, in the pod
        ]
        pod["volumes"] = [
            {"name": "runs", "persistentVolumeClaim": {"claimName": options.claim}},
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
        ]
    return pod


def parse(argv: list[str]) -> argparse.Namespace:
    """Options of the command line; arguments of the trainer after `--`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("name", "slice", "image", "claim"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--environment", default="", help="a Secret whose entries are variables of trainer and workers")
    parser.add_argument("--storage", default="20Gi", help="of PostgreSQL's disk")
    parser.add_argument("--spot", action="store_true")
    parser.add_argument("arguments", nargs="*")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    try:
        print(yaml.safe_dump_all(objects(parse(argv)), sort_keys=False), end="")
    except ConfigError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
