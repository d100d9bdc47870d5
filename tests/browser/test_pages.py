"""What a user sees: the real TensorBoard over a real run, in headless Chromium. Run by ``make browser``."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import weightsmith_plugins as w
from ignite.metrics import Accuracy
from torch import nn
from weightsmith import Trainer, linear

pytestmark = pytest.mark.browser
PICTURES = Path(os.environ.get("PICTURES", "pictures"))
PAGES = {
    "timeseries": ["loss", "metrics", "learning_rate"],
    "scalars": ["loss", "metrics", "weight_norm", "update_ratio"],
    "images": ["images/0", "images/4"],
    "distributions": ["weights", "gradients", "updates"],
    "histograms": ["weights", "gradients", "updates"],
    "hparams": ["optimizer.lr", "batch_size", "metrics/accuracy"],
    "custom_scalars": ["Training", "All weights, one line each", "Who moved this weight?"],
}
FILTERED = {"distributions": "^weights/.*weight"}  # the picture in the README
CHARTS = {
    "timeseries": "scalar-card",
    "scalars": "tf-scalar-card",
    "images": "tf-image-loader img",
    "distributions": "vz-distribution-chart svg",
    "histograms": "vz-histogram-timeseries svg",
    "hparams": "tf-hparams-table-view",
    "custom_scalars": "tf-custom-scalar-multi-line-chart-card",
}
"""What TensorBoard draws on each page: an element for every chart."""


BOUND = linear(0.5, 0.05)
CONSTRAINTS = {
    "free": [],
    "bounded": [w.MaxNorm(1.0, where="0.weight"), w.Clamp(linear(-0.5, -0.05), BOUND, where="4.weight")],
}


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    """Two runs on digits: one that is free, and one with a gate that closes round the weights of its last layer."""
    datasets = pytest.importorskip("sklearn.datasets")
    folder = tmp_path_factory.mktemp("runs")
    pixels, labels = datasets.load_digits(return_X_y=True)
    inputs = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    targets = torch.tensor(labels)
    batches = [(inputs[i : i + 64], targets[i : i + 64]) for i in range(0, 1408, 64)]
    for name, constraints in CONSTRAINTS.items():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)]
        model = nn.Sequential(*layers)
        plugins = [
            *constraints,
            w.L2(1e-3, mode="decoupled"),
            w.ClipNorm(1.0),
            w.WeightHistograms(statistics=True),
            w.GradientHistograms(),
            w.UpdateHistograms(),
            w.UpdateRatio(),
            w.PluginEffect(),
            w.GradientNorms(),
            w.DormantUnits(),
            w.FilterImages(),
            w.Losses(),
            w.LearningRates(),
            w.Hyperparameters({"batch_size": 64, "constraints": len(constraints)}),
            w.TensorBoard(),
        ]
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        trainer = Trainer(model, optimizer, nn.CrossEntropyLoss(), plugins=plugins, run_dir=folder / name, seed=0)
        trainer.validate_on([(inputs[1408:], targets[1408:])], {"accuracy": Accuracy()})
        trainer.run(batches, max_epochs=20)
    return folder


@pytest.fixture(scope="module")
def address(logdir):
    command = [sys.executable, "-W", "ignore", "-m", "tensorboard.main", "--logdir", str(logdir)]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", "0"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in process.stderr:
            if found := re.search(r"http://\S+:\d+/", line):
                yield found[0]
                return
        pytest.fail("TensorBoard did not start")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Debian's chromium is not installed")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.mark.parametrize("page_name", PAGES)
def test_the_page_shows_what_was_measured(page_name, address, browser):
    page = browser.new_page(viewport={"width": 1500, "height": 1100})
    page.goto(f"{address}#{page_name}")
    for text in PAGES[page_name]:
        page.get_by_text(text).first.wait_for(timeout=60_000, state="attached")
    page.locator(CHARTS[page_name]).first.wait_for(timeout=60_000, state="attached")
    if page_name in FILTERED:
        page.locator("tf-tag-filterer input").first.fill(FILTERED[page_name])
    page.wait_for_timeout(2500)  # the charts are drawn some time after their titles
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(PICTURES / f"{page_name}.png"))
    page.close()
