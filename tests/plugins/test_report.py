"""A run at a glance: what stands on the page, and whether the ridges are the distributions."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
import torch
import weightsmith_plugins as w
from ignite.metrics import MeanSquaredError
from PIL import Image
from scipy.stats import norm
from torch import nn
from weightsmith import ConfigurationError, Trainer
from weightsmith_plugins.probes import histogram
from weightsmith_plugins.report import report
from weightsmith_plugins.report.finding import find, measured
from weightsmith_plugins.report.ridges import axis_of, density, ridges
from weightsmith_plugins.tensorboard.reading import event_files, read_events

torch.manual_seed(0)
BATCHES = [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(2)]
PROBES = [w.WeightHistograms(statistics=True), w.GradientHistograms(), w.Losses(), w.LearningRates(), w.Violations()]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


def trainer_in(folder, *plugins, model=None):
    model = network() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return Trainer(model, optimizer, nn.MSELoss(), plugins=[*plugins, w.TensorBoard()], run_dir=folder)


class Page(HTMLParser):
    """What a browser would make of the page, as far as it is asked here."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())

    def values(self, name):
        return [value for _, found, value in self.attributes if found == name]


def page_of(run, **options):
    return Page(report(run, **options).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    trainer = trainer_in(folder, w.L2(0.1), w.MaxNorm(0.5), w.PenaltyCosts(), w.PluginEffect(), *PROBES, w.JSONLines())
    trainer.validate_on(BATCHES, {"error": MeanSquaredError()})
    trainer.run(BATCHES, max_epochs=3)
    return folder


# -------------------------------------------------------------------- the page


def test_the_page_stands_beside_the_run_and_needs_nothing_from_elsewhere(run):
    path = report(run)
    assert path == run / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
    references = [value for name in ("src", "href", "xlink:href") for value in page.values(name)]
    references += re.findall(r"url\((.*?)\)", text)
    ids = page.values("id")
    assert references
    assert {reference.strip("\"'") for reference in references} <= {f"#{name}" for name in ids}
    assert len(ids) == len(set(ids))
    assert "@import" not in text
    assert "http://" not in text.replace("http://www.w3.org/", "")
    assert not list(run.glob(".report*"))


def test_the_page_tells_every_weight_and_figure(run):
    page = page_of(run)
    assert {"0.weight", "0.bias", "2.weight", "2.bias"} <= set(page.texts)
    assert {"first", "first · weightsmith", "3 epochs, 4 weights measured"} <= set(page.texts)
    sections = {"Training", "Weights", "Gradients", "All weights, one line each", "Who moved this weight?"}
    panels = {"error", "Training loss", "Learning rate", "What penalties charge", "Violations of constraints", "Norm"}
    assert sections | panels <= set(page.texts)
    told = page.values("aria-label")
    assert len(told) == page.tags.count("svg") == page.tags.count("figure")
    assert sum(label.startswith("weights ") for label in told) == 4
    assert page.tags.count("details") == 2  # gradients, who moved


def test_the_table_has_the_last_and_the_best_of_every_metric_and_loss(run):
    numbers = measured(run).numbers
    page = page_of(run)
    for name, tag in {"error": "metrics/error", "training loss": "loss/optimizer"}.items():
        pairs = numbers[tag]
        best, epoch = min((number, step) for step, number in pairs)
        place = page.texts.index(name, page.texts.index("in epoch"))
        assert page.texts[place + 1 : place + 4] == [f"{pairs[-1][1]:.4g}", f"{best:.4g}", str(epoch)]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".PNG"])
def test_a_picture_is_one_tall_file(run, tmp_path, suffix):
    path = report(run, tmp_path / "new" / f"look{suffix}")
    begins = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix.lower()]
    assert path.read_bytes().startswith(begins)
    if begins == b"\x89PNG":
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        assert pixels.shape[0] > pixels.shape[1] > 1000
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500  # drawn, and in colour


def test_names_are_told_as_they_are(tmp_path):
    model = nn.Sequential()
    model.add_module("<b>&amp;$x$", nn.Linear(3, 4))
    model.add_module("_", nn.Linear(4, 2))
    trainer_in(tmp_path, *PROBES, model=model).run(BATCHES, max_epochs=2)
    page = page_of(tmp_path)
    assert "b" not in page.tags
    assert {"<b>&amp;$x$.weight", "_.weight"} <= set(page.texts)
    report(tmp_path, tmp_path / "names.png")


def test_the_same_run_gives_the_same_page_whatever_style_the_user_has(run, tmp_path):
    first = report(run, tmp_path / "a.html").read_bytes()
    with matplotlib.rc_context({"figure.facecolor": "black", "lines.linewidth": 9.0, "axes.edgecolor": "red"}):
        before = dict(matplotlib.rcParams)
        assert report(run, tmp_path / "b.html").read_bytes() == first
        assert dict(matplotlib.rcParams) == before


