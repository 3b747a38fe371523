import dataclasses

import numpy as np

from pdpo_jax.training import branch_batches, policies, scoring
from tests import tiny


def test_where_an_example_has_no_such_response_there_is_no_log_ratio(tmp_path):
  config = tiny.tiny_config(tmp_path)
  base, users, *_ = tiny.tiny_parts(config)
  split = tiny.tiny_split(config, base, users, "heldout")
  first, second, third = split.tokenized[:3]
  second = dataclasses.replace(
    second, responses=(*second.responses, first.responses[0])
  )
  split = dataclasses.replace(
    split, examples=split.examples[:3], tokenized=[first, second, third]
  )
  scored = scoring.score_held_out(
    policies.make_policy(config.recipe, base, users.num_rows),
    branch_batches.with_reference(
      config.recipe, base, split, config.cache_folder
    ),
    128,
  )
  np.testing.assert_array_equal(
    np.isnan(scored.log_ratios),
    [[False, False, True], [False, False, False], [False, False, True]],
  )
  np.testing.assert_array_equal(
    np.isnan(scored.differences()),
    [[False, True], [False, False], [False, True]],
  )
  np.testing.assert_array_equal(
    scored.lengths[1], [len(response) for response in second.responses]
  )
