import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

from benchmarks import dialogues, work
from benchmarks import flops as benchmark
from pdpo_jax.models import llama
from pdpo_jax.planning import flops, gpus
from pdpo_jax.runs import config as config_lib

B, I, O, L = 3, 5, 7, 11  # noqa: E741
X = jax.ShapeDtypeStruct((B, I), jnp.float32)
W = jax.ShapeDtypeStruct((I, O), jnp.float32)
SQUARE = jax.ShapeDtypeStruct((I, I), jnp.float32)


def count(function, *arguments):
  return flops.count(jax.jit(function).trace(*arguments))


def test_a_product_is_two_flops_a_term():
  assert count(jnp.matmul, X, W) == 2 * B * I * O


def test_a_batched_product_counts_each_of_the_batch():
  def scores(q, k):
    return jnp.einsum("bqhe,bkhe->bhqk", q, k)

  q = jax.ShapeDtypeStruct((2, 3, 5, 7), jnp.float32)
  k = jax.ShapeDtypeStruct((2, 11, 5, 7), jnp.float32)
  assert count(scores, q, k) == 2 * (2 * 5) * 3 * 11 * 7


def test_a_convolution_sums_over_the_kernel_of_its_group():
  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (1,), "SAME", feature_group_count=2
    )

  x = jax.ShapeDtypeStruct((B, 4, 13), jnp.float32)
  kernel = jax.ShapeDtypeStruct((6, 2, 3), jnp.float32)
  assert count(convolve, x, kernel) == 2 * (2 * 3) * (B * 6 * 13)


QUERIES = jax.ShapeDtypeStruct((2, 4, 6, 8), jnp.bfloat16)
KEYS = jax.ShapeDtypeStruct((2, 10, 3, 8), jnp.bfloat16)
SCORES = 2 * (2 * 4 * 6 * 8) * 10


def test_attention_that_is_one_call_counts_its_products():
  def call(direction, *arrays):
    name = f"dot_product_attention_{direction}_wrapper"
    primitive = core.Primitive(name)
    primitive.def_abstract_eval(lambda q, *_: q)
    return count(primitive.bind, *arrays)

  assert call("fwd", QUERIES, KEYS, KEYS) == 2 * SCORES
  assert call("bwd", QUERIES, KEYS, KEYS) == 5 * SCORES


@pytest.mark.skipif(
  not gpus.installed(), reason="JAX's plugin for CUDA is not installed"
)
def test_cudnn_s_attention_is_such_a_call():
  def loss(q, k, v):
    out = jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    return out.astype(jnp.float32).sum()

  assert count(loss, QUERIES, KEYS, KEYS) == 2 * SCORES
  assert count(jax.grad(loss, (0, 1, 2)), QUERIES, KEYS, KEYS) == 7 * SCORES


def test_a_loop_counts_as_often_as_it_is_run():
  def run(x, w):
    return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=L)[0]

  assert count(run, X, SQUARE) == L * 2 * B * I * I


def test_a_while_with_products_is_an_error():
  def run(x, w):
    return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x)

  with pytest.raises(ValueError, match="while loop with products"):
    count(run, X, SQUARE)


def test_of_a_branch_the_dearer_counts():
  def run(x, w):
    return jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)

  assert count(run, X, SQUARE) == 2 * (2 * B * I * I)


def test_a_checkpoint_counts_again_in_the_backward_pass():
  def loss(x, w):
    return jnp.sum(jax.checkpoint(lambda x: jnp.tanh(x @ w))(x))

  once = 2 * B * I * O
  assert count(loss, X, W) == once
  assert count(jax.value_and_grad(loss), X, W) == 3 * once


def test_a_gradient_that_nobody_reads_is_not_counted():
  @jax.custom_vjp
  def product(x, w):
    return x @ w

  def backward(inputs, slope):
    x, w = inputs
    return slope @ w.T, x.T @ slope

  product.defvjp(lambda x, w: (x @ w, (x, w)), backward)

  def loss(x, w):
    return jnp.sum(jnp.square(product(x, w)))

  once = 2 * B * I * O
  assert count(jax.grad(loss), X, W) == 2 * once
  assert count(jax.grad(loss, (0, 1)), X, W) == 3 * once


def test_shards_count_as_often_as_there_are():
  mesh = jax.sharding.AbstractMesh(
    (B,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  rows = jax.sharding.PartitionSpec("rows")
  product = jax.shard_map(
    jnp.matmul,
    mesh=mesh,
    in_specs=(rows, jax.sharding.PartitionSpec()),
    out_specs=rows,
  )
  assert count(product, X, W) == 2 * B * I * O


def tiny_case():
  config = config_lib.Config()
  config.base.attention = "xla"
  config.user.num_tokens = 3
  config.lora.rank = 2
  config.lora.dropout = 0.0
  # A head of one piece, so that nothing is padded.
  config.train.logits_chunk = 10_000
  arch = llama.Architecture(101, 28, 5, 4, 2, 6, 52)
  return benchmark.Case("tiny", config, arch, 11, 2, 7)


def test_a_step_counts_what_arithmetic_says():
  case = tiny_case()
  prompt, answers = 3 + 11, 2 * 7
  positions = prompt + answers
  kernels = 5 * (28 * 24 + 2 * 28 * 12 + 24 * 28 + 3 * 28 * 52)
  lora = 2 * 5 * ((28 + 24) + 2 * (28 + 12) + (24 + 28) + 3 * (28 + 52))
  pairs = prompt * prompt + answers * (prompt + 7)
  branch = (
    4 * positions * kernels
    + 6 * positions * lora
    + 12 * 5 * (4 * 6) * pairs
    + 4 * answers * 28 * 101
  )
  assert benchmark.ours(case) == 2 * branch
  # All the minimum leaves out are pairs that do not see each other.
  seen = prompt * (prompt + 1) // 2 + 2 * (7 * prompt + 7 * 8 // 2)
  hidden = 2 * 12 * 5 * (4 * 6) * (pairs - seen)
  assert benchmark.minimum(case) == 2 * branch - hidden


def test_remat_computes_the_layers_again():
  case = tiny_case()
  config = dataclasses.replace(
    case.config, base=dataclasses.replace(case.config.base, remat="full")
  )
  again = dataclasses.replace(case, config=config)
  more = benchmark.ours(again) - benchmark.ours(case)
  forward = benchmark.reference(case)
  assert 0.5 * forward < more < 2.5 * forward


@pytest.mark.parametrize(
  ("case", "times"),
  list(zip(benchmark.cases(), (2.1, 2.6), strict=True)),
  ids=lambda value: getattr(value, "name", str(value)),
)
def test_an_example_costs_a_fraction_of_the_released_code(case, times):
  found = benchmark.measure(case)
  assert found["released"] / found["ours"] >= times
  assert found["ours"] <= 1.05 * found["minimum"]


def test_a_run_of_one_example_costs_its_least_work():
  arch = tiny_case().arch
  run = dialogues.Run()
  run.add(14, [(14, 7), (14, 7)], 14)
  assert run.flops(arch, 2) == work.least_work(arch, 14, 2, 7, 2).total


def test_trunks_take_half_of_the_work_of_separate_rows():
  found = {
    row["layout"]: row for row in benchmark.dialogue_rows(400, limits=(2000,))
  }
  assert found["separate rows"]["flops_ratio"] <= 0.5
  assert found["a row a response"]["flops_ratio"] <= 0.3
  assert found["released code"]["flops_ratio"] <= 0.25
  # What is run is what the batches have room for, padding aside.
  assert found["trunks"]["padding"] <= 0.1
