"""The kinds of plugin. An author writes the mathematics for one tensor; the base does everything else.

Every kind has its pure method, which returns a new tensor and leaves its arguments alone, and a plural form, named
``…_all_``, which works in place on all tensors at once, under ``torch.no_grad()``. The plural's default loops over the
singular; a plugin overrides it where its mathematics spans several weights, or for speed.
"""

from weightsmith.kinds.average import Average
from weightsmith.kinds.base import WeightPlugin
from weightsmith.kinds.constraint import Constraint
from weightsmith.kinds.editors import GradientEditor, WeightEditor
from weightsmith.kinds.initializer import Initializer
from weightsmith.kinds.parametrization import Parametrization
from weightsmith.kinds.penalty import Penalty
from weightsmith.kinds.probe import Probe

__all__ = [
    "Average",
    "Constraint",
    "GradientEditor",
    "Initializer",
    "Parametrization",
    "Penalty",
    "Probe",
    "WeightEditor",
    "WeightPlugin",
]
