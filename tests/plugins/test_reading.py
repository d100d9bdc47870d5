"""What sinks wrote is read back, whatever became of the files."""

import math

import numpy as np
import pytest
import torch
import weightsmith_plugins as w
from torch import nn
from weightsmith import Histogram, Probe, Trainer
from weightsmith_plugins.jsonlines import read_lines
from weightsmith_plugins.series import Gathering
from weightsmith_plugins.tensorboard.reading import event_files, read_events

BATCHES = [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(2)]


class OwnBuckets(Probe):
    """A distribution in other buckets than TensorBoard's; the second is empty."""

    def measure(self, weight, site):
        of = torch.tensor
        return {
            "own": Histogram(
                limits=of([0.5, 1.0, 2.0]),
                counts=of([2, 0, 1]),
                minimum=of(0.25),
                maximum=of(1.5),
                total=of(2.0),
                total_squares=of(2.5),
                count=3,
                nonfinite=0,
                zeros=0,
                subnormal=0,
            )
        }


def trainer_in(folder, *plugins):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2))
    sinks = [w.TensorBoard(), w.JSONLines()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return Trainer(model, optimizer, nn.MSELoss(), plugins=[*plugins, *sinks], run_dir=folder)


PROBES = [w.WeightHistograms(statistics=True), w.GradientHistograms(), w.Losses(), w.LearningRates(), w.FilterImages()]


def assert_same(first, second):
    assert first.numbers.keys() == second.numbers.keys()
    for tag, pairs in first.numbers.items():
        np.testing.assert_array_equal(np.float32(pairs), np.float32(second.numbers[tag]))  # TensorBoard's precision
    assert first.distributions.keys() == second.distributions.keys()
    for tag, some in first.distributions.items():
        for one, other in zip(some, second.distributions[tag], strict=True):
            assert (one.step, one.minimum, one.maximum, one.count) == (
                other.step,
                other.minimum,
                other.maximum,
                other.count,
            )
            for field in ("starts", "limits", "counts"):
                np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def test_both_files_tell_the_same(tmp_path):
    trainer = trainer_in(tmp_path, *PROBES, w.MagnitudePruning(0.5), w.Hyperparameters())
    trainer.run(BATCHES, max_epochs=3)
    events, lines = read_events(tmp_path), read_lines(tmp_path / "measurements.jsonl")
    assert {"weights/0/weight", "gradients/1/bias"} <= events.distributions.keys()
    assert {"loss/optimizer", "weight_norm/0/weight"} <= events.numbers.keys()
    assert [pair[0] for pair in events.numbers["loss/optimizer"]] == [1, 2, 3]
    assert_same(events, lines)
    weight = lines.distributions["weights/0/weight"][-1]
    assert weight.zeros == (trainer.models[""][0].weight == 0).sum() > 0
    assert events.distributions["weights/0/weight"][-1].zeros is None


def test_a_distribution_is_that_of_the_weight(tmp_path):
    trainer = trainer_in(tmp_path, w.WeightHistograms())
    trainer.run(BATCHES, max_epochs=1)
    weight = trainer.models[""][0].weight.detach().double().flatten()
    for series in (read_events(tmp_path), read_lines(tmp_path / "measurements.jsonl")):
        (found,) = series.distributions["weights/0/weight"]
        assert (found.count, found.minimum, found.maximum) == (24, weight.min(), weight.max())
        edges = zip(found.starts, found.limits, strict=True)
        inside = [int(((weight >= low) & (weight < high)).sum()) for low, high in edges]
        assert inside == found.counts.tolist()
        assert sum(inside) == 24


def test_of_other_buckets_the_text_file_tells_right_edges_only(tmp_path):
    trainer_in(tmp_path, OwnBuckets(where="1.bias")).run(BATCHES, max_epochs=1)
    events, lines = read_events(tmp_path), read_lines(tmp_path / "measurements.jsonl")
    ((exact,), (known,)) = (series.distributions["own/1/bias"] for series in (events, lines))
    assert (exact.starts.tolist(), exact.limits.tolist(), exact.counts.tolist()) == ([0.25, 1.0], [0.5, 2.0], [2, 1])
    assert (known.starts.tolist(), known.limits.tolist(), known.counts.tolist()) == ([0.25, 0.5], [0.5, 2.0], [2, 1])


def test_what_a_resumed_run_measures_again_replaces_what_it_went_back_behind(tmp_path):
    first = trainer_in(tmp_path, w.Losses(), w.WeightHistograms())
    first.run(BATCHES, max_epochs=3)
    saved = first.state_dict()
    first.run(BATCHES, max_epochs=5)
    uncut = {path: path.read_bytes() for path in event_files(tmp_path)}
    resumed = trainer_in(tmp_path, w.Losses(), w.WeightHistograms())
    resumed.load_state_dict(saved)
    for group in resumed.optimizers["optimizer"].param_groups:
        group["lr"] = 0.01  # so that epochs 4 and 5 are others
    resumed.run(BATCHES, max_epochs=6)
    cut = read_events(tmp_path)
    for path, data in uncut.items():
        path.write_bytes(data)  # as if nobody had cut anything off
    found = read_events(tmp_path)
    assert [step for step, _ in found.numbers["loss/optimizer"]] == [1, 2, 3, 4, 5, 6]
    assert [one.step for one in found.distributions["weights/0/weight"]] == [1, 2, 3, 4, 5, 6]
    assert_same(found, cut)
    assert_same(found, read_lines(tmp_path / "measurements.jsonl"))


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
def test_a_file_that_was_cut_is_read_up_to_there(tmp_path, kept):
    trainer_in(tmp_path, *PROBES).run(BATCHES, max_epochs=3)
    whole = [read_events(tmp_path), read_lines(tmp_path / "measurements.jsonl")]
    (events,) = event_files(tmp_path)
    for path in (events, tmp_path / "measurements.jsonl"):
        data = path.read_bytes()
        path.write_bytes(data[: int(kept * len(data))])
    for before, after in zip(whole, [read_events(tmp_path), read_lines(tmp_path / "measurements.jsonl")], strict=True):
        count = sum(map(len, before.distributions.values()))
        assert sum(map(len, after.distributions.values())) <= count * (kept + 0.1)
        for tag, pairs in after.numbers.items():
            assert pairs == before.numbers[tag][: len(pairs)]


def test_a_damaged_line_is_passed_over_and_a_flipped_byte_ends_an_event_file(tmp_path):
    trainer_in(tmp_path, w.Losses()).run(BATCHES, max_epochs=3)
    lines = tmp_path / "measurements.jsonl"
    first, *others = lines.read_bytes().splitlines(keepends=True)
    bucket = (
        b'{"step": 2, "tag": "w", "minimum": 0, "maximum": 1, "count": 1, "zeros": 0, "limits": [1, 2], "counts": [1]}'
    )
    endless = b'{"step": 1e999, "tag": "x", "value": 1}'
    damaged = [b'{"step": 2, "ta', b"7", b'{"step": null}', b"\xff", bucket, endless, b"[" * 100_000, b""]
    lines.write_bytes(first + b"\n".join(damaged) + b"".join(others))
    assert list(read_lines(lines).distributions) == []
    assert [step for step, _ in read_lines(lines).numbers["loss/optimizer"]] == [1, 2, 3]
    (events,) = event_files(tmp_path)
    data = bytearray(events.read_bytes())
    data[data.rfind(b"loss/optimizer")] ^= 1
    events.write_bytes(data)
    assert [step for step, _ in read_events(tmp_path).numbers["loss/optimizer"]] == [1, 2]


def test_a_number_that_is_not_finite_is_there(tmp_path):
    trainer = trainer_in(tmp_path)
    for step, number in enumerate([1.0, math.nan, math.inf], start=1):
        trainer.publish({"mine": number}, step=step)
    trainer.run(BATCHES, max_epochs=1)
    events, lines = read_events(tmp_path), read_lines(tmp_path / "measurements.jsonl")
    np.testing.assert_array_equal(events.numbers["mine"], [(1, 1.0), (2, math.nan), (3, math.inf)])
    np.testing.assert_array_equal(lines.numbers["mine"], [(1, 1.0), (2, math.nan), (3, math.nan)])


def test_of_two_files_each_tag_is_taken_where_more_is_known():
    short, long = Gathering(), Gathering()
    for step in (1, 2):
        short.add_number("a", step, 1.0)
        long.add_number("b", step, 2.0)
    short.add_number("b", 1, 1.0)
    long.add_number("a", 1, 2.0)
    assert short.series().completed_by(long.series()).numbers == {"a": ((1, 1.0), (2, 1.0)), "b": ((1, 2.0), (2, 2.0))}
    assert not Gathering().series()
