import pytest

from pdpo_jax.planning import collectives

# As XLA writes it for TPUs: two loops, of which one counts by twos, and a
# collective that overlaps with another's rounds.
TPU = """\
HloModule jit_step, entry_computation_layout={()->()}

%body.1 (p: (u32[], f32[4,8])) -> (u32[], f32[4,8]) {
  %p = (u32[]{:T(128)}, f32[4,8]{1,0}) parameter(0)
  %two = u32[]{:T(128)} constant(2)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=0
  %permute = (f32[4,8]{1,0:T(8,128)}, f32[4,8]{1,0:T(8,128)}, u32[]{:S(2)}, \
u32[]{:S(2)}) collective-permute-start(%i), channel_id=1, \
source_target_pairs={{0,1},{1,0}}
  %done = f32[4,8]{1,0} collective-permute-done(%permute)
  %next = u32[]{:T(128)} add(%i, %two)
  ROOT %out = (u32[]{:T(128)}, f32[4,8]{1,0}) tuple(%next, %done)
}
%condition.1 (p: (u32[], f32[4,8], /*index=2*/f32[])) -> pred[] {
  %p = (u32[]{:T(128)}, f32[4,8]{1,0}, /*index=2*/f32[]) parameter(0)
  %limit = u32[]{:T(128)} constant(8)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}
%piece (p: f32[2,8]) -> f32[16,8] {
  %p = f32[2,8]{1,0} parameter(0)
  ROOT %gather = f32[16,8]{1,0} all-gather(%p), channel_id=2, \
replica_groups=mesh['data'=2,'fsdp'=8,'tensor'=1] {'fsdp'}, dimensions={0}
}
%body.2 (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  %one = s32[] constant(1)
  %i = s32[] get-tuple-element(%p), index=0
  %same = f32[16,8]{1,0} fusion(%i), kind=kCustom, calls=%piece
  %inner = (u32[], f32[4,8]{1,0}) while(%p), condition=%condition.1, \
body=%body.1
  %sum = (bf16[3]{0}, f32[5]{0}) all-reduce(%i, %i), channel_id=3, \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], f32[4,8]{1,0}) tuple(%next, %same)
}
%condition.2 (p: (s32[], f32[4,8])) -> pred[] {
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  %limit = s32[] constant(5)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}
ENTRY %main (a: f32[2,8]) -> f32[4,8] {
  %a = f32[2,8]{1,0} parameter(0)
  %begun = f32[16,8]{1,0} fusion(%a), kind=kCustom, calls=%piece
  %loop = (s32[], f32[4,8]{1,0}) while(%a), condition=%condition.2, \
body=%body.2
  %scattered = f32[2,8]{1,0} reduce-scatter(%a), channel_id=4, \
replica_groups=[2,8]<=[16], dimensions={0}, to_apply=%add
  ROOT %out = pred[12]{0} all-to-all(%a), channel_id=5, \
replica_groups=[4,4]<=[16], dimensions={0}
}
"""


@pytest.mark.parametrize(
  ("kind", "size"),
  [
    # 8 / 2 rounds in each of 5.
    ("collective-permute", 5 * 4 * (4 * 8 * 4)),
    # Once, though it goes on beside the loop.
    ("all-gather", (16 * 8 * 4) * 7 / 8),
    ("all-reduce", 5 * (3 * 2 + 5 * 4) * 2 * 3 / 4),
    ("reduce-scatter", (2 * 8 * 4) * 7),
    ("all-to-all", 12 * 3 / 4),
  ],
)
def test_collectives_are_counted_as_often_as_they_are_run(kind, size):
  assert collectives.received(TPU)[kind] == size


def test_known_trip_counts_go_before():
  text = TPU.replace(
    "body=%body.2\n",
    'body=%body.2, backend_config={"known_trip_count":{"n":"7"}}\n',
  )
  found = collectives.received(text)["collective-permute"]
  assert found == 7 * 4 * (4 * 8 * 4)


def test_a_program_of_one_device_receives_nothing():
  text = (
    "ENTRY %main (a: f32[2]) -> f32[2] {\n  ROOT %a = f32[2] parameter(0)\n}"
  )
  assert collectives.received(text) == {}
