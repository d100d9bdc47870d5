"""Checkpoints through the trainer: what is refused, what is listed, what is left alone."""

import copy
import hashlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from ignite.metrics import MeanSquaredError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from weightsmith import (
    CheckpointError,
    ConfigurationError,
    Constraint,
    DamagedCheckpointError,
    Penalty,
    Trainer,
    WeightEvents,
)
from weightsmith.checkpoint import contents, find, read, read_manifest, saved_in
from weightsmith.runs import choose_run_dir
from weightsmith_plugins import EMA, L2, Checkpoints, JSONLines, Losses, MaxNorm, TensorBoard

DATA = [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(4)]


def trainer_of(plugins=(), hidden=5, optimizer=torch.optim.Adam, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, 2))
    return Trainer(model, optimizer(model.parameters(), lr=0.01), nn.MSELoss(), plugins=plugins, seed=3, **options)


@pytest.fixture
def saved(tmp_path):
    trainer = trainer_of([L2(0.1), EMA(0.5)])
    trainer.run(DATA, max_epochs=2)
    trainer.save(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_finished_run_trains_nothing(saved):
    second, fired = trainer_of([L2(0.1), EMA(0.5)]), []
    for event in (Events.STARTED, Events.ITERATION_STARTED, Events.COMPLETED, WeightEvents.WEIGHTS_EDITED):
        second.add_event_handler(event, lambda name: fired.append(name), event.name)
    assert second.resume(saved) == saved
    before = [weight.clone() for weight in second.weights().values()]
    state = second.run(DATA, max_epochs=2)
    assert (state.iteration, state.epoch, state.updates, fired) == (8, 2, {"optimizer": 8}, [])
    assert all(map(torch.equal, before, second.weights().values()))


def test_a_finished_run_can_be_given_more_epochs(saved):
    whole = trainer_of([L2(0.1), EMA(0.5)])
    whole.run(DATA, max_epochs=3)
    second = trainer_of([L2(0.1), EMA(0.5)])
    second.resume(saved)
    second.run(DATA, max_epochs=3)
    assert second.state.updates == {"optimizer": 12}
    assert all(map(torch.equal, whole.weights().values(), second.weights().values()))


def test_everything_that_does_not_fit_is_listed_and_nothing_is_loaded(saved):
    other = trainer_of([L2(0.1), EMA(0.5)], hidden=6)
    other.model.register_buffer("more", torch.zeros(2))
    before = copy.deepcopy(other.model.state_dict())
    with pytest.raises(ConfigurationError) as raised:
        other.resume(saved)
    for words in (
        "'more' is in the model, and not in the checkpoint",
        "'0.weight' is float32 of shape (5, 3) in the checkpoint, float32 of shape (6, 3) here",
        "'1.running_mean'",
    ):
        assert words in str(raised.value)
    assert all(torch.equal(value, before[name]) for name, value in other.model.state_dict().items())
    assert other.state.updates == {"optimizer": 0}


@pytest.mark.parametrize(
    ("plugins", "options", "words"),
    [
        ([L2(0.2), EMA(0.5)], {}, r"weightsmith_plugins\.L2 was .*0\.1.*, and is .*0\.2"),
        ([EMA(0.5)], {}, r"weightsmith_plugins\.L2 is not attached"),
        ([L2(0.1), EMA(0.5), EMA(0.5)], {}, r"weightsmith_plugins\.EMA#1 is attached, .*, and was not"),
        ([EMA(0.5), L2(0.1)], {}, "in another order"),
        ([L2(0.1), EMA(0.5)], {"accumulate": 2}, "accumulate is 1 in the checkpoint, 2 here"),
        ([L2(0.1), EMA(0.5)], {"optimizer": torch.optim.SGD}, r"is torch\.optim\.adam\.Adam in the checkpoint, torch"),
        ([L2(0.1), EMA(0.5)], {"keep": {"more": nn.Linear(1, 1)}}, "keep is {} in the checkpoint"),
    ],
)
def test_a_change_is_named_and_refused(saved, plugins, options, words):
    with pytest.raises(ConfigurationError, match=words):
        trainer_of(plugins, **options).resume(saved)


def test_a_change_that_is_meant_is_allowed_and_told(saved, caplog):
    second, starts = trainer_of([EMA(0.5), MaxNorm(0.2, where="2")]), []
    with caplog.at_level(logging.WARNING):
        second.resume(saved, allow_changes=True)
    assert "L2 is not attached" in caplog.text
    assert "MaxNorm is attached" in caplog.text
    second.add_event_handler(Events.STARTED, lambda t: starts.append(t.violations()))
    second.run(DATA, max_epochs=3)
    assert all(value == 0 for value in starts[0].values())
    assert second.state.updates == {"optimizer": 12}
    assert any(isinstance(plugin, Constraint) for plugin in second.plugins)


PLUGIN = """
from weightsmith import Penalty

FACTOR = {factor}

class Mine(Penalty):
    '''{docstring}'''

    def cost(self, weight, site):
        # {comment}
        return helper(weight)

def helper(weight):
    return FACTOR * weight.square().sum()
"""


def resumed_with(folder, **parts):
    """A process that saves, or goes on, with a plugin whose file holds these parts."""
    folder.joinpath("mine.py").write_text(PLUGIN.format(**{"factor": 1, "docstring": "a", "comment": "b", **parts}))
    program = textwrap.dedent(
        """
        import sys, torch
        from torch import nn
        from weightsmith import Trainer
        from mine import Mine
        model = nn.Linear(2, 2)
        trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), plugins=[Mine()], seed=0)
        data = [(torch.ones(1, 2), torch.ones(1, 2))]
        if sys.argv[1] == "save":
            trainer.run(data)
            trainer.save("saved")
        else:
            trainer.resume("saved")
        """
    )
    command = [sys.executable, "-W", "ignore", "-c", program, "save" if not parts else "resume"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_new_code_is_told_apart_from_new_comments(tmp_path):
    assert resumed_with(tmp_path).returncode == 0
    assert resumed_with(tmp_path, docstring="another text", comment="another remark").returncode == 0
    found = resumed_with(tmp_path, factor=2)
    assert found.returncode == 1
    assert "the plugin mine.Mine has other code than it had" in found.stderr


@pytest.mark.parametrize("change", ["1", "2"])
def test_every_helper_of_a_plugin_counts(tmp_path, change):
    program = (
        "import functools, sys\nsys.path.insert(0, '.')\nfrom weightsmith import Penalty\n"
        "from weightsmith.checkpoint.code import code_of\nfrom helped import Mine\nprint(code_of(Mine()))"
    )
    text = (
        "import functools\nfrom weightsmith import Penalty\nTABLE = {'a': [%s]}\n"
        "@functools.lru_cache\ndef cached():\n    return %s\n"
        "def base(a, b):\n    return %s\npart = functools.partial(base, 1)\n"
        "class Mine(Penalty):\n    def cost(self, weight, site):\n"
        "        return weight.sum() * TABLE['a'][0] * cached() * part(1)\n"
    )
    digests = set()
    for place in range(4):
        values = ["1"] * 3
        if place < 3:
            values[place] = change
        (tmp_path / "helped.py").write_text(text % tuple(values))
        command = [sys.executable, "-B", "-W", "ignore", "-c", program]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
        digests.add(done.stdout)
    assert len(digests) == (1 if change == "1" else 4)


def test_functions_in_a_plugins_fields_count(tmp_path):
    program = (
        "import sys\nsys.path.insert(0, '.')\nimport helped\nfrom weightsmith import biases, function\n"
        "from weightsmith.checkpoint.code import code_of\nfrom weightsmith_plugins import L2\n"
        "print(code_of(L2(function('helped.rate'), where=~biases & helped.chosen)))"
    )
    text = (
        "from weightsmith.selection import selector\ndef rate(progress):\n    return %s\n"
        "def is_chosen(name, parameter, module):\n    return parameter.ndim > %s\nchosen = selector(is_chosen)\n"
    )
    digests = []
    for values in [(1, 1), (2, 1), (1, 2), (1, 1)]:
        (tmp_path / "helped.py").write_text(text % values)
        command = [sys.executable, "-B", "-W", "ignore", "-c", program]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
        digests.append(done.stdout)
    assert len(set(digests)) == 3
    assert digests[0] == digests[3]


def test_a_plugin_of_a_class_inside_a_function_is_compared_as_well(tmp_path):
    def made(factor):
        class Local(Penalty):
            strength: float = 0.1

            def cost(self, weight, site):
                return factor * weight.sum()

        return Local

    first = trainer_of([made(1)()])
    first.run(DATA)
    first.save(tmp_path / "saved")
    trainer_of([made(1)()]).resume(tmp_path / "saved")
    with pytest.raises(ConfigurationError, match=r"Local was Local\(\), and is Local\(strength=0\.2\)"):
        trainer_of([made(1)(0.2)]).resume(tmp_path / "saved")


class Odd(nn.Module):
    """Tied weights, a complex one, another memory format, state beside the tensors, a buffer that grows."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.waves = nn.Parameter(torch.randn(3, dtype=torch.complex128))
        self.filters = nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("seen", torch.zeros(1), persistent=False)
        self.count = 0

    def get_extra_state(self):
        return {"count": self.count}

    def set_extra_state(self, state):
        self.count = state["count"]

    def forward(self, inputs):
        self.count += 1
        self.seen = torch.cat([self.seen, torch.ones(1)])
        return self.second(self.first(inputs)) + self.waves.real.sum() + self.filters.mean()


def test_odd_models_come_back(tmp_path):
    def made():
        torch.manual_seed(0)
        model = Odd()
        return Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), nn.MSELoss(), seed=0)

    data = [(torch.randn(2, 4), torch.randn(2, 4))] * 4
    whole, first, second = made(), made(), made()
    whole.run(data, max_epochs=2)
    first.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: first.save(tmp_path / "a"))
    first.run(data)
    second.resume(tmp_path / "a")
    assert second.model.second.weight is second.model.first.weight
    assert second.model.filters.is_contiguous(memory_format=torch.channels_last)
    second.run(data, max_epochs=2)
    assert (second.model.count, len(second.model.seen)) == (whole.model.count, len(whole.model.seen)) == (8, 9)
    assert all(map(torch.equal, whole.model.parameters(), second.model.parameters()))


def test_frozen_weights_and_modules_in_evaluation_come_back_as_they_were(tmp_path):
    first = trainer_of()

    @first.on(Events.ITERATION_COMPLETED(once=2))
    def change():
        first.model[0].weight.requires_grad_(False)
        first.model[1].eval()

    first.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: first.save(tmp_path / "a"))
    first.run(DATA, max_epochs=2)
    second = trainer_of()
    second.resume(tmp_path / "a")
    assert not second.model[0].weight.requires_grad
    assert not second.model[1].training
    second.run(DATA, max_epochs=2)
    assert all(map(torch.equal, first.model.state_dict().values(), second.model.state_dict().values()))


def test_what_needs_pickle_is_refused_with_its_place(tmp_path):
    class Part:
        def state_dict(self):
            return {"a": [1, {"b": Path("x")}]}

        def load_state_dict(self, state):
            raise AssertionError

    trainer = trainer_of(keep={"part": Part()})
    trainer.run(DATA)
    with pytest.raises(ConfigurationError, match=r"keep\['part'\]\['a'\]\[1\]\['b'\] is a pathlib\.\w+Path"):
        trainer.save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_keep_refuses_what_has_no_state():
    with pytest.raises(ConfigurationError, match=r"keep\['0'\] is a int, which has no state_dict"):
        trainer_of(keep=[3])


def test_a_part_that_cannot_be_loaded_leaves_everything_as_it_was(tmp_path):
    class Broken:
        fails = False

        def state_dict(self):
            return {"a": 1}

        def load_state_dict(self, state):
            if self.fails:
                self.fails = False
                raise ValueError("no")

    first = trainer_of([EMA(0.5)], keep=[Broken()])
    first.run(DATA)
    first.save(tmp_path / "saved")
    part = Broken()
    second = trainer_of([EMA(0.5)], keep=[part])
    before = copy.deepcopy(second.model.state_dict())
    part.fails = True
    with pytest.raises(ConfigurationError, match="cannot be loaded, and nothing was: no"):
        second.resume(tmp_path / "saved")
    assert all(torch.equal(value, before[name]) for name, value in second.model.state_dict().items())
    assert second.state.updates == {"optimizer": 0}
    assert second.run(DATA, max_epochs=1).iteration == 4


def test_a_checkpoint_of_another_form_is_refused(saved):
    manifest = saved / "manifest.json"
    text = manifest.read_text()
    facts = json.loads(text)
    digest = facts["sha256"]
    blank = text.replace('"format": 1', '"format": 0').replace(digest, "0" * 64)
    manifest.write_text(blank.replace("0" * 64, hashlib.sha256(blank.encode()).hexdigest(), 1))
    with pytest.raises(ConfigurationError, match="has the form 0, where this version of weightsmith reads 1"):
        trainer_of([L2(0.1), EMA(0.5)]).resume(saved)


def test_other_versions_are_told(saved, caplog, monkeypatch):
    monkeypatch.setattr(contents, "_version", lambda package: "9.9")
    trainer_of([L2(0.1), EMA(0.5)]).resume(saved)
    assert "saved with other versions" in caplog.text
    assert f"torch {torch.__version__}, here 9.9" in caplog.text


def test_there_is_nothing_to_resume(tmp_path):
    (tmp_path / "file").write_text("")
    for path, words in [
        (tmp_path, "there is no good checkpoint in"),
        (tmp_path / "nothing", "there is no checkpoint .*nothing: there is no such folder"),
        (tmp_path / "file", "there is no checkpoint .*file: it is a file"),
    ]:
        with pytest.raises(CheckpointError, match=words):
            trainer_of().resume(path)


def test_what_is_wrong_with_each_is_said_where_none_is_good(tmp_path):
    trainer = trainer_of([Checkpoints()], run_dir=tmp_path)
    trainer.run(DATA, max_epochs=2)
    folder = tmp_path / "checkpoints"
    (folder / "00000004" / "manifest.json").write_text("{")
    (folder / "00000008" / "state.pt").unlink()
    (folder / "crash").mkdir()
    with pytest.raises(CheckpointError) as raised:
        trainer_of([Checkpoints()], run_dir=tmp_path).resume(tmp_path)
    for words in (
        r"00000004 is damaged: manifest\.json cannot be read",
        r"00000008 is damaged: state\.pt is missing",
        "crash holds what there was when the run crashed",
    ):
        assert re.search(words, str(raised.value))


def test_nothing_but_a_checkpoint_is_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    trainer = trainer_of([Losses(), JSONLines()], run_dir=tmp_path / "run")
    trainer.run(DATA)
    for path, words in [("mine", "thesis"), ("mine/thesis.txt", "thesis"), ("run", r"\.lock")]:
        with pytest.raises(ConfigurationError, match=f"no checkpoint that could be replaced, as it holds .{words}"):
            trainer.save(tmp_path / path)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"
    (tmp_path / "empty").mkdir()
    trainer.save(tmp_path / "empty")
    trainer.save(tmp_path / "empty")


def test_a_folder_with_another_runs_checkpoints_is_refused(tmp_path):
    first = trainer_of([Checkpoints()], run_dir=tmp_path)
    first.run(DATA)
    first.run(DATA)  # again, in the same process
    second = trainer_of([Checkpoints()], run_dir=tmp_path)
    with pytest.raises(ConfigurationError, match=r"holds the checkpoints of another run: go on with"):
        second.run(DATA)
    assert find(tmp_path).name == "00000004"


def test_other_data_are_refused_unless_they_are_meant(tmp_path):
    first = trainer_of()
    first.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: first.save(tmp_path / "a"))
    first.run(DATA)
    second = trainer_of()
    second.resume(tmp_path / "a")
    with pytest.raises(ConfigurationError, match="the data have 8 batches, and had 4 in the saved run"):
        second.run(DATA * 2)
    second = trainer_of()
    second.resume(tmp_path / "a", allow_changes=True)
    assert second.run(DATA * 2).iteration == 4


def test_fewer_epochs_than_were_trained_are_refused(saved):
    second = trainer_of([L2(0.1), EMA(0.5)])
    second.resume(saved)
    with pytest.raises(ConfigurationError, match="max_epochs=1 is less than the 2 epochs"):
        second.run(DATA, max_epochs=1)


def test_the_best_waits_for_the_first_validation(tmp_path):
    trainer = trainer_of([Checkpoints(2, best="error")], run_dir=tmp_path)
    trainer.validate_on(DATA, {"error": MeanSquaredError()})
    trainer.run(DATA, max_epochs=2)
    assert (tmp_path / "checkpoints" / "best").exists()


def test_a_damaged_checkpoint_is_refused_or_passed_over(tmp_path, caplog):
    trainer = trainer_of([Checkpoints()], run_dir=tmp_path)
    trainer.run(DATA, max_epochs=3)
    newest = saved_in(tmp_path / "checkpoints")[0]
    assert newest.name == "00000012"
    weights = newest / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    second = trainer_of([Checkpoints()], run_dir=tmp_path)
    with pytest.raises(DamagedCheckpointError, match=r"00000012 is damaged: weights\.safetensors has \d+ bytes"):
        second.resume(newest)
    assert second.resume(tmp_path).name == "00000008"
    assert "00000012 is damaged" in caplog.text
    assert "the one before it is taken" in caplog.text
    second.run(DATA, max_epochs=3)
    assert find(tmp_path).name == "00000012"
    assert all(map(torch.equal, trainer.weights().values(), second.weights().values()))


def test_a_save_that_was_interrupted_between_two_renames_is_found(saved, caplog):
    saved.rename(saved.with_name(".saved.previous"))
    trainer_of([L2(0.1), EMA(0.5)]).resume(saved)
    assert "its replacement was interrupted: the one before it is taken" in caplog.text


def test_saving_inside_a_run_waits_until_all_is_done(tmp_path):
    trainer, seen = trainer_of(), []
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: trainer.save(tmp_path / "a"))
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda: seen.append(((tmp_path / "a").exists(), torch.rand(()).item()))
    )
    trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: seen.append((tmp_path / "a").exists()))
    trainer.run(DATA)
    assert [seen[0][0], seen[1]] == [False, True]
    assert read_manifest(tmp_path / "a")["iteration"] == 2


def test_an_interrupted_run_saves_before_it_is_interrupted_or_goes_on(tmp_path):
    trainer = trainer_of()

    @trainer.on(Events.ITERATION_COMPLETED(once=3))
    def stop():
        trainer.save(tmp_path / "a")
        trainer.interrupt()

    trainer.run(DATA, max_epochs=2)
    assert trainer.state.iteration == 3
    with pytest.raises(ConfigurationError, match="the run is interrupted, and not over"):
        trainer.save(tmp_path / "b")
    second = trainer_of()
    second.resume(tmp_path / "a")
    second.run(DATA, max_epochs=2)
    trainer.run(DATA)
    assert trainer.state.iteration == second.state.iteration == 8
    assert all(map(torch.equal, trainer.weights().values(), second.weights().values()))
    trainer.save(tmp_path / "b")


def test_resuming_inside_a_run_is_refused(saved):
    trainer = trainer_of([L2(0.1), EMA(0.5)])
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: trainer.resume(saved))
    with pytest.raises(ConfigurationError, match="inside a run"):
        trainer.run(DATA)


def test_data_that_end_too_early_are_refused(tmp_path):
    first = trainer_of()
    first.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: first.save(tmp_path / "a"))
    first.run(iter(DATA), epoch_length=4)
    second = trainer_of()
    second.resume(tmp_path / "a")
    with pytest.raises(ConfigurationError, match=r"the data end after 2 batches, of which 3 were taken"):
        second.run(iter(DATA[:2]))


def test_weights_that_are_not_finite_are_never_the_last_good_ones(tmp_path, caplog):
    trainer = trainer_of([Checkpoints(keep=5)], run_dir=tmp_path, nonfinite="ignore")
    trainer.run(DATA, max_epochs=1)
    with torch.no_grad():
        trainer.model[2].weight[0, 0] = float("nan")
    trainer.run(DATA, max_epochs=3)
    assert [path.name for path in saved_in(tmp_path / "checkpoints")] == ["00000004"]
    assert "not saved at iteration 8: the weight '0.weight' is not finite" in caplog.text
    trainer.save(tmp_path / "checkpoints" / "00000012")
    assert not read_manifest(tmp_path / "checkpoints" / "00000012")["is_good"]
    assert find(tmp_path).name == "00000004"


def test_the_best_is_kept_and_nan_is_never_the_best(tmp_path):
    scores = iter([float("nan"), 0.5, 0.7, float("nan"), 0.6, 0.4])
    trainer = trainer_of([Checkpoints(keep=2, best="score")], run_dir=tmp_path)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda t: t.state.metrics.update(score=next(scores)))
    trainer.run(DATA, max_epochs=6)
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["00000012", "00000020", "00000024", "best"]
    assert (folder / "best").resolve().name == "00000012"
    second = trainer_of([Checkpoints(keep=2, best="score")], run_dir=tmp_path)
    assert second.resume(folder / "best") == folder / "best"
    assert second.state.epoch == 3


def test_the_best_by_the_least(tmp_path):
    scores = iter([0.5, 0.3, 0.7])
    trainer = trainer_of([Checkpoints("1 epochs", keep=1, best="score", mode="min")], run_dir=tmp_path)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda t: t.state.metrics.update(score=next(scores)))
    trainer.run(DATA, max_epochs=3)
    assert (tmp_path / "checkpoints" / "best").resolve().name == "00000008"


def test_a_metric_that_is_not_there_is_named(tmp_path):
    trainer = trainer_of([Checkpoints(best="acuracy")], run_dir=tmp_path)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda t: t.state.metrics.update(accuracy=1.0))
    with pytest.raises(ConfigurationError, match=r"best='acuracy' is no metric .* did you mean 'accuracy'"):
        trainer.run(DATA)


def test_a_metric_that_validation_does_not_measure_is_told_of_at_the_start(tmp_path, caplog):
    trainer = trainer_of([Checkpoints(best="eror")], run_dir=tmp_path)
    trainer.validate_on(DATA, {"error": MeanSquaredError()})
    trainer.add_event_handler(Events.EPOCH_STARTED, trainer.terminate)
    trainer.run(DATA)
    assert "best='eror': no metric of validate_on(…) is called that" in caplog.text
    assert "did you mean 'error'?" in caplog.text


def test_checkpoints_need_a_folder_that_can_be_written(tmp_path):
    with pytest.raises(ConfigurationError, match="give the Trainer run_dir"):
        trainer_of([Checkpoints()])
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot write to"):
        trainer_of([Checkpoints()], run_dir=tmp_path / "file")
    for wrong in ({"every": 0}, {"keep": 0}):
        with pytest.raises(ConfigurationError, match="at least 1"):
            Checkpoints(**wrong)


def test_a_folder_that_vanishes_is_made_anew(tmp_path, caplog):
    trainer = trainer_of([Checkpoints()], run_dir=tmp_path / "run")
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=6), lambda: shutil.rmtree(tmp_path / "run"))
    trainer.run(DATA, max_epochs=3)
    assert "was taken away: it is made anew" in caplog.text
    assert find(tmp_path / "run").name == "00000012"


def test_the_run_that_was_saved_last_is_chosen(tmp_path):
    new, goes_on = choose_run_dir(tmp_path, "auto")
    assert not goes_on
    assert new.parent == tmp_path
    for name in ("b", "a"):
        trainer = trainer_of([Checkpoints()], run_dir=tmp_path / name)
        trainer.run(DATA)
        manifest = tmp_path / name / "checkpoints" / "00000004" / "manifest.json"
        assert manifest.is_file()
    assert choose_run_dir(tmp_path, "auto")[1]
    assert choose_run_dir(tmp_path, tmp_path / "b") == (tmp_path / "b", True)
    assert choose_run_dir(tmp_path, tmp_path / "b" / "checkpoints" / "00000004") == (tmp_path / "b", True)
    with pytest.raises(ConfigurationError, match="there is no run"):
        choose_run_dir(tmp_path, tmp_path / "c")


def test_logs_go_on_where_the_checkpoint_was_saved(tmp_path):
    plugins = [Losses(), TensorBoard(), Checkpoints(keep=9)]
    first = trainer_of(plugins, run_dir=tmp_path)
    first.run(DATA, max_epochs=4)
    second = trainer_of(plugins, run_dir=tmp_path)
    second.resume(tmp_path / "checkpoints" / "00000008")
    second.run(DATA, max_epochs=4)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/optimizer")] == [1, 2, 3, 4]
    assert not (tmp_path / "run_2").exists()


def test_another_runs_logs_are_left_alone(tmp_path, caplog):
    plugins = [Losses(), TensorBoard(), Checkpoints(keep=9)]
    trainer_of(plugins, run_dir=tmp_path / "one").run(DATA, max_epochs=2)
    other = trainer_of(plugins[:2], run_dir=tmp_path / "two")
    other.run(DATA, max_epochs=2)
    before = {path: path.read_bytes() for path in (tmp_path / "two").glob("events*")}
    second = trainer_of(plugins, run_dir=tmp_path / "two")
    second.resume(tmp_path / "one" / "checkpoints" / "00000004")
    second.run(DATA, max_epochs=2)
    assert {path: path.read_bytes() for path in before} == before
    assert list((tmp_path / "two" / "run_2").glob("events*"))


def test_reading_runs_no_code(saved, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    buffer = io.BytesIO()
    torch.save({"position": Evil()}, buffer)
    (saved / "state.pt").write_bytes(buffer.getvalue())
    facts = json.loads((saved / "manifest.json").read_text())
    facts["files"]["state.pt"] = {
        "bytes": len(buffer.getvalue()),
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
    }
    text = json.dumps({**facts, "sha256": "0" * 64}, indent=1)
    (saved / "manifest.json").write_text(text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest(), 1))
    with pytest.raises(ConfigurationError, match="reading it could run code"):
        trainer_of([L2(0.1), EMA(0.5)]).resume(saved)
    assert not (tmp_path / "executed").exists()


def test_weights_are_safetensors_under_the_models_names(saved):
    assert set(read(saved).weights) == set(trainer_of().model.state_dict())
