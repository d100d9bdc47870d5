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


@pytest.mark.parametrize("kind", ["suite", "mixed"])
def test_every_plugin_agrees_with_one_process(kind, tmp_path):
    rows = compared(tmp_path, kind, updates=6, chosen=[], dtype=torch.float64, worlds=WORLDS)
    assert len(rows) > 90
    # In float64, what is more than rounding would be some 1e8 times as far off.
    assert {case: row for case, row in rows.items() if max(row[world] for world in WORLDS) > 1e-8} == {}


def test_copies_stay_alike_bit_for_bit_and_empty_parts_are_no_trouble(tmp_path):
    worlds = ("copies:2", "shards:4")  # 6 units on 4 processes: the last has none
    rows = compared(tmp_path, "suite", updates=6, chosen=[], dtype=torch.float32, worlds=worlds)
    assert {case: row for case, row in rows.items() if row["copies:2 among themselves"] > 0} == {}
    assert {case: row for case, row in rows.items() if row["shards:4 among themselves"] > 0} == {}
    assert {case: row for case, row in rows.items() if max(row[world] for world in worlds) > 2e-5} == {}
