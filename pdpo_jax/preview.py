r"""Shows what a config makes of its data, before anything is trained.

  python -m pdpo_jax.preview --config=configs/prism.py:individual

Prints examples, users, lengths, what was cut and dropped, the share of padding
and three examples as the model reads them; writes the same and a figure to
`data_report.txt` and `data_report.png` in the run folder.

`--personal_signal` adds how much of the choices is personal, as far as surface
features tell: how often users agree, and what weights of a user's own add to a
regression. That needs no language model, and about a minute for some thousand
comparisons.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
import transformers
from absl import flags

matplotlib.use("Agg")

from matplotlib import pyplot

from pdpo_jax import command_line
from pdpo_jax.core import display
from pdpo_jax.data import batching, dataset, tokenize, tokenized
from pdpo_jax.data import users as users_lib
from pdpo_jax.evaluation import personal_signal
from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import earlier, run_folder
from pdpo_jax.runs import run as run_lib
from pdpo_jax.training import branch_batches
from pdpo_jax.weights import base as base_lib

_CONFIG = command_line.config_flag()
_PERSONAL_SIGNAL = flags.DEFINE_bool(
  "personal_signal", False, "Also measure how much of the choices is personal."
)
_SHOWN = 3  # examples that are shown whole
_BARS = 12  # of a histogram in text


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Of one split, in tokens; a response with its end token."""

  prompts: np.ndarray
  responses: np.ndarray

  @classmethod
  def of(cls, rows: tokenized.Rows) -> "Lengths":
    return cls(
      np.array([len(row.prompt) for row in rows]),
      np.array([len(each) for row in rows for each in row.responses]),
    )


def make_report(
  config: config_lib.Config,
  loaded: dataset.Dataset,
  tokenizer: transformers.PreTrainedTokenizerBase,
) -> tuple[str, Lengths]:
  """The report's text, and the lengths in the training split."""
  users = users_lib.UserIndex.from_examples(loaded.train)
  data = tokenized.tokenize_dataset(loaded, config.data, tokenizer, users)
  train = data.splits[tokenized.TRAIN]
  rows = branch_batches.example_rows(config.recipe, train)
  # As one device runs them.
  batches = branch_batches.make_batches(
    config.recipe, train, rows, None, trained=True
  )
  lengths = Lengths.of(rows)
  blocks = [
    f"Data of {config.name!r}: {config.data.source} {config.data.path}",
    "\n".join(["read:", *(f"  {line}" for line in loaded.tally.lines())]),
    "\n".join(map(str, data.splits.values())),
    _describe_users(train, loaded),
    _histogram("prompts of training, in tokens", lengths.prompts),
    _histogram("responses of training, in tokens", lengths.responses),
    "\n".join(
      filter(
        None,
        [
          _describe_batches(batches),
          branch_batches.describe_trunks(config.recipe, train, batches),
        ],
      )
    ),
    *_rendered(config, train, rows, tokenizer),
  ]
  return "\n\n".join(blocks) + "\n", lengths


def _describe_users(
  train: tokenized.TokenizedSplit, loaded: dataset.Dataset
) -> str:
  counts = collections.Counter(train.owners)
  unknown = counts.pop(None, 0)
  per_user = np.array(sorted(counts.values()))
  lines = [f"users: {len(counts):,} in training"]
  if loaded.unseen:
    strangers = {example.user_id for example in loaded.unseen}
    lines[0] += f", {len(strangers):,} unseen"
  if unknown:
    lines[0] += f"; {unknown:,} examples of unknown users"
  if per_user.size:
    low, median, high = np.percentile(per_user, [10, 50, 90])
    lines.append(
      f"examples a user: {per_user[0]} to {per_user[-1]}, median {median:g}, "
      f"80% between {low:g} and {high:g}"
    )
  responses = collections.Counter(
    len(example.responses) - 1 for example in train.tokenized
  )
  shares = ", ".join(
    f"{count:,} with {number}" for number, count in sorted(responses.items())
  )
  lines.append(f"rejected responses an example: {shares}")
  return "\n".join(lines)