# -------------------------------------------------------------------- which run, which weights


def test_of_several_runs_in_a_folder_the_newest_is_shown(tmp_path):
    for epochs in (1, 2, 3):
        trainer_in(tmp_path, *PROBES).run(BATCHES, max_epochs=epochs)
    assert report(tmp_path) == tmp_path / "report.html"
    assert {f"{tmp_path.name} / run_3", "3 epochs, 4 weights measured"} <= set(page_of(tmp_path).texts)
    assert "2 epochs, 4 weights measured" in page_of(tmp_path / "run_2").texts
    assert find(tmp_path / "run_1") == tmp_path
    assert "1 epoch, 4 weights measured" in page_of(tmp_path / "run_1").texts
    assert not (tmp_path / "run_1").exists()


def test_a_run_that_is_called_by_its_date_is_shown_with_what_was_run(tmp_path):
    folder = tmp_path / "flowers" / "2026-01-31_23-59-59_1"
    for _ in range(2):
        trainer_in(folder, *PROBES).run(BATCHES, max_epochs=1)
    assert {"flowers / 2026-01-31_23-59-59_1 / run_2"} <= set(page_of(folder).texts)
    assert {"flowers / 2026-01-31_23-59-59_1"} <= set(page_of(folder / "run_1").texts)


def test_a_resumed_run_has_each_epoch_once(tmp_path):
    first = trainer_in(tmp_path, *PROBES)
    first.run(BATCHES, max_epochs=3)
    saved = first.state_dict()
    first.run(BATCHES, max_epochs=5)
    resumed = trainer_in(tmp_path, *PROBES)
    resumed.load_state_dict(saved)
    resumed.run(BATCHES, max_epochs=6)
    assert [ridge.step for ridge in ridges(measured(tmp_path).distributions["weights/0/weight"]).ridges] == [
        *range(1, 7)
    ]
    assert "6 epochs, 4 weights measured" in page_of(tmp_path).texts


def test_a_run_that_broke_is_shown_as_far_as_it_went(tmp_path):
    def data():
        for _ in range(2):
            yield from BATCHES
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trainer_in(tmp_path, *PROBES).run(data(), max_epochs=3, epoch_length=2)
    (events,) = event_files(tmp_path)
    events.write_bytes(events.read_bytes()[:-7])
    assert "2 epochs, 4 weights measured" in page_of(tmp_path).texts


def test_where_chooses_weights(run, tmp_path):
    page = page_of(run, to=tmp_path / "some.html", where="2")
    assert {"2.weight", "2.bias"} <= set(page.texts)
    assert not [text for text in page.texts if text.startswith("0.") and text.endswith(("weight", "bias"))]
    assert "3 epochs, 4 weights measured, 2 shown: 2" in page.texts
    told = page.values("aria-label")
    assert any(label.startswith("Violations") and "MaxNorm 2.weight" in label for label in told)
    with pytest.raises(ConfigurationError, match=r"where='2\.wieght' matches no weight: there is '2\.weight'"):
        report(run, where="2.wieght")


def test_of_many_weights_some_are_drawn_and_it_says_so(tmp_path):
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(14)), nn.Linear(3, 2))
    trainer_in(tmp_path, w.WeightHistograms(statistics=True), model=model).run(BATCHES, max_epochs=2)
    page = page_of(tmp_path)
    assert sum(label.startswith("weights ") for label in page.values("aria-label")) == 24
    assert any(text.startswith("24 of 30 weights are drawn, evenly over the model") for text in page.texts)
    assert {"0.weight", "14.bias"} <= set(page.texts)  # the first and the last
    assert "22 more in grey; named are the 8 that end highest" in page.texts
    chosen = page_of(tmp_path, where="7.*")
    assert sum(label.startswith("weights ") for label in chosen.values("aria-label")) == 2
    assert not any("are drawn" in text for text in chosen.texts)


# -------------------------------------------------------------------- ridges


def published(folder, steps):
    """What is read back of distributions that were written step by step."""
    trainer = trainer_in(folder)
    for step, values in enumerate(steps, start=1):
        trainer.publish({"weights/mine": histogram(torch.tensor(values, dtype=torch.float64))}, step=step)
    trainer.run(BATCHES, max_epochs=1)
    return read_events(folder).distributions["weights/mine"]


def area(densities, edges):
    return densities.sum() * (edges[1] - edges[0])


