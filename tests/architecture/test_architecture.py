"""The shape of the house: what may be imported, what is public, how long a file may grow."""

import ast
import importlib
import inspect
from pathlib import Path

import weightsmith
import weightsmith_plugins

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "engine").rglob("*.py")) + sorted((ROOT / "plugins").rglob("*.py"))

PUBLIC = [
    "Average",
    "CheckpointError",
    "DamagedCheckpointError",
    "NonFiniteError",
    "RunStopped",
    "ConfigurationError",
    "ConflictError",
    "Constraint",
    "GradientEditor",
    "Histogram",
    "Initializer",
    "Measurement",
    "Measurements",
    "Parametrization",
    "Penalty",
    "Picture",
    "Plan",
    "PlanRow",
    "Plugin",
    "PluginContractError",
    "PluginDefinitionError",
    "RecipeError",
    "ReplicaDriftError",
    "Probe",
    "Progress",
    "Schedule",
    "SelectionError",
    "Settings",
    "Selector",
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

PLUGINS = [
    "LSUV",
    "DeltaOrthogonal",
    "Dirac",
    "Identity",
    "KaimingUniform",
    "LecunNormal",
    "LecunUniform",
    "Normal",
    "Ones",
    "Sparse",
    "TruncatedNormal",
    "Uniform",
    "Values",
    "VarianceScaling",
    "XavierNormal",
    "XavierUniform",
    "Zeros",
    "EMA",
    "FakeQuantize",
    "LowRankAdapter",
    "SpectralNorm",
    "WeightNorm",
    "SWA",
    "KeepZeros",
    "MagnitudePruning",
    "MovementPruning",
    "RigL",
    "SNIP",
    "Grid",
    "Intersection",
    "L1Ball",
    "LowRank",
    "LowerTriangular",
    "MinMaxNorm",
    "NofM",
    "Orthonormal",
    "PositiveDefinite",
    "Simplex",
    "SkewSymmetric",
    "SpectralBound",
    "Symmetric",
    "TopK",
    "ZeroMean",
    "ClipUnitNorm",
    "ClipValue",
    "Freeze",
    "Noise",
    "Normalize",
    "Orthogonalize",
    "ScaleGradient",
    "SharpnessAware",
    "Sign",
    "SkipNonFinite",
    "Unfreeze",
    "Lookahead",
    "ResetDormant",
    "Rewind",
    "ShrinkPerturb",
    "L2SP",
    "ElasticConsolidation",
    "ElasticNet",
    "Hoyer",
    "NuclearNorm",
    "Orthogonality",
    "SpectralPenalty",
    "L1",
    "L2",
    "AdaptiveClip",
    "Centralize",
    "Clamp",
    "ClipNorm",
    "Constant",
    "Decay",
    "GradientHistograms",
    "GradientStep",
    "GroupLasso",
    "KaimingNormal",
    "LearningRates",
    "Losses",
    "MaxNorm",
    "NonNegative",
    "Orthogonal",
    "PenaltyCosts",
    "Perturb",
    "Pretrained",
    "Scale",
    "TensorBoard",
    "UnitNorm",
    "Violations",
    "WeightHistograms",
    "DormantUnits",
    "FilterImages",
    "PluginEffect",
    "Hyperparameters",
    "GradientNorms",
    "JSONLines",
    "Checkpoints",
    "Sparsity",
    "SpectralNorms",
    "UpdateHistograms",
    "UpdateRatio",
    "WeightStatistics",
]

FUNCTIONS = ["fisher_information", "finalise", "log_with_ignite", "sparsity_report", "stored_bytes", "to_int8"]


def test_the_public_surface_is_what_is_promised():
    assert sorted(weightsmith.__all__) == sorted(PUBLIC)
    assert sorted(weightsmith_plugins.__all__) == sorted([*PLUGINS, *FUNCTIONS])
    assert all(hasattr(weightsmith, name) for name in PUBLIC)
    assert all(hasattr(weightsmith_plugins, name) for name in [*PLUGINS, *FUNCTIONS])


def test_everything_public_is_documented():
    for module, names in ((weightsmith, PUBLIC), (weightsmith_plugins, [*PLUGINS, *FUNCTIONS])):
        for name in names:
            thing = getattr(module, name)
            if isinstance(thing, type) or inspect.isroutine(thing):
                doc = vars(thing).get("__doc__") if isinstance(thing, type) else thing.__doc__
                # @dataclass writes "Name(field: type, …)" where there is nothing.
                assert doc, f"{name} has no docstring"
                assert not doc.startswith(f"{name}("), f"{name} has no docstring"


def test_plugins_use_only_the_engines_public_names():
    for path in (ROOT / "plugins").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "weightsmith":
                public = importlib.import_module(node.module).__all__
                private = [alias.name for alias in node.names if alias.name not in public]
                assert not private, f"{path.name} imports {private} from {node.module}"
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                torchs = node.attr == "_parameters"
                assert own or torchs, f"{path.name}:{node.lineno} reaches into {node.attr}"


def test_only_tensors_calls_foreach():
    callers = [path.name for path in SOURCES if "_foreach_" in path.read_text(encoding="utf-8")]
    assert callers == ["tensors.py"]


def test_weights_are_never_edited_behind_autograds_back():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Attribute) and node.attr == "data"), (
                f"{path.name}:{node.lineno} uses .data"
            )


def test_no_module_outgrows_a_sitting():
    long = {path.name: n for path in SOURCES if (n := path.read_text(encoding="utf-8").count("\n")) > 400}
    assert long == {}
