"""Every script trains, small; goes on where it stopped; is the same as a recipe; and keeps what its text says."""

import contextlib
import dataclasses
import doctest
import importlib
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from weightsmith import ConfigurationError, NonFiniteError, RunStopped
from weightsmith.checkpoint import find, read
from weightsmith.cli import Launch, main
from weightsmith.files import read_tensors
from weightsmith.recipe import read_recipe

SCRIPTS = Path(__file__).parents[2] / "scripts"
SMALL = {
    "train_digits": {},
    "train_gan": {},
    "train_forecaster": {"cell": "GRU"},
    "train_segmentation": {"labelled": 2},
    "finetune": {"keep": "l2sp"},
    "customise_weights": {},
}
SHAPERS = {
    "train_digits": lambda script: script.shaping(l2=1e-4, max_norm=1.5, head_bound=0.3),
    "train_gan": lambda script: script.shaping(0.0, 3e-3),
    "train_forecaster": lambda script: script.shaping(0.5),
    "train_segmentation": lambda script: script.shaping("denoiser", "runs/segmentation/denoiser_0.safetensors"),
    "finetune": lambda script: script.shaping(
        "consolidation", *(f"runs/finetune/{name}_0.safetensors" for name in ("first_task", "importance"))
    ),
    "customise_weights": lambda script: [plugin for plugin, _ in script.PAIRS.values()],
    "compress": lambda script: script.methods([0.9], 5)["90% pruned, int8"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder for the runs of each script, with what the scripts make first, so that it is made once."""
    folder = tmp_path_factory.mktemp("runs")
    importlib.import_module("train_segmentation").denoiser(
        folder / "train_segmentation" / "denoiser_0.safetensors", 0, 1
    )
    return folder


def weights_of(run):
    return read(find(run)).weights


def assert_same_weights(run, other):
    found, expected = weights_of(run), weights_of(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.fixture
def stopped_after_an_epoch(monkeypatch):
    """A context in which a run of a script is stopped by SIGTERM at the end of its first epoch."""

    @contextlib.contextmanager
    def stopping():
        train = Launch.train

        def stopped(launch, trainer, batches):
            trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda: signal.raise_signal(signal.SIGTERM))
            train(launch, trainer, batches)

        with monkeypatch.context() as patch:
            patch.setattr(Launch, "train", stopped)
            yield

    return stopping


@pytest.mark.parametrize("name", SMALL)
def test_it_trains_and_a_run_that_was_stopped_ends_with_the_same_weights(name, runs, stopped_after_an_epoch, capsys):
    train = importlib.import_module(name).train
    given = {"epochs": 2, "runs": runs / name, **SMALL[name]}
    whole = train(**given)
    output = capsys.readouterr().out
    assert f"the run is in {whole['run_dir']}" in output
    assert f"view {whole['run_dir']}" in output
    with stopped_after_an_epoch(), pytest.raises(RunStopped):
        train(**given)
    went_on = train(**given, resume="auto")
    assert went_on["run_dir"] != whole["run_dir"]
    assert_same_weights(went_on["run_dir"], whole["run_dir"])
    assert {**went_on, "run_dir": None} == {**whole, "run_dir": None}


@pytest.mark.parametrize("name", [*SMALL, "compress"])
def test_its_help_explains_the_options_that_all_have(name, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(name).train.main(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in ("--epochs", "--seed", "--device", "--plugins", "--runs", "--resume"):
        assert f"{option} {option[2:].upper()} " in text


@pytest.mark.parametrize("name", SHAPERS)
def test_its_recipe_has_its_plugins(name, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    script = importlib.import_module(name)
    recipe = read_recipe(SCRIPTS / f"{name.removeprefix('train_')}.yaml")
    wanted = [*SHAPERS[name](script), *script.WATCHING]
    assert [placed.plugin for placed in recipe.plugins] == wanted
    assert recipe.settings.epochs == script.train.defaults["epochs"]


SAME = {  # to the options of a script: the changes to its recipe that they mean
    "train_digits": ({}, []),
    "train_gan": ({}, []),
    "train_forecaster": (
        {"name": "co2"},
        [f"{key}.name=co2" for key in ("model", "data.dataset", "validation.dataset")],
    ),
    "train_segmentation": ({}, ["scheduler.T_max=2"]),
    "finetune": ({"keep": "nothing"}, ["plugins.ElasticConsolidation.strength=0"]),
    "customise_weights": ({}, []),
}


@pytest.mark.parametrize("name", SAME)
def test_its_recipe_trains_the_same_weights(name, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    options, changes = SAME[name]
    family = name.removeprefix("train_")
    run = importlib.import_module(name).train(epochs=2, runs=runs / name, **options)["run_dir"]
    shutil.copytree(runs / name, tmp_path / "runs" / family)
    monkeypatch.chdir(tmp_path)
    changes = ["epochs=2", "runs=trained", *changes]
    assert main(["train", str(SCRIPTS / f"{family}.yaml"), "--set", *changes]) == 0
    (trained,) = (tmp_path / "trained" / family).iterdir()
    found, expected = weights_of(trained), weights_of(run)
    assert found.keys() == expected.keys()
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, rtol=1e-4, atol=1e-6)  # the learning rate's cosine is rounded


def test_the_recipe_of_compression_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["train", str(SCRIPTS / "compress.yaml"), "--set", "epochs=1", f"runs={tmp_path}"]) == 0
    assert "epoch 1/1  " in capsys.readouterr().out


def test_the_hint_after_a_stop_goes_on_with_the_run_and_its_options(tmp_path, stopped_after_an_epoch, monkeypatch):
    script = SCRIPTS / "train_forecaster.py"
    monkeypatch.setattr(sys, "argv", [str(script)])
    train = importlib.import_module("train_forecaster").train
    options = {"name": "co2", "cell": "GRU", "epochs": 2, "runs": tmp_path}
    with stopped_after_an_epoch(), pytest.raises(RunStopped) as stopped:
        train(**options)
    (hint,) = [note for note in stopped.value.__notes__ if note.startswith("go on with: ")]
    command = shlex.split(hint.removeprefix("go on with: "))
    command[1:1] = ["-W", "ignore"]
    subprocess.run([*command, "--runs", str(tmp_path)], check=True, timeout=120, capture_output=True)
    (run,) = tmp_path.iterdir()
    assert_same_weights(run, train(**options)["run_dir"])


def test_what_is_noted_goes_with_a_run():
    noting = importlib.import_module("noting")
    assert doctest.testmod(noting).attempted == 3
    noted, other = noting.Noted(), noting.Noted(old=[9.0])
    noted.note("loss", torch.tensor(0.5))
    noted.note("loss", 0.25)
    other.load_state_dict(noted.state_dict())
    noted.note("loss", 1.0)
    assert other == {"loss": [0.5, 0.25]}


def test_other_plugins_take_the_place_of_the_scripts_own(tmp_path):
    shaping = tmp_path / "shaping.yaml"
    shaping.write_text("[Clamp: {low: -0.01, high: 0.01, where: head.weight}]", encoding="utf-8")
    script = importlib.import_module("train_forecaster")
    run = script.train(epochs=1, plugins=shaping, runs=tmp_path)["run_dir"]
    assert weights_of(run)["head.weight"].abs().max() <= 0.01


# -------------------------------------------------------------------- the GAN


def test_no_layer_of_the_trained_discriminator_amplifies_by_more_than_1(tmp_path, monkeypatch):
    script = importlib.import_module("train_gan")
    trainers = []
    train = Launch.train
    monkeypatch.setattr(
        Launch, "train", lambda launch, trainer, data: [trainers.append(trainer), train(launch, trainer, data)]
    )
    script.train(epochs=2, runs=tmp_path)
    discriminator = trainers[0].models["discriminator"].eval()
    largest = [torch.linalg.matrix_norm(discriminator[layer].weight, 2).item() for layer in (1, 3, 5)]
    assert max(largest) <= 1.02  # one step of power iteration an update follows a weight that moves
    free = script.train(epochs=2, runs=tmp_path, plugins=Path("none"))
    found = weights_of(free["run_dir"])
    assert torch.linalg.matrix_norm(found["discriminator.3.weight"], 2) > 1.1


# -------------------------------------------------------------------- the forecaster


def test_a_learning_rate_at_which_the_unbounded_network_diverges_is_survived(tmp_path):
    train = importlib.import_module("train_forecaster").train
    options = {"epochs": 8, "cell": "GRU", "learning_rate": 10.0, "runs": tmp_path}
    with pytest.raises(NonFiniteError, match="update"):
        train(plugins=Path("none"), **options)
    found = train(**options)
    assert found["largest_weight"] <= 1.0
    assert found["error"] < 4 * found["naive_error"]


def test_no_value_that_is_validated_on_was_trained_on():
    data = importlib.import_module("real_data")
    for name, season in data.SEASONS.items():
        values = data.series(name) / data.spread(name)
        trained, judged = (data.Windows(name, part).tensors for part in ("training", "validation"))
        border = len(values) * 3 // 4
        assert torch.equal(trained[1][-1], values[border - season : border])
        assert torch.equal(judged[1][0], values[border : border + season])
        assert torch.equal(judged[1][-1], values[-season:])


# -------------------------------------------------------------------- segmentation


def test_slices_next_to_those_that_are_validated_on_are_left_out():
    data = importlib.import_module("real_data")
    images, _ = data.brain()
    places = {image.numpy().tobytes(): place for place, image in enumerate(images)}
    trained = [places[image.numpy().tobytes()] for image, _ in data.Slices("training")]
    assert (len(trained), len(set(trained))) == (29, 29)
    assert min(abs(place - judged) for place in trained for judged in range(20, 32)) == 3
    with pytest.raises(data.ConfigurationError, match="labelled is 1 to 29, not 30"):
        data.Slices("training", 30)
    few = [places[image.numpy().tobytes()] for image, _ in data.Slices("training", 4)]
    assert set(few) < set(trained)


def test_dice_is_that_of_its_definition_and_pictures_are_shown(runs):
    script = importlib.import_module("train_segmentation")
    found = script.train(epochs=10, runs=runs / "train_segmentation", labelled=2)
    events = EventAccumulator(str(found["run_dir"]), size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Images("predictions")] == [10]
    model = script.UNet()
    model.load_state_dict(weights_of(found["run_dir"]))
    images, tissues = script.Slices("validation")[:]
    said = model(images).argmax(dim=1)
    for place, tissue in enumerate(script.TISSUES[1:], start=1):
        both = ((said == place) & (tissues == place)).sum()
        expected = 2 * both / ((said == place).sum() + (tissues == place).sum())
        assert found[tissue] == pytest.approx(expected.item(), abs=1e-4)


# -------------------------------------------------------------------- fine-tuning


def test_kept_is_the_first_tasks_accuracy_with_its_own_head(runs):
    script = importlib.import_module("finetune")
    still = script.train(epochs=1, learning_rate=1e-9, runs=runs / "finetune")
    weights, _ = script.first_task(runs / "finetune", 0)
    model = script.FiveDigits()
    model.load_state_dict(read_tensors(weights))
    images, labels = script.SomeDigits(0, "validation").tensors
    assert still["kept"] == pytest.approx((model(images).argmax(dim=1) == labels).double().mean().item())
    assert still["kept"] > 0.9


# -------------------------------------------------------------------- compression


def test_compression_is_measured_and_drawn(tmp_path, capsys):
    script = importlib.import_module("compress")
    script.dense_model(tmp_path / "dense_0.safetensors", 0, epochs=1)
    found = script.train(epochs=1, sparsities=(0.9,), pruning_epochs=1, runs=tmp_path)
    assert found["90% pruned"]["zeros"] == pytest.approx(0.9, abs=1e-4)
    assert found["2:4"]["zeros"] == pytest.approx(0.5, abs=1e-3)
    assert found["90% pruned, int8"]["bytes"] < found["int8"]["bytes"] < found["dense"]["bytes"] / 3
    assert found["90% pruned"]["bytes"] < found["dense"]["bytes"] / 5
    assert (tmp_path / "compress.png").stat().st_size > 10_000
    assert "90% pruned, int8" in capsys.readouterr().out
    again = script.train(epochs=2, sparsities=(0.9,), pruning_epochs=1, runs=tmp_path, resume="auto")
    assert again["90% pruned"]["zeros"] == pytest.approx(0.9, abs=1e-4)
    with pytest.raises(ConfigurationError, match="takes auto, not"):
        script.train(runs=tmp_path, resume=str(tmp_path / "dense"))
    names = ["2_4", "90_pruned", "90_pruned_int8", "dense", "int8"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == names
    (run,) = (tmp_path / "2_4").iterdir()
    kept = weights_of(run)["7.weight"].unflatten(1, (-1, 4)) != 0
    assert (kept.sum(dim=2) <= 2).all()


# -------------------------------------------------------------------- the first things that people ask for


def test_each_plugin_does_what_is_done_by_hand_and_no_other():
    script = importlib.import_module("customise_weights")
    images, labels = script.Digits("training").tensors
    batches = list(zip(images.split(64), labels.split(64), strict=True))[:5]

    def trained(train, *arguments):
        torch.manual_seed(0)
        return train(*arguments, batches, 1)

    plugins = {name: trained(script.by_plugin, plugin) for name, (plugin, _) in script.PAIRS.items()}
    hands = {name: trained(by_hand.train) for name, (_, by_hand) in script.PAIRS.items()}
    for name, weight in plugins.items():
        torch.testing.assert_close(weight, hands[name], rtol=1e-5, atol=1e-6)
        others = [(weight - hand).abs().max() for other, hand in hands.items() if other != name]
        assert min(others) > 1e-4, name


def test_a_difference_is_an_error(tmp_path, monkeypatch):
    script = importlib.import_module("customise_weights")
    plugin, _ = script.PAIRS["L1"]
    wrong = dataclasses.replace(plugin, strength=2e-3)
    monkeypatch.setitem(script.PAIRS, "L1", (wrong, script.PAIRS["L1"][1]))
    assert script.train.main(["--epochs=1", f"--runs={tmp_path}"]) == 1
    assert not list(tmp_path.iterdir())