def test_a_ridge_is_the_density_of_the_values(tmp_path):
    values = np.random.default_rng(0).normal(0.5, 0.2, 100_000)
    (found,) = published(tmp_path, [values])
    edges = np.linspace(-0.5, 1.5, 151)
    centres = (edges[1:] + edges[:-1]) / 2
    smooth, plain = density(found, edges), density(found, edges, smooth=False)
    exact = norm.pdf(centres, 0.5, 0.2)
    assert np.abs(smooth - exact).max() < 0.05 * exact.max()
    assert np.abs(plain - exact).mean() < np.abs(exact).mean() * 0.05
    inside = ((values >= -0.5) & (values <= 1.5)).mean()
    assert area(smooth, edges) == pytest.approx(area(plain, edges), rel=1e-9)
    assert area(smooth, edges) == pytest.approx(inside, abs=1e-4)


@pytest.mark.parametrize("part", [(-1.0, 0.3), (0.0, 0.5), (0.21, 0.22), (5.0, 6.0)])
def test_the_area_under_a_ridge_is_the_share_on_the_axis(tmp_path, part):
    values = np.random.default_rng(1).normal(0.2, 0.3, 20_000)
    (found,) = published(tmp_path, [values])
    edges = np.linspace(*part, 101)
    counts, _ = np.histogram(values, edges)
    assert area(density(found, edges), edges) == pytest.approx(counts.sum() / len(values), abs=0.005)


def test_edges_of_buckets_are_kept_to_the_count(tmp_path):
    """Against NumPy's histogram in TensorBoard's own buckets, which are ten per cent wide."""
    values = np.random.default_rng(2).laplace(0, 0.1, 5_000)
    (found,) = published(tmp_path, [values])
    for low, high in zip(found.starts, found.limits, strict=True):
        (expected,), edges = np.histogram(values, [max(low, found.minimum), min(high, found.maximum)])
        if edges[1] > edges[0]:
            assert area(density(found, np.linspace(*edges, 9), smooth=False), np.linspace(*edges, 9)) == pytest.approx(
                expected / 5_000, abs=1e-4
            )


def test_values_at_zero_stand_apart(tmp_path):
    trainer = trainer_in(tmp_path, w.MagnitudePruning(0.5, where="0.weight"), w.WeightHistograms(), w.JSONLines())
    trainer.run(BATCHES, max_epochs=3)
    pruned = (trainer.models[""][0].weight == 0).float().mean().item()
    for series in (measured(tmp_path), read_events(tmp_path)):  # one knows of zeros, the other does not
        found = ridges(series.distributions["weights/0/weight"])
        assert found.ridges[-1].at_zero == pytest.approx(pruned)
        for ridge in found.ridges:
            assert area(ridge.densities, found.edges) + ridge.at_zero + ridge.outside == pytest.approx(1)
    page = page_of(tmp_path)
    assert {"≈ 0", f"{pruned:.0%}"} <= set(page.texts)


def test_the_axis_does_not_follow_what_is_far_away(tmp_path):
    values = np.random.default_rng(3).normal(0, 1, 1_000)
    outlier = published(tmp_path / "outlier", [np.append(values, 1e6)] * 3)
    diverged = published(tmp_path / "diverged", [values] * 7 + [values * 1e4])
    for some, step, share in ((outlier, 1, 1 / 1_001), (diverged, 8, 0.999)):
        low, high = axis_of(some)
        assert -25 < low < -3 < 3 < high < 25
        found = ridges(some)
        assert max(found.ridges, key=lambda ridge: ridge.outside).step == step
        assert found.ridges[-1].outside == pytest.approx(share, rel=0.01)
        assert found.maximum == max(one.maximum for one in some)
    assert any("beyond the axis up to 100% (epoch 8), from " in text for text in page_of(tmp_path / "diverged").texts)


def test_the_axis_follows_what_grows(tmp_path):
    values = np.random.default_rng(4).normal(0, 1, 1_000)
    growing = published(tmp_path, [values * 0.1 * step for step in range(1, 9)])
    assert all(ridge.outside < 0.01 for ridge in ridges(growing).ridges)


