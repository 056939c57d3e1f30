"""What is read from a compiled program's text, and counted in a traced one."""

import jax
import jax.numpy as jnp
import pytest

from tools.planning import flops, hlo

TEXT = """HloModule jit_step, entry_computation_layout={(f32[4]{0})->f32[4]{0}}

%region_0.1 (a.1: f32[], b.1: f32[]) -> f32[] {
  %a.1 = f32[] parameter(0)
  ROOT %add.1 = f32[] add(%a.1, %b.1)
}

%fused_computation (p: bf16[8,16]) -> f32[8,100] {
  %p = bf16[8,16]{1,0} parameter(0)
  ROOT %wide.1 = f32[8,100]{1,0} broadcast(%p), dimensions={0}
}

%body (state: (s32[], bf16[2,16])) -> (s32[], bf16[2,16]) {
  %state = (s32[], bf16[2,16]{1,0}) parameter(0)
  %gte = bf16[2,16]{1,0} get-tuple-element(%state), index=1
  %all-gather-start.1 = (bf16[2,16]{1,0}, bf16[8,16]{1,0:T(8,128)}) all-gather-start(%gte), dimensions={0}
  %all-gather-done.1 = bf16[8,16]{1,0:T(8,128)} all-gather-done(%all-gather-start.1)
  %logits = f32[8,100]{1,0} fusion(%all-gather-done.1), kind=kLoop, calls=%fused_computation, metadata={op_name="head"}
  ROOT %tuple.1 = (s32[], bf16[2,16]{1,0}) tuple(%gte, %gte)
}

%condition (state: (s32[], bf16[2,16])) -> pred[] {
  %state = (s32[], bf16[2,16]{1,0}) parameter(0)
  ROOT %less = pred[] compare(%state, %state), direction=LT
}

%piece.1 (q: bf16[2,16]) -> bf16[8,16] {
  %q = bf16[2,16]{1,0} parameter(0)
  ROOT %all-gather.7 = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} all-gather(%q), channel_id=5, dimensions={0}
}

%piece.2 (r: bf16[2,16]) -> bf16[8,16] {
  %r = bf16[2,16]{1,0} parameter(0)
  ROOT %all-gather.8 = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} all-gather(%r), channel_id=5, dimensions={0}
}

%tpu.body (state: (s32[], bf16[2,16])) -> (s32[], bf16[2,16]) {
  %state = (s32[], bf16[2,16]{1,0}) parameter(0)
  %gte = bf16[2,16]{1,0} get-tuple-element(%state), index=1
  %fusion.1 = (bf16[4,4]{1,0}, u32[]) fusion(%gte), kind=kCustom, calls=%piece.1
  %fusion.2 = (bf16[4,4]{1,0}, u32[]) fusion(%gte), kind=kCustom, calls=%piece.2
  ROOT %tuple.2 = (s32[], bf16[2,16]{1,0}) tuple(%gte, %gte)
}

%tpu.condition (state: (s32[], bf16[2,16])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(10)
  %state = (s32[], bf16[2,16]{1,0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %less = pred[]{:T(512)} compare(%counter, %constant.1), direction=LT
}

ENTRY %main.9 (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %while.1 = (s32[], bf16[2,16]{1,0}) while(%x), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"28"}}
  %while.2 = (s32[], /*index=1*/bf16[2,16]{1,0}) while(%x), condition=%tpu.condition, body=%tpu.body
  %all-reduce.1 = f32[4]{0} all-reduce(%x), replica_groups={}, to_apply=%region_0.1
  ROOT %copy.1 = f32[4]{0} copy(%all-reduce.1)
}
"""


def test_collectives_in_a_loop_count_as_often_as_it_runs_and_their_pieces_once():
    found = hlo.collectives(hlo.instructions(TEXT))
    runs = 28 + 10
    assert found == [hlo.Collective("all-gather", runs, runs * 8 * 16 * 2), hlo.Collective("all-reduce", 1, 16)]


def test_the_largest_array_is_one_that_is_made():
    array = hlo.largest(hlo.instructions(TEXT))
    assert (str(array), array.bytes) == ("f32[8,100]", 3200)


def test_a_gather_of_a_whole_stack_is_found_in_any_order_of_dimensions():
    found = hlo.instructions(TEXT)
    assert {str(array) for array in hlo.gathers_of(found, {(16, 1, 8)})} == {"bf16[8,16]"}
    assert hlo.gathers_of(found, {(28, 8, 16)}) == []


def test_an_array_of_the_vocabulary_for_each_position_is_found():
    found = hlo.instructions(TEXT)
    assert [str(array) for array in hlo.with_vocabulary(found, 8, 100, hidden=16)] == ["f32[8,100]"]
    assert hlo.with_vocabulary(found, 9, 100, hidden=16) == []


def test_the_matrix_of_the_vocabulary_is_not_taken_for_logits_of_fewer_positions():
    found = hlo.instructions(TEXT)
    assert hlo.with_vocabulary(found, 5, 100, hidden=8) == []
    assert [str(array) for array in hlo.with_vocabulary(found, 5, 100, hidden=16)] == ["f32[8,100]"]
    assert [str(array) for array in hlo.with_vocabulary(found, 8, 100, hidden=8)] == ["f32[8,100]"]


@pytest.mark.parametrize(("remat", "products"), [(False, 3), (True, 4)])
def test_operations_of_a_scan_count_as_often_as_it_runs_and_those_made_again_too(remat, products):
    def layer(x, weight):
        return jnp.tanh(x @ weight), None

    def loss(weights, x):
        return jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, weights)[0].sum()

    traced = jax.jit(jax.grad(loss)).trace(jnp.ones((5, 8, 8)), jnp.ones((3, 8)))
    # Forward; backward has a product for the weights and one for what came in.
    assert flops.count(traced.jaxpr) == 5 * products * (2 * 3 * 8 * 8)
