"""The command line: what it prints, writes and returns."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from ignite.engine import Events
from safetensors.torch import load_file
from weightsmith.cli import main
from weightsmith.recipe import prepare, read_recipe

RECIPE = """\
model: {pieces.Net: {width: 6}}
loss: CrossEntropyLoss
optimizer: {SGD: {lr: 0.1, momentum: 0.9}}
data: {DataLoader: {dataset: pieces.points, batch_size: 16, shuffle: true}}
validation: {DataLoader: {dataset: pieces.points, batch_size: 64}}
metrics: {accuracy: Accuracy}
epochs: 3
plugins:
  - MaxNorm: {limit: 0.7, where: 0.weight}
  - Clamp: {low: -0.1, high: 0.1, where: 2.weight, mode: forward}
  - L2: {strength: {linear: {start: 1e-2, end: 0}}, where: matrices}
  - EMA: 0.5
"""


@pytest.fixture
def run(pieces, monkeypatch, capfd):
    """Runs a command in a folder with a recipe; its exit code, output and errors."""
    monkeypatch.chdir(pieces)
    Path("shaping.yaml").write_text(RECIPE, encoding="utf-8")

    def command(*arguments):
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = stopped.code
        return code, *capfd.readouterr()

    return command


def runs():
    return sorted(Path("runs").glob("*/*"))


def files():
    return sorted(path for path in Path().rglob("*") if "__pycache__" not in path.parts)


# -------------------------------------------------------------------- train, resume, export, compare


def test_train_says_a_line_an_epoch_and_what_came_of_it(run):
    code, output, _ = run("train", "shaping.yaml")
    assert code == 0
    lines = output.splitlines()
    for epoch in (1, 2, 3):
        assert lines[epoch - 1].startswith(f"epoch {epoch}/3  loss ")
        assert "  accuracy " in lines[epoch - 1]
        assert lines[epoch - 1].endswith("  violations 0")
    (folder,) = runs()
    assert "12 updates in " in output
    assert f"the run is in {folder}" in output
    assert " view " not in output  # nothing was logged
    assert " report " not in output
    assert folder.parent.name == "shaping"
    assert (folder / "checkpoints" / "00000012").is_dir()


@pytest.mark.parametrize(("sink", "commands"), [("TensorBoard", ["view", "report"]), ("JSONLines", ["report"])])
def test_the_summary_names_the_commands_that_can_look_at_the_run(run, sink, commands):
    _, output, _ = run("train", "shaping.yaml", "--set", "epochs=1", f"plugins=[Losses, {sink}]")
    (folder,) = runs()
    shown = re.findall(rf"^  .*weightsmith (\w+) {folder}$", output, flags=re.MULTILINE)
    assert shown == commands


def test_an_epoch_whose_metric_is_no_number_leaves_the_extremes_of_the_others(run):
    with Path("pieces.py").open("a", encoding="utf-8") as file:
        file.write(
            "\n\nfrom ignite.metrics import Metric\n\n\nclass Odd(Metric):\n    times = 0\n\n    def reset(self):\n"
            "        pass\n\n    def update(self, output):\n        pass\n\n    def compute(self):\n"
            "        self.times += 1\n        return float('nan') if self.times != 2 else 0.5\n"
        )
    _, output, _ = run("train", "shaping.yaml", "--set", "metrics={odd: pieces.Odd}")
    assert "odd nan  (least 0.5 in epoch 2, most 0.5 in 2)" in output
    _, output, _ = run("train", "shaping.yaml", "--set", "metrics={odd: pieces.Odd}", "epochs=1")
    assert "odd nan  (never a finite number)" in output


def test_a_metric_called_loss_is_told_beside_the_training_loss(run):
    loss = "metrics={loss: {Loss: {loss_fn: CrossEntropyLoss}}}"
    _, output, _ = run("train", "shaping.yaml", "--set", "seed=3", "epochs=1")
    training = output.split()[3]
    _, output, _ = run("train", "shaping.yaml", "--set", "seed=3", "epochs=1", loss)
    line, *_, summary, _ = output.splitlines()
    shown = re.fullmatch(rf"epoch 1/1  training loss {training}  loss (\S+)  violations 0", line)
    assert shown is not None
    assert shown[1] != training
    assert summary.startswith(f"  loss {shown[1]}  (least ")


def test_the_loss_of_an_epoch_is_the_mean_over_its_updates(run):
    _, output, _ = run("train", "shaping.yaml", "--set", "seed=3")
    shown = float(output.split("loss ")[1].split()[0])
    experiment = prepare(read_recipe("shaping.yaml", ["seed=3"]))
    losses = []
    trainer = experiment.trainer
    trainer.add_event_handler(Events.EPOCH_COMPLETED, trainer.terminate)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: losses.append(float(trainer.state.output)))
    experiment.run()
    assert shown == pytest.approx(sum(losses) / len(losses), rel=1e-3)


def test_the_resolved_recipe_trained_again_is_the_same_run(run):
    run("train", "shaping.yaml")
    (first,) = runs()
    assert isinstance(yaml.safe_load((first / "recipe.yaml").read_text())["seed"], int)
    assert run("train", first / "recipe.yaml")[0] == 0
    second = next(path for path in runs() if path != first)
    code, output, _ = run("compare", first, second)
    assert (code, output) == (0, "recipe: the same\nmetrics: the same\nweights: the same\n")


def test_compare_says_what_differs(run):
    run("train", "shaping.yaml", "--set", "seed=1")
    run("train", "shaping.yaml", "--set", "seed=1", "optimizer.lr=0.2", "--set", "model.width=5")
    first, second = runs()
    code, output, _ = run("compare", first, second)
    assert code == 1
    assert "  optimizer.SGD.lr: 0.1 | 0.2" in output
    assert "  model.pieces.Net.width: 6 | 5" in output
    assert "  0.weight: float32 [6, 4] | float32 [5, 4]" in output
    assert "  2.bias: largest difference " in output


def test_resume_ends_where_a_longer_run_ends(run):
    text = RECIPE.replace("{linear: {start: 1e-2, end: 0}}", "1e-2")  # a schedule over the run would see its length
    Path("plain.yaml").write_text(text + "seed: 4\n", encoding="utf-8")
    run("train", "plain.yaml")
    (short,) = runs()
    code, output, _ = run("resume", short, "--epochs", 5)
    assert code == 0
    assert f"going on from {short / 'checkpoints' / '00000012'}" in output
    assert "epoch 4/5" in output
    assert re.search(r"^8 updates in \S+ s, since epoch 4, up to epoch 5$", output, flags=re.MULTILINE)
    assert "  (since epoch 4, least " in output
    assert "epoch 3/5" not in output
    run("train", "plain.yaml", "--set", "epochs=5")
    long = next(path for path in runs() if path != short)
    assert run("compare", short, long)[0] == 0


def test_resuming_a_run_that_is_over_trains_nothing(run):
    run("train", "shaping.yaml")
    code, output, _ = run("resume", runs()[0])
    assert code == 0
    assert "0 updates" in output


def test_a_resume_that_is_refused_changes_nothing(run):
    run("train", "shaping.yaml")
    (folder,) = runs()
    before = (folder / "recipe.yaml").read_bytes()
    code, _, errors = run("resume", folder, "--epochs", 2)
    assert code == 2
    assert f"the run in {folder} is in epoch 3 already" in errors
    code, _, errors = run("resume", folder, "--device", "nowhere")
    assert code == 2
    assert "nowhere" in errors
    assert (folder / "recipe.yaml").read_bytes() == before
    assert run("resume", folder, "--device", "cpu")[0] == 0


def test_a_run_on_one_batch_goes_on_with_one_batch(run):
    run("train", "shaping.yaml", "--overfit-one-batch", "--set", "seed=1")
    run("train", "shaping.yaml", "--overfit-one-batch", "--set", "seed=1", "epochs=4", "plugins=[MaxNorm: 9]")
    short, long = runs()
    assert "one_batch: true" in (short / "recipe.yaml").read_text(encoding="utf-8")
    assert run("resume", long, "--epochs", 6)[0] == 0
    run("train", "shaping.yaml", "--overfit-one-batch", "--set", "seed=1", "epochs=6", "plugins=[MaxNorm: 9]")
    whole = next(path for path in runs() if path not in (short, long))
    assert run("compare", long, whole)[0] == 0


def test_a_run_is_repeated_and_resumed_from_elsewhere_in_another_process(run, pieces):
    (pieces / "parcel").mkdir()
    (pieces / "parcel" / "__init__.py").write_text(Path("pieces.py").read_text(encoding="utf-8"), encoding="utf-8")
    Path("pieces.py").unlink()  # a package alone stands beside the recipe
    Path("shaping.yaml").write_text(RECIPE.replace("pieces.", "parcel."), encoding="utf-8")
    assert run("train", "shaping.yaml")[0] == 0
    (first,) = (path.resolve() for path in runs())
    elsewhere = pieces / "elsewhere"
    elsewhere.mkdir()
    for command in (["train", str(first / "recipe.yaml")], ["resume", str(first)]):
        with command_line(*command, cwd=elsewhere) as process:
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    second = next(path for path in runs() if path.resolve() != first)
    assert run("compare", first, second)[0] == 0


@pytest.mark.parametrize("averaged", [False, True])
def test_export_writes_what_a_plain_model_computes_with(run, averaged):
    run("train", "shaping.yaml", "--set", "seed=2")
    (folder,) = runs()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, output, _ = run("export", folder, "out.safetensors", *(["--averaged"] if averaged else []))
    assert code == 0
    assert f"4 tensors of {folder}" in output
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found = load_file("out.safetensors")
    assert list(found) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert found["2.weight"].abs().max() <= 0.1
    experiment = prepare(read_recipe("shaping.yaml", ["seed=2"]))
    experiment.run()
    model = sys.modules["pieces"].Net(width=6)
    model.load_state_dict(found)
    inputs = torch.randn(5, 4)
    trainer = experiment.trainer
    if not averaged:
        assert torch.equal(model(inputs), trainer.model(inputs))
        return
    with trainer.averaged():
        assert torch.equal(model(inputs), trainer.model(inputs))
    assert not torch.equal(model(inputs), trainer.model(inputs))


def test_export_overwrites_a_file_only_where_it_is_told_to(run):
    run("train", "shaping.yaml", "--set", "epochs=1")
    (folder,) = runs()
    Path("out.safetensors").write_text("mine", encoding="utf-8")
    code, _, errors = run("export", folder, "out.safetensors")
    assert code == 2
    assert "out.safetensors would be overwritten, so nothing was written" in errors
    assert Path("out.safetensors").read_text(encoding="utf-8") == "mine"
    assert run("export", folder, "out.safetensors", "--overwrite")[0] == 0
    assert len(load_file("out.safetensors")) == 4


def test_overfitting_one_batch_learns_it_by_heart(run):
    text = RECIPE.partition("plugins:")[0]
    Path("free.yaml").write_text(text, encoding="utf-8")
    code, output, _ = run("train", "free.yaml", "--overfit-one-batch", "--set", "epochs=40", "seed=1", "model.width=32")
    assert code == 0
    assert "epoch 40/40" in output
    assert "accuracy 1 " in output.partition("epoch 40/40")[2]
    assert [path.parent.name for path in runs()] == ["free-one-batch"]


def test_a_profile_lands_beside_the_events(run):
    code, output, _ = run("train", "shaping.yaml", "--profile", "--set", "epochs=5")
    assert code == 0
    (trace,) = runs()[0].glob("*.pt.trace.json")
    assert "Self CPU" in output
    assert "aten::" in output  # which of them is among the longest depends on what else the machine does
    assert f"the trace is in {trace}" in output


@pytest.mark.parametrize(("count", "profiled"), [(32, 1), (128, 3), (256, 10)])
def test_of_a_short_run_fewer_iterations_are_profiled(run, count, profiled):
    sizes = ["epochs=1", f"data.dataset={{pieces.points: {{count: {count}}}}}"]
    assert run("train", "shaping.yaml", "--profile", "--set", *sizes)[0] == 0
    (trace,) = runs()[0].glob("*.pt.trace.json")
    assert len(set(re.findall(r'"ProfilerStep#(\d+)"', trace.read_text(encoding="utf-8")))) == profiled


def test_a_run_that_is_too_short_for_a_profile_says_so(run):
    sizes = ["epochs=1", "data.dataset={pieces.points: {count: 16}}"]
    code, output, _ = run("train", "shaping.yaml", "--profile", "--set", *sizes)
    assert code == 0
    assert "the run was too short for a profile, which begins after iteration 1" in output
    assert "trace is in" not in output


# -------------------------------------------------------------------- plan, plugins


def test_plan_tells_all_and_writes_nothing(run):
    before = files()
    code, output, _ = run("plan", "shaping.yaml", "--set", "accumulate=3", "plugins.EMA.where=matrices")
    assert code == 0
    assert files() == before
    assert "51 weights in 4 tensors; 3 epochs of 4 batches, 2 updates each\n" in output
    assert "strength: 0.01 at 0%, 0.0075 at 25%" in output
    assert output.index("FORWARD") < output.index("GRADIENTS_COMPUTED") < output.index("WEIGHTS_EDITED")
    assert "SHAPED BY NONE\n      0.bias, 2.bias" in output


def test_plan_names_every_conflict(run):
    conflicts = "  - Simplex: {where: 0.weight}\n  - Symmetric: {where: 2.weight}\n  - L1: {strength: 1, where: conv}\n"
    Path("bad.yaml").write_text(RECIPE.replace("  - Clamp", "  # - Clamp") + conflicts, encoding="utf-8")
    code, output, errors = run("plan", "bad.yaml")
    assert (code, output) == (2, "")
    first, second, third = errors.splitlines()
    assert first.startswith("error: bad.yaml:13: two constraints claim the weight '0.weight'")
    assert second.startswith("error: bad.yaml:14: Symmetric(where='2.weight'): weight '2.weight' has shape (3, 6): ")
    assert third.startswith("error: bad.yaml:15: L1(strength=1, where='conv'): where='conv' matches no weight")


def test_plugins_lists_by_kind_and_tells_all_about_one(run):
    code, output, _ = run("plugins")
    assert code == 0
    kinds = [line for line in output.splitlines() if not line.startswith(" ")]
    assert kinds[:3] == ["Initializer", "Penalty", "GradientEditor"]
    assert "  MaxNorm(limit)\n      ‖w_u‖₂ ≤ limit" in output
    code, output, _ = run("plugins", "MaxNorm")
    assert code == 0
    for part in ("MaxNorm(limit)", "Constraint, weightsmith_plugins", "WEIGHTS_EDITED", "Args:"):
        assert part in output
    assert "  limit: float (needed)" in output
    assert "  where: Where = matrices" in output
    code, _, errors = run("plugins", "MaxNrm")
    assert code == 2
    assert "did you mean 'MaxNorm'?" in errors


# -------------------------------------------------------------------- what is refused

BROKEN = {
    "a misspelt class": ("MaxNorm", "MaxNrm", 9, "did you mean 'MaxNorm'?"),
    "a wrong type": ("limit: 0.7", "limit: wide", 9, "MaxNorm.limit: 'wide' is a str, where the field takes float"),
    "an unknown field": ("limit: 0.7", "limt: 0.7", 9, "did you mean 'limit'?"),
    "an unmatched selector": ("where: 0.weight", "where: 7.weight", 9, "the nearest are '2.weight'"),
    "a bad schedule": ("end: 0}}", "ende: 0}}", 11, "linear takes start, end, over and after"),
    "a missing file": ("- EMA: 0.5", "- Pretrained: nowhere.safetensors", 12, "nowhere.safetensors"),
    "no YAML": ("{width: 6}", "{width: 6", 2, "it is no YAML"),
    "a key twice": ("epochs: 3", "epochs: 3\nepochs: 4", 8, "stands here a second time, first shaping.yaml:7"),
    "an unsafe tag": ("epochs: 3", "epochs: !!python/object/apply:os.mkdir [hacked]", 7, "is not taken"),
    "nothing that a plugin could select": (
        "- EMA: 0.5",
        "- Checkpoints\n  - L1: {strength: 1, where: 9.weight}",
        13,
        "where='9.weight' matches no weight",
    ),
    "constraints that conflict": ("- EMA: 0.5", "- UnitNorm: {where: 0.weight}", 12, "two constraints claim"),
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_broken_recipe_is_refused_with_its_line_and_nothing_is_written(run, what, command):
    old, new, line, message = BROKEN[what]
    assert RECIPE.count(old) == 1
    Path("shaping.yaml").write_text(RECIPE.replace(old, new), encoding="utf-8")
    before = files()
    code, output, errors = run(command, "shaping.yaml")
    assert code == 2
    assert output == ""
    assert f"shaping.yaml:{line}: " in errors
    assert message in errors
    assert "Traceback" not in errors
    assert files() == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train"], 2, "the following arguments are required"),
        (["trian", "x.yaml"], 2, "invalid choice: 'trian'"),
        (["train", "nowhere.yaml"], 2, "nowhere.yaml: it cannot be read: No such file"),
        (["train", "shaping.yaml", "--set", "epochs"], 2, "write path=value"),
        (["train", "--set", "optimizer.lr=0.1", "shaping.yaml"], 2, "'shaping.yaml' sets nothing: write path=value"),
        (["resume", "nowhere"], 2, "there is no run nowhere"),
        (["resume", "."], 2, "has no recipe.yaml"),
        (["export", "nowhere", "x.safetensors"], 2, "there is no run nowhere"),
        (["view", "nowhere"], 2, "there is no folder nowhere"),
        (["view", "."], 2, "was logged for TensorBoard"),
        (["compare", "nowhere", "."], 2, "nowhere"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(run, arguments, code, message):
    before = files()
    found, _, errors = run(*arguments)
    assert found == code
    assert message in errors
    assert "Traceback" not in errors
    assert files() == before


def test_an_exception_in_the_run_is_told_with_its_place_and_returns_1(run):
    with Path("pieces.py").open("a", encoding="utf-8") as file:
        file.write("\n\ndef fail(trainer, batch):\n    raise KeyError('mine')\n")
    text = RECIPE.replace("loss: CrossEntropyLoss", "step: pieces.fail")
    Path("failing.yaml").write_text(text, encoding="utf-8")
    code, _, errors = run("train", "failing.yaml")
    assert code == 1
    (folder,) = runs()
    file = Path("pieces.py").resolve()
    line = len(file.read_text(encoding="utf-8").splitlines())
    assert errors.splitlines() == [
        "error: KeyError: 'mine'",
        f"  in {file}:{line}, in fail: raise KeyError('mine')",
        f"  the whole traceback is in {folder / 'traceback.txt'}",
    ]
    whole = (folder / "traceback.txt").read_text(encoding="utf-8")
    assert whole.startswith("Traceback (most recent call last):")
    assert whole.endswith("KeyError: 'mine'\n")
    assert not (folder / "checkpoints").exists()  # nothing was trained


WRONG = {
    "inputs of another width": (
        "model={Sequential: [{Linear: [4, 6]}, {Linear: [7, 3]}]}",
        [
            "error: RuntimeError: mat1 and mat2 shapes",
            "  in the module '1', Linear(in_features=7, out_features=3, bias=True)",
        ],
    ),
    "a layer for a loss": (
        "loss=ReLU",
        ["error: TypeError: ReLU.forward() takes 2 positional arguments but 3 were given", "  in the loss, ReLU()"],
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_of_an_everyday_mistake_it_is_said_which_module_failed(run, what):
    change, told = WRONG[what]
    code, _, errors = run("train", "shaping.yaml", "--set", "plugins=[Checkpoints]", change)
    assert code == 1
    lines = errors.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(start) for line, start in zip(lines, told, strict=False))
    (folder,) = runs()
    assert not list((folder / "checkpoints").iterdir())


def test_after_training_has_begun_a_crash_is_saved_and_told_of(run):
    with Path("pieces.py").open("a", encoding="utf-8") as file:
        file.write(
            "\n\nfrom weightsmith import WeightEditor\n\n\nclass Ends(WeightEditor):\n"
            "    def edit(self, weight, gradient, site):\n        return weight * (1 // (site.update < 3))\n"
        )
    code, _, errors = run("train", "shaping.yaml", "--set", "plugins=[pieces.Ends]")
    assert code == 1
    (folder,) = runs()
    first, *others = errors.splitlines()
    assert first.startswith("error: ZeroDivisionError: ")
    assert any("in edit: return weight * (1 // (site.update < 3))" in line for line in others)
    assert {"  on weight '0.weight'", "  in Ends() on STEP_COMPLETED, update 3, epoch 1"} <= set(others)
    assert f"  the run as it was then is saved in {folder / 'checkpoints' / 'crash'}" in others


def test_an_error_of_configuration_in_the_run_returns_1_with_its_notes(run):
    with Path("pieces.py").open("a", encoding="utf-8") as file:
        file.write(
            "\n\nfrom weightsmith import ConfigurationError, WeightEditor\n\n\nclass Late(WeightEditor):\n"
            "    def edit(self, weight, gradient, site):\n        if site.update > 2:\n"
            "            raise ConfigurationError('too late')\n        return weight\n"
        )
    code, _, errors = run("train", "shaping.yaml", "--set", "plugins=[pieces.Late]")
    assert code == 1
    assert errors.startswith("error: ")
    assert "too late" in errors
    assert "  the run as it was then is saved in " in errors


def test_a_run_that_another_process_goes_on_with_is_refused_with_2(run):
    run("train", "shaping.yaml")
    (folder,) = runs()
    with FileLock(folder / ".lock"):
        code, _, errors = run("resume", folder, "--epochs", "5")
    assert code == 2
    assert "error: another process runs in " in errors


def test_a_run_that_becomes_infinite_says_so_in_a_line(run):
    code, _, errors = run("train", "shaping.yaml", "--set", "optimizer.lr=1e38", "plugins=[]")
    assert code == 1
    assert errors.startswith("error: ")
    assert "Traceback" not in errors


SINGING = """
def sing(times: int = 1) -> None:
    '''Sing.'''
    print("la " * times)


