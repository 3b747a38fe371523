"""The sections about data."""

import dataclasses
from typing import Literal

from pdpo_jax.core import sections

TEMPLATES = ("auto", "chat", "plain")


@dataclasses.dataclass
class SyntheticConfig(sections.Section):
  """The little language of `data/sources/synthetic.py`."""

  # Workers, named "1", "2", ….
  num_workers: sections.Count = 10
  # "length": some prefer the shorter of two summaries, the others the longer.
  # "mixtures": everybody weighs length, tone, order, names and repetition in a
  # way of their own (`data/sources/mixtures.py`).
  tastes: Literal["length", "mixtures"] = "length"
  # Those who prefer the shorter summary, for "length".
  short_workers: tuple[str, ...] = ("4", "5", "6")
  train_per_worker: sections.Count = 200
  heldout_per_worker: sections.Count = 40

  def check_together(self) -> None:
    _check_workers("synthetic", self.num_workers, self.short_workers)
    if self.short_workers and self.tastes == "mixtures":
      raise ValueError(
        f"data.synthetic.short_workers {self.short_workers} has no meaning for "
        "data.synthetic.tastes 'mixtures'; use ()"
      )


@dataclasses.dataclass
class PrismConfig(sections.Section):
  """PRISM; see `data/sources/prism.py`."""

  # Users that are kept from training, and dialogues of the others that are.
  unseen_users: sections.ShareBelowOne = 0.1
  heldout_dialogues: sections.ShareBelowOne = 0.1
  # "own" shuffles by the run's seed; "authors" reproduces the split of the
  # paper's released code (numpy, seed 123).
  split: Literal["own", "authors"] = "own"
  # What a turn makes: "all", one example with all its rejected responses;
  # "each", one example a rejected response; "one", one example with one of
  # them.
  rejected: Literal["all", "each", "one"] = "all"
  # What a prompt is: "chat" tells the model of the user in sentences, and has
  # the whole dialogue. "authors" is the released code's: a user's text in its
  # form, dialogues cut at its number of characters, and no longer turns.
  prompt: Literal["chat", "authors"] = "chat"
  # How many of a user's preference aspects their text names.
  top_aspects: sections.CountOrNone = 3
  # By which they are ranked: "stated" importance, or "shown", the order of the
  # sliders on the survey's page (the released code).
  aspect_order: Literal["stated", "shown"] = "stated"
  # Whether a user's text has these parts.
  demographics: bool = True
  stated_preferences: bool = True
  self_description: bool = False
  system_string: bool = False


@dataclasses.dataclass
class CommunityAlignmentConfig(sections.Section):
  """Community Alignment; see `data/sources/community_alignment.py`."""

  # Users that are kept from training, and first utterances of dialogues that
  # are, whoever the dialogues are of.
  unseen_users: sections.ShareBelowOne = 0.1
  heldout_openings: sections.ShareBelowOne = 0.1
  # Only dialogues of people who were assigned one of these ("en", "fr", "hi",
  # "it", "pt"); all where empty.
  languages: tuple[str, ...] = ()
  # Only dialogues whose first utterance was given to the person. What people
  # wrote themselves is not moderated.
  pregenerated_only: bool = False
  # Whether a user's text tells their age, gender, education, political leaning,
  # ethnicity and country.
  demographics: bool = True


@dataclasses.dataclass
class TldrConfig(sections.Section):
  """TL;DR with simulated taste in length; see `data/sources/tldr.py`."""

  # Keeps comparisons whose two summaries both come from SFT policies.
  sft_only: bool = True
  # Only the busiest workers; they become users "1", "2", …, busiest first.
  num_workers: sections.Count = 10
  short_workers: tuple[str, ...] = ("4", "5", "6")
  # What a summary's length is counted in: "words", "characters" or "tokens".
  length_unit: Literal["words", "characters", "tokens"] = "words"
  # Summaries of equal length: "drop" the comparison, or keep the "first"
  # summary as the chosen one (the released code).
  ties: Literal["drop", "first"] = "drop"
  # "clean" leaves out comparisons with an empty summary, and held-out posts
  # that training has. "authors" keeps both, as the released code does, and
  # leaves out comparisons of more than its 4,800 characters.
  selection: Literal["clean", "authors"] = "clean"
  # Prompts of comparisons end in "TL;DR: ", with a space; those of answers
  # never do (the released code).
  trailing_space: bool = False

  def check_together(self) -> None:
    _check_workers("tldr", self.num_workers, self.short_workers)


@dataclasses.dataclass
class FilesConfig(sections.Section):
  """One's own comparisons; see `data/sources/preference_files.py`."""

  # Held-out comparisons: another path; without one, the split of `data.path`
  # that is named validation or test; without that, this share of all.
  # The same responses to a prompt are never on both sides; other responses to
  # it may be. Users with held-out comparisons alone count as unseen.
  heldout_path: str = ""
  heldout_share: sections.ShareBelowOne = 0.1
  # Users that are kept from training, to see how the unknown are served.
  unseen_users: sections.ShareBelowOne = 0.0
  # Only users with so many comparisons in the file at `data.path`, the busiest
  # `max_users` of them (0: all), and at most so many comparisons of each (0:
  # all), in training and of those held out.
  min_per_user: sections.Count = 1
  max_users: sections.CountOrNone = 0
  max_per_user: sections.CountOrNone = 0
  max_heldout_per_user: sections.CountOrNone = 0
  # The columns that hold the user's id and the prompt, where these are not
  # "user_id" and "prompt".
  user_column: str = "user_id"
  prompt_column: str = "prompt"


