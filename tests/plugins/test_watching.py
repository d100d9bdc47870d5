"""Probes measure, TensorBoard writes: event files read back with TensorBoard's own reader."""

import importlib
import inspect
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import weightsmith_plugins as w
from ignite.handlers import ProgressBar, TensorboardLogger
from ignite.metrics import MeanSquaredError
from PIL import Image
from scipy.linalg import svdvals
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from weightsmith import ConfigurationError, Probe, Trainer, WeightEvents
from weightsmith_plugins.jsonlines import _line
from weightsmith_plugins.probes import histogram
from weightsmith_plugins.tensorboard.sink import EventFile, _append

TAILS = [
    torch.randn(4000),
    torch.randn(1000) * 1e-9,
    torch.cat([torch.zeros(500), torch.randn(500) * 100]),
    torch.full((10,), -1e-40),
    torch.tensor([3.5]),
]


def read(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"histograms": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


def run(folder, model, plugins, epochs=3, **options):
    torch.manual_seed(0)
    data = [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(2)]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    trainer = Trainer(model, optimizer, nn.MSELoss(), plugins=[*plugins, w.TensorBoard(str(folder))], **options)
    trainer.validate_on(data, {"error": MeanSquaredError()})
    trainer.run(data, max_epochs=epochs)
    return trainer


@pytest.mark.parametrize("values", TAILS, ids=range(len(TAILS)))
def test_the_histogram_is_the_one_that_torch_would_write(tmp_path, values):
    theirs = SummaryWriter(str(tmp_path))
    theirs.add_histogram("values", values, 0)
    theirs.close()
    wanted = read(tmp_path).Histograms("values")[0].histogram_value
    ours = histogram(values)
    assert ours.count == wanted.num
    assert ours.total.item() == pytest.approx(wanted.sum, rel=1e-6, abs=1e-30)
    assert ours.total_squares.item() == pytest.approx(wanted.sum_squares, rel=1e-6, abs=1e-30)
    assert (ours.minimum.item(), ours.maximum.item()) == (wanted.min, wanted.max)
    found = {limit: count for limit, count in zip(ours.limits.tolist(), ours.counts.tolist(), strict=True) if count}
    theirs_found = {limit: n for limit, n in zip(wanted.bucket_limit, wanted.bucket, strict=True) if n}
    assert list(found.values()) == list(theirs_found.values())
    assert list(found) == pytest.approx(list(theirs_found), rel=1e-12)


def test_every_weight_and_gradient_at_every_epoch(tmp_path):
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    model[0].bias.requires_grad_(False)
    run(tmp_path, model, [w.WeightHistograms(), w.GradientHistograms()])
    found = read(tmp_path)
    weights = ["weights/0/weight", "weights/0/bias", "weights/2/weight", "weights/2/bias"]
    gradients = ["gradients/0/weight", "gradients/2/weight", "gradients/2/bias"]
    assert sorted(found.Tags()["histograms"]) == sorted(weights + gradients)
    for tag in weights + gradients:
        assert [event.step for event in found.Histograms(tag)] == [1, 2, 3]
    last = found.Histograms("weights/2/weight")[-1].histogram_value
    assert last.num == 10
    assert last.max == pytest.approx(model[2].weight.max().item())


def test_scalars_of_loss_metrics_learning_rate_penalties_and_violations(tmp_path):
    model = nn.Linear(3, 2)
    plugins = [w.Losses(), w.LearningRates(), w.PenaltyCosts(), w.Violations(), w.L2(0.1), w.MaxNorm(0.5)]
    trainer = run(tmp_path, model, plugins)
    found = read(tmp_path)
    scalars = {tag: [event.value for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert set(scalars) == {
        "loss/optimizer",
        "learning_rate/optimizer",
        "penalties/L2",
        "violations/MaxNorm/weight",
        "metrics/error",
    }
    assert scalars["learning_rate/optimizer"] == pytest.approx([0.05] * 3)
    assert scalars["violations/MaxNorm/weight"] == [0, 0, 0]
    assert scalars["penalties/L2"][-1] == pytest.approx(0.1 * model.weight.square().sum().item())
    assert scalars["metrics/error"][-1] == pytest.approx(trainer.state.metrics["error"])


def test_the_loss_is_the_mean_over_the_epoch(tmp_path):
    model = nn.Linear(3, 2)
    seen = []
    trainer = run(tmp_path, model, [w.Losses()], epochs=1)
    trainer.add_event_handler("ITERATION_COMPLETED", lambda engine: seen.append(engine.state.output.item()))
    trainer.run(trainer.state.dataloader, max_epochs=2)
    losses = [event.value for event in read(tmp_path).Scalars("loss/optimizer")]
    assert losses[1] == pytest.approx(sum(seen[:2]) / 2)


def test_non_finite_bfloat16_and_empty_weights(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.coarse = nn.Parameter(torch.randn(6, dtype=torch.bfloat16), requires_grad=False)
            self.empty = nn.Parameter(torch.zeros(0, 4), requires_grad=False)
            self.bad = nn.Parameter(torch.tensor([1.0, math.nan, math.inf, -2.0]), requires_grad=False)
            self.lost = nn.Parameter(torch.full((3,), math.nan), requires_grad=False)

        def forward(self, x):
            return self.linear(x)

    run(tmp_path, Odd(), [w.WeightHistograms()], epochs=1)
    found = read(tmp_path)
    assert set(found.Tags()["histograms"]) == {
        f"weights/{tag}" for tag in ("linear/weight", "linear/bias", "coarse", "bad")
    }
    bad = found.Histograms("weights/bad")[0].histogram_value
    assert (bad.num, bad.min, bad.max, bad.sum) == (2, -2, 1, -1)
    assert found.Scalars("nonfinite/bad")[0].value == 2
    assert found.Scalars("nonfinite/lost")[0].value == 3


def test_two_models_have_a_folder_each(tmp_path):
    models = {"generator": nn.Linear(2, 2), "discriminator": nn.Linear(2, 1)}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.1) for name, model in models.items()}

    def step(trainer, batch):
        trainer.update(models["generator"](batch).mean(), optimizer="generator")
        trainer.update(models["discriminator"](batch).mean(), optimizer="discriminator")

    plugins = [w.WeightHistograms(where=["generator", "discriminator"]), w.Losses(), w.TensorBoard(str(tmp_path))]
    Trainer(models, optimizers, step=step, plugins=plugins).run([torch.randn(3, 2)])
    tags = read(tmp_path).Tags()
    assert "weights/generator/weight" in tags["histograms"]
    assert "weights/discriminator/bias" in tags["histograms"]
    assert sorted(tags["scalars"]) == ["loss/discriminator", "loss/generator"]


def test_a_parametrized_weight_is_watched_as_the_layer_computes_with_it(tmp_path):
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.fill_(5.0)
    run(tmp_path, model, [w.Clamp(-1, 1, where="weight", mode="forward"), w.WeightHistograms()], epochs=1)
    assert read(tmp_path).Histograms("weights/weight")[0].histogram_value.max == 1.0


def test_the_raw_parameters_of_a_parametrized_weight_stand_beside_it(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.fill_(5.0)
    plugins = [w.Clamp(-1, 1, where="0.weight", mode="forward"), w.LowRankAdapter(2, where="1.weight")]
    run(tmp_path, model, [*plugins, w.WeightHistograms(), w.WeightStatistics()], epochs=1)
    found = read(tmp_path)
    assert found.Histograms("weights/0/weight")[0].histogram_value.max == 1.0
    assert found.Histograms("raw_weights/0/weight")[0].histogram_value.max > 4.0
    assert {tag for tag in found.Tags()["histograms"] if tag.startswith("raw")} == {
        "raw_weights/0/weight",
        "raw_weights/1/weight",
        "raw_weights/1/weight.down",
        "raw_weights/1/weight.up",
    }
    norm = model[1].parametrizations.weight[0].down.detach().norm().item()
    assert found.Scalars("raw_weight_norm/1/weight.down")[0].value == pytest.approx(norm, rel=1e-6)


def test_statistics_come_with_the_histograms_and_are_the_same():
    weight = torch.randn(30, 40)
    both = w.WeightHistograms(statistics=True)(weight)
    assert both.pop("weights").count == 1200
    assert both == w.WeightStatistics()(weight)


def test_a_folder_must_be_said(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigurationError, match="log_dir"):
        Trainer(model, optimizer, nn.MSELoss(), plugins=[w.TensorBoard()])
    trainer = Trainer(model, optimizer, nn.MSELoss(), plugins=[w.Losses(), w.TensorBoard()], run_dir=tmp_path)
    trainer.run([(torch.randn(4, 3), torch.randn(4, 2))])
    assert read(tmp_path).Tags()["scalars"] == ["loss/optimizer"]


def test_a_folder_that_cannot_be_made_is_an_error_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigurationError, match="cannot write to"):
        Trainer(model, optimizer, nn.MSELoss(), plugins=[w.TensorBoard(str(tmp_path / "file" / "run"))])


class EmptyHistogram(Probe):
    def measure(self, weight, site):
        return {"nothing": histogram(torch.zeros(0))}


def test_a_distribution_of_nothing_is_written_as_nothing(tmp_path):
    run(tmp_path, nn.Linear(3, 2), [EmptyHistogram(where="weight")], epochs=1)
    found = read(tmp_path).Histograms("nothing/weight")[0].histogram_value
    assert (found.num, found.bucket) == (0, [0])


# -------------------------------------------------------------------- the event file


def records(folder):
    (path,) = folder.glob("events.out.tfevents.*")
    return list(EventFileLoader(str(path)).Load())


def an_event(number, step):
    return Event(step=step, summary=Summary(value=[Summary.Value(tag="loss", simple_value=number)]))


def test_every_record_is_read_back_with_its_check_sums(tmp_path):
    file = EventFile(lambda: tmp_path)
    for step in range(2000):  # more than may wait
        file.write(an_event(float(step), step))
    file.flush()
    assert len(records(tmp_path)) == 2001  # the version first
    file.write(an_event(0.5, 2000))
    file.close()
    found = records(tmp_path)
    assert [event.step for event in found[1:]] == list(range(2001))
    theirs = tmp_path / "theirs"
    writer = RecordWriter(theirs.open("wb"))
    writer.write(found[3].SerializeToString())
    writer.close()
    ours = tmp_path / "ours"
    with ours.open("wb") as stream:
        _append(stream, found[3])
    assert ours.read_bytes() == theirs.read_bytes()


def test_no_file_is_made_before_there_is_something_to_write(tmp_path):
    model = nn.Linear(3, 2)
    Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), plugins=[w.TensorBoard(str(tmp_path))])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_ends_the_log_and_not_the_training(tmp_path, caplog, monkeypatch):
    open_ = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: open_(Path("/dev/full"), mode))
    model = nn.Linear(3, 2)
    trainer = run(tmp_path, model, [w.Losses(), w.WeightHistograms()], epochs=3)
    assert trainer.state.epoch == 3
    assert caplog.text.count("nothing more is written") == 1


