"""A little language of posts and summaries, small enough to learn in a minute.

Experiment 1 of arXiv:2402.05133 in miniature. A post looks like one of TL;DR;
between filler it reports two to five facts (who, did what, to which thing,
perhaps where or when), and a summary tells the first one, two … of them:

  SUBREDDIT: r/pets
  TITLE: need some help
  POST: i am so tired. later Anna sold bikes abroad. Bob broke books. ...
  TL;DR, please. Anna sold bikes. Bob broke books.

Now and then the author leaves the summary out, so that a model of this language
knows that one may be empty. The summaries that workers compare are drawn in the
same way: now and then, one of the two is empty.
"""

import dataclasses
import random
from collections.abc import Sequence

from pdpo_jax.core import structs


def _words(text: str) -> tuple[str, ...]:
  return tuple(text.split())


NAMES = _words(
  "Anna Bob Carl Dana Emil Fay Gus Hana Ivan Jill Kurt Lena Max Nora Omar Pia "
  "Rosa Sven Tara Vera"
)
VERBS = _words(
  "sold bought broke found lost hid burned painted washed stole fixed moved "
  "wanted borrowed mailed dropped opened closed cleaned counted hated loved "
  "packed wrapped traded ordered ruined carried missed kept drew made saw "
  "used took sent lent weighed praised tested"
)
THINGS = _words(
  "bikes plates keys books shoes cats lamps boots coins maps pies boats rugs "
  "drums cakes chairs clocks phones tables photos flowers letters tickets "
  "apples socks shirts pens toys guitars mirrors candles bottles ropes bags "
  "hats tents knives spoons jars doors"
)
DETAILS = _words(
  "today yesterday abroad upstairs online outside tonight twice downtown early"
)
OPENERS = _words("later then sadly meanwhile somehow apparently")
FILLERS = (
  "i am so tired",
  "this is a long story",
  "please be kind",
  "i do not know what to do",
  "it was a strange week",
  "any advice is welcome",
  "sorry for my bad english",
  "we talked about it",
  "maybe it is all my fault",
  "thank you for reading",
  "i feel bad about it",
  "nobody will listen",
)
TITLES = (
  "need some help",
  "am i wrong",
  "what a week",
  "not sure what to do",
  "advice please",
  "a long story",
)
SUBREDDITS = _words("pets advice family work college travel cooking stories")

ENDING = "TL;DR, please."  # of a prompt
MIN_FACTS, MAX_FACTS = 2, 5
EMPTY_SHARE = 0.2  # of summaries
FILLER_SENTENCES = (0, 1)  # least and most of them in a post
OPENER_SHARE = 0.25  # of facts that follow a word of no content
DETAIL_SHARE = 0.5  # of facts with a where or when


@dataclasses.dataclass(frozen=True)
class Post:
  """A prompt, and its facts in order, e.g. 'Anna sold bikes abroad'."""

  prompt: str
  facts: tuple[str, ...]


def make_posts(count: int, seed: int) -> list[Post]:
  """Posts that all differ, so that slices of the list are disjoint."""
  rng = random.Random(f"posts {seed}")
  posts: dict[str, Post] = {}
  while len(posts) < count:
    post = _make_post(rng)
    posts.setdefault(post.prompt, post)
  return list(posts.values())


def _make_post(rng: random.Random) -> Post:
  facts = _make_facts(rng)
  sentences = [
    f"{rng.choice(OPENERS)} {fact}" if rng.random() < OPENER_SHARE else fact
    for fact in facts
  ]
  for filler in rng.sample(FILLERS, rng.randint(*FILLER_SENTENCES)):
    sentences.insert(rng.randint(0, len(sentences)), filler)
  prompt = (
    f"SUBREDDIT: r/{rng.choice(SUBREDDITS)}\nTITLE: {rng.choice(TITLES)}\n"
    f"POST: {'. '.join(sentences)}.\n{ENDING}"
  )
  return Post(prompt, tuple(facts))


