"""The sections about data."""

import dataclasses
import operator

from pdpo_jax.core import sections

TEMPLATES = ("auto", "chat", "plain")


@dataclasses.dataclass
class SyntheticConfig(sections.Section):
  """The little language of `data/sources/synthetic.py`."""

  # Workers, named "1", "2", ….
  num_workers: int = 10
  # Those who prefer the shorter of two summaries; the others the longer.
  short_workers: tuple[str, ...] = ("4", "5", "6")
  train_per_worker: int = 200
  heldout_per_worker: int = 40


@dataclasses.dataclass
class PrismConfig(sections.Section):
  """PRISM; see `data/sources/prism.py`."""

  # Users that are kept from training, and dialogues of the others that are.
  unseen_users: float = 0.1
  heldout_dialogues: float = 0.1
  # "own" shuffles by the run's seed; "authors" reproduces the split of the
  # paper's released code (numpy, seed 123).
  split: str = "own"
  # What a turn makes: "all", one sample with all its rejected responses;
  # "each", one sample a rejected response; "one", one sample with one of them.
  rejected: str = "all"
  # What a prompt is: "chat" tells the model of the user in sentences, and has
  # the whole dialogue. "authors" is the released code's: a user's text in its
  # form, dialogues cut at its number of characters, and no longer turns.
  prompt: str = "chat"
  # How many of a user's preference aspects their text names.
  top_aspects: int = 3
  # By which they are ranked: "stated" importance, or "shown", the order of the
  # sliders on the survey's page (the released code).
  aspect_order: str = "stated"
  # Whether a user's text has these parts.
  demographics: bool = True
  stated_preferences: bool = True
  self_description: bool = False
  system_string: bool = False


@dataclasses.dataclass
class TldrConfig(sections.Section):
  """TL;DR with simulated taste in length; see `data/sources/tldr.py`."""

  # Keeps comparisons whose two summaries both come from SFT policies.
  sft_only: bool = True
  # Only the busiest workers; they become users "1", "2", …, busiest first.
  num_workers: int = 10
  short_workers: tuple[str, ...] = ("4", "5", "6")
  # What a summary's length is counted in: "words", "characters" or "tokens".
  length_unit: str = "words"
  # Summaries of equal length: "drop" the comparison, or keep the "first"
  # summary as the chosen one (the released code).
  ties: str = "drop"
  # "clean" leaves out comparisons with an empty summary, and held-out posts
  # that training has. "authors" keeps both, as the released code does, and
  # leaves out comparisons of more than its 4,800 characters.
  selection: str = "clean"
  # Prompts of comparisons end in "TL;DR: ", with a space; those of answers
  # never do (the released code).
  trailing_space: bool = False


@dataclasses.dataclass
class FilesConfig(sections.Section):
  """One's own comparisons; see `data/sources/preference_files.py`."""

  # Held-out comparisons: another path; without one, the split of `data.path`
  # that is named validation or test; without that, this share of all.
  # The same responses to a prompt are never on both sides; other responses to
  # it may be. Users with held-out comparisons alone count as unseen.
  heldout_path: str = ""
  heldout_share: float = 0.1
  # Users that are kept from training, to see how the unknown are served.
  unseen_users: float = 0.0
  # Only users with so many comparisons in the file at `data.path`, the busiest
  # `max_users` of them (0: all), and at most so many comparisons of each (0:
  # all), in training and of those held out.
  min_per_user: int = 1
  max_users: int = 0
  max_per_user: int = 0
  max_heldout_per_user: int = 0
  # The column that holds the user's id, where it is not "user_id".
  user_column: str = "user_id"


