import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdpo_jax.models import kernels, layers, ragged

# Two query heads a key head; as many queries as lie behind the offset.
B, Q, OFFSET, H, K, E = 3, 7, 5, 6, 3, 11


def inputs(queries=Q, offset=OFFSET, seed=0):
  """Keys of which the first are padding on the left, and some on the right."""
  keys = jax.random.split(jax.random.key(seed), 3)
  size = queries + offset
  q = jax.random.normal(keys[0], (B, queries, H, E))
  k = jax.random.normal(keys[1], (B, size, K, E))
  v = jax.random.normal(keys[2], (B, size, K, E))
  places = np.arange(size)
  left, right = np.array([[0], [2], [3]]), np.array([[0], [1], [4]])
  real = (places >= left) & (places < size - right)
  return q, k, v, jnp.asarray(real)


def sees_itself(real, queries, offset):
  """Queries whose own key is real: what others get is meaningless."""
  return np.asarray(real[:, offset : offset + queries])[..., None, None]


splash = functools.partial(kernels._splash, interpret=True)


@pytest.mark.parametrize(
  ("kernel", "queries", "offset"),
  [
    (kernels.blocked, Q, OFFSET),
    (kernels.blocked, Q, 0),
    (functools.partial(kernels.blocked, block_bytes=1), Q, OFFSET),
    (functools.partial(kernels.blocked, run=2), Q, OFFSET),
    (functools.partial(kernels.blocked, run=2), Q, 0),
    (ragged.attention, Q, OFFSET),
    (ragged.attention, Q, 0),
    (functools.partial(ragged.attention, run=2, block=3), Q, OFFSET),
    (functools.partial(ragged.attention, run=3, block=2), Q, 0),
    (functools.partial(ragged.attention, run=64, block=64), 150, 100),
    (splash, Q, OFFSET),
    (splash, Q, 0),
    # Over more than one tile, and tiles that the causal mask leaves out.
    (splash, 300, 131),
  ],
)
def test_kernels_give_the_values_and_gradients_of_plain_attention(
  kernel, queries, offset
):
  q, k, v, real = inputs(queries, offset)
  kept = sees_itself(real, queries, offset)
  slopes = jax.random.normal(jax.random.key(1), q.shape)

  def run(kernel):
    def total(q, k, v):
      out = jnp.where(kept, kernel(q, k, v, real, offset), 0.0)
      return jnp.sum(out * slopes), out

    return jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)

  (_, out), gradients = run(kernel)
  (_, expected), expected_gradients = run(kernels.Kernel("xla"))
  # Sums of up to some hundred float32 terms, in another order.
  np.testing.assert_allclose(out, expected, atol=2e-6)
  for own, other in zip(gradients, expected_gradients, strict=True):
    np.testing.assert_allclose(own, other, atol=2e-5)


@pytest.mark.parametrize(
  ("kernel", "what"),
  [
    (kernels.blocked, "dot_general"),
    (ragged.attention, "while"),
    (splash, "pallas_call"),
  ],
)
def test_dots_keeps_what_attention_gave(kernel, what):
  q, k, v, real = inputs()

  def total(*qkv):
    return jnp.sum(kernel(*qkv, real, OFFSET) ** 2)

  def count(policy):
    own = total
    if policy != "none":
      own = jax.checkpoint(total, policy=layers.REMAT_POLICIES[policy])
    gradient = jax.make_jaxpr(jax.grad(own, argnums=(0, 1, 2)))
    return str(gradient(q, k, v)).count(f"{what}[")

  assert count("none") == count("dots") < count("full")


def test_visible_is_causal_behind_the_offset_and_hides_padding():
  real = jnp.array([[False, True, True, True]])
  np.testing.assert_array_equal(
    kernels.visible(real, 2, 2)[0], [[0, 1, 1, 0], [0, 1, 1, 1]]
  )


def test_what_cannot_be_seen_has_no_influence():
  q, k, v, real = inputs()
  spoilt = jnp.where(real[..., None, None], 0.0, 1e4)
  for kernel in (
    kernels.Kernel("xla"),
    kernels.blocked,
    functools.partial(ragged.attention, run=2, block=3),
    splash,
  ):
    kept = sees_itself(real, Q, OFFSET)
    out = jnp.where(kept, kernel(q, k, v, real, OFFSET), 0)
    other = jnp.where(kept, kernel(q, k + spoilt, v + spoilt, real, OFFSET), 0)
    np.testing.assert_allclose(out, other, atol=2e-6)


