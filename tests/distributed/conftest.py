"""What several processes do stands in modules beside the tests, which those processes import by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
