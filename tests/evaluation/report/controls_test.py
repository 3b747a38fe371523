from pdpo_jax.evaluation import accuracy
from pdpo_jax.evaluation.report import controls


def of_margins(**margins):
  return accuracy.Accuracy(0.5, dict.fromkeys(margins, 0.5), margins)


def test_a_user_flips_when_the_margin_changes_its_sign():
  before = of_margins(a=1.0, b=2.0, c=-0.5, d=3.0, e=-1.0)
  after = of_margins(a=-0.1, b=-0.5, c=0.2, d=2.0, e=-2.0, stranger=1.0)
  found = controls.flips(before, after, {"a", "b", "elsewhere"})
  assert found == controls.Flips(
    swapped=2, flipped=2, others=3, others_flipped=1
  )
