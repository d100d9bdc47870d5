"""Processes that torchrun starts, and that die: the others end as well, and the run goes on where it was saved."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("restarting.py")


def torchrun(folder, *orders, restarts=0):
    """Two processes of the script. What is bounded in time here ends long before, or hangs."""
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", str(SCRIPT), str(folder), *map(str, orders)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            code = process.wait(timeout=250)
        finally:
            if process.poll() is None:
                process.terminate()  # it ends its children
                process.wait(timeout=40)
    return code, (folder / "log").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    code, log = torchrun(folder)
    assert code == 0, log
    return torch.load(folder / "end.pt")


def test_a_process_that_is_killed_three_times_changes_nothing(undisturbed, tmp_path):
    code, log = torchrun(tmp_path / "killed", 4, 9, 12, restarts=3)
    assert code == 0, log
    weights = torch.load(tmp_path / "killed" / "end.pt")
    assert all(torch.equal(weights[name], undisturbed[name]) for name in undisturbed)
    began = (tmp_path / "killed" / "began").read_text().splitlines()
    assert sorted(began) == sorted(f"process {number} from {at}" for number in (0, 1) for at in (0, 3, 8, 10))
    assert {path.name for path in (tmp_path / "killed").glob("done-*")} == {"done-4", "done-9", "done-12"}


def test_a_process_that_raises_ends_the_others_with_its_error(tmp_path):
    code, log = torchrun(tmp_path / "raised", "raise:7")
    assert code != 0
    assert "[rank1]: ValueError: on purpose" in log
    assert not (tmp_path / "raised" / "end.pt").exists()
