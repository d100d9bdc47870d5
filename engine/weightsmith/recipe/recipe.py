"""A run, or the plugins of one, as YAML describes it: read, and checked whole before anything is made of it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ignite.metrics import Metric
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import Dataset

from weightsmith.errors import ConfigurationError, RecipeError
from weightsmith.plugin import Plugin
from weightsmith.recipe.changes import change
from weightsmith.recipe.components import Component, checked_arguments, component
from weightsmith.recipe.hints import gives
from weightsmith.recipe.names import found as called
from weightsmith.recipe.names import name_and_settings, shown
from weightsmith.recipe.plugins import from_plain
from weightsmith.recipe.text import Items, Problems, Section, located, place_of, read_yaml, written
from weightsmith.spelling import closest, guess, nearest

__all__ = ["PlacedPlugin", "Recipe", "RunSettings", "read_plugins", "read_recipe"]


@dataclass(frozen=True)
class RunSettings:
    """The settings of a recipe that are plain values.

    Args:
        epochs: passes over the data.
        seed: of every random draw. Default: one is drawn, and stands in the resolved recipe.
        device: a torch device, such as cpu or cuda.
        shard: share the weights out among the processes that torchrun starts, in place of a copy for each.
        precision: of the forward pass, by autocast.
        accumulate: micro-batches per update.
        scheduler_steps: whether schedulers are stepped after each epoch, or after each update of their optimizers.
        nonfinite: what to do when a loss, a gradient or a weight is infinite or no number.
        averaged: validate the means of the average among the plugins, such as EMA, in place of the weights in training.
        one_batch: train and validate on the first batch alone, as often as there are batches, to see whether the model
            can learn it by heart.
        debug: find out who writes where it should not; slow.
        name: of the run. Default: the recipe's file name without its suffix.
        runs: the folder in whose folder ``name`` each run gets a folder of its own.
        paths: folders, relative to the recipe's, where the modules that it names are looked up, after its own.
    """

    epochs: PositiveInt
    seed: NonNegativeInt | None = None
    device: str = "cpu"
    shard: bool = False
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    accumulate: PositiveInt = 1
    scheduler_steps: Literal["epoch", "update"] = "epoch"
    nonfinite: Literal["raise", "skip", "restore", "ignore"] = "raise"
    averaged: bool = False
    one_batch: bool = False
    debug: bool = False
    name: str | None = None
    runs: str = "runs"
    paths: list[str] | None = None


@dataclass(frozen=True)
class PlacedPlugin:
    """A plugin, and where the recipe writes it."""

    plugin: Plugin
    place: str


@dataclass(frozen=True)
class Recipe:
    """A run, described: every name in it is found, and every value is of its type.

    Attributes:
        path: the file.
        plain: what stands there, with the changes.
        settings: the plain values.
        models: the models by name; one alone has the empty name.
        optimizers: an optimizer for each, or one for all, which has the empty name.
        schedulers: of learning rates, one for each of some optimizers.
        batches: to train on, from what stands under `data`.
        validation: the batches to validate on, if any.
        loss: the loss, if the default step is used; else ``None``.
        step: the step, if it is the recipe's own.
        validation_step: what gives the metrics their outputs and targets, if it is the recipe's own.
        metrics: Ignite's metrics by name.
        plugins: in their order.
    """

    path: Path
    plain: Section
    settings: RunSettings
    models: Mapping[str, Component]
    optimizers: Mapping[str, Component]
    schedulers: Mapping[str, Component]
    batches: Component
    validation: Component | None
    loss: Component | None
    step: Component | None
    validation_step: Component | None
    metrics: Mapping[str, Component]
    plugins: Sequence[PlacedPlugin]

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.settings.name or self.path.stem + ("-one-batch" if self.settings.one_batch else "")

    def resolved(self, seed: int) -> str:
        """The YAML of a recipe that repeats this run, wherever it is written to."""
        own, *named = _folders(self.path, self.settings.paths or ())
        is_resolved = self.settings.name is not None and _stands_in_a_run(self.path)
        folders = [str(folder) for folder in ([] if is_resolved else [own]) + named]
        defaults = {field.name: getattr(self.settings, field.name) for field in fields(RunSettings)}
        fixed = {
            "seed": seed,
            "name": self.name,
            "runs": str(Path(self.settings.runs).resolve()),
            "paths": folders,
        }
        return written({**defaults, **self.plain, **fixed})


_SETTINGS = [field.name for field in fields(RunSettings)]
_KEYS = ("model", "models", "optimizer", "optimizers", "scheduler", "schedulers", "data", "validation", "loss", "step")
READ_ONCE = "a generator can be read once: return a DataLoader, or a class with __iter__"
_ALL_KEYS = [*_KEYS, "validation_step", "metrics", "plugins", *_SETTINGS]


def read_recipe(path: str | Path, changes: Iterable[str] = ()) -> Recipe:
    """Read a recipe and check it whole; nothing is made yet. Its folder, and those it names as ``paths``, join
    ``sys.path``, as a script's does.

    Args:
        path: the YAML file.
        changes: such as ``"optimizer.lr=0.01"``, applied before it is checked.

    Raises:
        RecipeError: all that is wrong, each with file and line, and the nearest valid name.
    """
    plain = read_yaml(path)
    if not isinstance(plain, Section):
        raise RecipeError([f"{place_of(plain) or path}: a recipe is a mapping: write `model: …`, `data: …` and so on"])
    for text in changes:
        change(plain, text)
    return _Reader(Path(path), plain).recipe()


def read_plugins(path: str | Path) -> list[Plugin]:
    """The plugins of a recipe, or of a file that holds nothing but a list of plugins: to lay over a training script.

    Raises:
        RecipeError: as :func:`read_recipe`; what else a recipe says is not looked at.
    """
    whole = read_yaml(path)
    if isinstance(whole, Section) and "plugins" not in whole:
        raise RecipeError([f"{whole.place}: there are no plugins: write a list, or `plugins:` and a list"])
    plain, named = (whole["plugins"], whole.get("paths")) if isinstance(whole, Section) else (whole, None)
    with located(whole, "paths"):
        _look_in_all(Path(path), named)
    return [placed.plugin for placed in _plugins(plain, str(path))]


def _plugins(plain: Any, source: str) -> list[PlacedPlugin]:
    if plain is None:
        return []
    if not isinstance(plain, Items):
        raise RecipeError(
            [f"{place_of(plain) or source}: plugins are a list: write `- Name: {{field: value}}` for each"]
        )
    problems, found = Problems(), []
    for place, entry in enumerate(plain):
        with problems.gathering(plain, place):
            found.append(PlacedPlugin(from_plain(entry), place_of(plain, place)))
    problems.raise_any()
    return found


class _Reader:
    """Makes a recipe of what stands in a file, and gathers all that is wrong with it."""

    def __init__(self, path: Path, plain: Section) -> None:
        self._path = path
        self._plain = plain
        self._problems = Problems()

    def recipe(self) -> Recipe:
        for key in self._plain:
            with self._problems.gathering(self._plain, key):
                if key not in _ALL_KEYS:
                    raise ConfigurationError(f"a recipe has no {key!r}{nearest(str(key), _ALL_KEYS)}")
        self._plain = _respelt(self._plain)
        settings = self._settings()
        named = self._plain.get("paths")
        with self._problems.gathering(self._plain, "paths"):
            _look_in_all(self._path, named)
        models = self._several("model", nn.Module, needed=True)
        optimizers = self._several("optimizer", Optimizer, {"params": "the weights"}, needed=True)
        schedulers = self._several("scheduler", LRScheduler, {"optimizer": "the optimizer"})
        batches = self._one("data", _batches, needed=True)
        validation = self._one("validation", _batches)
        loss = self._one("loss", lambda plain: component(plain, called_with=("the outputs", "the targets")))
        step, validation_step = (self._one(key, _step) for key in ("step", "validation_step"))
        metrics = self._named("metrics", Metric)
        plugins = self._one("plugins", lambda plain: _plugins(plain, str(self._path))) or []
        with self._problems.gathering(self._plain):
            self._refuse_misfits(models, optimizers, schedulers)
        self._problems.raise_any()
        assert settings is not None
        return Recipe(
            path=self._path,
            plain=self._plain,
            settings=settings,
            models=models,
            optimizers=optimizers,
            schedulers=schedulers,
            batches=batches,
            validation=validation,
            loss=loss,
            step=step,
            validation_step=validation_step,
            metrics=metrics,
            plugins=plugins,
        )

    def _settings(self) -> RunSettings | None:
        given = Section({k: v for k, v in self._plain.items() if k in _SETTINGS}, self._plain.place, self._plain.places)
        with self._problems.gathering(self._plain):
            return RunSettings(**checked_arguments(RunSettings, given, label=""))
        return None

    def _one(self, key: str, read: Callable[[Any], Any], *, needed: bool = False) -> Any:
        if self._plain.get(key) is None:
            with self._problems.gathering(self._plain, key):
                if needed:
                    raise ConfigurationError(f"the recipe needs `{key}:`")
            return None
        with self._problems.gathering(self._plain, key):
            return read(self._plain[key])
        return None

    def _several(
        self, key: str, kind: type, given: Mapping[str, str] | None = None, *, needed: bool = False
    ) -> dict[str, Component]:
        """What stands under ``model``, alone, or under ``models``, by name."""
        if f"{key}s" in self._plain and key in self._plain:
            with self._problems.gathering(self._plain, f"{key}s"):
                raise ConfigurationError(f"write `{key}:` or `{key}s:`, not both")
        if f"{key}s" in self._plain:
            return self._named(f"{key}s", kind, given)
        one = self._one(key, lambda plain: component(plain, kind, given), needed=needed)
        return {} if one is None else {"": one}

    def _named(self, key: str, kind: type, given: Mapping[str, str] | None = None) -> dict[str, Component]:
        plain = self._plain.get(key)
        found: dict[str, Component] = {}
        with self._problems.gathering(self._plain, key):
            if plain is not None and not isinstance(plain, Section):
                raise ConfigurationError(f"{key} are several by name: write `name: …` for each")
            for name, value in (plain or {}).items():
                with self._problems.gathering(plain, name):
                    if not isinstance(name, str) or not name.isidentifier():
                        raise ConfigurationError(f"{name!r} is no name: use letters, digits and _")
                    found[name] = component(value, kind, given)
        return found

    def _refuse_misfits(self, models: Mapping[str, Any], optimizers: Mapping[str, Any], schedulers: Any) -> None:
        has = {key for key, value in self._plain.items() if value is not None}
        has_one = set(models) <= {""} and set(optimizers) <= {""}
        if not has_one and "step" not in has:
            raise ConfigurationError("several models or optimizers need `step:`, a function (trainer, batch)")
        if has_one and not {"step", "loss"} & has:
            raise ConfigurationError("the recipe needs `loss:`, or a `step:` of its own")
        if {"step", "loss"} <= has:
            raise ConfigurationError("`loss:` is for the default step, and does nothing beside a `step:` of its own")
        if set(optimizers) - {""} and models:
            self._refuse_other_names("optimizer", optimizers, "model", models)
            self._refuse_other_names("model", models, "optimizer", optimizers)
        if optimizers:
            self._refuse_other_names("scheduler", schedulers, "optimizer", optimizers)
        if any(scheduler.target is ReduceLROnPlateau for scheduler in schedulers.values()):
            raise ConfigurationError("ReduceLROnPlateau needs a metric: step it in a script of your own")
        if not re.fullmatch(r"[^/\\]+", str(self._plain.get("name") or "x")) or self._plain.get("name") in (".", ".."):
            raise ConfigurationError("`name:` is that of a folder in `runs:`, without / and \\")
        self._refuse_idle(has)

    def _refuse_idle(self, has: set[str]) -> None:
        """Raise where a setting would do nothing, for want of another."""
        if self._plain.get("scheduler_steps") == "update" and not {"scheduler", "schedulers"} & has:
            raise ConfigurationError("`scheduler_steps:` says when to step a `scheduler:`, and there is none")
        if len({"metrics", "validation"} & has) == 1:
            raise ConfigurationError("`metrics:` are measured on `validation:`: write both, or neither")
        if "validation" not in has and ("validation_step" in has or self._plain.get("averaged") is True):
            raise ConfigurationError("`validation_step:` and `averaged:` say how to validate: write `validation:` too")

    def _refuse_other_names(self, key: str, named: Iterable[str], of: str, known: Iterable[str]) -> None:
        """Raise, at its line, where what stands under a key has a name that none of the others has."""
        several, names = self._plain.get(f"{key}s"), list(known)
        for name in named:
            if name not in names:
                with located(several, name) if isinstance(several, Section) else located(self._plain, key):
                    raise ConfigurationError(
                        f"the {key}s are named {list(named)}, the {of}s {names}{guess(name, names)}"
                    )


def _respelt(plain: Section) -> Section:
    """A recipe with the nearest keys in place of unknown ones, so that what they say is checked, and not missed."""
    found = Section(plain, plain.place, plain.places)
    for key in [key for key in plain if key not in _ALL_KEYS]:
        near = closest(str(key), _ALL_KEYS)
        if near is not None and near not in found:
            found[near] = plain[key]
            found.places[near] = plain.places[key]
    return found


def _batches(plain: Any) -> Component:
    """What gives batches, more than once."""
    try:
        found = component(plain, Iterable)
    except ConfigurationError:
        with located(plain):
            _refuse_dataset(plain)
        raise
    if gives(found.target, Iterator):
        raise ConfigurationError(f"{shown(found.target)} gives an Iterator: {READ_ONCE}")
    return found


def _step(plain: Any) -> Component:
    return component(plain, called_with=("the trainer", "the batch"))


def _refuse_dataset(plain: Any) -> None:
    name, _ = name_and_settings(plain)
    if gives(called(name, None), Dataset):
        raise ConfigurationError(
            f"{name} gives a dataset, not batches: wrap it, {{DataLoader: {{dataset: {{{name}: …}}, batch_size: 32}}}}"
        )


def _folders(path: Path, named: Iterable[str]) -> list[Path]:
    """Where the modules that a recipe names are looked up."""
    own = path.resolve().parent
    return list(dict.fromkeys([own, *((own / folder).resolve() for folder in named)]))


def _stands_in_a_run(path: Path) -> bool:
    return (path.resolve().parent / "checkpoints").is_dir()


def _look_in_all(path: Path, named: Any) -> None:
    """Let the recipe's folder, and those under its ``paths``, join ``sys.path``.

    Raises:
        ConfigurationError: there is no such folder. The recipe in a run's folder may name some that are gone by now.
    """
    folders = _folders(path, map(str, named) if isinstance(named, list) else ())
    for folder in reversed(folders):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing and not _stands_in_a_run(path):
        raise ConfigurationError(f"paths: there is no folder {', '.join(missing)}")