def test_what_goes_wrong_in_the_thread_reaches_the_run(tmp_path):
    file = EventFile(lambda: tmp_path)
    file.write(an_event(1.0, 0))
    file._waiting.put("no event")
    with pytest.raises(AttributeError):
        file.flush()
    file.close()


def test_a_run_goes_on_in_another_file(tmp_path):
    trainer = run(tmp_path, nn.Linear(3, 2), [w.Losses()], epochs=2)
    trainer.run(trainer.state.dataloader, max_epochs=3)
    assert [event.step for event in read(tmp_path).Scalars("loss/optimizer")] == [1, 2, 3]


# -------------------------------------------------------------------- numbers of weights and of updates


def published(trainer):
    """Step to what is published there, filled as the run goes."""
    found = {}

    def note(engine):
        measurements = engine.state.measurements
        found.setdefault(measurements.step, {}).update(measurements.values)

    trainer.add_event_handler(WeightEvents.MEASURED, note)
    return found


def test_statistics_are_those_of_numpy():
    values = torch.randn(40, 50, generator=torch.Generator().manual_seed(0)) + 0.5
    values[0, :10] = 0
    values[1, :4] = 1e-40
    values[2, 0] = math.nan
    finite = values[values.isfinite()].double().numpy()
    found = w.WeightStatistics()(values)
    assert found["weight_mean"] == pytest.approx(np.mean(finite), rel=1e-6)
    assert found["weight_std"] == pytest.approx(np.std(finite), rel=1e-6)
    assert found["weight_norm"] == pytest.approx(np.linalg.norm(finite), rel=1e-6)
    assert found["weight_zeros"] == 10 / 2000
    assert found["weight_subnormal"] == 4 / 2000
    assert found["weight_nonfinite"] == 1 / 2000
    assert (found["weight_min"], found["weight_max"]) == (np.min(finite), np.max(finite))
    numbers = {"weight_min", "weight_max", "weight_mean", "weight_std", "weight_norm", "weight_zeros"}
    assert set(w.WeightStatistics()(torch.ones(3))) == numbers
    assert w.WeightStatistics()(torch.full((2,), math.inf)) == {"weight_nonfinite": 1.0}
    assert w.WeightStatistics()(torch.zeros(0)) == {}


