"""Where sinks write: each run in a place of its own, and the telling charts on one page."""

import json
import re
import subprocess
import sys
import threading

import pytest
import torch
import weightsmith_plugins as w
from ignite.engine import Events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch import nn
from weightsmith import Trainer
from weightsmith_plugins.dashboard import charts

BATCHES = [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(2)]


def trainer_with(*plugins, **options):
    model = nn.Linear(3, 2)
    return Trainer(model, torch.optim.SGD(model.parameters(), lr=0.05), nn.MSELoss(), plugins=plugins, **options)


def steps(folder, tag="loss/optimizer"):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [event.step for event in accumulator.Scalars(tag)]


def lines(path):
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_that_begins_anew_has_a_place_of_its_own(tmp_path, caplog):
    trainer = trainer_with(w.Losses(), w.TensorBoard(), w.JSONLines(), run_dir=tmp_path)
    trainer.run(BATCHES, max_epochs=2)
    assert caplog.text == ""
    trainer.run(BATCHES, max_epochs=3)  # goes on
    trainer.run(BATCHES, max_epochs=3)  # begins anew
    other = trainer_with(w.Losses(), w.TensorBoard(), w.JSONLines(), run_dir=tmp_path)
    other.run(BATCHES, max_epochs=1)
    assert [steps(tmp_path / place) for place in ("", "run_2", "run_3")] == [[1, 2, 3], [1, 2, 3], [1]]
    files = [tmp_path / place / "measurements.jsonl" for place in ("", "run_2", "run_3")]
    assert [lines(path) for path in files] == [[1, 2, 3], [1, 2, 3], [1]]
    assert f"{tmp_path} holds another run: this one is written to {tmp_path / 'run_2'}" in caplog.text


def test_a_run_that_was_resumed_goes_on_where_it_was(tmp_path):
    first = trainer_with(w.Losses(), w.TensorBoard(), w.JSONLines(), run_dir=tmp_path)
    first.run(BATCHES, max_epochs=2)
    resumed = trainer_with(w.Losses(), w.TensorBoard(), w.JSONLines(), run_dir=tmp_path)
    resumed.load_state_dict(first.state_dict())
    resumed.run(BATCHES, max_epochs=4)
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert lines(tmp_path / "measurements.jsonl") == [1, 2, 3, 4]


def test_a_sink_that_is_detached_writes_nothing_more_and_ends_its_thread(tmp_path):
    board = w.TensorBoard(str(tmp_path))
    trainer = trainer_with(w.Losses(), board)
    trainer.on(Events.EPOCH_STARTED(once=3))(lambda: trainer.detach(board))
    before = threading.active_count()
    trainer.run(BATCHES, max_epochs=5)
    assert threading.active_count() == before
    assert steps(tmp_path) == [1, 2]


def test_a_sink_attached_in_mid_run_writes_from_then_on(tmp_path):
    trainer = trainer_with(w.Losses())
    trainer.on(Events.EPOCH_STARTED(once=3))(lambda: trainer.attach(w.TensorBoard(str(tmp_path))))
    trainer.run(BATCHES, max_epochs=4)
    assert steps(tmp_path) == [3, 4]


def layout(folder):
    """Category to title to what TensorBoard takes for tags; and all tags of numbers."""
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    (event,) = accumulator.Tensors("custom_scalars__config__")
    categories = Layout.FromString(event.tensor_proto.string_val[0]).category
    found = {c.title: {chart.title: list(chart.multiline.tag) for chart in c.chart} for c in categories}
    return found, set(accumulator.Tags()["scalars"])


def test_every_number_has_its_place_on_one_page(tmp_path):
    probes = [
        w.Losses(),
        w.LearningRates(),
        w.WeightStatistics(),
        w.UpdateRatio(),
        w.GradientNorms(),
        w.PluginEffect(),
        w.DormantUnits(),
        w.SpectralNorms(),
    ]
    trainer = trainer_with(*probes, w.MaxNorm(0.5), w.ClipNorm(1.0), w.TensorBoard(str(tmp_path)))
    trainer.run(BATCHES, max_epochs=3)
    found, tags = layout(tmp_path)
    assert found["Who moved this weight?"] == {
        "weight": ["effect/weight/[^/]*$"],
        "bias": ["effect/bias/[^/]*$"],
    }
    drawn = [pattern for titles in found.values() for (pattern,) in titles.values()]
    left_out = {tag for tag in tags if not any(re.match(pattern, tag) for pattern in drawn)}
    assert left_out == set()
    assert all(any(re.match(pattern, tag) for tag in tags) for pattern in drawn)
    assert found["All weights, one line each"]["Norm"] == ["(raw_)?(weight_norm)/.*"]


@pytest.mark.parametrize("tag", ["mine/a/weight", "temperature"])
def test_a_group_that_nobody_knows_has_a_chart_too(tag):
    group = tag.partition("/")[0]
    assert charts([tag]) == {"More": {group: f"{group}(/.*)?$"}}


TWO_PROCESSES = """
import sys
import warnings

warnings.filterwarnings("ignore", category=DeprecationWarning)
import ignite.distributed as idist
import torch
import weightsmith_plugins as w
from torch import nn
from weightsmith import Trainer, WeightEvents


def train(rank, folder):
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Linear(3, 2))
    probes = [w.WeightHistograms(), w.PluginEffect(), w.Losses()]
    plugins = [*probes, w.MaxNorm(0.5), w.TensorBoard(folder), w.JSONLines(folder + "/lines")]
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), plugins=plugins)
    generator = torch.Generator().manual_seed(rank)
    batches = [(torch.randn(4, 3, generator=generator), torch.randn(4, 2, generator=generator)) for _ in range(3)]
    losses = []
    trainer.add_event_handler(WeightEvents.MICROBATCH_COMPLETED, lambda t: losses.append(t.state.losses["optimizer"]))
    trainer.run(batches, max_epochs=2)
    torch.save({"weight": model.module.weight.detach(), "losses": losses}, f"{folder}/{rank}.pt")


if __name__ == "__main__":
    idist.spawn("gloo", train, args=(sys.argv[1],), nproc_per_node=2)
"""


def test_of_two_processes_the_first_writes_what_both_share(tmp_path):
    script, folder = tmp_path / "train.py", tmp_path / "run"
    script.write_text(TWO_PROCESSES)
    subprocess.run([sys.executable, str(script), str(folder)], check=True, timeout=200, capture_output=True)
    saved = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    first, second = (of["weight"] for of in saved)
    assert torch.equal(first, second)
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    accumulator = EventAccumulator(str(folder), size_guidance={"histograms": 0})
    accumulator.Reload()
    assert [event.step for event in accumulator.Histograms("weights/weight")] == [1, 2]
    assert accumulator.Histograms("weights/weight")[-1].histogram_value.sum == pytest.approx(first.sum().item())
    tags = [(line["tag"], line["step"]) for line in map(json.loads, (folder / "lines").read_text().splitlines())]
    assert len(tags) == len(set(tags)) > 10
    of_both = torch.stack([loss for of in saved for loss in of["losses"][3:]])
    assert accumulator.Scalars("loss/optimizer")[-1].value == pytest.approx(of_both.mean().item(), rel=1e-5)
