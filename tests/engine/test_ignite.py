"""A Trainer is an Ignite engine: its handlers attach unchanged, and nothing global is touched."""

import pytest
import torch
from ignite.engine import Engine, Events, State
from ignite.handlers import (
    Checkpoint,
    DiskSaver,
    EarlyStopping,
    HandlersTimeProfiler,
    LinearCyclicalScheduler,
    ModelCheckpoint,
    ProgressBar,
    TerminateOnNan,
    create_lr_scheduler_with_warmup,
)
from ignite.handlers.tensorboard_logger import TensorboardLogger, WeightsScalarHandler
from ignite.metrics import MeanSquaredError, RunningAverage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weightsmith import Trainer, WeightEvents
from weightsmith_plugins import EMA, L2, Centralize, Decay, MaxNorm, NonNegative, Perturb


def batches(count):
    generator = torch.Generator().manual_seed(1)
    shapes = [(4, 3), (4, 1)]
    return [tuple(torch.randn(shape, generator=generator) for shape in shapes) for _ in range(count)]


def make_trainer(plugins=(), lr=0.1, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.0), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return Trainer(model, optimizer, nn.MSELoss(), plugins=plugins, seed=0, **options)


def mean_squared_error(model, data):
    with torch.no_grad():
        errors = torch.cat([(model(inputs) - targets).square() for inputs, targets in data])
    return errors.mean().item()


def test_early_stopping_on_the_evaluator():
    """With learning rate 0 nothing improves after the first epoch, so patience 2 ends the run after the third."""
    trainer, data = make_trainer(lr=0.0), batches(2)
    evaluator = trainer.validate_on(data, {"error": MeanSquaredError()})
    evaluator.add_event_handler(
        Events.COMPLETED, EarlyStopping(patience=2, score_function=lambda e: -e.state.metrics["error"], trainer=trainer)
    )
    trainer.run(data, max_epochs=10)
    assert isinstance(evaluator, Engine)
    assert trainer.state.epoch == 3
    assert trainer.state.updates == {"optimizer": 6}


def test_validation_draws_nothing_from_what_training_draws_from():
    """A loader draws a seed whenever it is gone through, and a handler of an evaluation may draw as well."""
    inputs, targets = (torch.cat(parts) for parts in zip(*batches(8), strict=True))

    def trained(validations):
        trainer = make_trainer()
        shuffled = DataLoader(TensorDataset(inputs, targets), batch_size=4, shuffle=True)
        for _ in range(validations):
            evaluator = trainer.validate_on(DataLoader(TensorDataset(inputs, targets), batch_size=8, shuffle=True), {})
            evaluator.add_event_handler(Events.COMPLETED, lambda _: torch.randn(1))
        trainer.run(shuffled, max_epochs=3)
        return trainer.model[0].weight.detach()

    free = trained(0)
    assert torch.equal(trained(1), free)
    assert torch.equal(trained(2), free)


def test_validation_measures_the_model_of_that_epoch_and_leaves_it_training():
    trainer, data, held_out = make_trainer(), batches(2), batches(5)[2:]
    trainer.model[1].eval()
    trainer.validate_on(held_out, {"error": MeanSquaredError()}, every=2)
    found, published = [], []

    def measure(engine):
        modes = [module.training for module in engine.model.modules()]
        found.append((mean_squared_error(engine.model, held_out), engine.state.metrics.get("error"), modes))

    trainer.add_event_handler(Events.EPOCH_COMPLETED(every=2), measure)
    trainer.add_event_handler(
        WeightEvents.MEASURED,
        lambda t: published.append((t.state.measurements.step, t.state.measurements.values["metrics/error"])),
    )
    trainer.run(data, max_epochs=4)
    assert [step for step, _ in published] == [2, 4]
    for (wanted, measured, modes), (_, seen) in zip(found, published, strict=True):
        assert measured == seen == pytest.approx(wanted, rel=1e-5)
        assert modes == [True, True, False, True]
    assert trainer.evaluate(held_out, {"error": MeanSquaredError()})["error"] == pytest.approx(found[-1][0], rel=1e-5)


def rates_and_weights(schedule):
    trainer, data = make_trainer(), batches(3)
    optimizer = trainer.optimizers["optimizer"]
    trainer.add_event_handler(Events.ITERATION_STARTED, schedule(optimizer))
    rates, steps = [], []
    trainer.add_event_handler(
        WeightEvents.GRADIENTS_READY,
        lambda t: rates.append((optimizer.param_groups[0]["lr"], weight_of(t), grad_of(t))),
    )
    trainer.add_event_handler(WeightEvents.STEP_COMPLETED, lambda t: steps.append(weight_of(t)))
    trainer.run(data, max_epochs=2)
    for (rate, before, gradient), after in zip(rates, steps, strict=True):
        torch.testing.assert_close(after, before - rate * gradient)
    return [rate for rate, _, _ in rates]


