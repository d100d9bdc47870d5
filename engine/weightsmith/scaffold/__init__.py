"""New plugins to begin with: files that work as they stand, to be changed by their author.

``new_plugin("UnitBall")`` writes ``unit_ball.py`` and ``test_unit_ball.py``; ``new_package("unit-ball")`` writes an
installable distribution. The texts stand in ``templates/``: two for every kind, the rest for packages.
"""

from weightsmith.scaffold.naming import Kind
from weightsmith.scaffold.writing import new_package, new_plugin

__all__ = ["Kind", "new_package", "new_plugin"]
