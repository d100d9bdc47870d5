"""Training scripts: a function that trains, as a command and to call from Python."""

import inspect
from pathlib import Path

import pytest
import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from torch import nn
from weightsmith import ConfigurationError
from weightsmith.cli import Launch, script
from weightsmith_plugins import L2, Clamp, JSONLines, MaxNorm

BATCHES = [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(4)]


@script(epochs=2)
def train(launch: Launch, strength: PositiveFloat = 1e-3, width: PositiveInt = 5) -> dict:
    """Train a small network.

    Args:
        launch: the options that all scripts have.
        strength: charge per squared weight.
        width: of the hidden layer.
    """
    model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shaping = [L2(strength), MaxNorm(0.5, where="0.weight")]
    trainer = launch.trainer(model, optimizer, nn.CrossEntropyLoss(), shaping=shaping, watching=[JSONLines()])
    launch.train(trainer, BATCHES)
    return {"trainer": trainer, "weights": [weight.detach().clone() for weight in model.parameters()]}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def runs():
    return sorted(path for path in Path("runs").iterdir() if path.is_dir())


def test_it_is_called_with_options_by_keyword_and_the_seed_decides_all():
    first, again, other = train(), train(seed=0, strength=1e-3), train(seed=1)
    assert all(map(torch.equal, first["weights"], again["weights"]))
    assert not torch.equal(first["weights"][0], other["weights"][0])
    assert first["trainer"].state.epoch == 2


def test_the_command_line_gives_what_python_gives(capsys):
    assert train.main(["--strength", "3", "--epochs=1", "--seed=4"]) == 0
    output = capsys.readouterr().out
    (run,) = runs()
    assert "epoch 1/1  loss " in output
    assert f"the run is in {run}" in output
    assert f"report {run}" in output
    called = train(strength=3.0, epochs=1, seed=4)["trainer"]
    other = next(path for path in runs() if path != run)
    assert (run / "config.yaml").read_text() == (other / "config.yaml").read_text()
    assert L2(3.0) in called.plugins


def test_help_explains_its_own_options_and_those_of_all_scripts(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Train a small network." in text
    assert "--strength STRENGTH charge per squared weight. (type: PositiveFloat, default: 0.001)" in text
    assert "--epochs EPOCHS passes over the training data. (type: PositiveInt, default: 2)" in text
    for option in inspect.signature(Launch).parameters:
        assert ("--" + option in text) == (option not in ("options", "several_in"))


@pytest.mark.parametrize(
    ("options", "code"),
    [(["--epochs=0"], 2), (["--strength=-1"], 2), (["--device=nowhere"], 2), (["--plugins=missing.yaml"], 2)],
)
def test_what_cannot_work_is_refused_and_leaves_no_folder(options, code, capsys):
    try:
        found = train.main(options)
    except SystemExit as stopped:
        found = stopped.code
    assert found == code
    assert "error" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_other_plugins_take_the_place_of_those_that_shape():
    Path("shaping.yaml").write_text("[Clamp: {low: -0.1, high: 0.1}]", encoding="utf-8")
    assert train(plugins=Path("shaping.yaml"))["trainer"].plugins == (Clamp(-0.1, 0.1), JSONLines())
    assert train(plugins=Path("none"))["trainer"].plugins == (JSONLines(),)


def test_a_run_goes_on_and_ends_where_a_longer_one_ends():
    train(epochs=2)
    went_on = train(epochs=4, resume="auto")
    assert len(runs()) == 1
    assert all(map(torch.equal, went_on["weights"], train(epochs=4)["weights"]))
    with pytest.raises(ConfigurationError, match=r"began with width=5, not 6"):
        train(epochs=4, resume=str(runs()[0]), width=6)


def test_a_run_goes_on_with_the_options_that_it_began_with():
    Path("shaping.yaml").write_text("[Clamp: {low: -0.1, high: 0.1}]", encoding="utf-8")
    assert train.main(["--width=7", "--epochs=2", "--seed=3", "--plugins=shaping.yaml"]) == 0
    (run,) = runs()
    assert train.main(["--resume", str(run), "--epochs=3"]) == 0
    assert train(resume="auto")["trainer"].state.epoch == 3
    assert train.main(["--resume=auto", "--width=6"]) == 2
    (run / "config.yaml").write_text("options: {epochs: many}", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="began with options that the script does not take now"):
        train(resume="auto")


def test_several_runs_of_a_script_have_folders_of_their_own():
    launch = Launch(resume="auto", options={"seed": 0})
    assert launch.at("dense").runs == Path("runs/dense")
    with pytest.raises(ConfigurationError, match="resume takes auto, not runs/x"):
        Launch(resume="runs/x").at("dense")


def test_what_could_be_no_script_is_refused():
    def seeded(launch, seed=3): ...

    def alone(): ...

    for function, defaults, message in [
        (seeded, {}, "are options that all scripts have"),
        (alone, {}, "its first parameter is the Launch, and there is none"),
        (lambda launch: None, {"epoch": 3}, r"not of \['epoch'\]"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            script(**defaults)(function)


def test_options_that_are_missing_or_unknown_are_refused():
    needy = script()(lambda launch, needed: needed)
    assert needy(needed=3) == 3
    with pytest.raises(ConfigurationError, match="needs the options needed"):
        needy()
    with pytest.raises(ConfigurationError, match="takes no option 'widht': did you mean 'width'"):
        train(widht=3)


def test_numbers_of_a_class_of_their_own_become_plain_in_plugins():
    assert type(MaxNorm(PositiveFloat(3.0)).limit) is float
    assert L2(PositiveFloat(3.0)) == L2(3.0)
