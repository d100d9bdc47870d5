"""Scripts and recipes under torchrun: the same weights as in one process, shares of the data, and runs that go on."""

import json
import os
import subprocess
import sys
from itertools import chain, zip_longest
from pathlib import Path

import pytest
import torch
from sharing import everything, lists, loader, passes, taken
from weightsmith.checkpoint import find, read
from weightsmith.distributed.joining import _tell_torchrun
from weightsmith.files import read_tensors
from worlds import together

HERE = Path(__file__).parent
NOTHING_LEFT = "left of the group: []"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def called(*command, code=0):
    """What a Python process, with those that it starts, prints on stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def run_in(folder):
    (run,) = [path for path in Path(folder).iterdir() if path.is_dir()]
    return run


# -------------------------------------------------------------------- the script


def test_a_script_ends_with_the_same_weights_on_one_process_on_copies_and_on_shards(tmp_path):
    ends = {}
    for name, command in {"one": (), "copies": TORCHRUN, "shards": TORCHRUN}.items():
        options = ["--epochs=1", f"--runs={tmp_path / name}", *(["--shard"] if name == "shards" else [])]
        stdout, _ = called(*command, HERE / "digits_job.py", *options)
        run = run_in(tmp_path / name)
        assert stdout.count("epoch 1/1") <= 1
        assert name == "one" or stdout.count(NOTHING_LEFT) == 2
        lines = [line for line in stdout.splitlines() if line.startswith(("accuracy", "validation accuracy"))]
        ends[name] = read_tensors(run / "weights.safetensors"), lines
    weights, lines = ends.pop("one")
    assert len(lines) == 2
    for others, other_lines in ends.values():
        assert other_lines == lines
        assert others.keys() == weights.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(others[name], weight, rtol=0, atol=1e-5)


# -------------------------------------------------------------------- the recipe

RECIPE = """
model: {Sequential: [Flatten, {Linear: {in_features: 64, out_features: 10}}]}
loss: CrossEntropyLoss
optimizer: {SGD: {lr: 0.1}}
data: {DataLoader: {dataset: {real_data.Digits: {part: validation}}, batch_size: 30, shuffle: true}}
validation: {DataLoader: {dataset: {real_data.Digits: {part: validation}}, batch_size: 359}}
metrics: {accuracy: Accuracy}
epochs: 1
seed: 4
plugins: [KaimingNormal, {L2: 1e-4}, {ClipNorm: 1.0}]
"""


def test_a_recipe_trains_under_torchrun_and_another_number_of_processes_goes_on(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{RECIPE}paths: [{HERE.parents[1] / 'scripts'}]\nruns: {tmp_path / 'runs'}\n", encoding="utf-8")
    called("-m", "weightsmith", "train", recipe, "--set", "name=one", "epochs=2")
    stdout, _ = called(*TORCHRUN, HERE / "command_job.py", "train", recipe, "--set", "name=two", "shard=true")
    assert stdout.count(NOTHING_LEFT) == 2
    assert stdout.count("epoch 1/1  loss") == 1
    one, two = (run_in(tmp_path / "runs" / name) for name in ("one", "two"))
    stdout, _ = called("-m", "weightsmith", "resume", two, "--epochs=2")
    assert "going on from" in stdout
    found, expected = read(find(two)), read(find(one))
    assert found.state["metrics"] == expected.state["metrics"]
    for name, weight in expected.weights.items():
        torch.testing.assert_close(found.weights[name], weight, rtol=0, atol=1e-5)


def test_the_plan_of_a_sharded_recipe_says_what_is_gathered(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{RECIPE}paths: [{HERE.parents[1] / 'scripts'}]\nshard: true\n", encoding="utf-8")
    stdout, _ = called(*TORCHRUN, HERE / "command_job.py", "plan", recipe)
    assert stdout.count(NOTHING_LEFT) == 2
    assert stdout.count("sharded, so gathered one at a time: 1.weight") == 1  # for the initializer, by one process
    assert not (tmp_path / "runs").exists()


# -------------------------------------------------------------------- groups one after another


def test_processes_join_again_after_they_left(tmp_path):
    stdout, _ = called(*TORCHRUN, HERE / "joining_again.py")
    assert [stdout.count(f"group {number}: 3.0") for number in range(3)] == [2, 2, 2]
    assert stdout.count(NOTHING_LEFT) == 2


# -------------------------------------------------------------------- restarts


def test_a_run_of_which_a_process_is_killed_goes_on_by_itself_to_the_same_weights(tmp_path):
    called(*TORCHRUN, HERE / "restart_job.py", f"--runs={tmp_path / 'whole'}", "--end=well")
    command = [*TORCHRUN, "--max-restarts=1", HERE / "restart_job.py", f"--runs={tmp_path / 'killed'}", "--end=kill"]
    stdout, _ = called(*command)
    assert "going on from" in stdout
    found, expected = (read(find(run_in(tmp_path / name))).weights for name in ("killed", "whole"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_error_of_one_process_is_told_with_its_number_and_ends_all(tmp_path):
    _, stderr = called(*TORCHRUN, HERE / "restart_job.py", f"--runs={tmp_path}", "--end=raise", code=1)
    assert "process 1: error: ValueError: on purpose\n" in stderr
    assert "error: another process ended" in stderr
    run = run_in(tmp_path)
    assert "on purpose" in (run / "traceback_1.txt").read_text(encoding="utf-8")
    assert "on purpose" not in (run / "traceback.txt").read_text(encoding="utf-8")


def test_an_error_is_told_to_torchrun_whole_or_not_at_all(tmp_path, monkeypatch):
    file, seen, write = tmp_path / "error.json", [], json.dump
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))

    def watched(data, stream):
        seen.append(file.exists())
        write(data, stream)
        seen.append(file.exists())

    monkeypatch.setattr(json, "dump", watched)
    _tell_torchrun(ValueError("on purpose"))
    assert seen == [False, False]
    assert "ValueError: on purpose" in json.loads(file.read_text(encoding="utf-8"))["message"]["message"]
    assert [*tmp_path.iterdir()] == [file]
    assert os.environ["TORCHELASTIC_ERROR_FILE"] == str(file)


# -------------------------------------------------------------------- shares


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return together(2, everything, str(tmp_path_factory.mktemp("runs")))


def woven(shares):
    """Batches of which each of several processes has every so-manieth sample."""
    for parts in zip(*shares, strict=True):
        yield [sample for sample in chain(*zip_longest(*parts)) if sample is not None]


def test_the_shares_are_the_batches_of_one_process_in_their_order(told):
    whole = passes()
    for number in range(4):
        found = [*woven(process["passes"][number] for process in told)]
        if number < 2:
            assert found == whole[number]
        assert [len(batch) for batch in found] == [4, 4, 4, 4, 4, 2]
        assert sorted(chain(*found)) == list(range(22))
    assert whole[2] == [*woven(process["passes"][2] for process in told)]
    assert [process["passes"][4:] for process in told] == [[6, 6], [6, 6]]


def test_a_pass_goes_on_in_its_middle_also_on_one_process(told):
    for process in told:
        left, again = process["resumed"]
        assert left == again
        assert len(left) == 4
    torch.manual_seed(5)
    assert [*woven(process["resumed"][0] for process in told)] == taken(loader())[2:]


def test_what_cannot_be_shared_out_is_refused(told):
    for process in told:
        for words, message in process["refusals"].items():
            assert message is not None, words
            assert words in message


def test_a_last_batch_is_filled_up_to_train_on_and_never_to_evaluate(told):
    first, second = (process["lists"] for process in told)
    assert first[0] == [([0, 2], [0, 20]), ([0, 2], [0, 20])]
    assert second[0] == [([1, 3], [10, 30]), ([1, 0], [10, 0])]
    assert first[1][1] == ([0, 2], [0, 20])
    assert second[1][1] == ([1], [10])
    assert lists() == [[([0, 1, 2, 3], [0, 10, 20, 30]), ([0, 1, 2], [0, 10, 20])]] * 2


def test_processes_that_train_on_the_same_batches_are_warned_once(told):
    assert [len(process["same"]) for process in told] == [1, 0]
    assert [process["shared"] for process in told] == [[], []]


def test_all_processes_have_the_folder_that_the_first_made_and_hear_why_it_could_not(told):
    (folder, is_there, heard, stays), other = told[0]["folders"], told[1]["folders"]
    assert other == (folder, is_there, heard, stays)
    assert (is_there, heard, stays) == (True, "only the first knows", False)


def test_large_blocks_are_gathered_by_themselves_and_tied_weights_with_the_model(told):
    states, whole, are_sharded, are_tied = told[0]["placements"]
    assert [name.startswith("FSDP") for name in states] == [True, True, False, False, False, False]
    assert told[1]["placements"][1] == whole  # of one model, that of the first, whatever the others drew
    assert are_sharded
    assert are_tied