@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-6, 0.0])
@pytest.mark.parametrize("size", [100, 300_000])
def test_a_narrow_distribution_far_from_zero_has_its_own_width(spread, size):
    values = 1 + spread * torch.randn(size, generator=torch.Generator().manual_seed(0))
    found = w.WeightStatistics()(values)["weight_std"]
    assert found == pytest.approx(np.std(values.double().numpy()), rel=1e-3, abs=1e-12)


def test_spectral_norms_and_stable_ranks_are_those_of_scipy():
    weight = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
    values = svdvals(weight.flatten(1).double().numpy())
    found = w.SpectralNorms()(weight)
    assert found["spectral_norm"].item() == pytest.approx(values[0], rel=1e-5)
    assert found["stable_rank"].item() == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-5)
    assert w.SpectralNorms()(torch.zeros(3, 3))["stable_rank"] == 0
    assert w.SpectralNorms()(torch.full((2, 2), math.nan)) == {}


def test_gradient_norms_are_those_after_all_edits():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, optimizer, nn.MSELoss(), plugins=[w.GradientNorms(), w.ClipNorm(0.01)])
    found = published(trainer)
    trainer.run([(torch.randn(4, 3), torch.randn(4, 2))])
    together = math.hypot(*(found[1][f"gradient_norm/{name}"].item() for name in ("weight", "bias")))
    assert together == pytest.approx(0.01, rel=1e-5)


