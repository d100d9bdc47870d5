"""``train``, ``resume`` and ``export``."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from weightsmith.cli.console import command, profiled, trained
from weightsmith.distributed import first_does, is_first, joined
from weightsmith.errors import ConfigurationError
from weightsmith.recipe import Experiment, Recipe, prepare, read_recipe
from weightsmith.runs import begun_by_this_job, provisional_run_dir

__all__ = ["export", "resume", "train"]

RECIPE = "recipe.yaml"
"""The resolved recipe, in a run's folder."""


def train(
    recipe: str, *, changes: Sequence[str] = (), overfit_one_batch: bool = False, profile: bool = False
) -> int | None:
    """Train what a recipe describes, in a folder of its own.

    A line per epoch tells the mean loss, the metrics and how many weights are outside their sets; on a terminal a bar
    shows where the epoch stands. Ctrl-C saves the run. The resolved recipe lands in the run's folder; training it again
    gives the same weights. Under torchrun all processes train it together; those that torchrun starts again
    (--max-restarts) go on from the run's last checkpoint.

    Args:
        recipe: the YAML file.
        changes: settings in place of the recipe's, such as ``optimizer.lr=0.01 plugins.MaxNorm.limit=2``.
        overfit_one_batch: train and validate on the first batch alone: a model that cannot learn it by heart, or a
            stack of plugins that keeps it from doing so, has something wrong.
        profile: write a profile of ten iterations, by torch's profiler, beside the events of TensorBoard.
    """
    found = read_recipe(recipe, [*changes, "one_batch=true"] if overfit_one_batch else changes)
    with joined(found.settings.device):
        begun = begun_by_this_job(_parent(found))
        if begun is None:
            _begin(found, profile)
        else:
            _go_on(begun, [])
    return None


def _begin(recipe: Recipe, profile: bool) -> None:
    """A new run. A function, as is :func:`_go_on`, so that nothing holds the models when the processes part."""
    with provisional_run_dir(_parent(recipe)) as run_dir:
        experiment = prepare(recipe, run_dir)
        first_does(lambda: (run_dir / RECIPE).write_text(recipe.resolved(experiment.seed), encoding="utf-8"))
    length = experiment.epoch_length
    planned = None if length is None else length * recipe.settings.epochs
    with profiled(experiment.trainer, run_dir, planned) if profile else contextlib.nullcontext():
        _run(experiment)


def _parent(recipe: Recipe) -> Path:
    return Path(recipe.settings.runs) / recipe.name


def resume(run: Path, *, epochs: int | None = None, device: str | None = None, shard: bool | None = None) -> int | None:
    """Go on with a run from its newest good checkpoint; it ends as it would have ended.

    Args:
        run: the run's folder.
        epochs: train up to this epoch, in place of the recipe's. (A schedule without ``over`` spans the whole run,
            and so takes other values then.)
        device: a torch device, such as cpu or cuda, in place of the recipe's.
        shard: whether to share the weights out among the processes that torchrun starts, in place of the recipe's.
    """
    given = {"epochs": epochs, "device": device, "shard": shard}
    changes = [f"{name}={str(value).lower()}" for name, value in given.items() if value is not None]
    with joined(_recipe_of(run, changes).settings.device):
        _go_on(run, changes)
    return None


def _go_on(run: Path, changes: Sequence[str]) -> None:
    experiment = prepare(_recipe_of(run, changes), run)
    checkpoint, done = experiment.trainer.resume(run), experiment.trainer.state.epoch
    if experiment.recipe.settings.epochs < done:
        raise ConfigurationError(f"the run in {run} is in epoch {done} already: give more epochs than that")
    if changes:
        first_does(lambda: _write_recipe(experiment, run))
    if is_first():
        print(f"going on from {checkpoint}")
    _run(experiment)


def _write_recipe(experiment: Experiment, run: Path) -> None:
    new = run / f".{RECIPE}"
    new.write_text(experiment.recipe.resolved(experiment.seed), encoding="utf-8")
    new.replace(run / RECIPE)


def export(run: Path, path: Path, *, averaged: bool = False, overwrite: bool = False) -> int | None:
    """Write the weights of a run's newest good checkpoint as safetensors, under the names of a plain model:
    parametrizations and masks are baked in.

    Args:
        run: the run's folder.
        path: the file to write, such as ``weights.safetensors``.
        averaged: the means of the run's average, such as ``EMA``, in place of the weights in training.
        overwrite: write also where a file is there already.
    """
    if path.is_file() and not overwrite:
        raise ConfigurationError(f"{path} would be overwritten, so nothing was written: give another, or --overwrite")
    with tempfile.TemporaryDirectory() as folder:  # for plugins that ask for one; nothing is written to the run
        experiment = prepare(_recipe_of(run, ["device=cpu", "shard=false"]), Path(folder))
        checkpoint = experiment.trainer.resume(run)
        names = experiment.trainer.export(path, averaged=averaged)
    print(f"{len(names)} tensors of {checkpoint} are in {path}")
    return None


def _recipe_of(run: Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe of a run that was there before."""
    if not run.is_dir():
        raise ConfigurationError(f"there is no run {run}: give its folder")
    if not (run / RECIPE).is_file():
        raise ConfigurationError(
            f"{run} has no {RECIPE}, so `weightsmith train` did not begin it: go on with it by the script that did"
        )
    return read_recipe(run / RECIPE, changes)


def _run(experiment: Experiment) -> None:
    trainer = experiment.trainer
    epochs = experiment.recipe.settings.epochs
    trained(trainer, experiment.batches, epochs, hint=_hint("resume", trainer.run_dir))


def _hint(*arguments: object) -> str:
    """The command line that runs a command as this process was run."""
    called = command()
    return shlex.join(
        map(str, [*(("weightsmith",) if len(called) == 1 else (*called, "-m", "weightsmith")), *arguments])
    )
