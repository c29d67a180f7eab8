"""More processes than GPUs, and a process that is lost: one sentence each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateurs.recovery as R
import secateurs.training as T
from secateurs.cli import main
from secateurs.cli.spelling import option
from secateurs.errors import ConfigError
from secateurs.training import processes
from secateurs.training.processes import LostError, Peers, check, check_group
from secateurs.training.runtime import wait_for_everyone
from tests.processes import enter, group, server

from .helpers import batches, engine, net

# -- more processes than GPUs -----------------------------------------------------------------------------------------


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with one GPU, as torch tells it, and two processes of a launcher's."""
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SECATEURS_DEVICE", raising=False)
    for name, answer in {"is_available": True, "device_count": 1, "current_device_index": 0}.items():
        monkeypatch.setattr(torch.accelerator, name, lambda answer=answer: answer)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: torch.device("cuda"))
    started = "a process group was started"
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: pytest.fail(started))
    return monkeypatch


TOO_MANY = r"2 processes, but this machine has 1 GPU: start at most 1 process here, or pass device='cpu'\."


@pytest.mark.parametrize("device", [None, "cuda", "cuda:0", torch.device("cuda")])
def test_more_processes_than_gpus(device: str | torch.device | None, gpus: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=TOO_MANY):
        _ = engine(net(), batches(), device=device).runtime
    with pytest.raises(ConfigError, match=TOO_MANY):
        wait_for_everyone(device)
    gpus.setattr(torch.accelerator, "device_count", lambda: 2)
    check(device)
    gpus.setenv("LOCAL_WORLD_SIZE", "3")
    gpus.setenv("WORLD_SIZE", "6")
    with pytest.raises(ConfigError, match=r"3 processes, but this machine has 2 GPUs: start at most 2 processes here"):
        check(device)
    gpus.delenv("LOCAL_WORLD_SIZE")  # a launcher that does not say: then all are here
    with pytest.raises(ConfigError, match=r"6 processes, but this machine has 2 GPUs"):
        check(device)


def test_the_command_line_says_it_before_any_data_is_read(
    gpus: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert main(["prune", "zoo:small_cnn", "--data", "folder:/nowhere", "--macs", "0.5", "--out", str(out)]) == 2
    told = "2 processes, but this machine has 1 GPU: start at most 1 process here, or pass --device cpu."
    assert told in capsys.readouterr().err
    assert not out.exists()


def test_processes_on_the_cpu_are_as_many_as_one_likes(gpus: pytest.MonkeyPatch) -> None:
    check("cpu")
    check(torch.device("cpu"))
    gpus.setenv("SECATEURS_DEVICE", "cpu")
    check(None)
    gpus.setenv("WORLD_SIZE", "1")
    gpus.delenv("SECATEURS_DEVICE")
    check(None)


def test_a_process_group_that_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes were started, but accelerate sees 1"):
        check_group("cpu", 1)
    for backend, refused in (("nccl", True), ("gloo", False), ("cpu:gloo,cuda:nccl", False)):
        monkeypatch.setattr(torch.distributed, "get_backend", lambda backend=backend: backend)
        if refused:
            with pytest.raises(ConfigError, match=r"for GPUs \(nccl\)"):
                check_group("cpu", 2)
        else:
            check_group("cpu", 2)


# -- a lost process ---------------------------------------------------------------------------------------------------


def test_which_process_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 0.1)
    alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    time.sleep(0.05)
    error = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection closed by peer")
    try:
        found = Peers(3, {1: alive.pid, 2: ended.pid}).lost(error)  # not waited for: it still has its id
        assert found == "Rank 2 of the 3 processes has ended"
        ended.wait()
        assert Peers(3, {1: alive.pid, 2: ended.pid}).lost(error) == found
        assert (
            Peers(2, {}).lost(error) == "Another of the 2 processes has ended or does not respond"
        )  # on another machine
        assert Peers(2, {1: ended.pid}).lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
        assert Peers(2, {1: ended.pid}).lost(torch.distributed.DistBackendError("remote error")) is not None
        running = Peers(2, {1: alive.pid})
        assert running.lost(torch.distributed.DistBackendError("Duplicate GPU detected")) is None
        hangs = "Another of the 2 processes has ended or does not respond"
        assert running.lost(RuntimeError("[pair.cc:144] gloo: Timed out waiting 1800000ms for recv operation")) == hangs
        with pytest.raises(RuntimeError, match="mat1"), Peers(2, {1: ended.pid}).watched():
            raise RuntimeError("mat1")
        with pytest.raises(LostError, match="Rank 1 of the 2"), Peers(2, {1: ended.pid}).watched():
            raise error
    finally:
        alive.kill()
        alive.communicate()


def test_the_command_line_names_its_own_option() -> None:
    told = LostError("Rank 1 of the 2 processes has ended", "npn, epoch 2, step 9", " The last is x.").text(option)
    assert told == (
        "Rank 1 of the 2 processes has ended (npn, epoch 2, step 9); see its own error message for the cause. The last is x. "
        "The same command, including the launcher, resumes with --resume."
    )


class Dies(T.Hook):
    """The second of the processes at step 9, or none."""

    def __init__(self, dies: bool) -> None:
        self.dies = dies

    def after_step(self, engine: T.Engine) -> None:
        if self.dies and engine.rank == 1 and engine.step == 9:
            os.kill(os.getpid(), signal.SIGKILL)


def child(to: str, what: str) -> None:
    folder = Path(to)
    store = T.CheckpointStore(folder / "checkpoints")
    e = engine(
        net(),
        batches(),
        R.Recover(epochs=3, precision="fp32"),
        hooks=[Dies(what == "die")],
        title="npn",
        checkpoints=store,
    )
    try:
        e.fit(resume=what == "resume")
    except LostError as error:
        (folder / "lost").write_text(str(error))
        raise SystemExit(1) from None
    assert torch.distributed.get_backend() == "gloo"
    save_file(e.model.state_dict(), folder / f"{e.rank}.safetensors")


def both(folder: Path, what: str) -> tuple[int, int]:
    """Exit status of two processes that find each other without a launcher's supervision."""
    call = (group(), "tests.training.test_processes:child", str(folder), what)
    running = [server().Process(target=enter, args=(rank, *call)) for rank in (0, 1)]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    return int(running[0].exitcode), int(running[1].exitcode)


@pytest.mark.slow
def test_a_killed_process_is_one_sentence_and_resumes_bit_equal(tmp_path: Path) -> None:
    for name, steps in (("whole", ["run"]), ("killed", ["die", "resume"])):
        (tmp_path / name).mkdir()
        for what in steps:
            status = both(tmp_path / name, what)
            if what != "die":
                assert status == (0, 0)
                continue
            assert status == (1, -signal.SIGKILL)
            last = tmp_path / name / "checkpoints" / "step-000000006"
            assert (tmp_path / name / "lost").read_text() == (
                "Rank 1 of the 2 processes has ended (npn, epoch 2, step 9); see "
                "its own error message for the cause. The last "
                f"valid checkpoint is {last}. The same command, including the launcher, resumes with resume=True."
            )
    for rank in (0, 1):
        whole, killed = (load_file(tmp_path / name / f"{rank}.safetensors") for name in ("whole", "killed"))
        assert all(torch.equal(whole[key], killed[key]) for key in whole)


def test_alone_no_process_can_be_lost(tmp_path: Path) -> None:
    class Odd(T.Hook):
        def after_step(self, e: T.Engine) -> None:
            raise RuntimeError("gloo is only a word here")

    with pytest.raises(RuntimeError, match="only a word"):
        engine(net(), batches(), hooks=[Odd()]).fit()
