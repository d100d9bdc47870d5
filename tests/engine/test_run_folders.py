"""Run folders: how options are written, how a run is told from its checkpoints, and what makes two the same."""

import enum
import math
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.metrics import ConfusionMatrix, Metric
from torch import nn
from weightsmith import ConfigurationError, Trainer
from weightsmith.cli import Launch, main, script
from weightsmith.runs import refuse_other_options, run_of, save_configuration
from weightsmith_plugins import ZeroMean

BATCHES = [(torch.randn(8, 4, generator=torch.Generator().manual_seed(i)), torch.arange(8) % 3) for i in range(2)]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Colour(enum.Enum):
    RED = 1


class Word(enum.StrEnum):
    LONG = "long"


class Several(Metric):
    """A metric whose value is a dict, with a tuple and a tensor in it."""

    def reset(self):
        self.seen = 0

    def update(self, output):
        self.seen += 1

    def compute(self):
        return {"pair": (float(self.seen), torch.ones(2) * self.seen), "nothing": torch.tensor([math.nan, 1.0])}


@script(epochs=1)
def train(launch: Launch, rate: float = 0.1, unknown: bool = False, clip: object = None) -> Trainer:
    """Train.

    Args:
        launch: the options that all scripts have.
        rate: of learning.
        unknown: whether the model has a buffer with what is no number in it.
        clip: anything.
    """
    model = nn.Linear(4, 3)
    if unknown:
        model.register_buffer("unknown", torch.tensor([math.nan, 2.0]))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    trainer = launch.trainer(model, optimizer, nn.CrossEntropyLoss(), shaping=[], nonfinite="ignore")
    trainer.validate_on(BATCHES, {"several": Several(), "confusion": ConfusionMatrix(3)})
    launch.train(trainer, BATCHES)
    return trainer


# -------------------------------------------------------------------- options

PLAIN = {
    "paths": ([Path("a"), Path("b")], ["a", "b"]),
    "pair": ((Path("a"), 1), ["a", 1]),
    "enum": (Colour.RED, "RED"),
    "word": ([Word.LONG], ["LONG"]),
    "numpy": (np.int64(3), 3),
    "table": ({"a": {"b": np.float32(0.5)}, np.int64(1): Path("c")}, {"a": {"b": 0.5}, 1: "c"}),
    "nan": (math.nan, math.nan),
    "nans": ([math.nan], [math.nan]),
}


@pytest.mark.parametrize("name", PLAIN)
def test_options_are_written_plain_and_are_the_same_when_read_back(tmp_path, name):
    value, written = PLAIN[name]
    save_configuration(tmp_path, {name: value}, [ZeroMean()])
    refuse_other_options(tmp_path, {name: value})
    refuse_other_options(tmp_path, {name: written})
    with pytest.raises(ConfigurationError, match=f"began with {name}="):
        refuse_other_options(tmp_path, {name: "another"})


@pytest.mark.parametrize("value", [date(2026, 1, 1), {1, 2}, b"x", [object()], {"a": np.zeros(2)}, {b"a": 1}])
def test_what_could_not_be_read_back_is_refused_by_its_name_and_leaves_nothing(value):
    with pytest.raises(ConfigurationError, match=r"the option clip: .* cannot be written to config\.yaml"):
        train(clip=value)
    assert not Path("runs").exists()


# -------------------------------------------------------------------- runs and checkpoints


def test_a_checkpoint_is_one_of_its_run_wherever_it_is_named_from(monkeypatch):
    run = train().run_dir.resolve()
    checkpoint = run / "checkpoints" / "00000002"
    for folder, path in [(run.parent, run.name), (run, "."), (run / "checkpoints", "00000002"), (checkpoint, ".")]:
        monkeypatch.chdir(folder)
        assert run_of(Path(path)).resolve() == run
    monkeypatch.chdir(run / "checkpoints")
    with pytest.raises(ConfigurationError, match=r"began with rate=0\.1, not 0\.2"):
        train(resume="00000002", rate=0.2)
    assert train(resume="00000002", epochs=2).run_dir.resolve() == run
    assert [path.name for path in checkpoint.iterdir() if path.is_dir()] == []
    assert (run / "checkpoints" / "00000004").is_dir()


def test_a_run_in_a_folder_called_checkpoints_is_a_run(tmp_path):
    run = tmp_path / "checkpoints" / "first"
    (run / "checkpoints" / "00000001").mkdir(parents=True)
    assert run_of(run) == run
    assert run_of(run / "checkpoints" / "00000001") == run


# -------------------------------------------------------------------- comparing


def compared(capsys, *paths):
    capsys.readouterr()
    return main(["compare", *map(str, paths)]), capsys.readouterr().out


def test_equal_runs_in_other_folders_are_the_same(capsys, monkeypatch):
    first, second = train(runs=Path("a")).run_dir.resolve(), train(runs=Path("b")).run_dir.resolve()
    same = (0, "recipe: the same\nmetrics: the same\nweights: the same\n")
    assert compared(capsys, first, second) == same
    monkeypatch.chdir(first / "checkpoints")
    assert compared(capsys, "00000002", second) == same


def test_metrics_of_any_form_are_compared(capsys):
    first, second = train(rate=0.1).run_dir, train(rate=50.0).run_dir
    code, output = compared(capsys, first, second)
    assert code == 1
    assert "  options.rate: 0.1 | 50" in output
    assert "  confusion: largest difference " in output
    assert "several" not in output


def test_what_is_no_number_equals_itself(capsys):
    checkpoints = [train(unknown=True).run_dir / "checkpoints" / "00000002" for _ in range(2)]
    assert compared(capsys, *checkpoints) == (0, "recipe: the same\nmetrics: the same\nweights: the same\n")
