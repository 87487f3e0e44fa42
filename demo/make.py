"""Makes SmolLM2-135M-Instruct into safetensors, once: `python -m demo.make DIRECTORY`.

Prints a JSON object: where it is, and whether it was made now.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from modelcache.testing.models import smollm2

if __name__ == "__main__":
    model = smollm2(Path(sys.argv[1]))
    print(json.dumps({"directory": str(model.directory), "made": model.made}))
