"""The main job, small: it learns, keeps its promises, and leaves a run behind that TensorBoard can read."""

import functools
import importlib.util
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from weightsmith.recipe import from_plain

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_digits.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_digits", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(SCRIPT), "--epochs=4", f"--runs={folder}"]
    return folder, subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_it_learns_and_keeps_its_invariants(run):
    _, output = run
    epochs = re.findall(
        r"epoch.*  accuracy ([\d.]+)  .*_norm ([\d.]+)  largest_head_weight ([\d.]+)  violations (\d+)", output
    )
    assert len(epochs) == 4
    for _, norm, weight, violations in epochs:
        assert float(norm) <= 1.5
        assert float(weight) <= 0.3
        assert violations == "0"
    assert float(epochs[-1][0]) > 0.93


def test_it_says_where_the_run_is_and_how_to_view_it(run):
    folder, output = run
    (run_dir,) = folder.iterdir()
    assert f"the run is in {run_dir}" in output
    assert f"weightsmith view {run_dir}" in output


def test_the_configuration_beside_the_events_describes_the_run(run, script):
    folder, _ = run
    (path,) = folder.glob("*/config.yaml")
    configuration = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert configuration["options"]["epochs"] == 4
    assert configuration["options"]["max_norm"] == 1.5
    plugins = [from_plain(plain) for plain in configuration["plugins"]]
    assert script.w.MaxNorm(1.5, where=["conv1.weight", "conv2.weight", "hidden.weight"]) in plugins
    assert script.w.Perturb(script.linear(1e-3, 0.0), where="hidden.weight") in plugins


def test_tensorboard_reads_every_weight_over_the_epochs(run, script):
    folder, _ = run
    (run_dir,) = folder.iterdir()
    events = EventAccumulator(str(run_dir), size_guidance={"histograms": 0})
    events.Reload()
    names = [f"weights/{layer}/{leaf}" for layer in ("conv1", "conv2", "hidden", "head") for leaf in ("weight", "bias")]
    tags = events.Tags()
    assert set(names) <= set(tags["histograms"])
    for name in names:
        assert [event.step for event in events.Histograms(name)] == [1, 2, 3, 4]
    assert {"loss/optimizer", "metrics/accuracy", "learning_rate/optimizer"} <= set(tags["scalars"])


def test_help_explains_every_option_with_type_and_default():
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(SCRIPT), "--help"]
    text = " ".join(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split())
    for option in ("epochs", "batch_size", "learning_rate", "l2", "max_norm", "head_bound", "seed", "device", "runs"):
        assert re.search(rf"--{option} \w+ [A-Za-z].*?\(type: .*?default: ", text), f"--{option} is not explained"


def test_the_split_keeps_validation_digits_out_of_training(script):
    train_set, test_set = script.Digits("training", seed=0), script.Digits("validation", seed=0)
    assert (len(train_set), len(test_set)) == (1437, 360)
    seen = {image.numpy().tobytes() for image, _ in train_set}
    assert sum(image.numpy().tobytes() in seen for image, _ in test_set) == 0


def test_ctrl_c_leaves_a_run_that_can_be_read(tmp_path):
    options = ["--epochs=100000", f"--runs={tmp_path}"]
    command = [sys.executable, "-u", "-W", "ignore::DeprecationWarning", str(SCRIPT), *options]
    heeds = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # it is ignored in background jobs
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeds)
    try:
        for line in process.stdout:
            if line.startswith("epoch      3/"):
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGINT
    (run_dir,) = tmp_path.iterdir()
    events = EventAccumulator(str(run_dir), size_guidance={"histograms": 0})
    events.Reload()
    assert [event.step for event in events.Histograms("weights/head/weight")][:3] == [1, 2, 3]
    assert (run_dir / "config.yaml").is_file()
