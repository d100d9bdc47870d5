"""Training scripts: a function that trains becomes a command with the options that all scripts have."""

from __future__ import annotations

import functools
import inspect
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, overload

import docstring_parser
from ignite.utils import manual_seed
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch import nn

from weightsmith.cli.console import command, trained
from weightsmith.cli.guarding import guarded
from weightsmith.distributed import joined, own_device, parallel, share
from weightsmith.errors import ConfigurationError
from weightsmith.plugin import Plugin
from weightsmith.recipe import read_plugins
from weightsmith.runs import begun_options, run_folder
from weightsmith.spelling import nearest
from weightsmith.trainer import Trainer
from weightsmith.trainer.arguments import refuse_missing_device

__all__ = ["Launch", "Script", "script"]


@dataclass(frozen=True)
class Launch:
    """The options that all training scripts have, and what a script does with them.

    Args:
        epochs: passes over the training data.
        seed: of every random draw.
        device: a torch device, such as cpu or cuda.
        shard: share the weights out among the processes that torchrun starts, in place of a copy for each.
        plugins: a YAML file of plugins that shape the weights, in place of the script's own; ``none`` for none at all.
        runs: the folder in which each run gets a folder of its own.
        resume: ``auto`` goes on with the run in it that was saved last; or the folder of a run, or one of its
            checkpoints. What is not said anew is as that run began.
    """

    epochs: PositiveInt = 10
    seed: NonNegativeInt = 0
    device: str = "cpu"
    shard: bool = False
    plugins: Path | None = None
    runs: Path = Path("runs")
    resume: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # all of the script's, its own ones too
    several_in: Path | None = None  # of one of several runs: the folder of all

    @overload
    def parallel(self, model: nn.Module) -> nn.Module: ...
    @overload
    def parallel(self, model: Mapping[str, nn.Module]) -> dict[str, nn.Module]: ...
    def parallel(self, model: nn.Module | Mapping[str, nn.Module]) -> nn.Module | dict[str, nn.Module]:
        """A model, or several by name, as it is trained on the processes that torchrun started, on its device; call it
        before the optimizer is made. See :func:`weightsmith.distributed.parallel`.

        One process gets the model itself. Of several each gets a copy, where a model alone stands in a wrapper: keep a
        name for the model itself to get at its parts; or, with the option ``shard``, a part of each weight.
        """
        device = own_device(self.device)
        refuse_missing_device(device)
        if isinstance(model, nn.Module):
            return parallel(model.to(device), shard=self.shard)
        return parallel({name: each.to(device) for name, each in model.items()}, shard=self.shard)

    def share(self, batches: Any, *, even: bool = True) -> Any:
        """This process's share of a ``DataLoader`` or of a list of batches, whose batch size is that of all processes
        together. See :func:`weightsmith.distributed.share`.

        Args:
            batches: what one process goes through.
            even: whether each process gets the same number of samples, as in training. Give ``False`` to evaluate:
                then no sample is counted twice.
        """
        return share(batches, even=even)

    def trainer(
        self, *arguments: Any, shaping: Sequence[Plugin], watching: Sequence[Plugin] = (), **keywords: Any
    ) -> Trainer:
        """A Trainer of these arguments, with the device, the seed and a folder for its run. If the run goes on with
        another one, it stands where that was saved.

        Args:
            shaping: plugins that shape the weights; those of the option ``plugins`` take their place.
            watching: further plugins.
            arguments, keywords: as for :class:`Trainer`.

        Raises:
            ConfigurationError: there is no run to go on with, it began with other options or plugins, or the plugins
                cannot work on these models. No folder is left behind.
        """
        shapers = self._shapers(shaping)
        with run_folder(self.runs, self.resume, self.options) as run:
            trainer = Trainer(
                *arguments,
                run_dir=run.folder,
                device=own_device(self.device),
                seed=self.seed,
                plugins=[*shapers, *watching],
                **keywords,
            )
            run.begin(trainer)
        return trainer

    def train(self, trainer: Trainer, batches: Iterable[Any]) -> None:
        """Train up to the epoch of the option ``epochs``, with a progress bar where somebody watches, and a line for
        each epoch; then say what came of it, where the run is, and how to view it."""
        again = ["--resume", "auto", "--runs", self.several_in] if self.several_in else ["--resume", trainer.run_dir]
        hint = shlex.join(map(str, [*command(), sys.argv[0], *again]))
        trained(trainer, batches, self.epochs, hint=hint)

    def at(self, name: str) -> Launch:
        """For one of several runs of a script: the same, in a folder of this name inside ``runs``.

        Raises:
            ConfigurationError: one run is to go on, of several.
        """
        if self.resume not in (None, "auto"):
            raise ConfigurationError(f"the script does several runs, so --resume takes auto, not {self.resume}")
        options = {**self.options, "of_several": name}
        return replace(self, runs=self.runs / name, several_in=self.several_in or self.runs, options=options)

    def _shapers(self, own: Sequence[Plugin]) -> Sequence[Plugin]:
        if self.plugins is None:
            return own
        return [] if str(self.plugins) == "none" else read_plugins(self.plugins)


