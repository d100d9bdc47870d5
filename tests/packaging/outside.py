"""Somebody else's package: written by `weightsmith new package`, installed beside the built wheel of weightsmith in a
new virtual environment, and there listed, planned, trained, checked and tested. Prints what each command said."""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = """
import torch
from torch.utils.data import TensorDataset


def points() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 4, generator=generator)
    return TensorDataset(inputs, inputs[:, :3].argmax(1))
"""
RECIPE = """
model: {Linear: {in_features: 4, out_features: 3}}
loss: CrossEntropyLoss
optimizer: {Adam: {lr: 0.05}}
data: {DataLoader: {dataset: outside_data.points, batch_size: 32, shuffle: true}}
epochs: 3
plugins:
  - OuterShell: {radius: 1.5}
  - WeightHistograms
  - TensorBoard
"""


def run(*command, folder, shown=True):
    """Run a command to its end; its output. Anything but success ends this script."""
    arguments = [str(part) for part in command]
    if shown:
        print("$", " ".join([Path(arguments[0]).name, *arguments[1:]]), flush=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if shown or done.returncode:
        print(done.stdout, done.stderr, sep="", flush=True)
    if done.returncode:
        raise SystemExit(f"{arguments[0]} ended with {done.returncode}")
    return done.stdout


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "wheels"]
        run(*python, ROOT, folder=folder)
        run(sys.executable, "-m", "venv", folder / "venv", folder=folder)
        home = folder / "venv" / "bin"
        pip = [
            home / "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--constraint",
            ROOT / "constraints.txt",
        ]
        (wheel,) = (folder / "wheels").glob("*.whl")
        run(*pip, f"{wheel}[testing,report]", folder=folder)
        weightsmith = home / "weightsmith"
        run(weightsmith, "new", "package", "outer-shell", "--kind", "constraint", folder=folder)
        run(*pip, folder / "outer-shell", folder=folder)
        (folder / "outside_data.py").write_text(DATA, encoding="utf-8")
        (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        listed = run(weightsmith, "plugins", folder=folder, shown=False)
        assert "OuterShell(radius=1.0)  [outer-shell]" in listed, listed
        print("$ weightsmith plugins\n…\n  OuterShell(radius=1.0)  [outer-shell]\n…\n")
        origin = run(
            home / "python", "-c", "import weightsmith; print(weightsmith.__file__)", folder=folder, shown=False
        )
        assert "site-packages" in origin, origin
        run(weightsmith, "plugins", "OuterShell", folder=folder)
        planned = run(weightsmith, "plan", "recipe.yaml", folder=folder)
        assert "OuterShell(radius=1.5)\n      weight" in planned
        assert "violations 0" in run(weightsmith, "train", "recipe.yaml", folder=folder)
        (trained,) = (folder / "runs" / "recipe").iterdir()
        run(weightsmith, "report", trained, folder=folder)
        run(weightsmith, "export", trained, "weights.safetensors", folder=folder)
        assert "13 of 13 checks passed" in run(weightsmith, "check", "outer-shell", folder=folder)
        assert " passed" in run(home / "pytest", "-q", "outer-shell", folder=folder)
        print("outside: the package was listed, planned, trained, reported, exported, checked and tested")


if __name__ == "__main__":
    main()
