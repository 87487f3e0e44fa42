"""`to_tensorizer.py DIRECTORY`: the tensors of every safetensors file in tensorizer's own format, beside it."""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import load_file
from tensorizer import TensorSerializer


def main() -> None:
    for path in sorted(Path(sys.argv[1]).glob("*.safetensors")):
        new = path.with_suffix(".new")
        writer = TensorSerializer(str(new))
        writer.write_state_dict(load_file(path))
        writer.close()
        new.rename(path.with_suffix(".tensors"))


if __name__ == "__main__":
    main()
