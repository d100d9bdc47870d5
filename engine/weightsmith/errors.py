"""The exceptions of the engine. All derive from :class:`WeightsmithError`."""


class WeightsmithError(Exception):
    """Base of everything that the engine raises on its own account."""


class PluginDefinitionError(WeightsmithError, TypeError):
    """A plugin class is written in a way that could not work; raised when the class is made."""


class ConfigurationError(WeightsmithError, ValueError):
    """A setting cannot work; raised before the first batch."""


class SelectionError(ConfigurationError):
    """``where=`` matches nothing, or is no selector."""


class UnsupportedWeightError(ConfigurationError):
    """A plugin selects a weight on which it cannot act correctly."""


class ConflictError(ConfigurationError):
    """Two plugins, or two optimizers, claim one weight."""


class PluginContractError(WeightsmithError, RuntimeError):
    """A plugin returned, or wrote, what its kind does not allow; raised while it runs."""
