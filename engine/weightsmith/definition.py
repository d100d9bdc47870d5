"""What is wrong with a plugin class, said when the class is made."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from weightsmith.errors import PluginDefinitionError

__all__ = [
    "refuse_missing_methods",
    "refuse_near_misses",
    "refuse_unannotated_fields",
    "refuse_wrong_signatures",
    "restore_defaults",
]


def _hooks(cls: type) -> dict[str, Any]:
    """The public methods that a kind declares for its subclasses to write."""
    declared: dict[str, Any] = {}
    for base in reversed(cls.__mro__[1:]):
        if isinstance(base, type(cls)):
            declared |= {n: m for n, m in vars(base).items() if inspect.isfunction(m) and not n.startswith("_")}
    return declared


def restore_defaults(cls: Any, namespace: dict[str, Any]) -> None:
    """Where a class writes a method anew, what its bases had made of the older one goes back to the kind's default:
    else training would go on with the older one."""
    kind = next((base for base in cls.__mro__[1:] if "derived" in vars(base)), None)
    for method, dependents in () if kind is None else kind.derived.items():
        for dependent in dependents if method in namespace else ():
            if dependent not in namespace and getattr(cls, dependent) is not getattr(kind, dependent):
                setattr(cls, dependent, vars(kind).get(dependent, getattr(kind, dependent)))


def refuse_unannotated_fields(cls: type, namespace: dict[str, Any]) -> None:
    annotations = inspect.get_annotations(cls)
    inherited = {name: text for base in cls.__mro__[1:] for name, text in inspect.get_annotations(base).items()}
    class_variables = {name for name, text in inherited.items() if "ClassVar" in str(text)}
    for name, text in annotations.items():
        if name in class_variables and "ClassVar" not in str(text):
            raise PluginDefinitionError(
                f"{cls.__name__}.{name} is a name that the engine uses for itself: choose another name for the field"
            )
    for name, value in namespace.items():
        is_data = not (callable(value) or hasattr(type(value), "__get__"))
        if not name.startswith("_") and is_data and name not in annotations and name not in class_variables:
            raise PluginDefinitionError(
                f"{cls.__name__}.{name} = {value!r} makes no field: annotate it, `{name}: {type(value).__name__} = "
                f"{value!r}`, or `{name}: ClassVar = …` if it is no part of the configuration"
            )
    if "__init__" in namespace:
        raise PluginDefinitionError(
            f"{cls.__name__} defines __init__: write its fields as annotated attributes, `name: float = 1.0`, of which "
            "it is made; check their values in `validate(self)`"
        )
    if "__post_init__" in namespace and cls.__mro__[1] is not object:
        raise PluginDefinitionError(f"{cls.__name__} defines __post_init__: check values in `validate(self)` instead")


def refuse_near_misses(cls: type, namespace: dict[str, Any]) -> None:
    hooks = _hooks(cls).keys() - _ENGINE_SIDE
    for name, value in namespace.items():
        if not inspect.isfunction(value) or name.startswith("_") or name in hooks:
            continue
        close = difflib.get_close_matches(name, hooks, n=1, cutoff=0.8)
        if close:
            raise PluginDefinitionError(
                f"{cls.__name__}.{name} is never called: did you mean `{close[0]}`? "
                f"If it is a helper of your own, name it `_{name}`"
            )


# Public methods that authors do not write, so that a name of their own may resemble them.
_ENGINE_SIDE = {
    "act",
    "due",
    "limits",
    "measured_violation",
    "refuse",
    "refuse_event",
    "refuse_misfit",
    "resolved",
    "to_plain",
}


def refuse_missing_methods(cls: Any) -> None:
    if cls.__abstractmethods__:
        missing = ", ".join(f"`{name}`" for name in sorted(cls.__abstractmethods__))
        kind = cls.__mro__[1].__name__
        raise PluginDefinitionError(
            f"{cls.__name__} does not define {missing}, which a {kind} must; "
            f"write `class {cls.__name__}({kind}, abstract=True)` if it is a base for others"
        )


def refuse_wrong_signatures(cls: type, namespace: dict[str, Any]) -> None:
    for name, declared in _hooks(cls).items():
        written = namespace.get(name)
        if not inspect.isfunction(written):
            continue
        wanted = list(inspect.signature(declared).parameters)
        named = list(inspect.signature(written).parameters)
        if named != wanted and sorted(named) == sorted(wanted):
            raise PluginDefinitionError(
                f"{cls.__name__}.{name}({', '.join(named)}) has its arguments in another order than the engine gives "
                f"them: write `def {name}({', '.join(wanted)})`"
            )
        try:
            inspect.signature(written).bind(*wanted)
        except TypeError:
            raise PluginDefinitionError(
                f"{cls.__name__}.{name}{inspect.signature(written)} cannot be called as the engine calls it: "
                f"write `def {name}({', '.join(wanted)})`"
            ) from None
