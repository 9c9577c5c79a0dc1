"""Each family in transformers, stock and patched: the same outputs, gradients, weights and state."""

import copy
import re
from contextlib import contextmanager

import pytest
import torch
import transformers
from packaging.version import Version
from torch.nn import functional as F

import interop_cases
from deform_attn import multi_scale_deformable_attention, patch, record, unpatch
from deform_attn.interop.transformers import attention
from interop_cases import CASES, attentions, run

# Relative to the norm of a tensor: both sides round at each of some hundred operations. A gradient is a sum that may
# cancel, as that of a bias before a norm does, and keeps the rounding of its terms; so one that is a small part of all
# gradients is judged by such a part of their norm (in float32 by a millionth, 16 roundings; in float64 by far less).
RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-11}
PART = {torch.float32: 0.1, torch.float64: 1e-3}
# Each dtype and each mode once: what float32 rounds does not depend on the mode, nor what a mode changes on the dtype.
MODES = [(torch.float32, True), (torch.float64, False)]
PADDING_IS_TRUE = re.compile("^Mask2Former|^OneFormer")
BFLOAT16 = 1e-2  # weights and inputs are the same rounded ones; each of three projections rounds once, to 2^-9
# A random deviation of 1e-3 in every attention moves these logits by 2.1e-3, those of the other families by less.
BFLOAT16_OF_OUTPUT = {("pp_doclayout_v3", "logits"): 2e-2}
NEVER_ASKED = ("mask2former", "oneformer")  # their pixel decoder is not told what the model was asked for
# In transformers 5.0 LW-DETR's proposals are infinite at padding, so that gradients of what makes them are NaN.
NAN = ("lw_detr", "model.enc_out") if Version(transformers.__version__) < Version("5.23") else None
ROUNDED = ("hidden_states", "encoder_hidden_states", "position_embeddings")

pytestmark = pytest.mark.filterwarnings("ignore:You'd better set embed_dim")


@pytest.fixture(params=CASES)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def models():
    """Return a function that gives a new copy of a case's model, built once."""
    built = {}

    def get(name):
        if name not in built:
            built[name] = interop_cases.build(name)
        return copy.deepcopy(built[name])

    return get


@pytest.fixture(scope="module")
def pairs(models):
    """Return a function that gives a case's stock and patched model, for all tests that leave them as they are."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = models(name), models(name)
            patch(made[name][1])
        return made[name]

    return get


@pytest.fixture
def pair(case, pairs):
    """Return the stock and the patched model of the case; a test that changes them takes copies."""
    pair = pairs(case)
    before = [trace_of(model) for model in pair]
    yield pair
    assert [trace_of(model) for model in pair] == before


def trace_of(model):
    """Return what a test that changes a model changes of it, but for hooks: transformers hangs in some of its own."""
    tensors = {key: (id(x), x._version) for key, x in model.state_dict(keep_vars=True).items()}
    training = [module.training for module in model.modules()]
    return tensors, training, [name for name, parameter in model.named_parameters() if parameter.grad is not None]


@pytest.fixture(scope="module")
def captured(models):
    """Return a function that gives a case's stock model and the calls of its attentions, as `captured_calls` does."""
    made = {}

    def get(name):
        if name not in made:
            model = models(name)
            made[name] = model, captured_calls(name, model)
        return made[name]

    return get


@contextmanager
def hooked(modules, hook):
    """Have a hook called with the arguments by position and by name, and the output, of these modules."""
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    yield
    for handle in handles:
        handle.remove()