class Script:
    """A function that trains, as a command, and to call from Python with the same options by keyword.

    Raises:
        ConfigurationError: the function has no parameter for the Launch, or one called as an option that all scripts
            have; or defaults are given of options that there are not.
    """

    __name__: str

    def __init__(self, function: Callable[..., Any], defaults: Mapping[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        parameters = list(inspect.signature(function).parameters.values())
        common: dict[str, Any] = {each.name: each.default for each in fields(Launch) if each.name not in _INNER}
        problems = {
            "its first parameter is the Launch, and there is none": not parameters,
            f"{[*common]} are options that all scripts have": any(each.name in common for each in parameters),
            f"of the options {[*common]} defaults can be given, not of {[*defaults]}": not defaults.keys()
            <= common.keys(),
        }
        for problem in [problem for problem, is_there in problems.items() if is_there]:
            raise ConfigurationError(f"{function.__qualname__} is no training script: {problem}")
        self._first, *own = [each.name for each in parameters]
        self._own = own
        self._common = {**common, **defaults}
        self._own_defaults = {each.name: each.default for each in parameters[1:] if each.default is not each.empty}

    @property
    def defaults(self) -> dict[str, Any]:
        """The options that it has if none is given."""
        return {**self._own_defaults, **self._common}

    def __call__(self, **given: Any) -> Any:
        """Train, with the given options; the others are those that the run began with, if one goes on, or the defaults.

        Returns:
            What the function returns.

        Raises:
            ConfigurationError: there is no such option, or one without a default is not given.
        """
        known = [*self._own, *self._common]
        for name in [name for name in given if name not in known]:
            raise ConfigurationError(f"{self.__name__} takes no option {name!r}{nearest(name, known)}")
        options = {**self.defaults, **given}
        begun = begun_options(options["runs"], options["resume"])
        options = {**self.defaults, **self._typed(begun), **given}
        missing = [name for name in self._own if name not in options]
        if missing:
            raise ConfigurationError(f"{self.__name__} needs the options {', '.join(missing)}")
        manual_seed(options["seed"])
        launch = Launch(**{name: value for name, value in options.items() if name not in self._own}, options=options)
        return self._function(launch, **{name: options[name] for name in self._own})

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Train with the options of the command line; the process's exit code."""
        given = vars(self._parser().parse_args(None if arguments is None else list(arguments), defaults=False))

        def train() -> Any:
            with joined(self._device(given)):
                return self(**given)

        return guarded(train)

    def _device(self, given: Mapping[str, Any]) -> str:
        """The device of the run to come, before the processes have met."""
        options = {**self.defaults, **given}
        return str({**options, **begun_options(options["runs"], options["resume"]), **given}["device"])

    def _typed(self, begun: Mapping[str, Any]) -> dict[str, Any]:
        """Options that stand in a run's folder, those of them that the script still has."""
        known = {name: value for name, value in begun.items() if name in self.defaults and name not in _OF_THIS_CALL}
        try:
            return dict(vars(self._parser(exit_on_error=False).parse_object(known, defaults=False)))
        except ArgumentError as error:
            raise ConfigurationError(
                f"the run began with options that the script does not take now: {error}"
            ) from error

    def _parser(self, **settings: Any) -> ArgumentParser:
        text = docstring_parser.parse(inspect.getdoc(self._function) or "").description
        parser = ArgumentParser(description=text, **settings)
        parser.add_function_arguments(self._function, as_group=False, fail_untyped=False, skip={self._first})
        parser.add_class_arguments(Launch, as_group=False, skip={*_INNER, "shard"})
        parser.add_argument("--shard", nargs="?", const=True, type=bool, help=_SHARD)
        parser.set_defaults(self._common)
        return parser


_SHARD = next(
    each.description for each in docstring_parser.parse(Launch.__doc__ or "").params if each.arg_name == "shard"
)

_INNER = ("options", "several_in")
"""Fields of a Launch that are no options."""

_OF_THIS_CALL = ("runs", "resume")
"""Options that say nothing of the run."""


def script(**defaults: Any) -> Callable[[Callable[..., Any]], Script]:
    """Make a function a training script. Its first parameter is a :class:`Launch`; the others are its own options,
    explained by its docstring.

    Args:
        defaults: of the common options, such as ``epochs`` and ``runs``.

    >>> @script(epochs=3)
    ... def train(launch: Launch, rate: float = 0.1) -> str:
    ...     return f"{launch.epochs} epochs at {rate}"
    >>> train(), train(epochs=5, rate=0.2)
    ('3 epochs at 0.1', '5 epochs at 0.2')
    """
    return lambda function: Script(function, defaults)
