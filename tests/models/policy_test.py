import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdpo_jax.core import structs
from pdpo_jax.models import attention, layers, llama, policy, user_model
from pdpo_jax.training import logprobs

B, N, P, R, T = 2, 3, 5, 7, 4


@functools.cache
def model(place="front", kind="individual"):
  arch = llama.Architecture(101, 26, 2, 4, 2, 10, 47)
  lora = layers.LoraConfig(("v_proj", "embed_tokens"), 3, 7.0)
  lm = policy.make_language_model(arch, lora=lora, rngs=nnx.Rngs(0))
  # Larger than at the start, so that every position matters.
  scaled = jax.tree.map(lambda x: 8 * x, nnx.state(lm))
  nnx.update(lm, scaled)
  spec = user_model.UserConfig(kind, T)
  table = lm.embed_tokens.weight[...]
  users = user_model.make_user_model(spec, 11, table, nnx.Rngs(1))
  return policy.Policy(lm, users, place)


@pytest.fixture(autouse=True, scope="module")
def models_are_made_outside_of_jit():
  for place in policy.PREFIX_POSITIONS:
    model(place)
  model()


def examples(seed=0):
  """Prompts of 5 tokens and 1; responses of 0 to 7."""
  keys = jax.random.split(jax.random.key(seed), 3)
  prompt = jax.random.randint(keys[0], (B, P), 0, 101)
  responses = jax.random.randint(keys[1], (B, N, R), 0, 101)
  prefix = jax.random.normal(keys[2], (B, T, 26))
  prompt_mask = jnp.arange(P) >= jnp.array([[0], [4]])
  lengths = jnp.array([[7, 1, 4], [3, 6, 0]])
  response_mask = jnp.arange(R) < lengths[..., None]
  return prompt, prompt_mask, responses, response_mask, prefix


@functools.partial(jax.jit, static_argnums=0)
def logps(place, prompt, prompt_mask, responses, response_mask, prefix):
  made = model(place)
  hidden = made.response_hidden(
    prompt, prompt_mask, responses, response_mask, prefix
  )
  return logprobs.response_logps(
    hidden, responses, response_mask, *made.lm.head()
  )


@jax.jit
def plain_log_probabilities(embeddings):
  """Of one sequence; what lies behind a position does not matter to it."""
  lm = model().lm
  mask = jnp.ones(embeddings.shape[:1], bool)[None]
  hidden, _ = lm.hidden(
    embeddings[None], attention.positions_of(mask), attention.causal(mask)
  )
  return jax.nn.log_softmax(lm.logits(hidden)[0])


@pytest.mark.parametrize("place", policy.PREFIX_POSITIONS)
def test_responses_equal_plain_sequences_without_padding(place):
  prompt, prompt_mask, responses, response_mask, prefix = examples()
  found = logps(place, prompt, prompt_mask, responses, response_mask, prefix)
  at = {"front": 0, "after_bos": 1}[place]
  table = np.asarray(model().lm.embed(jnp.arange(101)))
  for row in range(B):
    tokens = np.asarray(prompt[row])[prompt_mask[row]]
    for number in range(N):
      response = np.asarray(responses[row, number])[response_mask[row, number]]
      own = table[tokens]
      # Of one length, to compile once: the tail is not looked at.
      whole = np.zeros((T + P + R, 26), np.float32)
      real = [own[:at], prefix[row], own[at:], table[response]]
      start, end = T + len(tokens), T + len(tokens) + len(response)
      whole[:end] = np.concatenate(real)
      each = np.asarray(plain_log_probabilities(jnp.asarray(whole)))
      expected = each[np.arange(start, end) - 1, response].sum()
      # Sums of up to seven nats of 5, in float32.
      np.testing.assert_allclose(found[row, number], expected, atol=1e-4)


@pytest.mark.parametrize("place", policy.PREFIX_POSITIONS)
def test_padding_changes_no_response(place):
  prompt, prompt_mask, responses, response_mask, prefix = examples()
  before = logps(place, prompt, prompt_mask, responses, response_mask, prefix)
  # More columns left and right, another response, another row, all of them
  # false, and other tokens wherever a mask is false.
  other = examples(seed=1)
  prompt = jnp.where(prompt_mask, prompt, other[0])
  responses = jnp.where(response_mask, responses, other[2])
  wider = ((0, 1), (3, 0))
  after = logps(
    place,
    jnp.pad(prompt, wider, constant_values=17),
    jnp.pad(prompt_mask, wider),
    jnp.pad(responses, ((0, 1), (0, 1), (0, 2)), constant_values=19),
    jnp.pad(response_mask, ((0, 1), (0, 1), (0, 2))),
    jnp.pad(prefix, ((0, 1), (0, 0), (0, 0)), constant_values=1.0),
  )
  # Other shapes sum in another order.
  np.testing.assert_allclose(after[:B, :N], before, atol=1e-4)
  np.testing.assert_array_equal(after[B:], 0)
  np.testing.assert_array_equal(after[:, N:], 0)


