"""launch/gke.sh: its objects are valid, and what a cluster lacks is named before anything is made."""

import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SETTINGS = ("--config=configs/rl_7b_v5e_16.py", "--config.seed=1")
GOOD = (*SETTINGS, "--name=run-1", "--image=registry.example/mlagent:1", "--claim=runs")
KUBERNETES = "1.32"
CLUSTER = """
echo "$*" >>"$FAKE/calls"
case "$*" in
  "get crd"*) [ -e "$FAKE/jobset" ] ;;
  "get secret run-1-queue"*) [ -e "$FAKE/secret" ] ;;
  "create secret"*) touch "$FAKE/secret" ;;
  apply*) cp "${2#--filename=}" "$FAKE/applied.yaml" ;;
  "exec deployment/run-1-worker -- cat /runs/run-1/report/summary.json")
    [ ! -e "$FAKE/workers_gone" ] && echo '{"a": 1}' ;;
  "delete deployment"*) touch "$FAKE/workers_gone" ;;
  *terminalState*) [ -e "$FAKE/looked" ] && cat "$FAKE/state"; touch "$FAKE/looked" ;;
esac
"""

# The parts of JobSet (v1alpha2) that are used; its template is a batch/v1 Job, validated as one. The whole was held
# against the schema in JobSet's own resource definition.
JOBSET = {"failurePolicy", "replicatedJobs"}


def manifests(slice_name, *more):
    program = [sys.executable, "launch/gke/manifests.py", "--name=run-1", f"--slice={slice_name}", "--image=i"]
    done = subprocess.run(
        [*program, "--claim=c", *more, "--", *SETTINGS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {f"{data['kind']} {data['metadata']['name']}": data for data in yaml.safe_load_all(done.stdout)}


@pytest.mark.parametrize(("slice_name", "pods", "chips"), [("v5e-16", 4, 4), ("h100-8", 1, 8)])
def test_every_object_is_valid(slice_name, pods, chips):
    found = manifests(slice_name, "--environment=keys", "--spot")
    jobset = found.pop("JobSet run-1")
    assert set(jobset["spec"]) == JOBSET
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (spec["parallelism"], spec["completions"]) == (pods, pods)
    (container,) = spec["template"]["spec"]["containers"]
    assert list(container["resources"]["limits"].values()) == [chips]
    assert [rule["onExitCodes"]["values"] for rule in spec["podFailurePolicy"]["rules"][:1]] == [[75]]
    found["Job of the JobSet"] = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": spec}
    for data in found.values():
        kubernetes_validate.validate(data, KUBERNETES, strict=True)
    assert set(found) == {
        "Service run-1-queue",
        "StatefulSet run-1-queue",
        "Job run-1-roles",
        "Deployment run-1-worker",
        "Job of the JobSet",
    }


@pytest.mark.slow
def test_a_run_is_applied_and_waited_for(launch, programs, tmp_path):
    programs("kubectl", CLUSTER)
    (tmp_path / "jobset").touch()
    (tmp_path / "state").write_text("Completed")
    result = launch("gke.sh", *GOOD, "--wait", "--workers=7", f"--summary={tmp_path}/000/report/summary.json")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "000" / "report" / "summary.json").read_text() == '{"a": 1}\n'
    applied = list(yaml.safe_load_all((tmp_path / "applied.yaml").read_text()))
    assert {data["kind"]: data for data in applied}["Deployment"]["spec"]["replicas"] == 7
    assert "create secret generic run-1-queue" in (tmp_path / "calls").read_text()
    (tmp_path / "state").write_text("Failed")
    result = launch("gke.sh", *GOOD, "--wait")
    assert result.returncode == 1
    assert "the trainer ended: Failed" in result.stderr


@pytest.mark.slow
def test_what_is_missing_is_named_and_a_dry_run_shows_the_rest(launch, programs, tmp_path):
    programs("kubectl", CLUSTER)
    result = launch("gke.sh", *GOOD)
    assert result.returncode == 1
    assert "the cluster has no JobSet" in result.stderr
    result = launch("gke.sh", *GOOD, "--dry_run", "--wait", "--summary=x.json")
    assert result.returncode == 0, result.stderr
    assert "kubectl exec deployment/run-1-worker -- cat /runs/run-1/report/summary.json" in result.stdout
    assert "kubectl delete deployment/run-1-worker" in result.stdout
    assert "missing here: the cluster has no JobSet" in result.stderr
    assert "kind: JobSet" in result.stdout
    assert "kubectl apply" in result.stdout
    assert not (tmp_path / "applied.yaml").exists()
