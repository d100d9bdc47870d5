"""The telling charts of a run on one page: what stands on TensorBoard's Custom Scalars page."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["charts"]

_LINES = {
    "Training": {
        "Loss and metrics": ("loss", "metrics"),
        "Penalties": ("penalties",),
        "Violations of constraints": ("violations",),
        "Learning rate": ("learning_rate",),
    },
    "All weights, one line each": {
        "Norm": ("weight_norm",),
        "Mean": ("weight_mean",),
        "Standard deviation": ("weight_std",),
        "Least and largest": ("weight_min", "weight_max"),
        "Relative size of an update": ("update_ratio",),
        "Norm of the gradient": ("gradient_norm", "gradient_norm_total"),
        "Share of zeros": ("weight_zeros", "sparsity"),
        "Share of dormant units": ("dormant_units",),
        "Largest singular value": ("spectral_norm",),
        "Stable rank": ("stable_rank",),
        "Values that are not finite": ("nonfinite", "nonfinite_gradients", "weight_nonfinite", "nonfinite_losses"),
        "Share of subnormal values": ("weight_subnormal",),
        "Magnitude of full colour in pictures": ("image_scale",),
    },
}
"""Category to title to the groups of tags that are drawn in one chart."""

_BY_WEIGHT = {
    "effect": "Who moved this weight?",
    "epoch_effect": "Who moved this weight, in all of an epoch?",
    "gradient_norm_after": "The gradient's norm, from plugin to plugin",
}
"""Group of tags that end in a plugin's name to the category with a chart for every weight."""

_KNOWN = {group for titles in _LINES.values() for groups in titles.values() for group in groups} | set(_BY_WEIGHT)


def charts(tags: Iterable[str]) -> dict[str, dict[str, str]]:
    """Category to title to a regular expression of tags, for what is there to be drawn. Raw parameters (``raw_…``)
    stand with the weights that are computed from them.

    >>> charts(["loss/optimizer", "effect/a/weight/MaxNorm", "effect/a/weight/optimizer"])
    {'Training': {'Loss and metrics': '(raw_)?(loss|metrics)/.*'},
     'Who moved this weight?': {'a/weight': 'effect/a/weight/[^/]*$'}}
    """
    found = list(tags)
    groups = {tag.partition("/")[0].removeprefix("raw_") for tag in found}
    layout: dict[str, dict[str, str]] = {}
    for category, titles in _LINES.items():
        drawn = {title: f"(raw_)?({'|'.join(some)})/.*" for title, some in titles.items() if groups & set(some)}
        if drawn:
            layout[category] = drawn
    for group, category in _BY_WEIGHT.items():
        inside = [tag.removeprefix(f"{group}/") for tag in found if tag.startswith(f"{group}/")]
        weights = dict.fromkeys(tag.rpartition("/")[0] for tag in inside)
        if weights:
            layout[category] = {weight: f"{group}/{re.escape(weight)}/[^/]*$" for weight in weights}
    rest = sorted(groups - _KNOWN)
    more = {group: f"{re.escape(group)}(/.*)?$" for group in rest}
    return layout | ({"More": more} if more else {})
