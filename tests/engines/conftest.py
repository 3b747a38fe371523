"""What each engine answered is printed at the end."""

import pytest

from tests.engines import people

_COUNTS: dict[str, tuple[int, int, int]] = {}


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> people.World:
  return people.make(tmp_path_factory.mktemp("exports"))


@pytest.fixture(scope="session")
def compare(world):
  """Compares an engine's answers with those of `generate`, token by token."""

  def check(name: str, answers: people.Answers) -> None:
    equal = total = 0
    for asked, found in answers.items():
      expected = world.answers[asked]
      total += len(expected)
      for ours, theirs in zip(expected, found, strict=False):
        if ours != theirs:
          break
        equal += 1
    _COUNTS[name] = (equal, total, len(answers))
    wrong = [x for x in answers if answers[x] != world.answers[x]]
    assert not wrong, f"{equal} of {total} tokens are equal; differing: {wrong}"

  return check


def pytest_terminal_summary(terminalreporter):
  width = max(map(len, _COUNTS), default=0)
  for name, (equal, total, count) in _COUNTS.items():
    terminalreporter.write_line(
      f"{name:<{width}}  {equal:>5} of {total:>5} tokens equal, {count} answers"
    )
