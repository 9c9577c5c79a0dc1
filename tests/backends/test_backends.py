"""Tests of the registry: order, choice, explanation, and the backend asked for by name or by context."""

import asyncio
import contextvars
import sys
import threading

import pytest
import torch

from cases import CASES, case_id, expected_fused, inputs_of, named
from deform_attn import checks, deformable_attention, explain, multi_scale_deformable_attention, use_backend
from deform_attn.backends import registry
from every_backend import BACKENDS
from tolerances import assert_close


def arguments(form, case=None, dtype=torch.float32):
    """Return the positional and the keyword arguments of a call."""
    inputs = inputs_of(case or named("encoder"), dtype)
    if form == "fused":
        return [inputs.value, inputs.spatial_shapes, *inputs.fused_tensors[1:]], inputs.fused_options
    return [inputs.value, inputs.spatial_shapes, *inputs.classic_tensors[1:]], inputs.classic_options


def chosen():
    """Return the backend that a plain call would take here."""
    tensors, options = arguments("fused")
    return explain(*tensors, **options).backend


FORMS = pytest.mark.parametrize("form", ["fused", "classic"])
ENTRY_POINTS = {"fused": deformable_attention, "classic": multi_scale_deformable_attention}


@FORMS
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_the_first_backend_without_a_reason_is_chosen(form, case):
    tensors, options = arguments(form, case)
    choice = explain(*tensors, **options)
    assert set(BACKENDS) <= set(choice.reasons)
    assert all(isinstance(reason, str) for reasons in choice.reasons.values() for reason in reasons)
    assert choice.backend == next(name for name, reasons in choice.reasons.items() if not reasons)


@FORMS
@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_the_reference_supports_every_call(form, case, interpolation, padding_mode):
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        tensors, options = arguments(form, case, dtype)
        choice = explain(*tensors, **options, interpolation=interpolation, padding_mode=padding_mode)
        assert choice.reasons["reference"] == []


def test_the_reference_comes_last_since_it_supports_everything():
    tensors, options = arguments("fused")
    assert list(explain(*tensors, **options).reasons)[-1] == "reference"


@FORMS
def test_every_backend_supports_a_plain_call(form):
    tensors, options = arguments(form, named("decoder points"))
    choice = explain(*tensors, **options)
    assert {name: choice.reasons[name] for name in BACKENDS} == {name: [] for name in BACKENDS}


def test_explain_without_arguments_is_a_table_of_the_backends():
    table = str(explain())
    assert all(name in table for name in BACKENDS)
    assert len(table.splitlines()) >= len(BACKENDS)


@FORMS
def test_explain_of_a_call_says_which_backend_it_takes(form):
    tensors, options = arguments(form)
    choice = explain(*tensors, **options)
    assert choice.backend in str(choice)
    assert all(name in str(choice) for name in choice.reasons)


@FORMS
def test_explain_computes_nothing(form):
    # Tensors of the meta device hold nothing that could be computed with.
    tensors, options = arguments(form)
    tensors = [tensor.to("meta") if isinstance(tensor, torch.Tensor) else tensor for tensor in tensors]
    options = {
        name: option.to("meta") if isinstance(option, torch.Tensor) else option for name, option in options.items()
    }
    choice = explain(*tensors, **options)
    assert choice.backend is None or choice.reasons[choice.backend] == []


@FORMS
def test_explain_refuses_what_the_entry_point_refuses(form):
    tensors, options = arguments(form)
    tensors[0] = tensors[0][:, 1:]
    with pytest.raises(ValueError, match="spatial_shapes") as expected:
        ENTRY_POINTS[form](*tensors, **options)
    with pytest.raises(ValueError, match="spatial_shapes") as actual:
        explain(*tensors, **options)
    assert str(actual.value) == str(expected.value)


@FORMS
def test_a_backend_asked_for_by_name_runs(run, form):
    tensors, options = arguments(form, named("decoder points"))
    assert run(ENTRY_POINTS[form], *tensors, **options).shape == (2, 11, 15)