class Unsized:
    """Batches whose number nobody knows."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("wrapped", [list, Unsized])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_updates_are_those_of_the_last_iteration_with_everything_that_acts_on_the_weights(wrapped, accumulate):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    probes = [w.UpdateRatio(), w.UpdateHistograms()]
    trainer = Trainer(
        model, optimizer, nn.MSELoss(), plugins=[*probes, w.MaxNorm(0.4), w.Decay(0.01)], accumulate=accumulate
    )
    found, before, after = published(trainer), [], []
    trainer.add_event_handler(WeightEvents.GRADIENTS_COMPUTED, lambda: before.append(model.weight.detach().clone()))
    trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED, lambda: after.append(model.weight.detach().clone()))
    trainer.run(wrapped([(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(5)]), max_epochs=1)
    change = (after[-1] - before[-1]).double()
    ratio = change.norm() / before[-1].double().norm()
    assert found[1]["update_ratio/weight"].item() == pytest.approx(ratio.item(), rel=1e-5)
    assert found[1]["updates/weight"].total.item() == pytest.approx(change.sum().item(), rel=1e-5)
    assert found[1]["updates/weight"].count == 6


def test_of_two_optimizers_each_has_its_updates_and_frozen_weights_have_none():
    models = {"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)}
    models["two"].bias.requires_grad_(False)
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.1) for name, model in models.items()}

    def step(trainer, batch):
        for name, model in models.items():
            trainer.update(model(batch).square().mean(), optimizer=name)

    trainer = Trainer(models, optimizers, step=step, plugins=[w.UpdateRatio(every=2)])
    found = published(trainer)
    trainer.run([torch.randn(3, 2)] * 2, max_epochs=2)
    assert list(found) == [2]
    assert set(found[2]) == {"update_ratio/one/weight", "update_ratio/one/bias", "update_ratio/two/weight"}


def test_sparsity_is_that_of_what_the_layer_computes_with():
    assert w.Sparsity()(torch.tensor([[0.0, -0.0, 1.0, 2.0]])) == {"sparsity": 0.5}


# -------------------------------------------------------------------- JSON lines


def test_every_measurement_is_a_line(tmp_path):
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.bias[0] = math.nan
    path = tmp_path / "new" / "numbers.jsonl"
    run(
        tmp_path / "board",
        model,
        [w.Losses(), w.WeightHistograms(), w.JSONLines(str(path))],
        epochs=2,
        nonfinite="ignore",
    )
    lines = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text(encoding="utf-8").splitlines()]
    found = {(line["tag"], line["step"]): line for line in lines}
    assert found["nonfinite_losses/optimizer", 2]["value"] == 2  # NaN since the first update
    assert ("loss/optimizer", 2) not in found
    assert found["metrics/error", 2]["value"] is None
    weights = histogram(torch.tensor([1.0, -2.0, 0.0]))
    assert found["nonfinite/bias", 1]["value"] == 1
    line = json.loads(_line("weights/a", weights, 3))
    assert line.pop("limits") == weights.limits[weights.counts > 0].tolist()
    assert line == {
        "step": 3,
        "tag": "weights/a",
        "count": 3,
        "minimum": -2.0,
        "maximum": 1.0,
        "total": -1.0,
        "total_squares": 5.0,
        "zeros": 1,
        "subnormal": 0,
        "nonfinite": 0,
        "counts": [1, 1, 1],
    }


def test_the_text_file_needs_a_place(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigurationError, match="give path="):
        Trainer(model, optimizer, nn.MSELoss(), plugins=[w.JSONLines()])
    with pytest.raises(ConfigurationError, match="cannot write to"):
        Trainer(model, optimizer, nn.MSELoss(), plugins=[w.JSONLines(str(tmp_path))])
    Trainer(model, optimizer, nn.MSELoss(), plugins=[w.JSONLines()], run_dir=tmp_path)
    assert (tmp_path / "measurements.jsonl").exists()


# -------------------------------------------------------------------- pictures


def corners(picture):
    return picture.pixels[[0, 0, -1, -1], [0, -1, 0, -1]].tolist()


RED, WHITE, BLUE = [255, 0, 0], [255, 255, 255], [0, 0, 255]


def test_a_matrix_is_drawn_red_white_and_blue_and_its_scale_is_told():
    found = w.FilterImages()(torch.tensor([[2.0, 0.0, -2.0], [-2.0, 1.0, 2.0]]))
    assert found["image_scale"] == 2
    picture = found["images"]
    assert picture.pixels.shape == (2 * 128, 3 * 85, 3)
    assert corners(picture) == [RED, BLUE, BLUE, RED]
    assert picture.pixels[0, 3 * 85 // 2].tolist() == WHITE
    assert picture.pixels[-1, 3 * 85 // 2].tolist() == [255, 128, 128]


def test_filters_are_drawn_each_on_its_own():
    weight = torch.zeros(5, 3, 2, 2)
    weight[0, 0] = 1.0  # all red
    weight[4, 2] = -1.0  # no blue
    picture = w.FilterImages()(weight)["images"]
    side = 2 * (256 // 6)  # 3 filters of 2 weights, and lines of a pixel between them
    assert picture.pixels.shape == (2 * side + 1, 3 * side + 2, 3)
    assert picture.pixels[0, 0].tolist() == [255, 128, 128]
    assert picture.pixels[0, 2 * side].tolist() == [128, 128, 128]
    assert picture.pixels[-1, side].tolist() == [128, 128, 128]
    assert picture.pixels[-1, side + 1].tolist() == [128, 128, 0]
    assert w.FilterImages()(torch.ones(5, 1, 2, 2))["images"].pixels[0, 0].tolist() == RED


def test_a_large_matrix_is_averaged_down_and_what_is_not_a_number_is_black():
    weight = torch.ones(3000, 20)
    assert w.FilterImages(100)(weight)["images"].pixels.shape == (100, 100, 3)
    assert w.FilterImages()(torch.tensor([[math.nan, 1.0]]))["images"].pixels[0, 0].tolist() == [0, 0, 0]
    assert w.FilterImages()(torch.zeros(2, 2))["images"].pixels.unique().tolist() == [255]


def test_tensorboard_shows_the_picture_that_was_measured(tmp_path):
    model = nn.Linear(3, 2)
    run(tmp_path, model, [w.FilterImages()], epochs=2)
    accumulator = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    accumulator.Reload()
    shown = accumulator.Images("images/weight")
    assert [event.step for event in shown] == [1, 2]
    with Image.open(io.BytesIO(shown[-1].encoded_image_string)) as image:
        assert torch.equal(torch.from_numpy(np.array(image)), w.FilterImages()(model.weight)["images"].pixels)


# -------------------------------------------------------------------- Ignite's loggers


def test_ignites_loggers_get_the_numbers(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plugins = [w.Losses(), w.WeightHistograms(), w.FilterImages(), w.LearningRates()]
    trainer = Trainer(model, optimizer, nn.MSELoss(), plugins=plugins)
    with TensorboardLogger(log_dir=str(tmp_path)) as logger:
        handle = w.log_with_ignite(trainer, logger)
        trainer.run([(torch.randn(4, 3), torch.randn(4, 2))], max_epochs=2)
        handle.remove()
        trainer.run([(torch.randn(4, 3), torch.randn(4, 2))], max_epochs=3)
    found = read(tmp_path)
    wanted = {"weightsmith/loss/optimizer", "weightsmith/learning_rate/optimizer", "weightsmith/image_scale/weight"}
    assert set(found.Tags()["scalars"]) == wanted
    assert [event.step for event in found.Scalars("weightsmith/loss/optimizer")] == [1, 2]
    with pytest.raises(ConfigurationError, match="one of Ignite's loggers, not a Linear"):
        w.log_with_ignite(trainer, model)


@pytest.mark.parametrize("name", ["clearml", "mlflow", "neptune", "polyaxon", "tensorboard", "visdom", "wandb"])
def test_every_logger_of_ignites_has_the_output_handler_that_is_used(name):
    module = importlib.import_module(f"ignite.handlers.{name}_logger")
    signature = inspect.signature(module.OutputHandler)
    assert signature.bind("tag", output_transform=len, global_step_transform=len)


def test_a_logger_that_writes_no_numbers_is_refused():
    model = nn.Linear(3, 2)
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss())
    with pytest.raises(ConfigurationError, match="ProgressBar has no output handler"):
        w.log_with_ignite(trainer, ProgressBar())


# -------------------------------------------------------------------- settings


def test_the_settings_stand_beside_the_last_metrics(tmp_path):
    plugins = [
        w.Hyperparameters({"batch_size": 4, "note": "first", "tied": True}),
        w.JSONLines(str(tmp_path / "n.jsonl")),
    ]
    run(tmp_path / "board", nn.Linear(3, 2), plugins, epochs=2, seed=7)
    wanted = {
        "accumulate": 1,
        "precision": "float32",
        "seed": "7",
        "optimizer.class": "SGD",
        "optimizer.lr": 0.05,
        "batch_size": 4,
        "note": "first",
        "tied": True,
    }
    lines = [json.loads(line) for line in (tmp_path / "n.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[-1] == {"step": 2, "tag": "hyperparameters", "settings": wanted, "metrics": ["metrics/error"]}
    found = read(tmp_path / "board").PluginTagToContent("hparams")
    data = HParamsPluginData.FromString(found["_hparams_/session_start_info"]).session_start_info.hparams
    assert {
        name: value.number_value or value.string_value or value.bool_value for name, value in data.items()
    } == wanted
    experiment = HParamsPluginData.FromString(found["_hparams_/experiment"]).experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == ["metrics/error"]


@pytest.mark.parametrize(("values", "message"), [({"a": None}, "'a' is None: give a number"), ("ab", "takes a dict")])
def test_settings_are_plain(values, message):
    with pytest.raises(ConfigurationError, match=message):
        w.Hyperparameters(values)


# -------------------------------------------------------------------- unusual models


class Unusual(nn.Module):
    """Sparse gradients, complex numbers, and a parameter without values."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3, sparse=True)
        self.linear = nn.Linear(3, 2)
        self.turn = nn.Parameter(torch.randn(3, 3, dtype=torch.complex64))
        self.empty = nn.Parameter(torch.zeros(0, 2))

    def forward(self, inputs):
        found = self.embedding(inputs)
        return self.linear(found) + torch.view_as_real(found.to(torch.complex64) @ self.turn).sum()