def weight_of(trainer):
    return trainer.model[0].weight.detach().clone()


def grad_of(trainer):
    return trainer.model[0].weight.grad.clone()


def rates_on_a_plain_engine(schedule):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    engine, rates = Engine(lambda engine, batch: rates.append(optimizer.param_groups[0]["lr"])), []
    engine.add_event_handler(Events.ITERATION_STARTED, schedule(optimizer))
    engine.run([None] * 3, max_epochs=2)
    return rates


def test_learning_rate_schedulers_with_warmup():
    def schedule(optimizer):
        decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
        return create_lr_scheduler_with_warmup(decay, warmup_start_value=0.0, warmup_end_value=0.4, warmup_duration=3)

    rates = rates_and_weights(schedule)
    assert rates == rates_on_a_plain_engine(schedule)
    assert rates[:3] == pytest.approx([0.0, 0.2, 0.4])


def test_parameter_schedulers():
    def schedule(optimizer):
        return LinearCyclicalScheduler(optimizer, "lr", start_value=0.3, end_value=0.0, cycle_size=6)

    assert rates_and_weights(schedule) == pytest.approx([0.3, 0.2, 0.1, 0.0, 0.1, 0.2])


def test_progress_bars_and_running_averages(capsys):
    trainer, data = make_trainer(), batches(3)
    RunningAverage(alpha=0.5, output_transform=lambda output: output).attach(trainer, "loss")
    ProgressBar(persist=True).attach(trainer, metric_names=["loss"])
    losses = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda t: losses.append(t.state.output.item()))
    trainer.run(data, max_epochs=1)
    average = losses[0]
    for loss in losses[1:]:
        average = 0.5 * average + 0.5 * loss
    assert float(trainer.state.metrics["loss"]) == pytest.approx(average, rel=1e-5)
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "loss=" in shown


def test_nan_handlers_see_the_loss():
    trainer = make_trainer(nonfinite="ignore")
    trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
    good = batches(1)
    trainer.run([*good, (good[0][0] * float("nan"), good[0][1]), *good], max_epochs=1)
    assert trainer.state.iteration == 2


def test_checkpoints_restore_model_and_trainer(tmp_path):
    data = batches(3)
    plugins = [L2(0.1), EMA(0.5)]
    whole = make_trainer(plugins)
    whole.run(data, max_epochs=4)
    first = make_trainer(plugins)
    saved = {"model": first.model, "trainer": first, "optimizer": first.optimizers["optimizer"]}
    handler = ModelCheckpoint(tmp_path, filename_prefix="run", n_saved=1)
    first.add_event_handler(Events.EPOCH_COMPLETED(once=2), handler, saved)
    first.run(data, max_epochs=4)
    second = make_trainer(plugins)
    Checkpoint.load_objects(
        {"model": second.model, "trainer": second, "optimizer": second.optimizers["optimizer"]},
        torch.load(handler.last_checkpoint),
    )
    assert second.state.updates == {"optimizer": 6}
    second.run(data)
    assert second.state.updates == {"optimizer": 12}
    with whole.averaged(), second.averaged():
        assert torch.equal(whole.model[0].weight, second.model[0].weight)
    assert torch.equal(whole.model[0].weight, second.model[0].weight)


def test_the_best_models_are_kept_by_their_score(tmp_path):
    trainer, data = make_trainer(), batches(2)
    evaluator = trainer.validate_on(data, {"error": MeanSquaredError()})
    scores = []
    evaluator.add_event_handler(Events.COMPLETED, lambda e: scores.append(-e.state.metrics["error"]))
    best = ModelCheckpoint(tmp_path, n_saved=1, score_function=lambda e: -e.state.metrics["error"], score_name="score")
    evaluator.add_event_handler(Events.COMPLETED, best, {"model": trainer.model})
    trainer.run(data, max_epochs=4)
    assert len(list(tmp_path.iterdir())) == 1
    assert f"{max(scores):.4f}" in str(best.last_checkpoint)


