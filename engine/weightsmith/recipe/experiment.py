"""What a recipe describes, made: models, optimizers, data and a Trainer with its plugins."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ignite.engine import Events
from ignite.utils import manual_seed
from torch.optim import Optimizer

from weightsmith.distributed import from_first, own_device, parallel, share
from weightsmith.errors import ConfigurationError
from weightsmith.events import WeightEvents
from weightsmith.plugin import refuse_unknown_length
from weightsmith.recipe.components import Component
from weightsmith.recipe.names import shown
from weightsmith.recipe.recipe import READ_ONCE, Recipe
from weightsmith.recipe.text import Problems, located
from weightsmith.spelling import nearest
from weightsmith.trainer import Trainer
from weightsmith.trainer.arguments import refuse_missing_device

__all__ = ["Experiment", "prepare"]


@dataclass(frozen=True)
class Experiment:
    """A run that can begin.

    Attributes:
        recipe: what describes it.
        seed: the recipe's, or the one that was drawn.
        trainer: with all plugins attached, and validation, if there is any.
        batches: to train on.
    """

    recipe: Recipe
    seed: int
    trainer: Trainer
    batches: Iterable[Any]

    @property
    def epoch_length(self) -> int | None:
        """Batches in an epoch; ``None`` if the data does not say."""
        return _length(self.batches)

    def run(self) -> Any:
        """Train as many epochs as the recipe says."""
        return self.trainer.run(self.batches, max_epochs=self.recipe.settings.epochs)


def prepare(recipe: Recipe, run_dir: Path | None = None) -> Experiment:
    """Make everything that a recipe describes; train nothing. Seeds Python's, NumPy's and torch's global generators. On
    several processes each gets its part of the models and its share of the data.

    Args:
        recipe: what :func:`read_recipe` gave.
        run_dir: the folder of the run, for plugins that write.

    Raises:
        RecipeError: something cannot be made, or plugins cannot work on these models, or not together: all of these,
            each with file and line.
    """
    settings = recipe.settings
    device = own_device(settings.device)
    with located(recipe.plain, "device"):
        refuse_missing_device(device)
    seed = from_first(secrets.randbelow(2**31)) if settings.seed is None else settings.seed
    with located(recipe.plain, "seed"):
        if seed >= 2**32:
            raise ConfigurationError(f"seed {seed} is more than NumPy takes: give one below 2**32")
    manual_seed(seed)
    batches, validation = _own_batches(recipe)
    built = {name: model.build().to(device) for name, model in recipe.models.items()}
    models = parallel(built, settings.shard)
    optimizers = {
        name: optimizer.build([weight for model in _held_by(models, name) for weight in model.parameters()])
        for name, optimizer in recipe.optimizers.items()
    }
    schedulers = {name: scheduler.build(optimizers[name]) for name, scheduler in recipe.schedulers.items()}
    with located(recipe.plain):
        trainer = Trainer(
            models.get("", models),
            optimizers.get("", optimizers),
            None if recipe.loss is None else recipe.loss.made(),
            step=None if recipe.step is None else recipe.step.made(),
            run_dir=run_dir,
            device=device,
            precision=settings.precision,
            accumulate=settings.accumulate,
            seed=seed,
            keep={f"scheduler_{name}": scheduler for name, scheduler in schedulers.items()},
            nonfinite=settings.nonfinite,
            debug=settings.debug,
        )
    _attach(trainer, recipe, knows_length=_length(batches) is not None)
    event = Events.EPOCH_COMPLETED if settings.scheduler_steps == "epoch" else WeightEvents.UPDATE_COMPLETED
    for name, scheduler in schedulers.items():
        trainer.add_event_handler(event, _stepping(scheduler, trainer, optimizers[name]))
    if validation is not None and recipe.metrics:
        with located(recipe.plain, "averaged"):
            trainer.validate_on(
                validation,
                {name: metric.build() for name, metric in recipe.metrics.items()},
                step=None if recipe.validation_step is None else recipe.validation_step.made(),
                averaged=settings.averaged,
            )
    if recipe.step is None:  # a step of one's own may measure anything
        _refuse_missing_metrics(trainer, recipe)
    return Experiment(recipe, seed, trainer, batches)


def _own_batches(recipe: Recipe) -> tuple[Iterable[Any], Iterable[Any] | None]:
    """This process's share of the batches to train on, and of those to validate on, if there are any."""
    batches = _built_batches(recipe, "data", recipe.batches)
    validation = None if recipe.validation is None else _built_batches(recipe, "validation", recipe.validation)
    if recipe.settings.one_batch:
        with located(recipe.plain, "data"):
            first = _first(batches)
        batches, validation = [first] * (_length(batches) or 1), [first]
    with located(recipe.plain, "data"):
        batches = share(batches)
    with located(recipe.plain, "validation"):
        return batches, None if validation is None else share(validation, even=False)


def _built_batches(recipe: Recipe, key: str, described: Component) -> Iterable[Any]:
    batches: Iterable[Any] = described.build()
    with located(recipe.plain, key):
        if isinstance(batches, Iterator) and iter(batches) is batches:
            raise ConfigurationError(f"{shown(described.target)} gave an Iterator: {READ_ONCE}")
        _length(batches)  # refuses what cannot tell it
    return batches


def _length(batches: Any) -> int | None:
    try:
        return len(batches)
    except TypeError:
        return None
    except Exception as error:  # whatever somebody's data raise
        raise ConfigurationError(
            f"asked for their length, the batches raise {type(error).__name__}: {error}"
        ) from error


def _first(batches: Iterable[Any]) -> Any:
    for batch in batches:
        return batch
    raise ConfigurationError("the data has no batch")


def _attach(trainer: Trainer, recipe: Recipe, *, knows_length: bool) -> None:
    problems = Problems()
    for placed in recipe.plugins:
        with problems.gathering(placed):
            trainer.attach(placed.plugin)
            if not knows_length:
                refuse_unknown_length(placed.plugin)
    problems.raise_any()


def _refuse_missing_metrics(trainer: Trainer, recipe: Recipe) -> None:
    problems, awaited = Problems(), trainer.awaited_metrics
    for placed in recipe.plugins:
        for name in placed.plugin.metrics_needed():
            with problems.gathering(placed):
                if name not in awaited:
                    near = nearest(name, awaited) or ": write `metrics:` and `validation:`"
                    raise ConfigurationError(f"{placed.plugin!r}: no metric is called {name!r}{near}")
    problems.raise_any()


def _held_by(models: dict[str, Any], optimizer: str) -> list[Any]:
    """The models whose weights the optimizer of this name holds."""
    return [models[optimizer]] if optimizer in models else list(models.values())


def _stepping(scheduler: Any, trainer: Trainer, optimizer: Optimizer) -> Callable[[], None]:
    """A handler that steps a scheduler; inside an update, only if it is its own optimizer's."""

    def step() -> None:
        updated = trainer.state.optimizer
        if updated is None or trainer.optimizers[updated] is optimizer:
            scheduler.step()

    return step