@dataclasses.dataclass
class DataConfig(sections.Section):
  """Who compared what."""

  # "synthetic", "prism", "tldr" or "files"; each has a section below.
  source: str = "synthetic"
  # A local folder or file, or a hub id, for all but "synthetic".
  path: str = ""
  # In tokens. Of a dialogue, the oldest turns go first; with the template
  # "plain", a text loses its beginning.
  max_prompt_tokens: int = 128
  max_response_tokens: int = 64
  # A response over its limit: "error" stops, "drop" leaves it out, and the
  # comparison where it is the chosen one or no other is left, "cut" cuts it
  # off, without an end-of-text token. A comparison whose last turn alone is
  # over the prompt's limit is an error, or else left out.
  long_response: str = "error"
  # Share of broken rows of a file above which the run stops.
  max_bad_share: float = 0.01
  # How samples over these limits are cut: "turns", as above, or "keep_start",
  # as TRL 0.10 does: not within the sum of both limits; beyond, the prompt
  # keeps its first tokens, the user's text among them, and if that is not
  # enough, responses keep theirs. Prompts of answers are whole.
  truncation: str = "turns"
  # "chat" renders the tokenizer's chat template, "plain" only the text; "auto"
  # is "chat" where the tokenizer has a template. Or the source of a template,
  # in Jinja, that is used in place of the tokenizer's.
  template: str = "auto"
  # Puts the tokenizer's BOS before prompts where it does not do so itself, as
  # GPT-J's does not (the released code does).
  add_bos: bool = False
  # Different padded shapes of a batch; each is compiled once.
  max_shapes: int = 3
  # Run the real positions of samples side by side, of mixed lengths in each
  # batch. Without, a batch has samples of one shape, padding included.
  pack: bool = True
  # A control: user ids change places among the training samples, so that
  # nothing personal is left to learn.
  shuffle_users: bool = False
  # Another: this share of the users is trained on the opposite of what they
  # chose, so that what is learnt of them must turn round, and of others not.
  swap_choices: float = 0.0
  # The user table has rows for unseen users too, which are never read, since
  # an unseen user is the generic one (the released code).
  unseen_in_table: bool = False
  synthetic: SyntheticConfig = dataclasses.field(
    default_factory=SyntheticConfig
  )
  prism: PrismConfig = dataclasses.field(default_factory=PrismConfig)
  tldr: TldrConfig = dataclasses.field(default_factory=TldrConfig)
  files: FilesConfig = dataclasses.field(default_factory=FilesConfig)


def check(data: DataConfig) -> None:
  """Checks ranges and combinations.

  Raises:
    ValueError: with the field, its value, what is allowed and what to do.
  """
  sections.check_integers(data, "data")
  for name in ("synthetic", "prism", "tldr", "files"):
    sections.check_integers(getattr(data, name), f"data.{name}")
  for name, allowed in (
    ("source", ("synthetic", "prism", "tldr", "files")),
    ("long_response", ("error", "drop", "cut")),
    ("truncation", ("turns", "keep_start")),
    ("prism.split", ("own", "authors")),
    ("prism.rejected", ("all", "each", "one")),
    ("prism.prompt", ("chat", "authors")),
    ("prism.aspect_order", ("stated", "shown")),
    ("tldr.length_unit", ("words", "characters", "tokens")),
    ("tldr.ties", ("drop", "first")),
    ("tldr.selection", ("clean", "authors")),
  ):
    value = operator.attrgetter(name)(data)
    sections.require(
      value in allowed, f"data.{name}", value, f"one of {allowed}"
    )
  if data.template not in TEMPLATES and "{" not in data.template:
    raise ValueError(
      f"data.template {data.template!r} must be one of {TEMPLATES}, or the "
      "source of a chat template in Jinja"
    )
  if data.truncation == "keep_start" and data.long_response != "cut":
    raise ValueError(
      f"data.truncation 'keep_start' cuts long responses; data.long_response "
      f"{data.long_response!r} must be 'cut'"
    )
  for name in (
    "max_bad_share",
    "prism.unseen_users",
    "prism.heldout_dialogues",
    "files.heldout_share",
    "files.unseen_users",
  ):
    value = operator.attrgetter(name)(data)
    sections.require(0 <= value < 1, f"data.{name}", value, "from 0 to below 1")
  sections.require(
    0 <= data.swap_choices <= 1,
    "data.swap_choices",
    data.swap_choices,
    "from 0 to 1",
  )
  if data.source == "files" and not data.files.heldout_path:
    sections.require(
      data.files.heldout_share > 0,
      "data.files.heldout_share",
      data.files.heldout_share,
      "above 0, unless data.files.heldout_path has the held-out comparisons",
    )
  if (data.source == "synthetic") == bool(data.path):
    raise ValueError(
      f"data.path {data.path!r} does not go with data.source {data.source!r}; "
      "'synthetic' has no path, the others need a local one or a hub id"
    )
  for name in ("synthetic", "tldr"):
    section = getattr(data, name)
    workers = {str(number + 1) for number in range(section.num_workers)}
    if not set(section.short_workers) <= workers:
      raise ValueError(
        f"data.{name}.short_workers {section.short_workers} must be among the "
        f"{section.num_workers} workers '1' to '{section.num_workers}'"
      )
