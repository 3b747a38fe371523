"""Bases by name: a local path, a package's, or one of the Hugging Face hub."""

import pathlib
import re

import huggingface_hub
from huggingface_hub import errors

from pdpo_jax.weights import packages

# What a base needs besides its weights.
TEXT_FILES = (
  "config.json",
  "generation_config.json",
  "tokenizer*",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "chat_template*",
)
# Never torch's or the authors' own copies of the weights.
# README.md has the licence.
_WANTED = (
  *TEXT_FILES,
  "README.md",
  "*.safetensors",
  "*.safetensors.index.json",
)
# In their patterns `*` crosses folders, so that this is all subfolders.
_UNWANTED = ("*/*", "consolidated*")

_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?", re.ASCII)


def is_hub_id(path: str) -> bool:
  """Whether a name that is no local path means a repository.

  It does if it is `owner/name` or `owner/name@revision`, and there is no local
  folder `owner`: `runs/base`, beside a folder `runs`, is a slip of the pen.
  """
  return (
    _ID.fullmatch(path) is not None
    and not path.endswith(".gguf")
    and not pathlib.Path(path.split("/")[0]).exists()
  )


def find(path: str) -> pathlib.Path:
  """The local copy of a base, downloaded where `path` is a hub id.

  Args:
    path: a local path, `owner/name` with or without `@revision`, or
      `pip:package` for the GGUF file of an installed package.

  Raises:
    ValueError: if there is no such path or repository, or it cannot be had.
  """
  if path.startswith("pip:"):
    return packages.find_gguf(path.removeprefix("pip:"))
  place = pathlib.Path(path).expanduser()
  if place.exists():
    return place
  if not is_hub_id(path):
    raise ValueError(
      f"base.path {path!r} does not exist; name a local folder, or a model of "
      "the Hugging Face hub as 'owner/name' or 'owner/name@revision' (where "
      "there is a local folder 'owner', it is taken for a local path)"
    )
  name, _, revision = path.partition("@")
  try:
    folder = _download(name, revision or None)
  except (OSError, errors.HTTPError) as error:
    raise ValueError(f"base.path {path!r}: {_explain(name, error)}") from error
  if not any(folder.glob("*.safetensors")):
    raise ValueError(
      f"base.path {path!r}: the hub has no *.safetensors file of it. Where it "
      f"has pytorch_model.bin, `hf download {name} --local-dir=IN`, `python -m "
      "pdpo_jax.convert IN OUT`, and name OUT"
    )
  return folder


def _download(name: str, revision: str | None) -> pathlib.Path:
  return pathlib.Path(
    huggingface_hub.snapshot_download(
      name,
      revision=revision,
      allow_patterns=list(_WANTED),
      ignore_patterns=list(_UNWANTED),
    )
  )


def _explain(name: str, error: Exception) -> str:
  """What to do about an error of the hub's client."""
  page = f"https://huggingface.co/{name}"
  # A gated repository's error is also one of a repository not found.
  if isinstance(error, errors.GatedRepoError):
    return (
      f"the model is gated. Accept its licence at {page}, then `hf auth login` "
      "(or set HF_TOKEN)"
    )
  if isinstance(error, errors.RepositoryNotFoundError):
    return (
      "there is neither a local folder nor a public model of that name. Check "
      "the spelling; for a private model, `hf auth login` first"
    )
  if isinstance(error, errors.RevisionNotFoundError):
    return f"the model has no such revision; {page}/tree/main lists them"
  if isinstance(error, errors.LocalEntryNotFoundError):
    return (
      "there is no such local folder, the hub cannot be reached, and no whole "
      f"copy is cached. Run `hf download {name}` where there is a network (a "
      "cached copy is enough, also with HF_HUB_OFFLINE=1), or name a local "
      "folder"
    )
  return f"cannot be downloaded ({error})"
