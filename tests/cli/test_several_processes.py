"""`torchrun … -m secateurs prune`: several processes prune one network, twice, and one of them prints and writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import secateurs as sc
from tests.processes import environment


@pytest.mark.slow
def test_two_processes_leave_one_artifact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    save_file(sc.build("zoo:small_cnn").state_dict(), weights)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "secateurs"),
        *("prune", "zoo:small_cnn", "--weights", str(weights), "--data", "digits", "--normalize", "none"),
        *("--method", "l1", "--macs", "0.7", "--then", "l2:0.5", "--recover-epochs", "0.2"),
        *("--out", str(tmp_path / "run")),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment())
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count("after recovery") == 1
    assert run.stderr.count("cut and verified") == 2
    small = sc.load(tmp_path / "run")
    assert (
        sc.count(small, torch.randn(1, 3, 32, 32)).macs
        <= 0.5 * sc.count(sc.build("zoo:small_cnn"), torch.randn(1, 3, 32, 32)).macs
    )
