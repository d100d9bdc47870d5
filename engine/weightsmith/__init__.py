"""weightsmith: a training-loop engine on PyTorch Ignite for people who shape the weights of a network."""

from weightsmith.errors import (
    CheckpointError,
    ConfigurationError,
    ConflictError,
    DamagedCheckpointError,
    NonFiniteError,
    PluginContractError,
    PluginDefinitionError,
    RecipeError,
    ReplicaDriftError,
    RunStopped,
    SelectionError,
    UnsupportedWeightError,
    WeightsmithError,
)
from weightsmith.events import TrainingState, WeightEvents
from weightsmith.kinds import (
    Average,
    Constraint,
    GradientEditor,
    Initializer,
    Parametrization,
    Penalty,
    Probe,
    WeightEditor,
)
from weightsmith.measurements import Histogram, Measurement, Measurements, Picture, Settings
from weightsmith.plain import load_plain_state_dict, plain_state_dict
from weightsmith.plan import Plan, PlanRow
from weightsmith.plugin import Plugin
from weightsmith.schedules import Progress, Schedule, cosine, cubic, exponential, function, linear, piecewise
from weightsmith.selection import Selector, added, biases, everything, matrices, named, norms, of_type
from weightsmith.site import Site
from weightsmith.trainer import Trainer

__all__ = [
    "Average",
    "CheckpointError",
    "ConfigurationError",
    "ConflictError",
    "Constraint",
    "DamagedCheckpointError",
    "GradientEditor",
    "Histogram",
    "Initializer",
    "Measurement",
    "Measurements",
    "NonFiniteError",
    "Parametrization",
    "Penalty",
    "Picture",
    "Plan",
    "PlanRow",
    "Plugin",
    "PluginContractError",
    "PluginDefinitionError",
    "Probe",
    "Progress",
    "RecipeError",
    "ReplicaDriftError",
    "RunStopped",
    "Schedule",
    "SelectionError",
    "Selector",
    "Settings",
    "Site",
    "Trainer",
    "TrainingState",
    "UnsupportedWeightError",
    "WeightEditor",
    "WeightEvents",
    "WeightsmithError",
    "added",
    "biases",
    "cosine",
    "cubic",
    "everything",
    "exponential",
    "function",
    "linear",
    "load_plain_state_dict",
    "matrices",
    "named",
    "norms",
    "of_type",
    "piecewise",
    "plain_state_dict",
]