def test_profilers_list_plugins_by_their_names():
    profiler, trainer = HandlersTimeProfiler(), make_trainer(plugins=[L2(0.1), L2(0.2), MaxNorm(1.0), EMA(0.9)])
    profiler.attach(trainer)
    trainer.run(batches(5), max_epochs=1)
    times = profiler.event_handlers_times
    assert {"L2", "L2.1"} <= times[WeightEvents.GRADIENTS_COMPUTED].keys()
    assert "MaxNorm" in times[WeightEvents.WEIGHTS_EDITED]
    assert len(times[WeightEvents.UPDATE_COMPLETED]["EMA"]) == 5


def test_loggers_and_checkpoints_count_updates_on_weight_events(tmp_path):
    trainer, event = make_trainer(), WeightEvents.UPDATE_COMPLETED
    logger = TensorboardLogger(log_dir=str(tmp_path / "events"))
    trainer.add_event_handler(event(every=2), WeightsScalarHandler(trainer.model), logger, event)
    saver = Checkpoint(
        {"model": trainer.model},
        DiskSaver(str(tmp_path / "saved")),
        n_saved=None,
        global_step_transform=lambda *_: trainer.state.update,
    )
    trainer.add_event_handler(event(every=3), saver)
    trainer.run(batches(4), max_epochs=2)
    logger.close()
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["model_3.pt", "model_6.pt"]
    found = EventAccumulator(str(tmp_path / "events"))
    found.Reload()
    assert [scalar.step for scalar in found.Scalars("weights_norm/0/weight")] == [2, 4, 6, 8]


def test_updates_are_counted_on_in_another_run_where_iterations_begin_anew():
    trainer, fired = make_trainer(), []
    trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED(once=3), lambda t: fired.append(("update", t.state.update)))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda t: fired.append(("in run", t.state.update)))
    trainer.add_event_handler(WeightEvents.MEASURED(every=4), lambda t: fired.append(("measured", t.state.update)))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda t: t.publish({"one": 1.0}, step=t.state.epoch))
    for _ in range(2):
        trainer.run(batches(4), max_epochs=1)
    assert fired == [("update", 3), ("in run", 3), ("measured", 4), ("in run", 7), ("measured", 8)]


def test_removable_handles_and_on_decorators():
    trainer, calls = make_trainer(), []

    @trainer.on(WeightEvents.UPDATE_COMPLETED(every=2) | Events.EPOCH_COMPLETED)
    def note(engine):
        calls.append(engine.last_event_name.name)

    handle = trainer.add_event_handler(WeightEvents.GRADIENTS_READY, lambda: calls.append("removed"))
    handle.remove()
    trainer.run(batches(4), max_epochs=1)
    assert calls == ["UPDATE_COMPLETED", "UPDATE_COMPLETED", "EPOCH_COMPLETED"]


def test_ignites_global_map_of_events_is_untouched():
    before = dict(State.event_to_attr)
    trainer = make_trainer([EMA(0.5)])
    trainer.run(batches(2), max_epochs=1)
    assert State.event_to_attr == before
    assert not {event.name for event in WeightEvents} & {getattr(event, "name", event) for event in before}
    assert not {event.name for event in WeightEvents} & {event.name for event in Events}
    other = Engine(lambda engine, batch: None)
    other.register_events(*WeightEvents)  # another library's engine knows no update
    with pytest.raises(RuntimeError, match="Unknown event name"):
        other.state.get_event_attrib_value(WeightEvents.UPDATE_COMPLETED)


SYNCHRONISING = ["item", "tolist", "numpy", "cpu", "__float__", "__bool__", "__int__", "__index__"]

QUIET = [L2(0.1), Centralize(), Decay(0.01), Perturb(0.01), MaxNorm(0.5, where="0"), NonNegative(where="2"), EMA(0.9)]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("plugins", [[], QUIET], ids=["no plugins", "plugins"])
def test_no_step_waits_for_the_host_to_read_a_tensor(monkeypatch, plugins, precision, accumulate):
    trainer, data = make_trainer(plugins, precision=precision, accumulate=accumulate), batches(5)
    reads = []

    def counted(name):
        original = getattr(torch.Tensor, name)

        def read(self, *args, **kwargs):
            if trainer._is_in_epoch:  # once an epoch, the weights are looked at
                reads.append(name)
            return original(self, *args, **kwargs)

        return read

    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda self: False))  # reading waits on an accelerator only
    for name in SYNCHRONISING:
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    trainer.run(data, max_epochs=2)
    assert reads == []
    trainer._is_in_epoch = True
    float(trainer.state.output)
    bool(trainer.state.output > 0)
    assert reads[:1] == ["__float__"], "the counter counts"
    assert "__bool__" in reads