@dataclasses.dataclass
class RatingsConfig(sections.Section):
  """Ratings, as comparisons; see `data/sources/ratings.py`."""

  # Names of the two files, without their endings, and of their columns.
  ratings_file: str = "ratings"
  texts_file: str = "items"
  user_column: str = "user_id"
  item_column: str = "item_id"
  # What all texts answer.
  prompt: str = "What would you like?"
  # How far above the rejected text the chosen one was rated, at least.
  least_gap: sections.Positive = 2.0
  # How far everybody else's mean ratings of the two may differ, so that what is
  # left is taste. 0: any pair.
  most_mean_gap: sections.NotNegative = 0.0
  # So many people, drawn from those with enough pairs; 0: all of them.
  num_users: sections.CountOrNone = 0
  train_per_user: sections.Count = 40
  # At most; half of them new pairs of texts that the person compares in
  # training, half pairs of texts that are new to the person.
  heldout_per_user: sections.Count = 20
  # Of each person's texts, the share that training does not show them.
  heldout_texts: sections.ShareBelowOne = 0.2
  # People that are kept from training, to see how the unknown are served.
  unseen_users: sections.ShareBelowOne = 0.0


@dataclasses.dataclass
class DataConfig(sections.Section):
  """Who compared what."""

  # Each has a section below.
  source: Literal[
    "synthetic", "prism", "community_alignment", "tldr", "files", "ratings"
  ] = "synthetic"
  # A local folder or file, or a hub id, for all but "synthetic".
  path: str = ""
  # In tokens. Of a dialogue, the oldest turns go first; with the template
  # "plain", a text loses its beginning.
  max_prompt_tokens: sections.Count = 128
  max_response_tokens: sections.Count = 64
  # A response over its limit: "error" stops, "drop" leaves it out, and the
  # comparison where it is the chosen one or no other is left, "cut" cuts it
  # off, without an end-of-text token. A comparison whose last turn alone is
  # over the prompt's limit is an error, or else left out.
  long_response: Literal["error", "drop", "cut"] = "error"
  # Share of broken records of a file above which the run stops.
  max_bad_share: sections.ShareBelowOne = 0.01
  # How examples over these limits are cut: "turns", as above, or "keep_start",
  # as TRL 0.10 does: not within the sum of both limits; beyond, the prompt
  # keeps its first tokens, the user's text among them, and if that is not
  # enough, responses keep theirs. Prompts of answers are whole.
  truncation: Literal["turns", "keep_start"] = "turns"
  # "chat" renders the tokenizer's chat template, "plain" only the text; "auto"
  # is "chat" where the tokenizer has a template. Or the source of a template,
  # in Jinja, that is used in place of the tokenizer's.
  template: str = "auto"
  # Puts the tokenizer's BOS before prompts where it does not do so itself, as
  # GPT-J's does not (the released code does).
  add_bos: bool = False
  # Different padded shapes of a batch; each is compiled once.
  max_shapes: sections.Count = 3
  # Run the real positions of examples side by side, of mixed lengths in each
  # batch. Without, a batch has examples of one shape, padding included.
  pack: bool = True
  # Turns of a dialogue whose tokens go on from each other are run as one row:
  # prompts and chosen responses once, as the trunk of the dialogue, and the
  # rejected responses behind it. The same losses and gradients for less work.
  # Takes `pack`, and `loss.mixing` "sample".
  share_trunks: bool = True
  # A control: user ids change places among the training examples, so that
  # nothing personal is left to learn.
  shuffle_users: bool = False
  # Another: this share of the users is trained on the opposite of what they
  # chose, so that what is learnt of them must turn round, and of others not.
  swap_choices: sections.Share = 0.0
  # The user table has rows for unseen users too, which are never read, since
  # an unseen user is the generic one (the released code).
  unseen_in_table: bool = False
  synthetic: SyntheticConfig = dataclasses.field(
    default_factory=SyntheticConfig
  )
  prism: PrismConfig = dataclasses.field(default_factory=PrismConfig)
  community_alignment: CommunityAlignmentConfig = dataclasses.field(
    default_factory=CommunityAlignmentConfig
  )
  tldr: TldrConfig = dataclasses.field(default_factory=TldrConfig)
  files: FilesConfig = dataclasses.field(default_factory=FilesConfig)
  ratings: RatingsConfig = dataclasses.field(default_factory=RatingsConfig)

  def check_together(self) -> None:
    if self.template not in TEMPLATES and "{" not in self.template:
      raise ValueError(
        f"data.template {self.template!r} must be one of {TEMPLATES}, or the "
        "source of a chat template in Jinja"
      )
    if self.truncation == "keep_start" and self.long_response != "cut":
      raise ValueError(
        "data.truncation 'keep_start' cuts long responses; data.long_response "
        f"{self.long_response!r} must be 'cut'"
      )
    if self.source == "files" and not self.files.heldout_path:
      sections.require(
        self.files.heldout_share > 0,
        "data.files.heldout_share",
        self.files.heldout_share,
        "above 0, unless data.files.heldout_path has the held-out comparisons",
      )
    if (self.source == "synthetic") == bool(self.path):
      raise ValueError(
        f"data.path {self.path!r} does not go with data.source "
        f"{self.source!r}; 'synthetic' has no path, the others need a local "
        "one or a hub id"
      )


def _check_workers(name: str, num_workers: int, short: tuple[str, ...]) -> None:
  if not {*short} <= {str(number + 1) for number in range(num_workers)}:
    raise ValueError(
      f"data.{name}.short_workers {short} must be among the {num_workers} "
      f"workers '1' to '{num_workers}'"
    )
