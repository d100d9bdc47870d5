"""What one of several processes meets, and what all of them make of it."""

import re

import filelock
import pytest
import torch
from saving import WAYS
from troubles import in_trouble
from weightsmith.checkpoint import read
from worlds import together


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("troubles")


@pytest.fixture(scope="module")
def ends(folder):
    (folder / "locked").mkdir()
    (folder / "file").write_text("in the way")
    with filelock.FileLock(folder / "locked" / ".lock"):
        return together(2, in_trouble, folder)


@pytest.mark.parametrize("how", WAYS)
def test_signals_stop_all_in_the_same_iteration_and_the_run_goes_on_bit_for_bit(ends, how):
    first, second = (end["stopped_by_signals"] for end in ends)
    for name, iteration in {"both": 5, "one": 5, "in the last": 15}.items():
        assert first[how, name][:2] == second[how, name][:2] == ("RunStopped", iteration)
        weights = first[how, name][2]
        assert all(torch.equal(weights[key], first[how][key]) for key in weights)


@pytest.mark.parametrize("how", WAYS)
def test_what_is_not_finite_on_one_is_decided_together(ends, how):
    for policy, updates, rate in (("skip", 4, 0.1), ("restore", 5, 0.05)):
        first, second = (end["met_a_nan"][how, policy] for end in ends)
        assert first[:2] == second[:2] == (updates, rate)
        assert all(torch.equal(first[2][name], second[2][name]) for name in first[2])
        assert all(bool(weight.isfinite().all()) for weight in first[2].values())
        assert all("update 2, epoch 1: the loss is nan" in words for end in (first, second) for words in end[3])
        assert len(first[3]) == len(second[3]) == (policy == "skip")


@pytest.mark.parametrize("how", WAYS)
def test_a_weight_that_is_spoilt_on_one_is_told_by_all_and_never_saved(ends, how):
    for end in ends:
        kind, words, saved = end["spoilt_a_weight"][how]
        assert kind == "NonFiniteError"
        assert "the weight '2.weight' is not finite" in words
        assert [name for name in saved if name.isdigit()] == ["00000004", "00000003", "00000002"]


def test_all_are_told_what_keeps_one_from_writing(ends):
    for end in (end["kept_from_writing"] for end in ends):
        assert end["locked"][0] == "ConfigurationError"
        assert "another process runs in" in end["locked"][1]
        assert end["a file"][0] == "CheckpointError"
        assert end["full"][0] == "CheckpointError"
        assert "No space left" in end["full"][1]
        assert end["saved"] == [f"{number:08d}" for number in (5, 10)]  # of the saves at 3, 5, 8, 10
        assert end["found"] == ("00000010", 10)
        assert not [name for name in end["left"] if "partial" in name or "previous" in name]


def test_what_does_not_fit_on_one_is_loaded_on_none(ends):
    for end in ends:
        kind, words, is_as_before = end["resumed_what_does_not_fit"]
        assert (kind, is_as_before) == ("ConfigurationError", True)
        assert "'0.more' is in the model, and not in the checkpoint" in words
    assert "raised on process 1" in ends[0]["resumed_what_does_not_fit"][1]


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        (
            "batches",
            "ConfigurationError",
            "'epoch_length': 5, 'max_epochs': 1.*0 and .*'epoch_length': 4.* on process 1",
        ),
        ("epochs", "ConfigurationError", "'max_epochs': 1.*'max_epochs': 2.*share"),
        ("folder", "ConfigurationError", "run_dir must be the same on all processes, and is None on process 0 and"),
        ("draws", "PluginContractError", "DrawsByItself.* drew from torch's global generator .*'0.weight'"),
        ("endless", "ConfigurationError", "the DataLoader's repeat does not say how many batches"),
    ],
)
def test_what_must_be_the_same_on_all_is_told_before_they_wait_for_each_other(ends, what, kind, words):
    for end in ends:
        assert end["disagreed"][what][0] == kind
        assert re.search(words, end["disagreed"][what][1])


def test_a_crash_asks_nothing_of_the_others(ends, folder):
    for number, end in enumerate(ends):
        for how in WAYS:
            assert end["crashed"][how][0] == "ValueError"
            assert end["crashed"][how][1].startswith("on purpose")
        assert ("is saved in" in end["crashed"]["copies"][1]) == (number == 0)
        assert "nothing is saved but the last checkpoint" in end["crashed"]["shards"][1]
    crash = read(folder / "crash-copies" / "checkpoints" / "crash")
    assert (crash.processes, crash.manifest["is_good"], crash.manifest["iteration"]) == (1, False, 4)
    assert not (folder / "crash-shards" / "checkpoints" / "crash").exists()