def test_a_backend_asked_for_by_name_runs_or_raises_in_every_case(run):
    for case in CASES:
        tensors, options = arguments("fused", case)
        assert_close(run(deformable_attention, *tensors, **options), expected_fused(case, torch.float32), torch.float32)


def test_backends_asked_for_by_name_are_different_code():
    # Else every comparison between them would compare a thing with itself.
    def operations(backend):
        inputs = inputs_of(named("decoder points"), torch.float32)
        value = inputs.value.clone().requires_grad_()
        tensors = [value, inputs.spatial_shapes, *inputs.classic_tensors[1:]]
        output = multi_scale_deformable_attention(*tensors, backend=backend)
        seen, waiting = set(), [output.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is not None:
                seen.add(node.name())
                waiting.extend(following for following, _ in node.next_functions)
        return frozenset(seen)

    assert len({operations(backend) for backend in BACKENDS}) == len(BACKENDS)


def test_use_backend_decides_the_choice(backend):
    tensors, options = arguments("fused", named("decoder points"))
    with use_backend(backend):
        assert explain(*tensors, **options).backend == backend
        actual = deformable_attention(*tensors, **options)
    assert torch.equal(actual, deformable_attention(*tensors, **options, backend=backend))


def test_use_backend_nests_and_is_restored():
    before = chosen()
    with use_backend("reference"):
        assert chosen() == "reference"
        with use_backend("grid_sample"):
            assert chosen() == "grid_sample"
        assert chosen() == "reference"
    assert chosen() == before


def test_use_backend_is_restored_after_an_exception():
    before = chosen()
    assert before != "reference"
    with pytest.raises(KeyError, match="on purpose"), use_backend("reference"):
        raise KeyError("on purpose")
    assert chosen() == before


def test_an_unknown_backend_is_refused_by_use_backend_with_the_names():
    with pytest.raises(ValueError, match="cuda") as caught, use_backend("cuda"):
        pass
    assert all(name in str(caught.value) for name in BACKENDS)
    assert chosen() in BACKENDS


def test_the_backend_argument_beats_use_backend():
    tensors, options = arguments("fused")
    with use_backend("reference"):
        assert explain(*tensors, **options, backend="grid_sample").backend == "grid_sample"
    value = tensors[0].clone().requires_grad_()
    plain = deformable_attention(value, *tensors[1:], **options, backend="grid_sample")
    with use_backend("reference"):
        within = deformable_attention(value, *tensors[1:], **options, backend="grid_sample")
    assert torch.equal(plain, within)


def test_use_backend_holds_only_in_its_own_thread():
    before, seen = chosen(), []
    assert before != "reference"
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(chosen()))
        thread.start()
        thread.join()
        assert chosen() == "reference"
    # A free-threaded Python gives a new thread the context of the one that starts it.
    inherits = getattr(sys.flags, "thread_inherit_context", False)
    assert seen == ["reference" if inherits else before]


