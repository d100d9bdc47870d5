"""The commands of this folder are scripts; their tests import them as such."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
