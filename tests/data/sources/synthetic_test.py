import collections

import pytest

from pdpo_jax.data.sources import synthetic

POSTS = synthetic.make_posts(2000, 0)
WORKERS = ["1", "2", "3"]


def test_posts_depend_on_the_seed_alone_and_all_differ():
  assert synthetic.make_posts(2000, 0) == POSTS
  prompts = {post.prompt for post in POSTS}
  assert len(prompts) == 2000
  others = {post.prompt for post in synthetic.make_posts(2000, 1)}
  assert not prompts & others


def test_the_vocabulary_is_small():
  pairs = synthetic.sft_pairs(POSTS, 0)
  text = " ".join(prompt + summary for prompt, summary in pairs)
  assert 150 < len(set(text.replace(".", " ").split())) < 250


def test_posts_look_like_tldr():
  for post in POSTS:
    lines = post.prompt.split("\n")
    starts = ("SUBREDDIT: r/", "TITLE: ", "POST: ", "TL;DR, please.")
    assert all(map(str.startswith, lines, starts)) and len(lines) == 4
    assert len(post.facts) in (2, 3, 4, 5)


def test_summaries_tell_the_first_facts_of_the_post():
  for post, (prompt, summary) in zip(
    POSTS, synthetic.sft_pairs(POSTS, 0), strict=True
  ):
    assert prompt == post.prompt
    assert synthetic.faithfulness(prompt, summary) == 1.0
    facts = [" ".join(fact.split()[:3]) for fact in post.facts]
    told = synthetic.phrases(summary)
    assert told == facts[: len(told)]


def test_one_summary_in_five_is_empty():
  summaries = [summary for _, summary in synthetic.sft_pairs(POSTS, 0)]
  empty = sum(summary == "" for summary in summaries) / len(summaries)
  assert 0.17 < empty < 0.23
  assert all(text == "" or text.startswith(" ") for text in summaries)


def test_summaries_tell_one_to_all_facts_equally_often():
  counts = collections.Counter(
    len(synthetic.phrases(summary))
    for post, (_, summary) in zip(
      POSTS, synthetic.sft_pairs(POSTS, 0), strict=True
    )
    if len(post.facts) == 5 and summary
  )
  share = 1 / 5
  # About 390 posts: four standard errors are 0.081.
  for number in range(1, 6):
    assert counts[number] / counts.total() == pytest.approx(share, abs=0.081)


def test_a_summary_of_another_post_contradicts_the_post():
  pairs = [pair for pair in synthetic.sft_pairs(POSTS, 0) if pair[1]]
  shares = [
    synthetic.faithfulness(prompt, summary)
    for (prompt, _), (_, summary) in zip(
      pairs, pairs[1:] + pairs[:1], strict=True
    )
  ]
  # People have habits: some do the same in two posts.
  assert sum(shares) / len(shares) < 0.08


@pytest.mark.parametrize(
  ("summary", "share"),
  [
    ("", 1.0),
    (" Anna sold bikes abroad. Bob hid keys.", 1.0),
    (" Anna sold bikes.", 1.0),
    (" Anna sold bikes today.", 0.0),  # another detail
    (" Bob hid keys. Anna hid keys.", 0.5),  # another name
    (" Bob hid keys. Anna sold", 0.5),  # cut short
    (" i am so tired.", 0.0),  # filler is no fact
  ],
)
def test_faithfulness_of_a_summary_is(summary, share):
  prompt = (
    "SUBREDDIT: r/pets\nTITLE: what a week\nPOST: i am so tired. later Anna "
    "sold bikes abroad. Bob hid keys.\nTL;DR, please."
  )
  assert synthetic.faithfulness(prompt, summary) == share


def test_workers_prefer_by_length_and_have_equally_many_comparisons():
  examples = synthetic.comparisons(POSTS, WORKERS, ["2"], 0)
  assert synthetic.comparisons(POSTS, WORKERS, ["2"], 0) == examples
  counts = collections.Counter(example.user_id for example in examples)
  assert counts == dict.fromkeys(WORKERS, len(POSTS) // 3)
  for example in examples:
    (rejected,) = example.rejected
    words = [len(text.split()) for text in (example.chosen, rejected)]
    assert (words[0] < words[1]) == (example.user_id == "2")
    assert words[0] != words[1]
    for text in (example.chosen, rejected):
      assert synthetic.faithfulness(example.prompt, text) == 1.0


def test_summaries_are_as_often_empty_in_comparisons_as_in_the_base():
  examples = synthetic.comparisons(POSTS, WORKERS, ["2"], 0)
  empty = [not all((e.chosen, *e.rejected)) for e in examples]
  # One of two different summaries: more often than one alone.
  assert synthetic.EMPTY_SHARE < sum(empty) / len(empty) < 0.5


def test_comparisons_use_a_post_once():
  examples = synthetic.comparisons(POSTS, WORKERS, [], 0)
  assert len({example.prompt for example in examples}) == len(examples)


def test_a_short_worker_who_is_no_worker_is_an_error():
  with pytest.raises(ValueError, match=r"short_workers \['9'\]"):
    synthetic.comparisons(POSTS, WORKERS, ["9"], 0)


def test_too_few_posts_for_the_workers_are_an_error():
  with pytest.raises(ValueError, match="0 posts do not give"):
    synthetic.comparisons([], WORKERS, [], 0)
