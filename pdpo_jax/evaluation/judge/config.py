"""The judge that plays a user: whom it judges, and how it is asked."""

import dataclasses
import pathlib
import re
import typing
import urllib.parse
from typing import Any, Literal

from pdpo_jax.core import sections

Opponent = Literal["vanilla", "chosen", "base", "prompted", "run"]
# Parts of an address's query that are no secrets, and tell services apart.
_SHOWN_QUERY = {"api-version", "api_version", "deployment", "model", "version"}


@dataclasses.dataclass
class JudgeConfig(sections.Section):
  """Whom a judge judges, and how it is asked; see docs/judge.md."""

  # "openai", any endpoint that speaks its protocol; "local", a model that runs
  # here; "rule", for data whose preferences are known; "", no judge.
  kind: Literal["", "openai", "local", "rule"] = ""
  # What the endpoint calls the model, or a path as `base.path`, for "local".
  model: str = ""
  # Of an endpoint that is not OpenAI's, e.g. "http://localhost:8000/v1". Users,
  # passwords and keys in it are used, and neither shown nor kept.
  base_url: str = ""
  # The environment variable that holds the key.
  key_variable: str = "OPENAI_API_KEY"
  # What responses are compared with: "vanilla" DPO, the data set's "chosen"
  # response, the "base", the base "prompted" with a user's past choices, or
  # those of the "run" itself, for other runs.
  against: tuple[Opponent, ...] = ("vanilla", "chosen")
  # Users that are judged, drawn from the seen and as many from the unseen; and
  # examples of each. Or the ids of some.
  num_users: sections.CountOrNone = 10
  samples_per_user: sections.Count = 4
  users: tuple[str, ...] = ()
  # "both" asks for every pair in both orders, "random" in one of them.
  order: Literal["both", "random"] = "both"
  # Other choices of the user that the judge is shown, at most; and whether
  # those from later in the same dialogue are among them.
  num_examples: sections.CountOrNone = 3
  later_turns: bool = False
  # The prompts' jinja2 templates, where they are not the project's own.
  system_template: str = ""
  user_template: str = ""
  max_tokens: sections.Count = 500
  temperature: sections.NotNegative = 0.0
  # Requests at a time, and a minute (0: as many as that makes).
  concurrency: sections.Count = 8
  requests_per_minute: sections.CountOrNone = 0
  # Seconds until a request is given up, and how often it is tried again.
  timeout: sections.Positive = 60.0
  retries: sections.CountOrNone = 6
  # Dollars for a million tokens, for the estimate.
  input_price: sections.NotNegative = 0.0
  output_price: sections.NotNegative = 0.0

  def check_together(self) -> None:
    opponents = typing.get_args(Opponent)
    sections.require(
      bool(self.against), "judge.against", self.against, f"some of {opponents}"
    )
    if self.kind in ("openai", "local") and not self.model:
      raise ValueError(
        f"judge.kind {self.kind!r} needs --judge.model: what the endpoint "
        "calls it, or for 'local' a folder, a .gguf file or a model of the hub"
      )
    _check_address(self.base_url)
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.key_variable):
      # It may be the key itself.
      raise ValueError(
        "judge.key_variable must be the name of an environment variable, in "
        "capitals, as OPENAI_API_KEY; the key itself belongs into that variable"
      )
    if self.kind != "openai" and self.base_url:
      raise ValueError(
        f"judge.base_url {public_address(self.base_url)!r} is for "
        f"--judge.kind=openai, and this is {self.kind!r}"
      )
    for name in ("system_template", "user_template"):
      value = getattr(self, name)
      if value and not pathlib.Path(value).is_file():
        raise ValueError(f"judge.{name}: there is no file {value!r}")


def described(judge: JudgeConfig) -> dict[str, Any]:
  """The fields as they may be shown and kept: without secrets."""
  fields = dataclasses.asdict(judge)
  return fields | {"base_url": public_address(judge.base_url)}


def public_address(address: str) -> str:
  """An address without users, passwords, keys and fragments.

  One that has none stays as it is, and the names in a query stay.
  """
  if not address:
    return ""
  try:
    parts = urllib.parse.urlsplit(address)
    _ = parts.port
  except ValueError:
    return _HIDDEN
  if not _is_address(parts):
    return _HIDDEN
  if not ("@" in parts.netloc or parts.query or parts.fragment):
    return address
  query = []
  for item in filter(None, parts.query.split("&")):
    name, equals, _ = item.partition("=")
    shown = item if name in _SHOWN_QUERY else f"{name}={_HIDDEN}"
    query.append(shown if equals else _HIDDEN)
  place = parts.netloc.rpartition("@")[2]
  public = f"{parts.scheme}://{place}{parts.path}"
  return public + (f"?{'&'.join(query)}" if query else "")


_HIDDEN = "…"


def _is_address(parts: urllib.parse.SplitResult) -> bool:
  """Whether it is clear what of it is a secret.

  A password with a slash in it would pass for a path.
  """
  rest = parts.path + parts.query + parts.fragment
  whole = parts.scheme in ("http", "https") and bool(parts.hostname)
  return whole and "@" not in rest


def _check_address(address: str) -> None:
  """Checks `base_url`, which it does not show.

  Raises:
    ValueError: if it is none.
  """
  if address and public_address(address) == _HIDDEN:
    raise ValueError(
      "judge.base_url (not shown, since it may hold a key) must be as "
      "'http://localhost:8000/v1': http:// or https://, a host, and a path; in "
      "a user's name or password, write / ? # and @ as %2F %3F %23 and %40"
    )