@pytest.mark.parametrize("padding", ["all", "a row", "none"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_padding_costs_nothing_and_gets_zeros(padding, dtype):
  q, k, v, real = (x.astype(dtype) for x in inputs(Q, OFFSET))
  real = real.astype(bool)
  if padding == "all":
    real = jnp.zeros_like(real)
  elif padding == "a row":
    real = real.at[1].set(False)

  def total(q, k, v):
    out = ragged.attention(q, k, v, real, OFFSET, run=2, block=3)
    return jnp.sum(out.astype(jnp.float32) ** 2), out

  slopes, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)
  assert out.dtype == dtype
  for each in (out, *slopes):
    assert each.dtype == dtype and np.isfinite(each.astype(np.float32)).all()
    empty = {"all": slice(None), "a row": 1, "none": slice(0, 0)}[padding]
    assert not each[empty].any()
    assert padding == "all" or each.any()


def test_a_cpu_without_a_mesh_takes_the_blocked_kernel():
  q, k, v, real = inputs()
  text = str(
    jax.make_jaxpr(lambda *x: kernels.Kernel()(*x, OFFSET))(q, k, v, real)
  )
  assert "scan" in text and "while" not in text
  text = str(
    jax.make_jaxpr(lambda *x: kernels.Kernel(mostly_padding=True)(*x, OFFSET))(
      q, k, v, real
    )
  )
  assert "while" in text
  text = str(
    jax.make_jaxpr(lambda *x: kernels.Kernel("xla")(*x, OFFSET))(q, k, v, real)
  )
  assert "scan" not in text


def on_mesh(function, rows, key_heads):
  """The program of a kernel whose inputs lie on a mesh."""
  axes = ("data", "fsdp", "tensor")
  auto = (jax.sharding.AxisType.Auto,) * 3
  mesh = jax.sharding.AbstractMesh((2, 3, 5), axes, axis_types=auto)
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  shapes = ((rows, Q, 2 * key_heads, E), *[(rows, Q, key_heads, E)] * 2)
  q, k, v = (
    jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place) for shape in shapes
  )
  real = jax.ShapeDtypeStruct((rows, Q), jnp.bool, sharding=place)
  return jax.make_jaxpr(lambda *x: function(*x, 0))(q, k, v, real)


def test_a_cpu_with_a_mesh_takes_the_plain_kernel():
  assert "scan" not in str(on_mesh(kernels.Kernel(), 6, 5))


@pytest.mark.parametrize(
  ("rows", "key_heads", "batch", "heads"),
  [(6, 5, ("data", "fsdp"), "tensor"), (7, 5, None, "tensor"),
   (6, 4, ("data", "fsdp"), None)],
)  # fmt: skip
def test_devices_have_rows_and_heads_of_their_own(
  rows, key_heads, batch, heads
):
  split = kernels._by_device(kernels.blocked)
  (equation,) = on_mesh(split, rows, key_heads).jaxpr.eqns
  spec = jax.sharding.PartitionSpec(batch, None, heads, None)
  assert equation.primitive.name == "shard_map"
  assert equation.params["in_specs"][:3] == (spec,) * 3
  assert equation.params["out_specs"] == (spec,)


def test_an_unknown_kernel_is_an_error_that_lists_the_known():
  with pytest.raises(ValueError, match=r"'flash' is not one of .*'splash'"):
    kernels.Kernel("flash")


def test_splash_on_a_cpu_is_an_error_that_says_what_to_use():
  with pytest.raises(ValueError, match=r"for TPUs, and this is a cpu; use"):
    kernels.Kernel("splash")(*inputs(), OFFSET)


def test_cudnn_on_a_cpu_is_an_error_that_says_what_to_use():
  with pytest.raises(ValueError, match=r"NVIDIA GPUs.*use 'auto'"):
    kernels.Kernel("cudnn")(*inputs(), OFFSET)
