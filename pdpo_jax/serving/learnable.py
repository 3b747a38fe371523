"""How far an answer can be learnt from, once somebody prefers it."""

import collections
import threading

from starlette import concurrency

from pdpo_jax.data import prompt_formats
from pdpo_jax.data import prompts as prompts_lib


class Learnable:
  """An answer as it comes, read again as token ids.

  A text's tokens are not always those that it was made of, and may be more.

  Args:
    encoder: of the prompt and its answers.
    most: tokens of an answer, with its end token.
    lock: of the encoder.
  """

  def __init__(
    self,
    encoder: prompts_lib.PromptEncoder,
    prompt: prompt_formats.EncodedPrompt,
    most: int,
    lock: threading.Lock,
  ):
    self._encoder, self._prompt = encoder, prompt
    self._most, self._lock = most, lock
    self._text = ""
    # Bytes of the text when it was last read, and tokens that it lacked then.
    self._read, self._lacked = 0, most

  async def takes(self, text: str) -> bool:
    """Whether the answer can be learnt from with this at its end, too.

    If it cannot, the answer stays as it was.
    """
    longer = self._text + text
    # A byte makes hardly ever more than a token.
    if 2 * (len(longer.encode()) - self._read) >= self._lacked:
      count = await concurrency.run_in_threadpool(self._count, longer)
      if count > self._most:
        return False
      # Space may be stripped at an end, and is there once something follows.
      self._read = len(longer.rstrip().encode())
      self._lacked = self._most - count
    self._text = longer
    return True

  def _count(self, text: str) -> int:
    """Its tokens; none where the template refuses it, however long."""
    with self._lock:
      ((ids,),) = self._encoder.encode_responses(
        [self._prompt], [(text,)], collections.Counter()
      )
    return 0 if ids is None else len(ids)