@pytest.mark.parametrize("place", policy.PREFIX_POSITIONS)
def test_last_column_of_a_prompt_stays_real(place):
  prompt, prompt_mask, *_, prefix = examples()
  embeddings, mask = model(place).prompt_embeddings(prompt, prompt_mask, prefix)
  assert embeddings.shape[:2] == mask.shape == (B, P + T)
  assert mask[:, -1].all()
  np.testing.assert_array_equal(mask.sum(-1), prompt_mask.sum(-1) + T)


def test_prefix_stands_after_the_first_token_or_in_front():
  prompt, prompt_mask, *_, prefix = examples()
  for place, at in (("front", 0), ("after_bos", 1)):
    made = model(place)
    embeddings, mask = made.prompt_embeddings(prompt, prompt_mask, prefix)
    for row in range(B):
      own = made.lm.embed(prompt[row][prompt_mask[row]])
      expected = jnp.concatenate([own[:at], prefix[row], own[at:]])
      np.testing.assert_array_equal(embeddings[row][mask[row]], expected)


def test_empty_prefix_leaves_the_prompt_alone():
  prompt, prompt_mask, *_, prefix = examples()
  made = model("after_bos")
  embeddings, mask = made.prompt_embeddings(prompt, prompt_mask, prefix[:, :0])
  np.testing.assert_array_equal(embeddings, made.lm.embed(prompt))
  np.testing.assert_array_equal(mask, prompt_mask)


def test_siblings_padding_and_the_future_are_invisible():
  _, prompt_mask, _, response_mask, _ = examples()
  length = P + N * R
  embeddings = jax.random.normal(jax.random.key(3), (B, length, 26))
  positions = attention.positions_of(prompt_mask)
  after = positions[:, -1:, None] + 1 + jnp.arange(R)
  after = jnp.broadcast_to(after, (B, N, R)).reshape(B, -1)
  attend = attention.shared_prompt(prompt_mask, response_mask)

  @jax.jit
  def gradient(cotangent):
    def run(embeddings):
      whole = jnp.concatenate([positions, after], 1)
      return model().lm.hidden(embeddings, whole, attend)[0]

    return jax.vjp(run, embeddings)[1](cotangent)[0]

  for row, number, place in ((0, 0, 3), (0, 2, 3), (0, 1, 0), (1, 1, 5)):
    at = P + number * R + place
    cotangent = jnp.zeros((B, length, 26)).at[row, at].set(1.0)
    seen = np.abs(gradient(cotangent)).max(-1)
    visible = np.zeros((B, length), bool)
    visible[row, :P] = prompt_mask[row]
    visible[row, at - place : at + 1] = True
    np.testing.assert_array_equal(seen[~visible], 0.0)
    assert (seen[visible] > 0).all()


def test_split_trains_lora_and_users_only():
  for kind in ("individual", "cluster", "none"):
    made = model(kind=kind)
    _, trained, frozen = nnx.split(made, policy.trainable, ...)
    names = {path[-1] for path, _ in nnx.to_flat_state(trained)}
    users = {
      "individual": {"generic_prefix", "offsets"},
      "cluster": {"centers", "weights"},
      "none": set(),
    }[kind]
    assert names == {"lora_a", "lora_b"} | users
    kinds = {type(x) for _, x in nnx.to_flat_state(frozen)}
    assert kinds == {nnx.Param}


def test_unknown_prefix_position_is_named():
  with pytest.raises(ValueError, match=r"'middle'.*'front', 'after_bos'"):
    policy.Policy(model().lm, model().user_model, "middle")


def test_bfloat16_activations_stay_close_and_weights_keep_their_dtype():
  narrow = policy.make_language_model(
    model().lm.arch,
    dtype=jnp.bfloat16,
    param_dtype=jnp.bfloat16,
    rngs=nnx.Rngs(0),
  )
  weights = nnx.state(model().lm, nnx.Param)
  weights = jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights)
  nnx.update(narrow, weights)
  mask = jnp.ones((B, P), bool)
  out = []
  for lm in (model().lm, narrow):
    hidden, _ = lm.hidden(
      lm.embed(examples()[0]),
      attention.positions_of(mask),
      attention.causal(mask),
    )
    assert hidden.dtype == lm.dtype
    logits = lm.logits(hidden)
    assert logits.dtype == jnp.float32
    out.append(logits)
  # Eight bits of mantissa, through two layers.
  np.testing.assert_allclose(*out, atol=0.03 * np.abs(out[0]).max())


@pytest.mark.parametrize("positions", [36, 18])
def test_rows_that_are_mostly_padding_take_the_kernel_that_leaves_it_out(
  positions,
):
  # A group of 2 rows of 5 + 3 * 7 positions, and 4 of a prefix each.
  packed = structs.Packed(B, positions - B * T, positions - B * T - 8)
  program = jax.make_jaxpr(
    lambda *inputs: model().response_hidden(*inputs, packed=packed)
  )(*examples())
  # Only that kernel asks how much there is to do.
  assert ("while" in str(program)) == (positions * 2 < B * (T + P + N * R))
