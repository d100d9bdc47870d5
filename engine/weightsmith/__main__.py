"""``python -m weightsmith``, as ``torchrun -m weightsmith train recipe.yaml`` calls it."""

import sys

from weightsmith.cli import main

sys.exit(main())