def _histogram(title: str, values: np.ndarray) -> str:
  # Whole numbers, each bar's end being the next one's start.
  edges = np.linspace(values.min(), values.max() + 1, _BARS + 1)
  edges = np.unique(edges.round())
  counts, _ = np.histogram(values, edges)
  lines = [
    f"{title}: median {np.median(values):g}, 95% up to "
    f"{np.percentile(values, 95):g}, longest {values.max()}"
  ]
  for count, low, high in zip(counts, edges, edges[1:], strict=False):
    bar = "█" * round(40 * count / counts.max())
    lines.append(f"  {low:6.0f} to {high:6.0f}  {count:8,}  {bar}")
  return "\n".join(lines)


def _describe_batches(batches: batching.PreferenceBatches) -> str:
  shapes = ", ".join(f"{p} + {n} · {r}" for p, n, r in batches.shapes)
  return (
    f"batches an epoch: {batches.num_batches:,}; shapes (prompt + responses · "
    f"length): {shapes}; padding {batches.padding_share:.1%}"
  )


def _rendered(config, train, rows, tokenizer) -> list[str]:
  """Some examples as the model reads them, spread over the split."""
  places = np.linspace(0, len(train.examples) - 1, _SHOWN).astype(int)
  blocks = []
  for place in dict.fromkeys(places.tolist()):
    example, row = train.examples[place], rows[place]
    prompt = tokenizer.decode(row.prompt)
    if config.user.kind != "none":
      mark = f"[{config.user.num_tokens} vectors of user {example.user_id!r}]"
      cut = int(config.user.prefix_position == "after_bos")
      prompt = (
        tokenizer.decode(row.prompt[:cut])
        + mark
        + tokenizer.decode(row.prompt[cut:])
      )
    lines = [f"── example {place} ──", prompt]
    for number, response in enumerate(row.responses):
      name = "rejected" if number else "chosen"
      lines.append(f"── {name} ──\n{tokenizer.decode(response)}")
    blocks.append("\n".join(lines))
  return blocks


def figure(file: pathlib.Path, lengths: Lengths, counts: Sequence[int]) -> None:
  """Histograms of prompts, responses, and examples a user, as PNG."""
  chart, places = pyplot.subplots(1, 3, figsize=(11, 3.2), dpi=150)
  for axes, values, title, unit in zip(
    places,
    (lengths.prompts, lengths.responses, counts),
    ("prompts, user text included", "responses", "examples a user"),
    ("tokens", "tokens", "examples"),
    strict=True,
  ):
    axes.hist(values, 40, color="#3c78b4")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(unit)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
  places[0].set_ylabel("count")
  chart.tight_layout()
  chart.savefig(file)
  pyplot.close(chart)


def main() -> None:
  config = _CONFIG.value
  if config is None:
    raise ValueError(
      "--config is missing; name an experiment, e.g. --config=configs/prism.py"
    )
  config_lib.validate(config)
  config = earlier.resolve(config)
  if config.source_path:
    tokenizer = base_lib.read_tokenizer(config.source_path)
    loaded = run_lib.load_dataset(config, tokenizer, config.folder)
  else:
    loaded = run_lib.load_dataset(config, None, config.folder)
    # The tokenizer that the base from scratch will have.
    texts = (prompt + answer for prompt, answer in loaded.sft_pairs)
    tokenizer = tokenize.train_tokenizer(texts, config.sft.vocab_size)
  text, lengths = make_report(config, loaded, tokenizer)
  if _PERSONAL_SIGNAL.value:
    signal = personal_signal.describe(
      loaded.train, loaded.heldout, loaded.unseen
    )
    text = f"{text}\n{signal}\n"
  text = display.visible(text)
  print(text)
  folder = config.folder
  folder.mkdir(parents=True, exist_ok=True)
  (folder / run_folder.DATA_REPORT).write_text(text)
  counts = collections.Counter(example.user_id for example in loaded.train)
  figure(folder / run_folder.DATA_FIGURE, lengths, list(counts.values()))
  print(f"Written: {folder}/data_report.txt and {folder}/data_report.png")


if __name__ == "__main__":
  command_line.run(main)
