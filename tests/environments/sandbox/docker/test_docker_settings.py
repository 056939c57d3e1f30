"""What the Docker sandbox asks of the engine, where this host has neither a GPU nor gVisor: the calls that are made."""

import contextlib
import threading
from types import SimpleNamespace

import docker
import docker.errors
import pytest

from environments.protocol import Limits
from environments.sandbox import SandboxError
from environments.sandbox import docker as provider
from environments.sandbox.gpus import GpuPool, nvidia_gpus


class Engine:
    """Answers as an engine that knows its runtimes, and refuses to make a container once it was asked to."""

    def __init__(self, runtimes):
        self.created = []
        self.containers = self
        self._runtimes = runtimes

    def info(self):
        return {"NCPU": 4, "Runtimes": {name: {} for name in self._runtimes}}

    def list(self, **_):
        return []

    def create(self, *arguments, **settings):
        self.created.append(settings)
        raise docker.errors.APIError("asked")

    def close(self):
        pass


@pytest.fixture
def ask(monkeypatch, tmp_path):
    """`ask(runtimes, devices, gpus)`: the settings of the container that an execution asks for."""

    def ask(runtimes=("runc",), devices=(), gpus=0):
        engine = Engine(runtimes)
        monkeypatch.setattr(docker, "from_env", lambda **_: engine)
        monkeypatch.setattr(provider, "ensure_rootfs", lambda: SimpleNamespace(digest="0"))
        monkeypatch.setattr(provider, "ensure_image", lambda client, rootfs: "image")
        monkeypatch.setattr(provider, "nvidia_gpus", lambda: devices)
        with contextlib.closing(provider.DockerSandbox()) as sandbox:
            assert sandbox.gpus == len(devices)
            with pytest.raises(SandboxError):
                sandbox.run(tmp_path, "train.py", Limits(), gpus=gpus)
        return engine.created[0] if engine.created else None

    return ask


def test_gvisor_is_used_where_the_engine_offers_it(ask):
    assert ask(runtimes=("runc", "runsc"))["runtime"] == "runsc"
    assert ask(runtimes=("runc",))["runtime"] is None


def test_as_many_gpus_are_passed_as_the_execution_asks_for(ask):
    (request,) = ask(devices=("GPU-a", "GPU-b", "GPU-c"), gpus=2)["device_requests"]
    assert request == docker.types.DeviceRequest(device_ids=["GPU-a", "GPU-b"], capabilities=[["gpu"]])
    assert ask(devices=("GPU-a",))["device_requests"] == []
    assert ask(devices=("GPU-a",), gpus=2) is None


def test_hardening_does_not_depend_on_gpus(ask):
    settings = ask(devices=("GPU-a",), gpus=1)
    assert (settings["network_mode"], settings["cap_drop"], settings["read_only"]) == ("none", ["ALL"], True)
    assert settings["security_opt"] == ["no-new-privileges"]


def test_a_gpu_is_lent_to_one_at_a_time():
    pool, lent = GpuPool(["a", "b"]), threading.Event()

    def wait_for_two():
        with pool.lease(2) as devices:
            assert sorted(devices) == ["a", "b"]
            lent.set()

    with pool.lease(1) as first:
        thread = threading.Thread(target=wait_for_two)
        thread.start()
        with pool.lease(1) as second:
            assert {*first, *second} == {"a", "b"}
        assert not lent.is_set()
    thread.join(30)
    assert lent.is_set()


def test_who_waits_for_a_gpu_hears_of_the_end():
    pool = GpuPool(["a"])
    errors = []

    def wait():
        try:
            with pool.lease(1):
                pass
        except SandboxError as error:
            errors.append(str(error))

    with pool.lease(1):
        thread = threading.Thread(target=wait)
        thread.start()
        pool.close()
        thread.join(30)
    assert errors == ["this sandbox is closed"]
    with pytest.raises(SandboxError, match="asks for 2 GPUs, and this sandbox has 1"), pool.lease(2):
        pass


def test_gpus_are_those_that_the_driver_lists(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho GPU-1\necho GPU-2\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_gpus() == ("GPU-1", "GPU-2")
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert nvidia_gpus() == ()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert nvidia_gpus() == ()