def relative_error(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    return ((actual - expected).norm() / expected.norm()).item()


def test_the_trace_of_a_model_sees_each_change():
    model = torch.nn.BatchNorm1d(2).eval()
    before = trace_of(model)
    assert trace_of(model.train().eval()) == before
    assert trace_of(model.train()) != before
    model.eval()(torch.ones(1, 2)).sum().backward()
    assert trace_of(model) != before
    model.zero_grad()
    assert trace_of(model) == before
    model.running_mean += 1
    assert trace_of(model) != before


def outputs_and_gradients(name, model):
    """Return the outputs of a case that depend on the op, and the gradients of all parameters."""
    dtype = next(model.parameters()).dtype
    inputs = {key: x.to(dtype) if key == "pixel_values" else x for key, x in CASES[name].inputs().items()}
    result = run(model, inputs)
    results = {key: result[key] for key in CASES[name].outputs}
    generator = torch.Generator().manual_seed(3)
    loss = 0
    for output in results.values():
        direction = torch.randn(output.shape, generator=generator).to(output)
        loss = loss + (output * direction).sum() / output.detach().norm()
    loss.backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    return {key: output.detach() for key, output in results.items()}, gradients


def assert_same_outputs(actual, expected, relative):
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert relative_error(actual[key], tensor) < relative, key


def assert_same_gradients(actual, expected, relative, part):
    assert [key for key, grad in actual.items() if grad is None] == [
        key for key, grad in expected.items() if grad is None
    ]
    expected = {key: grad for key, grad in expected.items() if grad is not None}
    total = torch.stack([grad.norm() for grad in expected.values()]).norm()
    assert total > 0
    for key, grad in expected.items():
        error = (actual[key] - grad).norm() / torch.maximum(grad.norm(), part * total)
        assert error < relative, f"{key}: {error:.1e}, norms {grad.norm():.1e} of {total:.1e}"


def test_the_comparisons_see_a_deviation_above_their_tolerance():
    expected = {"a": torch.ones(4), "b": 1e-5 * torch.ones(4), "c": None}
    assert_same_outputs({"a": torch.ones(4) * (1 + 5e-6)}, {"a": torch.ones(4)}, 1e-5)
    assert_same_gradients(expected | {"b": -expected["b"]}, expected, 1e-2, 1e-2)
    with pytest.raises(AssertionError):
        assert_same_outputs({"a": torch.ones(4) * (1 + 2e-5)}, {"a": torch.ones(4)}, 1e-5)
    with pytest.raises(AssertionError):
        assert_same_gradients(expected | {"a": torch.ones(4) * (1 + 2e-5)}, expected, 1e-5, 1e-2)
    with pytest.raises(AssertionError):
        assert_same_gradients(expected | {"c": torch.zeros(4)}, expected, 1e-5, 1e-2)


def read_at(entry, module, kwargs):
    """Return the heads side by side that the recorded locations and weights give, `[N, Q, C]`."""
    value = kwargs["encoder_hidden_states"]
    value = module.value_proj(value) if hasattr(module, "value_proj") else value
    mask = kwargs.get("attention_mask")
    if mask is not None:
        value = value.masked_fill((mask if PADDING_IS_TRUE.search(type(module).__name__) else ~mask)[..., None], 0)
    value = value.unflatten(-1, (module.n_heads, -1))
    locations, weights = entry.locations, entry.weights
    points = points_of(module)
    if locations.ndim == 6:
        locations, weights = locations.flatten(3, 4), weights.flatten(3, 4)
    options = {"num_points": points}
    if "discrete" in (getattr(module, "method", None), getattr(module, "decoder_method", None)):
        options |= {"interpolation": "nearest", "padding_mode": "border"}
        sizes = [(W, H) for (H, W), P in zip(entry.spatial_shapes, points, strict=True) for _ in range(P)]
        locations = locations + 0.5 / torch.tensor(sizes)
    return multi_scale_deformable_attention(value, entry.spatial_shapes, locations, weights, **options)


def points_of(module):
    """Return the number of points of each level of a stock module."""
    for name in ("num_points_list", "n_points_list"):
        if hasattr(module, name):
            return getattr(module, name)
    return [module.n_points] * module.n_levels


def test_the_outputs_depend_on_the_op(case, pair):
    stock, _ = pair
    modules = attentions(stock)
    assert len(modules) == CASES[case].calls
    with torch.no_grad():
        expected = run(stock, CASES[case].inputs())
        with hooked(modules.values(), lambda module, args, kwargs, output: (torch.zeros_like(output[0]), output[1])):
            actual = run(stock, CASES[case].inputs())
    for key in CASES[case].outputs:
        assert relative_error(actual[key], expected[key]) > 1e-2, key


@pytest.mark.parametrize(("dtype", "training"), MODES, ids=["float32, train", "float64, eval"])
def test_outputs_and_all_gradients_are_those_of_the_stock_model(case, dtype, training, models, monkeypatch):
    stock, patched = (models(case).to(dtype).train(training) for _ in range(2))
    report = patch(patched)
    assert len(report.replaced) == CASES[case].calls
    assert report.left == []
    expected, expected_gradients = outputs_and_gradients(case, stock)
    monkeypatch.setattr(F, "grid_sample", None)  # whoever calls it fails
    actual, actual_gradients = outputs_and_gradients(case, patched)
    assert_same_outputs(actual, expected, RELATIVE[dtype])
    if NAN is not None and case == NAN[0]:
        for slopes in (expected_gradients, actual_gradients):
            nan = [name for name, slope in slopes.items() if slope is not None and name.startswith(NAN[1])]
            assert all(slopes.pop(name).isnan().any() for name in nan)
    assert_same_gradients(actual_gradients, expected_gradients, RELATIVE[dtype], PART[dtype])
    for key, buffer in stock.named_buffers():
        torch.testing.assert_close(patched.get_buffer(key), buffer)


def captured_calls(name, model):
    """Return the arguments of each call of an attention, in its order, and what the stock module returned."""
    calls = []
    with torch.no_grad(), hooked(attentions(model).values(), lambda *call: calls.append(call)):
        run(model, CASES[name].inputs())
    assert len(calls) >= CASES[name].calls
    assert all(args == () for _, args, _, _ in calls)
    return calls


def test_the_attentions_see_padding_and_the_references_that_the_case_names(case, captured):
    _, calls = captured(case)
    assert {kwargs["reference_points"].shape[-1] for _, _, kwargs, _ in calls} == CASES[case].references
    masks = [kwargs.get("attention_mask") for _, _, kwargs, _ in calls]
    masked = [mask for mask in masks if mask is not None and not mask.all() and mask.any()]
    assert bool(masked) == CASES[case].masked


def test_in_bfloat16_each_attention_is_near_the_stock_one_in_float32(case, captured):
    with torch.no_grad():
        for module, _, kwargs, _ in captured(case)[1]:
            stock, patched = copy.deepcopy(module), copy.deepcopy(module).bfloat16()
            stock.load_state_dict(patched.state_dict())  # the same rounded weights
            low = in_bfloat16(kwargs)
            high = {key: x.float() if key in ROUNDED and x is not None else x for key, x in low.items()}
            patch(patched)
            actual = patched(**low)[0]
            assert actual.dtype == torch.bfloat16
            assert relative_error(actual.float(), stock(**high)[0]) < BFLOAT16


def dtypes_under_autocast(case, model, training):
    """Return the dtype of every tensor that the model and the modules in it return."""
    seen = {}

    def note(result, path):
        if isinstance(result, torch.Tensor):
            seen[path] = result.dtype
        elif isinstance(result, (dict, tuple, list)):
            items = result.items() if isinstance(result, dict) else enumerate(result)
            for key, item in items:
                note(item, f"{path}[{key}]")

    inside = tuple(f"{name}.attn" for name in attentions(model))  # the stock op, which a patched module does not call
    names = {module: name for name, module in model.named_modules() if not name.endswith(inside)}
    with (
        hooked(names, lambda module, args, kwargs, result: note(result, names[module])),
        torch.autocast("cpu", torch.bfloat16),
        torch.inference_mode(not training),
    ):
        run(model.train(training), CASES[case].inputs(), output_hidden_states=True)
    return seen


def test_under_autocast_every_output_and_hidden_state_has_the_dtype_of_the_stock_one(case, models):
    stock, patched = models(case), models(case)
    patch(patched)
    # Training comes first: a model that keeps what it made of a text keeps no tensor of inference for it.
    expected, actual = (
        {training: dtypes_under_autocast(case, model, training) for training in (True, False)}
        for model in (stock, patched)
    )
    assert all(torch.bfloat16 in dtypes.values() for dtypes in expected.values())
    assert actual == expected


def in_bfloat16(kwargs):
    """Return the arguments of a call as a model in bfloat16 has them, whose coordinates may stay what they are."""
    return {key: x.bfloat16() if key in ROUNDED and x is not None else x for key, x in kwargs.items()}


def test_attentions_in_bfloat16_leave_the_whole_model_near_the_stock_one_in_float32(case, models):
    """The rest of the model stays in float32: in bfloat16 it alone is up to 0.9 off, since the best queries change."""
    stock = models(case)
    for module in attentions(stock).values():
        module.bfloat16().float()  # the same rounded weights
    patched = copy.deepcopy(stock)
    patch(patched)
    for module in attentions(patched).values():
        module.bfloat16()
        module.register_forward_pre_hook(lambda _, args, kwargs: (args, in_bfloat16(kwargs)), with_kwargs=True)
        module.register_forward_hook(lambda _, args, output: (output[0].float(), output[1]))
    with torch.no_grad():
        expected, actual = (run(model, CASES[case].inputs()) for model in (stock, patched))
    for key in CASES[case].outputs:
        assert relative_error(actual[key], expected[key]) < BFLOAT16_OF_OUTPUT.get((case, key), BFLOAT16), key


def test_attention_weights_are_returned_as_stock_where_they_are_asked_for_and_are_else_none(case, captured):
    with torch.no_grad():
        for module, _, kwargs, (_, expected) in captured(case)[1]:
            patched = copy.deepcopy(module)
            patch(patched)
            unasked = patched(**kwargs | {"output_attentions": False})[1]
            assert (unasked is None) != CASES[case].answers
            weights = patched(**kwargs | {"output_attentions": True})[1]
            torch.testing.assert_close(weights, expected)
            seen = []
            patched.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output[1]))
            patched(**kwargs | {"output_attentions": False})
            torch.testing.assert_close(seen[0], expected)