def quiet(times: "no.such.Type") -> None:
    return None


number = 3
"""


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Adds commands, as distributions that are installed do."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "singing.py").write_text(SINGING, encoding="utf-8")
    (tmp_path / "singing_too.py").write_text(SINGING, encoding="utf-8")
    (tmp_path / "leaving.py").write_text("raise SystemExit('gone')", encoding="utf-8")

    def add(entry_point, distribution="other-commands"):
        info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[weightsmith.commands]\n{entry_point}\n", encoding="utf-8")

    yield add
    for module in ("singing", "singing_too"):
        sys.modules.pop(module, None)


def test_a_command_of_others_is_one_of_the_commands(run, added):
    added("sing = singing:sing")
    assert run("sing", "2") == (0, "la la \n", "")


@pytest.mark.parametrize(
    ("entry_point", "reason"),
    [
        ("sing = no_such_module:sing", "its command sing cannot be loaded: ModuleNotFoundError"),
        ("sing = leaving:sing", "its command sing cannot be loaded: SystemExit: gone"),
        (
            "sing = singing:number",
            "its command sing cannot be loaded: ConfigurationError: singing:number is no function",
        ),
        ("sing = singing:quiet", "its command sing cannot be loaded: NameError"),
        ("plugins = singing:sing", "its command plugins is left out, as weightsmith has one of that name"),
        ("view = singing:sing", "its command view is left out, as weightsmith has one of that name"),
    ],
)
def test_a_command_of_others_that_cannot_be_used_is_reported_and_leaves_the_others_working(
    run, added, entry_point, reason
):
    added(entry_point)
    added("hum = singing:sing", "humming")
    code, output, errors = run("plugins", "MaxNorm")
    assert code == 0
    assert "MaxNorm(limit)" in output
    assert errors.startswith(f"warning: other-commands: {reason}")
    assert run("view", "nowhere")[0] == 2
    assert run("hum")[:2] == (0, "la \n")


def test_two_commands_of_one_name_are_both_left_out_and_reported(run, added):
    added("sing = singing:sing", "first-one")
    added("sing = singing_too:sing", "second-one")
    code, _, errors = run("sing")
    assert code == 2
    assert errors.startswith("warning: first-one, second-one: each has a command sing: uninstall all but one\n")
    assert run("plugins", "MaxNorm")[0] == 0


def test_one_command_that_is_announced_twice_is_one(run, added):
    added("sing = singing:sing", "first-one")
    added("sing = singing:sing", "second-one")
    assert run("sing") == (0, "la \n", "")


# -------------------------------------------------------------------- as a process


def heed():
    """Ctrl-C, which is ignored in background jobs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def command_line(*arguments, **options):
    command = [str(Path(sys.executable).with_name("weightsmith")), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_ctrl_c_saves_the_run_and_says_how_to_go_on(run, pieces):
    process = command_line("train", "shaping.yaml", "--set", "epochs=1000000", cwd=pieces, preexec_fn=heed)
    try:
        assert process.stdout.readline().startswith("epoch ")  # a line an epoch, also into a pipe
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    (saved,) = runs()
    assert f"SIGINT stopped the run, which is saved in {saved}" in errors
    assert f"go on with: weightsmith resume {saved}" in errors
    assert "Traceback" not in errors
    assert run("export", saved, "saved.safetensors")[0] == 0


def test_sigterm_before_the_run_has_begun_leaves_nothing(run, pieces):
    slow = (
        "def slow() -> Net:\n    import time\n\n    print('making', flush=True)\n    time.sleep(60)\n    return Net()\n"
    )
    with Path("pieces.py").open("a", encoding="utf-8") as file:
        file.write(f"\n\n{slow}")
    Path("slow.yaml").write_text(RECIPE.replace("pieces.Net: {width: 6}", "pieces.slow"), encoding="utf-8")
    before = files()
    with command_line("train", "slow.yaml", cwd=pieces) as process:
        assert process.stdout.readline() == "making\n"
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 143
    assert files() == before


def test_a_reader_that_goes_away_ends_the_command_quietly(run, pieces):
    with command_line("plugins", cwd=pieces) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 1
    assert "Traceback" not in errors


def test_completion_for_shells_is_printed(run, pieces):
    process = command_line("--print_completion=shtab-bash", cwd=pieces)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "overfit-one-batch" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_view_serves_tensorboard_until_it_is_stopped(run, pieces, number):
    run("train", "shaping.yaml", "--set", "plugins=[Losses, TensorBoard]")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with command_line("view", "runs", "--port", "0", cwd=pieces, env=environment, preexec_fn=heed) as process:
        try:
            line = next((line for line in process.stderr if "http://" in line), "")
            address = line.partition(" at ")[2].split()[0]
            with urllib.request.urlopen(f"{address}data/runs", timeout=30) as answer:
                assert [Path("runs") / name for name in json.load(answer)] == runs()
        finally:
            process.send_signal(number)
            process.stderr.read()
    assert process.returncode in (0, -number)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address, timeout=30)