def test_use_backend_in_another_thread_does_not_reach_this_one():
    before, inside, leave = chosen(), threading.Event(), threading.Event()

    def hold():
        with use_backend("reference"):
            inside.set()
            leave.wait(timeout=10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(timeout=10)
    here = chosen()
    leave.set()
    thread.join()
    assert before != "reference"
    assert here == before


def test_use_backend_holds_only_in_its_own_task():
    async def task(name, turn, other_turn):
        with use_backend(name):
            turn.set()
            await other_turn.wait()
            return chosen()

    async def both():
        first, second = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(task("reference", first, second), task("grid_sample", second, first))

    assert asyncio.run(both()) == ["reference", "grid_sample"]


def test_use_backend_is_carried_into_a_copied_context():
    with use_backend("reference"):
        context = contextvars.copy_context()
    assert context.run(chosen) == "reference"
    assert chosen() != "reference"


def test_a_backend_that_does_not_support_a_call_is_passed_over_by_itself_and_refuses_by_name():
    # Whatever a backend declares about sizes of zero, nothing is left to chance.
    value = torch.ones(0, 10, 3, 5)
    tensors = [value, [(2, 3), (4, 1)], torch.ones(0, 7, 2, 2), torch.ones(0, 7, 3, 2, 4, 2), torch.ones(0, 7, 3, 8)]
    choice = explain(*tensors)
    assert deformable_attention(*tensors).shape == (0, 7, 15)
    for name, reasons in choice.reasons.items():
        if reasons:
            assert choice.backend != name
            with pytest.raises(ValueError, match=name) as caught:
                deformable_attention(*tensors, backend=name)
            assert all(reason in str(caught.value) for reason in reasons)
            with use_backend(name), pytest.raises(ValueError, match=name):
                deformable_attention(*tensors)
        else:
            assert deformable_attention(*tensors, backend=name).shape == (0, 7, 15)


def test_under_transforms_that_grid_sample_cannot_take_another_backend_runs():
    value, locations, weights = torch.randn(2, 12, 2, 4), torch.rand(1, 5, 2, 1, 3, 2), torch.rand(1, 5, 2, 1, 3)

    def op(one, points):
        return multi_scale_deformable_attention(one, [(3, 4)], points, weights)

    expected = torch.stack([op(one[None], locations) for one in value])
    torch.testing.assert_close(torch.func.vmap(lambda one: op(one[None], locations))(value), expected)
    _, tangent = torch.func.jvp(lambda points: op(value[:1], points), (locations,), (torch.ones_like(locations),))
    step = 1e-3
    moved = (op(value[:1], locations + step) - op(value[:1], locations - step)) / (2 * step)
    assert (tangent - moved).abs().median() < 1e-2  # but for points that crossed a pixel centre
    with pytest.raises(ValueError, match=r"torch\.func"):
        torch.func.vmap(
            lambda one: multi_scale_deformable_attention(one[None], [(3, 4)], locations, weights, backend="grid_sample")
        )(value)


def test_a_backend_chosen_for_a_block_holds_in_what_is_compiled_there():
    value, locations, weights = torch.randn(1, 12, 2, 4), torch.rand(1, 5, 2, 1, 3, 2), torch.rand(1, 5, 2, 1, 3)

    def op():
        return multi_scale_deformable_attention(value, [(3, 4)], locations, weights)

    def ops_compiled():
        """Return how many of our ops are in the graph: the reference is none, but torch's own arithmetic."""
        ops = []

        def compiler(graph, examples):
            ops.extend(node.target for node in graph.graph.nodes if "deform_attn" in str(node.target))
            return graph.forward

        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(op, fullgraph=True, backend=compiler)(), op())
        return len(ops)

    with use_backend("reference"):
        assert ops_compiled() == 0
    assert ops_compiled() == 1


def test_explain_without_a_value_but_with_more_is_refused():
    with pytest.raises(TypeError, match=r"^value: expected a tensor"):
        explain(None, [(3, 4)], torch.rand(1, 5, 2), torch.rand(1, 5, 2, 1, 3, 2), torch.rand(1, 5, 2, 3))
    with pytest.raises(TypeError, match=r"^explain: expected"):
        explain(torch.randn(1, 12, 2, 4), [(3, 4)])


def test_explain_notes_that_grid_sample_waits_for_sizes_in_a_tensor_that_the_host_has_not_read():
    value, locations, weights = torch.ones(1, 6, 1, 1), torch.rand(1, 4, 1, 1, 2, 2), torch.rand(1, 4, 1, 1, 2)
    pairs = checks.sampling_inputs(value, [(2, 3)], locations, weights, None, "bilinear", "zeros")
    tensor = pairs._replace(spatial_shapes=torch.tensor([(2, 3)]))
    calls = {("pairs", name): pairs for name in BACKENDS} | {("tensor", name): tensor for name in BACKENDS}
    notes = {key: registry.explanation(call, key[1]).notes for key, call in calls.items()}
    waiting = [key for key, texts in notes.items() if any("waits for the device" in text for text in texts)]
    assert waiting == [("tensor", "grid_sample")]
    assert "note: grid_sample waits for the device" in str(registry.explanation(tensor, "grid_sample"))
