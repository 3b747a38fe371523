import dataclasses

import numpy as np
import pytest

from pdpo_jax.training import (
  branch_batches,
  objective,
  pdpo,
  policies,
  scoring,
)
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


def test_chosen_responses_are_weighed_by_their_tokens():
  scored = scoring.HeldOut(
    np.array([[-6.0, -9.0], [1.0, 4.0]], np.float32),
    np.array([[3, 3], [2, 1]], np.int32),
  )
  assert scored.chosen_per_token == -1.0  # Five nats less, of five tokens.
  np.testing.assert_array_equal(scored.differences(), [[3.0], [-3.0]])
  np.testing.assert_array_equal(scored.differences(True), [[1.0], [-3.5]])


@pytest.mark.parametrize(
  ("length_normalized", "chosen", "rejected"),
  [(False, -1.25, -1.25), (True, -0.375, 0.25)],
)
def test_held_out_metrics_tell_rewards_apart(
  length_normalized, chosen, rejected
):
  scored = scoring.HeldOut(
    np.array([[-6.0, -9.0], [1.0, 4.0]], np.float32),
    np.array([[3, 3], [2, 1]], np.int32),
  )
  loss = objective.LossConfig(beta=0.5, length_normalized=length_normalized)
  found = pdpo.held_out_metrics(scored, loss)
  assert found["chosen_reward"] == chosen
  assert found["rejected_reward"] == rejected
  assert found["margin"] == chosen - rejected
  assert found["reward_accuracy"] == 0.5
