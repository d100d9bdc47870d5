"""Pruning: weights that are taken out, and stay exactly zero.

A pruning is a constraint that remembers a mask. The mask is renewed whenever the plugin acts (``every``, ``after``,
``before``) and applied after every update, so that neither momentum nor an average brings a pruned weight back. A run
that goes on, goes on with its mask.
"""

from weightsmith_plugins.sparsity.masks import KeepZeros, Pruning
from weightsmith_plugins.sparsity.movement import SNIP, MovementPruning
from weightsmith_plugins.sparsity.ranked import MagnitudePruning, RankedPruning
from weightsmith_plugins.sparsity.report import SparsityReport, finalise, sparsity_report
from weightsmith_plugins.sparsity.rigl import RigL

__all__ = [
    "SNIP",
    "KeepZeros",
    "MagnitudePruning",
    "MovementPruning",
    "Pruning",
    "RankedPruning",
    "RigL",
    "SparsityReport",
    "finalise",
    "sparsity_report",
]