def test_captured_attentions_are_those_of_the_stock_model(case, pair):
    with torch.no_grad():
        expected, actual = (run(model, CASES[case].inputs(), output_attentions=True) for model in pair)
    names = [key for key in expected if "attentions" in key]
    assert names == [key for key in actual if "attentions" in key]
    tensors = [tensor for key in names for tensor in flat(expected[key])]
    assert len(tensors) >= CASES[case].captured
    torch.testing.assert_close([tensor for key in names for tensor in flat(actual[key])], tensors)


def test_a_model_has_its_attentions_compute_weights_only_while_somebody_wants_them(case, pair, monkeypatch):
    computed = []
    original = attention.attention_weights
    monkeypatch.setattr(attention, "attention_weights", lambda logits: computed.append(1) or original(logits))
    _, model = pair
    with torch.no_grad():
        for answer in (False, True, False):
            computed.clear()
            run(model, CASES[case].inputs(), output_attentions=answer)
            assert bool(computed) == (answer and case not in NEVER_ASKED)


def flat(value):
    """Return the tensors in nested tuples."""
    return [value] if isinstance(value, torch.Tensor) else [tensor for item in value or () for tensor in flat(item)]


def test_record_sees_every_call_where_it_looks(case, pair, captured):
    model, calls = captured(case)
    _, patched = pair
    with record(patched) as records, torch.no_grad():
        run(patched, CASES[case].inputs())
    names = {module: name for name, module in attentions(model).items()}
    assert [entry.name for entry in records] == [names[module] for module, *_ in calls]
    for entry, (module, _, kwargs, output) in zip(records, calls, strict=True):
        torch.testing.assert_close(entry.weights.flatten(3), output[1].flatten(3))
        torch.testing.assert_close(entry.reference_points, kwargs["reference_points"])
        # In transformers 5.0 OneFormer passes a tensor of sizes alone.
        sizes = kwargs["spatial_shapes_list"] if "spatial_shapes_list" in kwargs else kwargs["spatial_shapes"].tolist()
        assert entry.spatial_shapes == tuple(tuple(shape) for shape in sizes)
        assert entry.locations.shape == (*entry.weights.shape, 2)
        heads = read_at(entry, module, kwargs)
        projected = module.output_proj(heads) if hasattr(module, "output_proj") else heads
        torch.testing.assert_close(projected, output[0], rtol=1e-4, atol=1e-5)


def test_the_state_dict_stays_and_unpatch_restores_bitwise(case, models):
    model = models(case)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    with torch.no_grad():
        expected = run(model, CASES[case].inputs())
        patch(model)
        assert state_equals(model, before)
        run(model, CASES[case].inputs())
        unpatch(model)
        assert state_equals(model, before)
        actual = run(model, CASES[case].inputs())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    for key in CASES[case].outputs:
        assert torch.equal(actual[key], expected[key])


def state_equals(model, expected):
    state = model.state_dict()
    return list(state) == list(expected) and all(torch.equal(state[key], expected[key]) for key in state)
