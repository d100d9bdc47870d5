"""A plugin of pytest for Ignite's own tests: one of our engines stands where they import Ignite's, and the tests that
are listed here as different must differ."""

import os
from collections import Counter

import ignite.engine
import pytest
import torch
from weightsmith import Trainer
from weightsmith.trainer.loop import ResumableLoop

LOOP = {
    "test_event_handlers.py::test_remove_event_handler": "counts the handlers in Engine's private table, where the "
    "loop keeps some of its own; tests/engine/test_stays_ignite.py compares what removing does",
    "test_memory_leaks.py::TestEngineMemoryLeak::test_memory_leak": "wants an engine freed with the last reference to "
    "it; ours has parts that refer to it, and is freed when Python collects garbage, as test_stays_ignite.py sees",
}
"""Ignite's tests that ResumableLoop fails, each with the reason."""

TRAINER = {
    **LOOP,
    "test_engine.py::TestEngine::test_invalid_process_raises_with_invalid_signature": "wants Engine(None) refused; a "
    "Trainer without step= has a step of its own (test_misuse.py tries the other steps of this test)",
    "test_engine_state_dict.py::test_state_dict": "counts the entries of the state; a Trainer's has one more, "
    "'weightsmith', with the counts of updates and what plugins remember",
    "test_engine_state_dict.py::test_state_dict_with_user_keys": "counts the entries, as test_state_dict does",
    "test_engine_state_dict.py::test_state_dict_integration": "counts the entries, as test_state_dict does",
}
"""Those that a Trainer fails."""


class TrainersEngine(Trainer):
    """A Trainer that is made as an Engine is, with a weight that nothing trains."""

    def __init__(self, process_function):
        model = torch.nn.ParameterList([torch.zeros(1)])
        super().__init__(model, torch.optim.SGD(model.parameters(), lr=0.1), step=process_function)


ENGINES = {
    "Engine": (ignite.engine.Engine, {}),
    "ResumableLoop": (ResumableLoop, LOOP),
    "Trainer": (TrainersEngine, TRAINER),
}
NAME = os.environ.get("ENGINE_IN_PLACE", "Trainer")
ENGINE, DIFFERENCES = ENGINES[NAME]


def pytest_configure():
    """Put ours in place, before any test imports Ignite's, under the name that Ignite's messages say."""
    ignite.engine.Engine = ignite.engine.engine.Engine = type("Engine", (ENGINE,), {})


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Let the listed tests fail, and no other; complain of one that is listed and not there."""
    names = {item: item.nodeid.rpartition("/")[2].partition("[")[0] for item in items}
    files = {name.partition("::")[0] for name in names.values()}
    gone = [name for name in DIFFERENCES.keys() - set(names.values()) if name.partition("::")[0] in files]
    if gone:
        raise pytest.UsageError(f"listed in {__file__}, and not among Ignite's tests: {', '.join(gone)}")
    for item, name in names.items():
        if name in DIFFERENCES:
            item.add_marker(pytest.mark.xfail(reason=DIFFERENCES[name], raises=AssertionError, strict=True))


def pytest_terminal_summary(terminalreporter):
    count = Counter({outcome: len(reports) for outcome, reports in terminalreporter.stats.items()})
    failed = count["failed"] + count["error"]
    terminalreporter.write_line(
        f"{NAME} in place of Ignite's Engine: {count['passed']} tests passed, {count['xfailed']} differ as listed, "
        f"{failed} failed; {count['skipped']} need what is not here"
    )
