from tests import endurance


def test_a_training_that_saves_and_evaluates_often_uses_no_more_and_more(
  tmp_path,
):
  uses = endurance.train(tmp_path, steps=54, looks=9)
  # Had each of the 27 saves left three descriptors and a thread, they would.
  assert not endurance.show(uses)
  assert uses[-1].descriptors <= uses[0].descriptors + 10
