"""``plan`` and ``plugins``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from weightsmith.catalogue import KINDS, call, described, first_sentence, kind_of
from weightsmith.discovery import plugin_class, registry
from weightsmith.distributed import joined
from weightsmith.plugin import Plugin
from weightsmith.recipe import Recipe, prepare, read_recipe

__all__ = ["plan", "plugins"]

_OWN = "weightsmith"


def plan(recipe: str, *, changes: Sequence[str] = ()) -> int | None:
    """Say what will touch which weight, on which event, in which order, with what value over time; and which weights
    nothing touches. No batch is run, and nothing is written.

    All conflicts are named: what cannot work on these models, or not together. Under torchrun, with ``shard=true``, it
    says too which sharded weights a plugin needs whole.

    Args:
        recipe: the YAML file.
        changes: settings in place of the recipe's, such as ``optimizer.lr=0.01 plugins.MaxNorm.limit=2``.
    """
    found = read_recipe(recipe, changes)
    with joined(found.settings.device), tempfile.TemporaryDirectory() as folder:  # for plugins that ask for one
        _print_plan(found, Path(folder))
    return None


def _print_plan(recipe: Recipe, folder: Path) -> None:
    """A function, so that nothing holds the models when the processes part."""
    experiment = prepare(recipe, folder)
    trainer, epochs, length = experiment.trainer, recipe.settings.epochs, experiment.epoch_length
    accumulate = recipe.settings.accumulate
    weights = trainer.weights()
    print(f"{sum(w.numel() for w in weights.values()):,} weights in {len(weights)} tensors; {epochs} epochs", end="")
    print("" if length is None else f" of {length} batches, {-(-length // accumulate)} updates each")
    print(trainer.plan(epochs, None if length is None else -(-length // accumulate)))


def plugins(name: str | None = None) -> int | None:
    """List the plugins that are installed, built-in and others, by kind; or tell all about one: its fields, formula and
    source.

    Args:
        name: a plugin's name, or its class's import path.
    """
    if name is not None:
        print(described(plugin_class(name)))
        return None
    known = registry()
    for kind in KINDS:
        mine = [a for announced in known.plugins.values() for a in announced if kind_of(a.plugin) is kind]
        if mine:
            print(f"{kind.__name__ if kind is not Plugin else 'Other plugins'}")
        for entry in mine:
            source = "" if entry.distribution == _OWN else f"  [{entry.distribution}]"
            print(f"  {call(entry.plugin)}{source}\n      {first_sentence(entry.plugin)}")
    problems = [*map(str, known.failures), *known.clashes()]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return int(bool(problems))
