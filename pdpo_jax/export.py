r"""Writes a run's policy so that other engines can serve it.

  python -m pdpo_jax.export --workdir=runs/quickstart --output=exported

--format says for whom (docs/export.md):
  merged   `transformers` and vLLM: LoRA merged in, people's prefixes beside it
  peft     PEFT: LoRA and a prompt for each person, beside the base as it is
  tokens   any engine that reads Hugging Face's format: people as tokens
  gguf     llama.cpp: the same in one file

Everybody comes along, or whom --user names, and the generic user.
"""

import pathlib
from typing import Any

from absl import flags

from pdpo_jax import command_line
from pdpo_jax.core import kept
from pdpo_jax.exports import cards, gguf_file, merged, peft, tokens
from pdpo_jax.exports import contents as contents_lib
from pdpo_jax.runs import run as run_lib
from pdpo_jax.runs import run_folder
from pdpo_jax.weights import hub, licenses

_WRITERS = {
  "merged": merged.write,
  "peft": peft.write,
  "tokens": tokens.write,
  "gguf": gguf_file.write,
}
_WORKDIR = command_line.workdir_flag()
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; a new one.")
_FORMAT = flags.DEFINE_enum(
  "format", "merged", [*_WRITERS], "What is written; see above."
)
_USERS = command_line.user_flag()


def _card(run: run_lib.Run) -> cards.Card:
  """Where the run comes from, as far as that is known."""
  config = run.config
  path, data = config.base.path, config.data.path
  is_public = hub.is_hub_id(data) and config.data.source != "synthetic"
  accuracy: dict[str, Any] = {}
  results = run.workdir / run_folder.RESULTS
  if results.is_file():
    by_training = kept.read_json(results, dict[str, Any]).get(
      "reward_accuracy", {}
    )
    accuracy = by_training.get(config.training_name, {})
  return cards.Card(
    base_model=path if hub.is_hub_id(path) else "",
    license=licenses.read(run.base_path),
    datasets=(data.partition(":")[0],) if is_public else (),
    accuracy={split: each["pairs"] for split, each in accuracy.items()},
  )


def export_run(
  workdir: pathlib.Path,
  folder: pathlib.Path,
  format: str = "merged",
  people: tuple[str, ...] | None = None,
) -> None:
  """Writes the newest policy of a run.

  Args:
    folder: a new one, or an empty one.
    format: one of `_WRITERS`.
    people: ids of those who come along; None for everybody.

  Raises:
    ValueError: if there is something in the folder, somebody is unknown, or
      the format has no place for what was trained.
  """
  run = run_lib.Run.open(workdir)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise ValueError(
      f"--output {folder} has something in it already; choose another folder"
    )
  for user_id in people or ():
    run.own.row_of(user_id)
  contents = contents_lib.Contents(
    run.own.policy,
    run.base,
    run.own.users,
    people,
    run.config.data,
    _card(run),
  )
  _WRITERS[format](folder, contents)


def main() -> None:
  if _WORKDIR.value is None or _OUTPUT.value is None:
    raise ValueError(
      "--workdir and --output are needed, e.g. --workdir=runs/quickstart "
      "--output=exported"
    )
  folder = pathlib.Path(_OUTPUT.value).expanduser()
  export_run(
    pathlib.Path(_WORKDIR.value).expanduser(),
    folder,
    _FORMAT.value,
    tuple(_USERS.value) or None,
  )
  print(f"{folder}: {', '.join(sorted(x.name for x in folder.iterdir()))}")


if __name__ == "__main__":
  command_line.run(main)
