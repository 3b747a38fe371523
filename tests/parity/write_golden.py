"""Rewrites the golden files: `python -m tests.parity.write_golden`.

`make parity` says when they no longer agree with torch. Read why before
rewriting them.
"""

import io
import pathlib

import numpy as np

from tests.parity import torch_models, torch_reference

FOLDER = pathlib.Path(__file__).parents[1] / "golden"


def main() -> None:
  FOLDER.mkdir(exist_ok=True)
  for name in torch_models.MODELS:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **torch_reference.compute(name))
    file = FOLDER / f"{name}.npz"
    file.write_bytes(buffer.getvalue())
    print(f"{file}: {len(buffer.getvalue()) / 1e3:.0f} kB")


if __name__ == "__main__":
  main()