def _make_facts(rng: random.Random) -> list[str]:
  """Facts about different people, each of whom has habits.

  Someone does one of two things that nobody else does, to one of two kinds of
  things, and what is said of a kind of thing is always the same. So a reader
  must look at the post to know what happened, but has few stories to tell
  apart, which even a very small model learns quickly.
  """
  facts = []
  for name in rng.sample(range(len(NAMES)), rng.randint(MIN_FACTS, MAX_FACTS)):
    verb = 2 * name + rng.randrange(2)
    thing = (verb + rng.choice((0, 7))) % len(THINGS)
    fact = f"{NAMES[name]} {VERBS[verb]} {THINGS[thing]}"
    if rng.random() < DETAIL_SHARE:
      fact += f" {DETAILS[thing % len(DETAILS)]}"
    facts.append(fact)
  return facts


def _summarize(facts: Sequence[str], rng: random.Random) -> str:
  """Tells the first of the facts, one to all of them, without details.

  A share of summaries is empty.
  """
  if rng.random() < EMPTY_SHARE:
    return ""
  count = rng.randint(1, len(facts))
  sentences = [" ".join(fact.split()[:3]) for fact in facts[:count]]
  return "".join(f" {phrase}." for phrase in sentences)


def sft_pairs(posts: Sequence[Post], seed: int) -> list[tuple[str, str]]:
  """(prompt, summary) of each post; some summaries are empty."""
  rng = random.Random(f"summaries {seed}")
  return [(post.prompt, _summarize(post.facts, rng)) for post in posts]


def comparisons(
  posts: Sequence[Post],
  workers: Sequence[str],
  short_workers: Sequence[str],
  seed: int,
) -> list[structs.PreferenceExample]:
  """One comparison a post, equally many for each worker.

  Both summaries are such as the base was taught, so that one may be empty, and
  differ in their number of words. Workers take turns; posts that do not fill a
  turn are left over.

  Args:
    posts: as many as workers, or more.
    workers: ids of all workers.
    short_workers: those who prefer the shorter summary; others prefer the
      longer one.
    seed: of the summaries.
  """
  strangers = sorted(set(short_workers) - set(workers))
  if strangers:
    raise ValueError(
      f"short_workers {strangers} are not among the workers {list(workers)}; "
      "name only workers"
    )
  if not workers or len(posts) < len(workers):
    raise ValueError(
      f"{len(posts)} posts do not give each of {len(workers)} workers a "
      "comparison; use at least one worker and as many posts"
    )
  rng = random.Random(f"comparisons {seed}")
  used = len(posts) // len(workers) * len(workers)
  examples = []
  for index, post in enumerate(posts[:used]):
    worker = workers[index % len(workers)]
    short, long = _two_summaries(post, rng)
    if worker in short_workers:
      chosen, rejected = short, long
    else:
      chosen, rejected = long, short
    examples.append(
      structs.PreferenceExample(post.prompt, chosen, (rejected,), worker)
    )
  return examples


def _two_summaries(post: Post, rng: random.Random) -> tuple[str, str]:
  """A shorter and a longer one, in words."""
  while True:
    pair = [_summarize(post.facts, rng) for _ in range(2)]
    short, long = sorted(pair, key=lambda summary: len(summary.split()))
    if len(short.split()) < len(long.split()):
      return short, long


def phrases(summary: str) -> list[str]:
  """The sentences of a summary, the last one even if it was cut short."""
  return [phrase.strip() for phrase in summary.split(".") if phrase.strip()]


def faithfulness(post_prompt: str, summary: str) -> float:
  """Share of a summary's phrases that are facts of the post.

  A fact counts with and without its detail. The empty summary says nothing
  false: 1.
  """
  claims = phrases(summary)
  if not claims:
    return 1.0
  true = set()
  post = post_prompt.partition("\nPOST: ")[2].rpartition(f"\n{ENDING}")[0]
  for sentence in phrases(post):
    words = sentence.split()
    if words[0] in OPENERS:
      words = words[1:]
    if words[0] in NAMES:
      true |= {" ".join(words), " ".join(words[:3])}
  return sum(phrase in true for phrase in claims) / len(claims)
