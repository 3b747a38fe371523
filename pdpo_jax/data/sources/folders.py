"""The files of a folder and their splits, by the rules of the Hub.

The first that says something holds:

1. `configs` at the top of README.md, or `dataset_dict.json`, name the splits;
2. `data/train-00000-of-00002.parquet` names its split, which may be any;
3. where a folder inside is named after a split, folders tell;
4. where a file is, files do;
5. all files are one, without splits.

Names of splits are those in `_KEYWORDS`, set off from other words by `-._`,
spaces or digits. Here upper case is as lower case, and of folders in each other
the innermost tells. Files that the rule does not reach are left out and named.
"""

import codecs
import collections
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from pdpo_jax.data.sources import formats

_KEYWORDS = {
  "train": ("train", "training"),
  "validation": ("validation", "valid", "dev", "val"),
  "test": ("test", "testing", "eval", "evaluation"),
}
OF_NO_SPLIT = "of no split, where others are of one"
_APART = "[-._ 0-9]"
_SHARD = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}.*\.")
_NUMBERED = re.compile(r"(.*-)(\d{5})-of-(\d{5})(\D.*)")
# About a data set, and no records of it.
_ABOUT = {
  "config.json",
  "dataset_dict.json",
  "dataset_info.json",
  "dataset_infos.json",
  "state.json",
}


@dataclasses.dataclass(frozen=True)
class Folder:
  """The files of a folder.

  Attributes:
    splits: files by split; by "" where there are no splits.
    left_out: the other files, and why.
  """

  splits: Mapping[str, Sequence[pathlib.Path]]
  left_out: Mapping[str, str]


def list_folder(folder: pathlib.Path) -> Folder:
  """The files of a folder by split; see the top of this module.

  Raises:
    ValueError: if README.md or a folder inside cannot be read, or the former
      has several configurations.
  """
  left_out: dict[str, str] = {}
  files = sorted(_walk(folder, left_out))
  # A saved data set is told by its folder, as if by one of the files in it.
  named = {
    file: (file / "saved" if file.is_dir() else file).relative_to(folder)
    for file in files
  }
  left_out |= _missing_shards(named.values())
  rules = (
    _rule_of_card(folder),
    _rule_of_saved(folder),
    _split_of_shard,
    _split_of_folder,
    _split_of_file,
  )
  for rule in rules:
    split_of = {file: rule(path) for file, path in named.items()}
    if any(split_of.values()):
      break
  splits: dict[str, list[pathlib.Path]] = {}
  divided = any(split_of.values())
  for file, split in split_of.items():
    if split or not divided:
      splits.setdefault(split, []).append(file)
    else:
      left_out[named[file].as_posix()] = OF_NO_SPLIT
  return Folder(splits, left_out)


def _missing_shards(paths: Iterable[pathlib.PurePath]) -> dict[str, str]:
  """Shards that others speak of: "00001-of-00002", and there is no 00000."""
  shards = collections.defaultdict(set)
  for path in paths:
    if match := _NUMBERED.fullmatch(path.as_posix()):
      before, number, count, behind = match.groups()
      shards[before, int(count), behind].add(int(number))
  return {
    f"{before}{number:05}-of-{count:05}{behind}": "missing"
    for (before, count, behind), numbers in shards.items()
    for number in sorted(set(range(count)) - numbers)
  }


def _walk(
  folder: pathlib.Path, left_out: dict[str, str]
) -> Iterator[pathlib.Path]:
  """Files of records, and folders that a data set was saved to."""
  if formats.is_saved(folder):
    yield folder
    return
  seen = {os.path.realpath(folder)}
  for place, folders, names in os.walk(
    folder, followlinks=True, onerror=_refuse
  ):
    here = pathlib.Path(place)

    def shown(name, here=here):
      return (here / name).relative_to(folder).as_posix()

    inner, folders[:] = sorted(folders), []
    for name in inner:
      real = os.path.realpath(here / name)
      if _is_hidden(name):
        left_out[f"{shown(name)}/"] = "hidden"
      elif real in seen:  # Of links that go round in a circle.
        left_out[f"{shown(name)}/"] = "a second time"
      elif formats.is_saved(here / name):
        yield here / name
      else:
        seen.add(real)
        folders.append(name)
    for name in sorted(names):
      if _is_hidden(name):
        left_out[shown(name)] = "hidden"
      elif name in _ABOUT:
        left_out[shown(name)] = "about the data"
      elif formats.ending(name):
        yield here / name
      else:
        left_out[shown(name)] = "no format of records"


