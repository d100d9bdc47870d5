"""Contenders that alternate in one process, so that a noisy machine disturbs all alike, and what is kept of it."""

from __future__ import annotations

import datetime
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["Act", "Times", "alternate", "keep", "ratio"]

Act = Callable[[], object]
Times = dict[str, list[float]]
"""The seconds of each contender, in every round."""


def alternate(
    contenders: Mapping[str, Act],
    *,
    seconds: float,
    prepare: Act = lambda: None,
    least: int = 3,
    most: int = 200,
    in_a_row: int = 1,
) -> Times:
    """Time contenders in turn, in an order drawn for each round, after one round that does not count.

    What a contender leaves behind, such as weights in new memory, so meets now one and now another. The first call
    after other work finds neither its code nor its data in the processor's cache: of few and small weights that is most
    of what it takes.

    Args:
        contenders: what to time, by name.
        seconds: how long, all together, preparations included.
        prepare: called before each, untimed.
        least: the least number of rounds.
        most: the largest.
        in_a_row: calls of each in a round, of which the median counts; fewer of what takes long.
    """
    times: Times = {name: [] for name in contenders}
    order = list(contenders.items())

    def one_call(act: Act) -> float:
        prepare()
        start = time.perf_counter()
        act()
        return time.perf_counter() - start

    def one_round() -> dict[str, float]:
        found = {}
        _draw(order)
        for name, act in order:
            calls = [one_call(act)]
            while len(calls) < in_a_row and sum(calls) < _LONG:
                calls.append(one_call(act))
            found[name] = statistics.median(calls)
        return found

    one_round()
    end = time.perf_counter() + seconds
    done = 0
    while done < least or (time.perf_counter() < end and done < most):
        for name, taken in one_round().items():
            times[name].append(taken)
        done += 1
    return times


_LONG = 0.02
"""Seconds, after which no more calls follow in a row."""


def _draw(order: list[Any]) -> None:
    """Another order, in which none comes after itself."""
    last = order[-1]
    _drawn.shuffle(order)
    while len(order) > 1 and order[0] == last:
        _drawn.shuffle(order)


_drawn = random.Random(0)


def ratio(times: Times, of: str, to: str) -> float:
    """The median, over the rounds, of the ratio of one contender's time to another's in the same round."""
    return statistics.median(mine / other for mine, other in zip(times[of], times[to], strict=True))


def keep(output: str | None, *, threads: object, **found: Any) -> None:
    """Write down what was found, with what it was found on; nothing if there is no ``output``."""
    if output is None:
        return
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"processor": _processor(), "torch": torch.__version__, "date": f"{datetime.date.today():%B %Y}"}
    path.write_text(json.dumps({**machine, "threads": threads, **found}, indent=1) + "\n", encoding="utf-8")


def _processor() -> str:
    """Its model, where Linux tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