@pytest.mark.parametrize(
    ("probe", "tags"),
    [
        (w.UpdateRatio(), "update_ratio"),
        (w.UpdateHistograms(), "updates"),
        (w.PluginEffect(), "effect"),
        (w.PluginEffect("epoch"), "epoch_effect"),
        (w.GradientNorms(), "gradient_norm"),
        (w.GradientHistograms(), "gradients"),
        (w.SpectralNorms(), "spectral_norm"),
        (w.WeightHistograms(), "weights"),
        (w.WeightStatistics(), "weight_std"),
        (w.FilterImages(), "images"),
    ],
    ids=repr,
)
def test_an_unusual_model_can_be_watched(probe, tags):
    torch.manual_seed(0)
    model = Unusual()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step(trainer, batch):
        trainer.update(model(batch).square().mean())

    trainer = Trainer(model, optimizer, step=step, plugins=[probe])
    found = published(trainer)
    trainer.run([torch.randint(0, 5, (4,)) for _ in range(3)])
    watched = {tag.removesuffix("/optimizer") for tag in found[1] if tag.startswith(f"{tags}/")}
    assert {f"{tags}/embedding/weight", f"{tags}/linear/weight", f"{tags}/turn"} <= watched
    assert f"{tags}/empty" not in watched


def test_complex_numbers_have_the_singular_values_and_magnitudes_of_numpy():
    values = torch.randn(4, 3, dtype=torch.complex64)
    assert w.SpectralNorms()(values)["spectral_norm"].item() == pytest.approx(svdvals(values.numpy())[0], rel=1e-5)
    assert w.WeightStatistics()(values)["weight_std"] == pytest.approx(np.abs(values.numpy()).std(), rel=1e-5)