def _is_hidden(name: str) -> bool:
  """Like files of macOS (`._a.jsonl`), editors, and Spark (`_delta_log`)."""
  return name.startswith((".", "_", "~"))


def _refuse(error: OSError) -> None:
  raise ValueError(f"{error.filename} cannot be listed: {error}") from error


def _rule_of_card(folder: pathlib.Path) -> Callable[[pathlib.PurePath], str]:
  """Which split a file is of by the configuration at the top of README.md."""
  card = folder / "README.md"
  split_of: dict[pathlib.PurePath, str] = {}
  for split, patterns in _splits_of_card(card).items():
    for pattern in patterns:
      if pattern.endswith("**"):  # Of files, to the Hub.
        pattern += "/*"
      try:
        files = [file.relative_to(folder) for file in folder.glob(pattern)]
      except (ValueError, NotImplementedError) as error:
        raise ValueError(f"{card}: data_files {pattern!r}: {error}") from error
      split_of |= dict.fromkeys(files, split)
  return lambda path: split_of.get(path, "")


def _splits_of_card(card: pathlib.Path) -> dict[str, list[str]]:
  """Patterns of files by split; none where the card has no configuration."""
  if not card.is_file():
    return {}
  if not card.read_bytes().removeprefix(codecs.BOM_UTF8).startswith(b"---"):
    return {}
  # Imported here: it takes half a second.
  import huggingface_hub

  try:
    about = huggingface_hub.metadata_load(card) or {}
    configs = {
      str(config.get("config_name", "default")): config
      for config in about.get("configs") or []
      if config.get("data_files")
    }
  except Exception as error:  # YAML may be wrong in many ways.
    raise ValueError(
      f"{card}: what stands between the lines `---` at its top cannot be read; "
      f"mend or remove it: {error}"
    ) from error
  chosen = [config for config in configs.values() if config.get("default")]
  chosen = chosen or [configs[name] for name in configs if name == "default"]
  if len(configs) > 1 and len(chosen) != 1:
    raise ValueError(
      f"{card} has the configurations {', '.join(configs)}; give the files of "
      "one of them, or move the others away"
    )
  if not configs:
    return {}
  (config,) = chosen or configs.values()
  files = config["data_files"]
  splits: dict[str, list[str]] = {}
  for item in [files] if isinstance(files, str | dict) else files:
    entry = item if isinstance(item, dict) else {"split": "train", "path": item}
    split, paths = entry.get("split"), entry.get("path")
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(split, str) or not isinstance(paths, list):
      raise ValueError(f"{card}: data_files {item!r} has no split or no path")
    splits.setdefault(split, []).extend(map(str, paths))
  return splits


def _rule_of_saved(folder: pathlib.Path) -> Callable[[pathlib.PurePath], str]:
  """Which split a file is of where `DatasetDict.save_to_disk` wrote them."""
  try:
    text = (folder / "dataset_dict.json").read_text("utf-8")
    names = set(json.loads(text)["splits"])
  except (OSError, ValueError, KeyError, TypeError):
    return lambda path: ""
  return lambda path: path.parts[0] if path.parts[0] in names else ""


def _split_of_shard(path: pathlib.PurePath) -> str:
  match = _SHARD.match(path.name) if path.parts[:-1] == ("data",) else None
  return match[1] if match else ""


def _split_of_folder(path: pathlib.PurePath) -> str:
  for name in reversed(path.parts[:-1]):
    if split := _split_in(name, f"(?:{_APART}.*)?"):
      return split
  return ""


def _split_of_file(path: pathlib.PurePath) -> str:
  return _split_in(path.name, f"{_APART}.*")


def _split_in(name: str, behind: str) -> str:
  """The split that a name has a word of; "" for none, and for several."""
  splits = [
    split
    for split, words in _KEYWORDS.items()
    if re.fullmatch(
      f"(?:.*{_APART})?(?:{'|'.join(words)}){behind}", name, re.I | re.S
    )
  ]
  return splits[0] if len(splits) == 1 else ""


def is_heldout(split: str) -> bool:
  """Whether the name of a split says that it is not to be trained on."""
  return kind_of(split) in ("validation", "test")


def kind_of(split: str) -> str:
  """What a split is by its name: "train" of "train_prefs"; or ""."""
  return _split_in(split, f"(?:{_APART}.*)?")
