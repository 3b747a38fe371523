"""The judge's path against a real server that fails in every way."""

import collections
import dataclasses
import json
import os
import pathlib
import signal
import stat
import subprocess
import sys
import time
from concurrent import futures

import pytest

from pdpo_jax.evaluation.judge import journal, judges, services, win_rates
from tests.evaluation.judge import judge_server

FAULTS = (
  None, 429, None, 500, "slow", None, "garbage", "empty", "null", None, "drop"
)  # fmt: skip


def lines_of(file):
  return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_every_pair_is_judged_once_through_faults_and_a_kill(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(services, "FIRST_WAIT", 0.01)
  file = tmp_path / "judgements.jsonl"
  server = judge_server.Server(faults=FAULTS)
  root = pathlib.Path(__file__).parents[3]
  with server.running() as url:
    command = [sys.executable, "-m", "tests.evaluation.judge.judge_server"]
    first = subprocess.Popen(
      [*command, str(file), url],
      cwd=root,
      env=os.environ | {"PYTHONPATH": str(root)},
      stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not file.is_file() or len(file.read_text().splitlines()) < 150:
      assert first.poll() is None and time.monotonic() < deadline
      time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    at_kill = file.read_text().count("\n")
    assert 150 <= at_kill < 500
    # As if it had been cut off while it wrote.
    with file.open("a") as out:
      out.write('{"key": "half')
    found = journal.judge(
      judge_server.many_questions(), judge_server.config_of(url), file
    )
  lines = lines_of(file)
  assert len(lines) == len({line["key"] for line in lines}) == 500
  pairs = collections.Counter(
    (line["sample"], line["ours_first"]) for line in lines
  )
  assert len(pairs) == 500 and set(pairs.values()) == {1}
  assert len(found) == 500
  # Each answer was paid for once, but for those on their way at the kill.
  twice = sum(server.delivered.values()) - 500
  assert 0 <= twice <= judge_server.CONCURRENCY
  assert len(server.delivered) == 500
  # Every fault was met, and met often.
  assert all(server.seen[fault] >= 30 for fault in FAULTS)
  # A judge who always says (a) gives half to both sides.
  rates = win_rates.of_judgements(found)
  assert rates.examples.rate == rates.theirs_examples.rate == 0.5
  assert (rates.first_share, rates.agreement) == (1.0, 0.0)


def test_nothing_is_asked_twice(tmp_path):
  file = tmp_path / "j" / "judgements.jsonl"
  server = judge_server.Server()
  questions = judge_server.many_questions(5)
  with server.running() as url:
    config = judge_server.config_of(url)
    before = journal.judge(questions, config, file)
    again = journal.judge(questions, config, file)
    assert before == again
    assert sum(server.tries.values()) == 10
    # A changed response is another question.
    changed = [dataclasses.replace(questions[0], ours="new"), *questions[1:]]
    journal.judge(changed, config, file)
    assert sum(server.tries.values()) == 12


def test_an_answer_is_on_disk_before_the_next_one_is_asked_for(
  tmp_path, monkeypatch
):
  file = tmp_path / "judgements.jsonl"
  seen = []

  class Watching:
    def answers(self, asked):
      for place in range(len(asked)):
        seen.append(len(file.read_text().splitlines()))
        yield place, judges.Answer("Output (a)")

  monkeypatch.setattr(judges, "make_judge", lambda config: Watching())
  config = judge_server.config_of("http://nowhere")
  journal.judge(judge_server.many_questions(3), config, file)
  assert seen == [0, 1, 2, 3, 4, 5]


def test_a_verdict_keeps_prompts_answer_and_cost(tmp_path):
  file = tmp_path / "judgements.jsonl"
  server = judge_server.Server(say=lambda user: "Since.\nOutput (b)")
  with server.running() as url:
    config = judge_server.config_of(url, temperature=0.5, max_tokens=77)
    found = journal.judge(judge_server.many_questions(1), config, file)
  # (b) is theirs where ours came first, and ours in the other order.
  assert [(each.ours_first, each.winner) for each in found] == [
    (True, journal.THEIRS),
    (False, journal.OURS),
  ]
  line = next(line for line in lines_of(file) if line["ours_first"])
  assert (line["verdict"], line["answer"]) == ("b", "Since.\nOutput (b)")
  assert (line["input_tokens"], line["output_tokens"]) == (7, 3)
  assert "Question 0?" in line["user"] and "standing in" in line["system"]
  path, request, _ = server.requests[0]
  assert path == "/v1/chat/completions"
  assert request["model"] == "some-model" and request["temperature"] == 0.5
  assert request["max_tokens"] == 77


def test_an_unreadable_answer_is_kept_and_counted(tmp_path):
  file = tmp_path / "judgements.jsonl"
  server = judge_server.Server(say=lambda user: "Hard to say.")
  with server.running() as url:
    config = judge_server.config_of(url)
    for _ in range(2):
      found = journal.judge(judge_server.many_questions(3), config, file)
  assert sum(server.tries.values()) == 6
  rates = win_rates.of_judgements(found)
  assert (rates.unreadable, rates.unjudged_examples) == (6, 3)


def test_one_random_order_is_the_same_each_time(tmp_path):
  server = judge_server.Server()
  with server.running() as url:
    config = judge_server.config_of(url, order="random")
    found = journal.judge(
      judge_server.many_questions(40), config, tmp_path / "judgements.jsonl"
    )
  firsts = [each.ours_first for each in found]
  assert len(firsts) == 40 and 8 < sum(firsts) < 32
  again = journal._verdicts(judge_server.many_questions(40), config)
  assert [each.ours_first for each in again] == firsts


@pytest.mark.parametrize(("refused", "works"), [(4, True), (5, False)])
def test_a_few_verdicts_may_be_refused_for_good(
  refused, works, tmp_path, monkeypatch, caplog
):
  class Picky:
    def answers(self, asked):
      for place, _ in enumerate(asked):
        if place < refused:
          yield place, judges.Refused("not this one")
        else:
          yield place, judges.Answer("Output (a)")

  monkeypatch.setattr(judges, "make_judge", lambda config: Picky())
  config = judge_server.config_of("http://localhost:1")
  asked = judge_server.many_questions(20), config, tmp_path / "judgements.jsonl"
  if not works:
    with pytest.raises(ValueError, match="5 of 40 verdicts could not be had"):
      journal.judge(*asked)
    return
  found = journal.judge(*asked)
  assert [each.winner is None for each in found] == [True] * 4 + [False] * 36
  assert "4 of 40 verdicts are refused" in caplog.text


def test_a_single_verdict_that_may_come_later_is_asked_for_again(
  tmp_path, monkeypatch
):
  class Tired:
    def answers(self, asked):
      yield 0, judges.Failed("try later")
      for place in range(1, len(asked)):
        yield place, judges.Answer("Output (a)")

  monkeypatch.setattr(judges, "make_judge", lambda config: Tired())
  config = judge_server.config_of("http://localhost:1")
  with pytest.raises(ValueError, match=r"1 of 40 .*command asks for the rest"):
    journal.judge(judge_server.many_questions(20), config, tmp_path / "j.jsonl")


def test_failures_leave_what_was_judged(tmp_path):
  file = tmp_path / "judgements.jsonl"
  refused = lambda user: "Question 1?" in user  # noqa: E731

  class Picky(judge_server.Server):
    def handle(self, handler):
      self.faults = (None,)
      super().handle(handler)

  server = Picky(say=lambda user: None if refused(user) else "Output (a)")
  questions = judge_server.many_questions(4)
  with server.running() as url:
    config = judge_server.config_of(url, retries=1)
    with pytest.raises(ValueError, match="2 of 8 verdicts could not be had"):
      journal.judge(questions, config, file)
    assert len(lines_of(file)) == 6
    assert journal.estimate(questions, config, file).calls == 2
    server.say = lambda user: "Output (a)"
    assert len(journal.judge(questions, config, file)) == 8
  assert len(lines_of(file)) == 8


def test_a_dry_run_counts_what_is_missing(tmp_path):
  file = tmp_path / "judgements.jsonl"
  server = judge_server.Server()
  questions = judge_server.many_questions(10)
  with server.running() as url:
    config = judge_server.config_of(
      url, max_tokens=100, input_price=2.5, output_price=10.0
    )
    journal.judge(questions[:3], config, file)
    found = journal.estimate(questions, config, file)
  assert (found.calls, found.kept, found.output_tokens) == (14, 6, 1400)
  # The two prompts of a call have some 530 characters together.
  assert 14 * 100 < found.input_tokens < 14 * 200
  assert found.dollars == pytest.approx(
    (2.5 * found.input_tokens + 10 * 1400) / 1e6
  )
  assert str(found).startswith("14 calls (6 more are in the journal), about")


def test_two_policies_with_the_same_response_are_judged_once(tmp_path):
  file = tmp_path / "judgements.jsonl"
  server = judge_server.Server()
  questions = judge_server.many_questions(2) * 3
  with server.running() as url:
    config = judge_server.config_of(url)
    # A dry run knows no responses yet, and must not promise too low a price.
    assert journal.estimate(questions, config, file).calls == 12
    found = journal.judge(questions, config, file)
  assert sum(server.tries.values()) == len(lines_of(file)) == 4
  assert len(found) == 12 and found[:4] == found[4:8] == found[8:]


def test_what_was_on_its_way_is_kept_when_the_judge_must_stop(tmp_path):
  file = tmp_path / "judgements.jsonl"

  class Revoked(judge_server.Server):
    def handle(self, handler):
      with self.lock:
        self.tries["all"] += 1
        self.faults = (401,) if self.tries["all"] == 30 else (None,)
      if self.faults == (None,):
        time.sleep(0.2)  # until well after the refusal
        self.faults = (None,)
      super().handle(handler)

  server = Revoked()
  with server.running() as url:
    with pytest.raises(ValueError, match="refuses the key"):
      journal.judge(
        judge_server.many_questions(40), judge_server.config_of(url), file
      )
    assert 29 <= sum(server.delivered.values()) < 60
    assert len(lines_of(file)) == sum(server.delivered.values())


def test_half_a_character_is_kept_as_one_that_is_unknown(tmp_path):
  file = tmp_path / "judgements.jsonl"
  server = judge_server.Server(say=lambda user: "So \ud83d\nOutput (a)")
  with server.running() as url:
    config = judge_server.config_of(url)
    journal.judge(judge_server.many_questions(1), config, file)
    journal.judge(judge_server.many_questions(1), config, file)
  said = "So \N{REPLACEMENT CHARACTER}\nOutput (a)"
  assert [line["answer"] for line in lines_of(file)] == [said] * 2
  assert sum(server.tries.values()) == 2


@pytest.fixture
def asked(tmp_path, monkeypatch):
  """A journal of four verdicts, and a judge that counts what it is asked."""
  counts = collections.Counter()

  class Counting:
    def answers(self, asked):
      for place, _ in enumerate(asked):
        counts["calls"] += 1
        yield place, judges.Answer("Output (a)")

  monkeypatch.setattr(judges, "make_judge", lambda config: Counting())
  file = tmp_path / "run" / "judgements.jsonl"
  config = judge_server.config_of("http://localhost:1")
  journal.judge(judge_server.many_questions(2), config, file)
  counts.clear()
  return file, config, counts


def test_a_dry_run_leaves_a_journal_as_it_is(asked):
  # Another process may be in the middle of its last line.
  file, config, _ = asked
  text = file.read_text() + '{"key": "ha'
  file.write_text(text)
  assert (
    journal.estimate(judge_server.many_questions(2), config, file).kept == 4
  )
  assert file.read_text() == text


def damaged(how, lines):
  """A journal's lines with something wrong in the second."""
  second = json.loads(lines[1])
  changes = {
    "nonsense": "nonsense",
    "cut": lines[1][: len(lines[1]) // 2],
    "a list": "[]",
    "null": "null",
    "a number for the key": json.dumps(second | {"key": 7}),
    "another verdict": json.dumps(second | {"verdict": "c"}),
    "no verdict": json.dumps({"key": second["key"]}),
    "another's verdict": lines[1].replace('"a"', '"b"', 1),
    "a flipped letter": lines[1].replace("Output", "Outpuu", 1),
    "half a character": lines[1].replace("Output", "\udcff", 1),
  }
  return [lines[0], changes[how], *lines[2:]]


@pytest.mark.parametrize(
  "how",
  [
    "nonsense",
    "cut",
    "a list",
    "null",
    "a number for the key",
    "another verdict",
    "no verdict",
    "another's verdict",
    "a flipped letter",
    "half a character",
  ],
)
def test_a_damaged_journal_names_the_line_and_asks_for_nothing(how, asked):
  file, config, counts = asked
  lines = damaged(how, file.read_text().splitlines())
  data = ("\n".join(lines) + "\n").encode(errors="surrogateescape")
  file.write_bytes(data)
  questions = judge_server.many_questions(3)
  for call in (journal.estimate, journal.judge):
    with pytest.raises(ValueError, match=r"judgements\.jsonl:2 is") as error:
      call(questions, config, file)
    assert "beside 3 whole ones" in str(error.value)
  assert file.read_bytes() == data and not counts
  # As it says.
  file.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
  assert len(journal.judge(questions, config, file)) == 6
  assert counts["calls"] == 3


def test_a_last_line_that_only_lacks_its_end_is_not_paid_for_again(asked):
  file, config, counts = asked
  file.write_text(file.read_text().removesuffix("\n"))
  assert len(journal.judge(judge_server.many_questions(3), config, file)) == 6
  assert counts["calls"] == 2
  assert len(lines_of(file)) == 6


def test_lines_without_a_sum_are_read_as_before(asked):
  file, config, counts = asked
  lines = [line | {"crc32": None} for line in lines_of(file)]
  for line in lines:
    del line["crc32"]
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  journal.judge(judge_server.many_questions(2), config, file)
  assert not counts


def test_a_journal_that_cannot_be_written_is_told_before_anything_is_asked(
  asked, tmp_path
):
  _, config, counts = asked
  (tmp_path / "folder").mkdir()
  with pytest.raises(ValueError, match=r"folder cannot be written"):
    journal.judge(judge_server.many_questions(1), config, tmp_path / "folder")
  assert not counts


def test_only_the_owner_may_read_a_journal(asked):
  file, _, _ = asked
  assert stat.S_IMODE(file.stat().st_mode) == 0o600
  assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_changed_password_is_no_other_judge(asked):
  file, config, counts = asked
  questions = judge_server.many_questions(2)
  for address in ("http://ann:pw@localhost:1", "http://bob@localhost:1#x"):
    config.base_url = address
    assert journal.estimate(questions, config, file).kept == 4
  assert "pw" not in file.read_text()
  config.base_url = "http://localhost:2"
  assert journal.estimate(questions, config, file).kept == 0
  assert not counts


def test_two_processes_that_ask_at_once_pay_once(tmp_path):
  file = tmp_path / "judgements.jsonl"

  def slowly(user):
    time.sleep(0.02)
    return "Output (a)"

  server = judge_server.Server(say=slowly)
  with server.running() as url, futures.ThreadPoolExecutor() as pool:
    config = judge_server.config_of(url, timeout=60.0, concurrency=2)
    # A lock of the system's holds between two openings of a file, whoever has
    # them.
    both = [
      pool.submit(journal.judge, judge_server.many_questions(9), config, file)
      for _ in range(2)
    ]
    first, second = (each.result() for each in both)
  assert first == second and len(first) == 18
  assert sum(server.tries.values()) == len(lines_of(file)) == 18


def test_who_waits_for_another_process_says_so_and_outlives_it(
  tmp_path, caplog
):
  file = tmp_path / "judgements.jsonl"
  file.touch()
  other = subprocess.Popen(
    [
      sys.executable,
      "-c",
      "import fcntl, sys, time\nfile = open(sys.argv[1])\n"
      "fcntl.flock(file, fcntl.LOCK_EX)\nprint(flush=True)\ntime.sleep(60)",
      str(file),
    ],
    stdout=subprocess.PIPE,
  )
  other.stdout.readline()
  with (
    other,
    judge_server.Server().running() as url,
    futures.ThreadPoolExecutor() as pool,
  ):
    config = judge_server.config_of(url)
    waiting = pool.submit(
      journal.judge, judge_server.many_questions(1), config, file
    )
    deadline = time.monotonic() + 60
    while "another process asks" not in caplog.text:
      assert time.monotonic() < deadline and not waiting.done()
      time.sleep(0.01)
    other.kill()
    assert len(waiting.result()) == 2