STRANGE = {
    "constant": ([np.full(50, 0.3)] * 2, "50 values; all are 0.3"),
    "zeros": ([np.zeros(50)] * 2, "50 values; all are 0"),
    "empty": ([np.zeros(0), np.zeros(0)], "0 values"),
    "one": ([np.ones(1), -np.ones(1)], "1 value"),
    "some NaN": ([np.append(np.arange(5.0), np.nan)], "5 values"),
    "enormous": ([np.arange(9.0) * 1e30], "9 values"),
    "tiny": ([np.arange(1, 9.0) * 1e-30], "8 values"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_weights_are_drawn(tmp_path, name):
    steps, said = STRANGE[name]
    some = published(tmp_path, steps)
    found = ridges(some)
    assert np.isfinite(found.edges).all()
    assert (np.diff(found.edges) > 0).all()
    for ridge, one in zip(found.ridges, some, strict=True):
        total = area(ridge.densities, found.edges) + ridge.at_zero + ridge.outside
        assert total == pytest.approx(1 if one.count else 0)
    assert said in page_of(tmp_path).texts
    report(tmp_path, tmp_path / "look.png")


def test_of_many_epochs_some_are_drawn(tmp_path):
    some = published(tmp_path, [np.arange(9.0) * step for step in range(1, 61)])
    steps = [ridge.step for ridge in ridges(some).ridges]
    assert (steps[0], steps[-1], len(steps)) == (1, 60, 25)
    assert set(np.diff(steps)) <= {2, 3}
    assert any("25 of 60 epochs are drawn" in text for text in page_of(tmp_path).texts)


def test_what_is_not_finite_is_told(tmp_path):
    trainer = trainer_in(tmp_path)
    values = torch.tensor([1.0, 2.0, torch.nan])
    for step, loss in enumerate([1.0, torch.nan, 0.5], start=1):
        measurements = {
            "weights/a": histogram(values),
            "nonfinite/a": 1.0,
            "loss/optimizer": loss,
            "metrics/b": torch.nan,
        }
        trainer.publish(measurements, step=step)
    trainer.run(BATCHES, max_epochs=1)
    page = page_of(tmp_path)
    assert "2 values; left out, being NaN or infinite: 1 (epoch 1)" in page.texts
    table = page.texts[page.texts.index("in epoch") + 1 :]
    assert table[:4] == ["b", "not finite", "not finite", "–"]
    assert table[4:8] == ["training loss", "0.5", "0.5", "3"]


# -------------------------------------------------------------------- what may go wrong


def test_what_cannot_be_drawn_is_told(run, tmp_path):
    with pytest.raises(ConfigurationError, match=r"cannot write .*look\.jpeg: give a name that ends in \.html, \.png"):
        report(run, tmp_path / "look.jpeg")
    with pytest.raises(ConfigurationError, match="missing does not exist: give the folder of a run"):
        report(tmp_path / "missing")
    with pytest.raises(ConfigurationError, match="is a file: give the folder of a run"):
        report(event_files(run)[0])
    with pytest.raises(ConfigurationError, match=r"holds no measurements: train with the plugin TensorBoard\(\)"):
        report(tmp_path)


def test_of_a_folder_above_the_newest_run_is_drawn(tmp_path):
    for name in ("b", "a"):
        trainer_in(tmp_path / "runs" / name, w.Losses()).run(BATCHES, max_epochs=1)
    for _ in range(2):  # began anew in one folder
        trainer_in(tmp_path / "runs" / "c", w.Losses()).run(BATCHES, max_epochs=1)
        assert report(tmp_path / "runs") == tmp_path / "runs" / "c" / "report.html"
    trainer_in(tmp_path / "runs" / "b" / "deep", w.Losses(), w.JSONLines()).run(BATCHES, max_epochs=1)
    assert report(tmp_path) == tmp_path / "runs" / "b" / "deep" / "report.html"
    assert report(tmp_path / "runs" / "a") == tmp_path / "runs" / "a" / "report.html"


def test_files_without_a_whole_measurement_are_told(run, tmp_path):
    (tmp_path / event_files(run)[0].name).write_bytes(event_files(run)[0].read_bytes()[:50])
    with pytest.raises(ConfigurationError, match="hold no whole measurement"):
        report(tmp_path)


def test_a_page_that_cannot_be_written_leaves_nothing_behind(run, tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ConfigurationError, match=r"cannot write .*report\.html: Is a directory"):
        report(run, tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


IMPORTS = """
import sys
import warnings

warnings.filterwarnings("ignore", category=DeprecationWarning)
from pathlib import Path

import weightsmith_plugins
from weightsmith_plugins.report import report

assert "matplotlib" not in sys.modules
if sys.argv[2] == "without":
    sys.modules["matplotlib"] = None  # as if it were not installed
try:
    report(Path(sys.argv[1]), Path(sys.argv[3]))
except weightsmith_plugins.report.ConfigurationError as error:
    print(error)
assert "matplotlib.pyplot" not in sys.modules
"""


@pytest.mark.parametrize("how", ["with", "without"])
def test_matplotlib_is_asked_for_when_it_is_needed(run, tmp_path, how):
    script, path = tmp_path / "script.py", tmp_path / "look.html"
    script.write_text(IMPORTS)
    command = [sys.executable, str(script), str(run), how, str(path)]
    output = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
    assert path.exists() == (how == "with")
    expected = 'report: draws with matplotlib, which is not installed: pip install "weightsmith[report]"\n'
    assert output == (expected if how == "without" else "")
