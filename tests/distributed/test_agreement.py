"""The same mathematics on several processes as on one, for every built-in plugin."""

import logging

import pytest
import torch
from agreement import compared

WORLDS = ("copies:2", "shards:2")


@pytest.fixture(autouse=True)
def _settings_restored():
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all: the table of the conformance suite, which is read once, keeps its files there."""
    return tmp_path_factory.mktemp("table")


@pytest.mark.parametrize("kind", ["suite", "mixed"])
def test_every_plugin_agrees_with_one_process(kind, folder):
    rows = compared(folder, kind, updates=6, chosen=[], dtype=torch.float64, worlds=WORLDS)
    assert len(rows) > 90
    assert {case: row for case, row in rows.items() if row["copies:2 among themselves"] > 0} == {}
    # In float64, what is more than rounding would be some 1e8 times as far off.
    assert {case: row for case, row in rows.items() if max(row[world] for world in WORLDS) > 1e-8} == {}


def test_empty_parts_are_no_trouble(folder):
    """6 units on 4 processes: the last has none."""
    rows = compared(folder, "suite", updates=4, chosen=[], dtype=torch.float32, worlds=("shards:4",))
    assert {case: row for case, row in rows.items() if row["shards:4 among themselves"] > 0} == {}
    assert {case: row for case, row in rows.items() if row["shards:4"] > 2e-5} == {}
