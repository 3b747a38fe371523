"""Files that a run keeps: there as a whole or not at all, and known again.

`checksums.json`, beside the files of a folder, has the SHA-256 of each. A file
that is not what was written is `Damaged`, whoever changed it: a disk, a copy
that was cut off, or a file of another run. The sum of what comes is put beside
that of what is there before the file is replaced, so that a kill in between
leaves a file that is known either way. A file without a sum, of an earlier
version or put there by hand, is read as it is.

A journal grows line by line instead, and each of its lines has a sum of its
own.

Only the owner may read what is written here.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
import tempfile
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import pydantic

logger = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"
# What was being written when a process was killed ends in this.
UNFINISHED = ".part"
_REMEDY = "put it back from a copy"
_CHANGED = (
  f"is not what was written: its sum is not the one in {CHECKSUMS} beside it "
  "(if you changed the file on purpose, remove its entry there)"
)
_LINE_SUM = re.compile(r', "crc32": "([0-9a-f]{8})"\}$')
_lock = threading.Lock()


class Damaged(ValueError):
  """A kept file, or a database, is missing, or is not what was written."""

  def __init__(self, file: pathlib.Path | str, problem: str, remedy: str):
    super().__init__(f"{file} {problem}; {remedy}")
    self.file, self.problem = file, problem


class Unwritable(ValueError):
  """A file cannot be written, with what to do."""

  def __init__(self, file: pathlib.Path, error: OSError):
    advice = {
      errno.ENOSPC: "free some space on its disk",
      errno.EDQUOT: "free some space of your quota",
      errno.EROFS: "choose a folder that can be written",
      errno.EACCES: "choose a folder that you may write",
      errno.ENOENT: "its folder is not there; make it, or name another",
      errno.ENOTDIR: "choose another folder",
      errno.EISDIR: "it is a folder; name a file",
    }.get(error.errno, "see to its disk")
    super().__init__(
      f"{file} cannot be written ({error.strerror or error}): {advice}, and "
      "start the same command again. What was kept before is whole"
    )
    self.file = file


def make_folder(folder: pathlib.Path) -> None:
  """Makes a folder, and those above it, for the owner alone.

  Raises:
    Unwritable: if it cannot be made.
  """
  try:
    for missing in reversed([folder, *folder.parents]):
      # One that is there keeps its mode.
      with contextlib.suppress(FileExistsError):
        missing.mkdir(mode=0o700)
    if not folder.is_dir():
      raise NotADirectoryError(errno.ENOTDIR, "there is a file of that name")
  except OSError as error:
    raise Unwritable(folder, error) from error


@contextlib.contextmanager
def writing(file: pathlib.Path, *, summed: bool = True) -> Iterator[BinaryIO]:
  """A file to write to, which has its name once it is whole and on the disk.

  Args:
    summed: whether its sum is kept; not for files with one inside, nor in
      folders that several runs write to at once.

  Raises:
    Unwritable: if it cannot be written. What was there before still is.
  """
  make_folder(file.parent)
  try:
    with _part(file) as part:
      yield part.out
      total = part.sum() if summed else ""
      if not summed:
        part.rename()
        return
      with _lock:
        sums = read_sums(file.parent)
        # The last of them is that of the file that is there, if it is whole.
        before = sums.get(file.name, [])[-1:]
        write_sums(file.parent, sums | {file.name: [*before, total]})
        part.rename()
        write_sums(file.parent, sums | {file.name: [total]})
  except OSError as error:
    raise Unwritable(file, error) from error


@dataclasses.dataclass
class _Part:
  """A file that is being written, under a name of its own."""

  out: BinaryIO
  path: pathlib.Path
  target: pathlib.Path

  def sum(self) -> str:
    self.out.flush()
    self.out.seek(0)
    return hashlib.file_digest(self.out, "sha256").hexdigest()

  def rename(self) -> None:
    """Gives it its name, once all of it is on the disk."""
    self.out.flush()
    os.fsync(self.out.fileno())
    self.path.replace(self.target)


@contextlib.contextmanager
def _part(file: pathlib.Path) -> Iterator[_Part]:
  """A part of `file`, which is removed unless it was renamed."""
  handle, name = tempfile.mkstemp(
    dir=file.parent, prefix=f".{file.name}.", suffix=UNFINISHED
  )
  path = pathlib.Path(name)
  try:
    with os.fdopen(handle, "w+b") as out:
      yield _Part(out, path, file)
  finally:
    with contextlib.suppress(OSError):
      path.unlink(missing_ok=True)


def write(file: pathlib.Path, content: str | bytes) -> None:
  """Writes a whole file; see `writing`."""
  with writing(file) as out:
    out.write(content.encode() if isinstance(content, str) else content)


def write_json(file: pathlib.Path, value: Any) -> None:
  """Writes a value as JSON, for people to read as well."""
  write(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(file: pathlib.Path, records: Iterable[Mapping]) -> None:
  """Writes a line of JSON a record."""
  with writing(file) as out:
    for record in records:
      out.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


def was_written(file: pathlib.Path) -> bool:
  """Whether a file is there, or should be."""
  return file.name in read_sums(file.parent) or file.is_file()


def remove(file: pathlib.Path) -> None:
  """Removes a file, and its sum."""
  with _lock:
    sums = read_sums(file.parent)
    file.unlink(missing_ok=True)
    if sums.pop(file.name, None):
      write_sums(file.parent, sums)


def read(file: pathlib.Path, remedy: str = _REMEDY) -> bytes:
  """The content of a file that is what was written.

  Args:
    remedy: what to do where it is not.

  Raises:
    Damaged: if it is missing, or is not.
  """
  with _reading(file, remedy) as opened:
    content = opened.read()
  # Read after the file, whose sum was there before it.
  sums = read_sums(file.parent).get(file.name)
  if sums and hashlib.sha256(content).hexdigest() not in sums:
    raise Damaged(file, _CHANGED, remedy)
  return content


@contextlib.contextmanager
def _reading(file: pathlib.Path, remedy: str) -> Iterator[BinaryIO]:
  """A file to read from; what keeps it from being read is `Damaged`."""
  try:
    with file.open("rb") as opened:
      yield opened
  except FileNotFoundError as error:
    raise Damaged(file, "is missing", remedy) from error
  except OSError as error:
    problem = f"cannot be read ({error.strerror or error})"
    raise Damaged(file, problem, remedy) from error


def check(folder: pathlib.Path, remedy: str = _REMEDY) -> None:
  """Checks each file of a folder that has a sum, however large.

  Raises:
    Damaged: if one is missing, or is not what was written.
  """
  for name, sums in read_sums(folder).items():
    file = folder / name
    with _reading(file, remedy) as opened:
      total = hashlib.file_digest(opened, "sha256").hexdigest()
    if total not in sums:
      raise Damaged(file, _CHANGED, remedy)


def read_text(file: pathlib.Path, remedy: str = _REMEDY) -> str:
  """As `read`, for text.

  Raises:
    Damaged: also if it is no UTF-8.
  """
  try:
    return read(file, remedy).decode()
  except UnicodeDecodeError as error:
    raise Damaged(file, f"is no UTF-8 ({error})", remedy) from error


def read_json(file: pathlib.Path, kind: Any, remedy: str = _REMEDY) -> Any:
  """A value as `kind` has it: a type, a TypedDict, or a dataclass.

  Raises:
    Damaged: also if it is no JSON, or something is of another type.
  """
  try:
    return _parse(kind, read(file, remedy))
  except pydantic.ValidationError as error:
    raise Damaged(file, _describe(error), remedy) from error


def read_jsonl(
  file: pathlib.Path, kind: Any, remedy: str = _REMEDY
) -> list[Any]:
  """A value a line; see `read_json`. The error names the line."""
  lines = read(file, remedy).split(b"\n")
  if lines.pop():
    raise Damaged(file, f"is cut off in line {len(lines) + 1}", remedy)
  records = []
  for number, line in enumerate(lines, start=1):
    try:
      records.append(_parse(kind, line))
    except pydantic.ValidationError as error:
      problem = f"line {number} {_describe(error)}"
      raise Damaged(file, problem, remedy) from error
  return records


def append(file: pathlib.Path, records: Iterable[Mapping]) -> None:
  """Adds lines to a journal; once it returns, they are on the disk.

  A last line that a kill cut off goes, which is said.

  Raises:
    Unwritable: if they cannot be written.
  """
  make_folder(file.parent)
  try:
    handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(handle, "r+b") as out:
      _end_last_line(file, out)
      out.write("".join(map(_summed_line, records)).encode())
      out.flush()
      os.fsync(out.fileno())
  except OSError as error:
    raise Unwritable(file, error) from error


def _end_last_line(file: pathlib.Path, out: BinaryIO) -> None:
  """Ends the last line of a journal where it has no end, or takes it out."""
  size = out.seek(0, os.SEEK_END)
  out.seek(max(0, size - 1))
  if not size or out.read() == b"\n":
    return
  out.seek(0)
  last = out.read().rpartition(b"\n")[2]
  try:
    json.loads(last)
  except ValueError:
    logger.warning("%s: the last line was cut off, and is taken out", file)
    out.truncate(size - len(last))
    out.seek(0, os.SEEK_END)
  else:
    out.write(b"\n")


def _summed_line(record: Mapping) -> str:
  text = json.dumps(record, ensure_ascii=False)
  total = zlib.crc32(text.encode())
  return f'{text[:-1]}, "crc32": "{total:08x}"}}\n'


def read_journal(file: pathlib.Path, kind: Any) -> tuple[list[Any], list[str]]:
  """The whole lines of a journal, and what is wrong with each of the others.

  A journal that is not there has no lines, and a last line that a kill cut off
  is no problem. `kind` is of the line without its sum.
  """
  if not file.is_file():
    return [], []
  *lines, last = file.read_bytes().split(b"\n")
  records, problems = [], []
  for number, line in enumerate([*lines, last], start=1):
    try:
      text = line.decode()
      total = _LINE_SUM.search(text)
      if total:
        text = text[: total.start()] + "}"
      if total and int(total[1], 16) != zlib.crc32(text.encode()):
        raise ValueError("is not what was written")
      if text.strip():
        records.append(_parse(kind, text))
    except pydantic.ValidationError as error:
      problem = _describe(error)
    except ValueError as error:
      problem = f"is damaged ({error})"
    else:
      continue
    if number <= len(lines):
      problems.append(f"{file}:{number} {problem}")
  return records, problems


@functools.cache
def _adapter(kind: Any) -> pydantic.TypeAdapter:
  return pydantic.TypeAdapter(kind)


def _parse(kind: Any, text: str | bytes) -> Any:
  return _adapter(kind).validate_json(text, strict=True, extra="forbid")


def _describe(error: pydantic.ValidationError) -> str:
  """The first of what is wrong, in the words of the library."""
  first = error.errors(include_url=False, include_context=False)[0]
  place = ".".join(map(str, first["loc"]))
  if first["type"] == "json_invalid":
    return f"is damaged ({first['msg']})"
  shown = f"{first['input']!r:.60}"
  return f"is damaged ({place + ': ' if place else ''}{first['msg']}: {shown})"


def read_sums(folder: pathlib.Path) -> dict[str, list[str]]:
  """The sums of a folder's files by name, the last of each being the newest.

  Raises:
    Damaged: if they cannot be read.
  """
  file = folder / CHECKSUMS
  try:
    return _parse(dict[str, list[str]], file.read_bytes())
  except FileNotFoundError:
    return {}
  except pydantic.ValidationError as error:
    raise Damaged(
      file,
      _describe(error),
      "put it back from a copy, or remove it to read the files beside it "
      "unchecked",
    ) from error


def write_sums(folder: pathlib.Path, sums: Mapping[str, list[str]]) -> None:
  """Writes them, the whole file or nothing."""
  with _part(folder / CHECKSUMS) as part:
    text = json.dumps(sums, indent=2, sort_keys=True) + "\n"
    part.out.write(text.encode())
    part.rename()
