from tests import endurance


def test_a_training_that_saves_and_evaluates_often_uses_no_more_and_more(
  tmp_path,
):
  uses = endurance.train(tmp_path, steps=54, looks=9)
  more = endurance.growth(uses)
  assert more["descriptors"] <= 0
  assert more["threads"] <= 0
