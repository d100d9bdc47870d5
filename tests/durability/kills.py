"""Kills a training process with SIGKILL at random moments, every other time in the middle of the next save, starts it
again, and compares with a process that nobody killed."""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", category=DeprecationWarning)

import torch  # noqa: E402
import weightsmith_plugins as w  # noqa: E402
from weightsmith import CheckpointError, linear  # noqa: E402
from weightsmith.checkpoint import find, read  # noqa: E402

import runs  # noqa: E402

EPOCHS = 12
PLUGINS = [
    w.KaimingNormal(),
    w.L2(linear(1e-2, 0.0)),
    w.Noise(0.01),
    w.Perturb(0.01),
    w.MaxNorm(0.8, where="conv.weight"),
    w.MagnitudePruning(linear(0.0, 0.6, over=40), where="hidden.weight"),
    w.EMA(0.9),
    w.WeightHistograms(),
    w.Losses(),
    w.PluginEffect("epoch"),
    w.TensorBoard(),
    w.JSONLines(),
    w.Checkpoints(2, keep=2),
]


def train(folder):
    """What the process does that is killed: go on if there is something to go on from, and train to the end."""
    torch.set_num_threads(1)
    trainer = runs.make(PLUGINS, run_dir=folder, accumulate=2)
    if (Path(folder) / "checkpoints").is_dir():
        try:
            trainer.resume(folder)
        except CheckpointError:
            print("nothing saved yet", flush=True)
    print("training", flush=True)
    trainer.run(runs.loader(), max_epochs=EPOCHS)
    found = runs.contents(trainer)
    found["trainer"] = {**found["trainer"], "plugins": {}}  # which file a sink writes to is each run's own
    print("digest", hashlib.sha256(repr(runs.flat(found)).encode()).hexdigest())


def started(folder):
    command = [sys.executable, "-W", "ignore", __file__, "--train", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("training"):
            break
    return process


def digest(process):
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output.split()[-1]


def lines(folder):
    found = [json.loads(line) for line in (Path(folder) / "measurements.jsonl").read_text().splitlines()]
    return [line for line in found if "settings" not in line]


def wait_for_a_save(folder, process):
    """Until something is being written, or the process ends."""
    while process.poll() is None and not any((folder / "checkpoints").glob(".*.partial/*")):
        time.sleep(0.0005)


def killed(count, seed=0):
    """For each process that was killed: where in its training, whether a good checkpoint was left if any was made, and
    whether the run that was started again ended as the one that nobody killed."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        process, begin = started(whole), time.perf_counter()
        wanted, length = digest(process), time.perf_counter() - begin
        measured = lines(whole)
        for number in range(count):
            folder = Path(place) / str(number)
            process, moment = started(folder), chance.uniform(0, length * 0.95)
            time.sleep(moment)
            if number % 2:
                wait_for_a_save(folder, process)
            process.kill()
            process.communicate()
            made = list((folder / "checkpoints").glob("[0-9]*"))
            torn = len(list((folder / "checkpoints").glob(".*")))
            try:
                read(find(folder))
                is_good = True
            except CheckpointError:
                is_good = not made
            same = digest(started(folder)) == wanted and lines(folder) == measured
            yield moment / length, is_good, same, torn


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--count", type=int, default=30)
    arguments.add_argument("--train", metavar="FOLDER")
    options = arguments.parse_args()
    if options.train:
        train(options.train)
        return
    good = same = torn = 0
    for number, (moment, is_good, is_same, left) in enumerate(killed(options.count), 1):
        good, same, torn = good + is_good, same + is_same, torn + bool(left)
        print(
            f"{number:3}: killed at {moment:4.0%} of the run{', in the middle of a save' if left else ''}", flush=True
        )
    print(f"{torn} of {options.count} were killed in the middle of a save")
    print(f"{good} of {options.count} left a good checkpoint wherever one had been made")
    print(f"{same} of {options.count} ended bit for bit like the run that nobody killed, measurements included")
    raise SystemExit(not good == same == options.count)


if __name__ == "__main__":
    main()
