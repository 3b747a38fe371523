"""The judge that plays a user: whom it judges, and how it is asked."""

import dataclasses
import pathlib

from pdpo_jax.config import sections

OPPONENTS = ("vanilla", "chosen", "base", "run")


@dataclasses.dataclass
class JudgeConfig(sections.Section):
  """Knobs of `evaluation/judging.py`; see docs/judge.md."""

  # "openai", any endpoint that speaks its protocol; "local", a model that runs
  # here; "rule", for data whose preferences are known; "", no judge.
  kind: str = ""
  # What the endpoint calls the model, or a path as `base.path`, for "local".
  model: str = ""
  # Of an endpoint that is not OpenAI's, e.g. "http://localhost:8000/v1".
  base_url: str = ""
  # The environment variable that holds the key.
  key_variable: str = "OPENAI_API_KEY"
  # What responses are compared with: "vanilla" DPO, the data set's "chosen"
  # response, the "base", or those of the "run" itself, for other runs.
  against: tuple[str, ...] = ("vanilla", "chosen")
  # Users that are judged, drawn from the seen and as many from the unseen; and
  # samples of each. Or the ids of some.
  num_users: int = 10
  samples_per_user: int = 4
  users: tuple[str, ...] = ()
  # "both" asks for every pair in both orders, "random" in one of them.
  order: str = "both"
  # Other choices of the user that the judge is shown, at most; and whether
  # those from later in the same dialogue are among them.
  num_examples: int = 3
  later_turns: bool = False
  # The prompts' jinja2 templates, where they are not the project's own.
  system_template: str = ""
  user_template: str = ""
  max_tokens: int = 500
  temperature: float = 0.0
  # Requests at a time, and a minute (0: as many as that makes).
  concurrency: int = 8
  requests_per_minute: int = 0
  # Seconds until a request is given up, and how often it is tried again.
  timeout: float = 60.0
  retries: int = 6
  # Dollars for a million tokens, for the estimate.
  input_price: float = 0.0
  output_price: float = 0.0


def validate(judge: JudgeConfig) -> None:
  """Checks types, ranges and combinations.

  Raises:
    ValueError: with the field, its value, what is allowed and what to do.
  """
  sections.check_types(judge, "judge.")
  sections.check_integers(judge, "judge")
  for name, allowed in (
    ("kind", ("", "openai", "local", "rule")),
    ("order", ("both", "random")),
  ):
    value = getattr(judge, name)
    sections.require(
      value in allowed, f"judge.{name}", value, f"one of {allowed}"
    )
  sections.require(
    bool(judge.against) and set(judge.against) <= set(OPPONENTS),
    "judge.against",
    judge.against,
    f"some of {OPPONENTS}",
  )
  for name in ("temperature", "input_price", "output_price"):
    value = getattr(judge, name)
    sections.require(value >= 0, f"judge.{name}", value, "0 or more")
  sections.require(judge.timeout > 0, "judge.timeout", judge.timeout, "above 0")
  if judge.kind in ("openai", "local") and not judge.model:
    raise ValueError(
      f"judge.kind {judge.kind!r} needs --judge.model: what the endpoint calls "
      "it, or for 'local' a folder, a .gguf file or a model of the hub"
    )
  if judge.kind != "openai" and judge.base_url:
    raise ValueError(
      f"judge.base_url {judge.base_url!r} is for --judge.kind=openai, and this "
      f"is {judge.kind!r}"
    )
  for name in ("system_template", "user_template"):
    value = getattr(judge, name)
    if value and not pathlib.Path(value).is_file():
      raise ValueError(f"judge.{name}: there is no file {value!r}")
