"""The two modules: their parameters, their start, their shapes, and what they refuse."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import deform_attn
from deform_attn import DeformableAttention, MultiScaleDeformableAttention, encoder_reference_points, reference

SHAPES = [(7, 11), (4, 6), (2, 3)]
PIXELS = sum(H * W for H, W in SHAPES)
BATCH, QUERIES, CHANNELS, HEADS = 2, 5, 24, 3


def redrawn(module, std=0.3, dtype=torch.float64):
    """Return the module with every parameter drawn anew: at its start it hardly depends on the queries."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return module.to(dtype)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def points(*shape, seed=3, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def multi_scale(num_points=2, **options):
    return redrawn(
        MultiScaleDeformableAttention(
            CHANNELS, num_heads=HEADS, num_levels=len(SHAPES), num_points=num_points, **options
        )
    )


def test_deformable_attention_is_the_equation_of_the_paper():
    module = redrawn(DeformableAttention(CHANNELS, num_heads=HEADS, num_points=5))
    nn.init.zeros_(module.value_proj.bias)  # the paper's equation has no biases beside the offsets' and weights'
    nn.init.zeros_(module.output_proj.bias)
    query, references, features = (
        draw(BATCH, QUERIES, CHANNELS),
        points(BATCH, QUERIES, 2),
        draw(BATCH, CHANNELS, 7, 11),
    )
    expected = reference.deform_attn(
        query,
        references,
        features,
        (module.query_proj.weight, module.query_proj.bias),
        module.value_proj.weight,
        module.output_proj.weight,
        HEADS,
    )
    torch.testing.assert_close(module(query, references, features), expected)


def test_deformable_attention_has_one_projection_of_3mk_channels_and_two_more():
    module = DeformableAttention(CHANNELS, num_heads=HEADS, num_points=5)
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert shapes == {
        "query_proj.weight": (3 * HEADS * 5, CHANNELS),
        "query_proj.bias": (3 * HEADS * 5,),
        "value_proj.weight": (CHANNELS, CHANNELS),
        "value_proj.bias": (CHANNELS,),
        "output_proj.weight": (CHANNELS, CHANNELS),
        "output_proj.bias": (CHANNELS,),
    }


def test_the_single_scale_module_equals_the_multi_scale_one_with_one_level():
    single = redrawn(DeformableAttention(CHANNELS, num_heads=HEADS, num_points=4))
    several = MultiScaleDeformableAttention(CHANNELS, num_heads=HEADS, num_levels=1, num_points=4).double()
    split = 2 * HEADS * 4
    several.load_state_dict(
        {
            "sampling_offsets.weight": single.query_proj.weight[:split],
            "sampling_offsets.bias": single.query_proj.bias[:split],
            "attention_weights.weight": single.query_proj.weight[split:],
            "attention_weights.bias": single.query_proj.bias[split:],
            **{name: p for name, p in single.state_dict().items() if not name.startswith("query_proj")},
        }
    )
    query, references, features = (
        draw(BATCH, QUERIES, CHANNELS),
        points(BATCH, QUERIES, 2),
        draw(BATCH, CHANNELS, 7, 11),
    )
    torch.testing.assert_close(single(query, references, features), several(query, references, [features]))


@pytest.mark.parametrize(
    ("num_points", "steps"), [(3, [1, 2, 3] * 3), ([2, 1, 3], [1, 2, 1, 1, 2, 3])], ids=["equal", "per level"]
)
def test_the_multi_scale_module_starts_as_published(num_points, steps):
    module = MultiScaleDeformableAttention(32, num_heads=8, num_levels=3, num_points=num_points)
    bias = module.sampling_offsets.bias.detach().reshape(8, len(steps), 2)
    for head in range(8):
        x, y = math.cos(2 * math.pi * head / 8), math.sin(2 * math.pi * head / 8)
        longest = max(abs(x), abs(y))
        expected = torch.tensor([[x / longest * step, y / longest * step] for step in steps])
        torch.testing.assert_close(bias[head], expected)
    for zero in (module.sampling_offsets.weight, module.attention_weights.weight, module.attention_weights.bias):
        assert zero.count_nonzero() == 0
    for projection in (module.value_proj, module.output_proj):
        bound = math.sqrt(6 / (32 + 32))
        assert projection.bias.count_nonzero() == 0
        assert 0.9 * bound < projection.weight.abs().max() <= bound


def test_the_single_scale_module_starts_like_the_multi_scale_one():
    single, several = (
        DeformableAttention(32, num_heads=8, num_points=4),
        MultiScaleDeformableAttention(32, num_heads=8, num_levels=1, num_points=4),
    )
    expected = torch.cat((several.sampling_offsets.bias, several.attention_weights.bias))
    torch.testing.assert_close(single.query_proj.bias, expected)
    assert single.query_proj.weight.count_nonzero() == 0


def test_the_state_dict_has_the_names_and_shapes_of_published_checkpoints():
    module = MultiScaleDeformableAttention()
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert shapes == {
        "sampling_offsets.weight": (256, 256),
        "sampling_offsets.bias": (256,),
        "attention_weights.weight": (128, 256),
        "attention_weights.bias": (128,),
        "value_proj.weight": (256, 256),
        "value_proj.bias": (256,),
        "output_proj.weight": (256, 256),
        "output_proj.bias": (256,),
    }


@pytest.mark.parametrize("num_points", [2, [1, 4, 2]])
@pytest.mark.parametrize("coordinates", [2, 4])
def test_a_list_of_maps_gives_what_flat_features_give(num_points, coordinates):
    module = multi_scale(num_points)
    query, references = draw(BATCH, QUERIES, CHANNELS), points(BATCH, QUERIES, coordinates)
    maps = [draw(BATCH, CHANNELS, H, W, seed=H) for H, W in SHAPES]
    flat = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
    expected = module(query, references, flat, SHAPES)
    assert expected.shape == (BATCH, QUERIES, CHANNELS)
    torch.testing.assert_close(module(query, references, maps), expected)
    torch.testing.assert_close(module(query, references, maps, SHAPES), expected)
    masks = [points(BATCH, H, W) < 0.3 for H, W in SHAPES]
    flat_mask = torch.cat([mask.flatten(1) for mask in masks], dim=1)
    masked = module(query, references, flat, SHAPES, padding_mask=flat_mask)
    assert (masked - expected).abs().max() > 0.1
    torch.testing.assert_close(module(query, references, maps, padding_mask=masks), masked)


def test_masked_features_count_as_zero_after_the_value_projection_bias_included():
    module = multi_scale()
    query, references = draw(BATCH, QUERIES, CHANNELS), points(BATCH, QUERIES, 2)
    everything = torch.ones(BATCH, PIXELS, dtype=torch.bool)
    output = module(query, references, draw(BATCH, PIXELS, CHANNELS), SHAPES, padding_mask=everything)
    torch.testing.assert_close(output, module.output_proj.bias.expand_as(output))


@pytest.mark.parametrize("num_points", [2, [1, 4, 2]])
def test_returned_sampling_fed_to_the_classic_op_gives_the_same_output(num_points):
    module = multi_scale(num_points)
    query, references = draw(BATCH, QUERIES, CHANNELS), points(BATCH, QUERIES, len(SHAPES), 4)
    features = draw(BATCH, PIXELS, CHANNELS)
    output, sampling = module(query, references, features, SHAPES, return_sampling=True)
    assert torch.equal(output, module(query, references, features, SHAPES))
    value = module.value_proj(features).reshape(BATCH, PIXELS, HEADS, -1)
    counts = None if num_points == 2 else num_points
    heads = deform_attn.multi_scale_deformable_attention(
        value, SHAPES, sampling.locations, sampling.weights, num_points=counts
    )
    torch.testing.assert_close(module.output_proj(heads), output)
    torch.testing.assert_close(sampling.weights.flatten(3).sum(-1), torch.ones(BATCH, QUERIES, HEADS).double())


def test_value_dim_is_the_width_of_the_features_and_bias_that_of_the_two_projections():
    module = multi_scale(value_dim=10, bias=False)
    assert module.value_proj.weight.shape == (CHANNELS, 10)
    assert module.value_proj.bias is None
    assert module.output_proj.bias is None
    assert module.sampling_offsets.bias is not None
    output = module(draw(BATCH, QUERIES, CHANNELS), points(BATCH, QUERIES, 2), draw(BATCH, PIXELS, 10), SHAPES)
    assert output.shape == (BATCH, QUERIES, CHANNELS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_modules_run_in_any_float_dtype(dtype):
    features = [draw(BATCH, CHANNELS, H, W, seed=H) for H, W in SHAPES]
    query, references = draw(BATCH, QUERIES, CHANNELS), points(BATCH, QUERIES, 2)
    tolerance = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]  # a few roundings of the dtype
    for module, read in (
        (multi_scale(), lambda maps: maps),
        (redrawn(DeformableAttention(CHANNELS, num_heads=HEADS)), lambda maps: maps[0]),
    ):
        expected = module(query, references, read(features))
        low = module.to(dtype)
        # References keep float32: a bfloat16 one would be up to 0.2 % of the map off.
        actual = low(query.to(dtype), references.float(), read([x.to(dtype) for x in features]))
        assert actual.dtype == dtype
        assert (actual - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_modules_run_under_autocast_with_gradients_in_the_parameters_dtype(dtype):
    module = multi_scale().float()
    query, references = draw(BATCH, QUERIES, CHANNELS).float(), points(BATCH, QUERIES, 2).float()
    features = draw(BATCH, PIXELS, CHANNELS).float()
    expected = module(query, references, features, SHAPES)
    with torch.autocast("cpu", dtype=dtype):
        actual = module(query, references, features, SHAPES)
    assert actual.dtype == dtype
    assert (actual - expected).abs().max() < 4e-2 * expected.abs().max()
    actual.float().square().sum().backward()
    for parameter in module.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.count_nonzero() > 0


def test_extra_repr_shows_the_sizes():
    assert "embed_dim=24, num_heads=3, num_points=4" in repr(DeformableAttention(24, num_heads=3))
    assert "num_levels=3, num_points=[1, 2, 3], value_dim=10" in repr(
        MultiScaleDeformableAttention(24, num_heads=3, num_levels=3, num_points=[1, 2, 3], value_dim=10)
    )
    assert "num_points=4\n" in repr(MultiScaleDeformableAttention(24, num_heads=3, num_levels=3))


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (lambda: DeformableAttention(25, num_heads=3), "embed_dim"),
        (lambda: DeformableAttention(24, num_heads=0), "num_heads"),
        (lambda: DeformableAttention(24, num_heads=3, num_points=2.0), "num_points"),
        (lambda: MultiScaleDeformableAttention(25, num_heads=3), "embed_dim"),
        (lambda: MultiScaleDeformableAttention(24, num_heads=3, num_levels=0), "num_levels"),
        (lambda: MultiScaleDeformableAttention(24, num_heads=3, num_levels=3, num_points=[1, 2]), "num_points"),
        (lambda: MultiScaleDeformableAttention(24, num_heads=3, num_levels=3, num_points="4"), "num_points"),
        (lambda: MultiScaleDeformableAttention(24, num_heads=3, num_levels=3, num_points=-1), "num_points"),
        (lambda: MultiScaleDeformableAttention(24, num_heads=3, value_dim=0), "value_dim"),
    ],
)
def test_a_module_of_impossible_sizes_is_refused_by_name(build, argument):
    with pytest.raises((ValueError, TypeError), match=f"^{argument}: expected .*, got "):
        build()


QUERY, REFERENCES = torch.zeros(BATCH, QUERIES, CHANNELS), torch.zeros(BATCH, QUERIES, 2)
MAPS = [torch.zeros(BATCH, CHANNELS, H, W) for H, W in SHAPES]
FLAT = torch.zeros(BATCH, PIXELS, CHANNELS)


@pytest.mark.parametrize(
    ("arguments", "options", "argument"),
    [
        ((QUERY[0], REFERENCES, MAPS), {}, "query"),
        ((QUERY[..., :-1], REFERENCES, MAPS), {}, "query"),
        ((None, REFERENCES, MAPS), {}, "query"),
        ((QUERY, REFERENCES[:, :-1], MAPS), {}, "reference_points"),
        ((QUERY, REFERENCES[..., :1], MAPS), {}, "reference_points"),
        ((QUERY, REFERENCES, FLAT), {}, "spatial_shapes"),
        ((QUERY, REFERENCES, FLAT, SHAPES[:-1]), {}, "spatial_shapes"),
        ((QUERY, REFERENCES, FLAT, [*SHAPES[:-1], (1, 3), (1, 3)]), {}, "spatial_shapes"),
        ((QUERY, REFERENCES, FLAT[..., :-1], SHAPES), {}, "features"),
        ((QUERY, REFERENCES, MAPS[:-1]), {}, "features"),
        ((QUERY, REFERENCES, 3), {}, "features"),
        ((QUERY, REFERENCES, [*MAPS[:-1], MAPS[-1][:1]]), {}, r"features\[2\]"),
        ((QUERY, REFERENCES, [*MAPS[:-1], None]), {}, r"features\[2\]"),
        ((QUERY, REFERENCES, [None, *MAPS[:-1]]), {}, r"features\[0\]"),
        ((QUERY, REFERENCES, MAPS, SHAPES[::-1]), {}, "spatial_shapes"),
        ((QUERY, REFERENCES, MAPS), {"padding_mask": FLAT[..., 0]}, "padding_mask"),
        ((QUERY, REFERENCES, MAPS), {"padding_mask": FLAT[:, 1:, 0].bool()}, "padding_mask"),
        ((QUERY, REFERENCES, MAPS), {"padding_mask": [FLAT[..., 0].bool()]}, "padding_mask"),
        ((QUERY, REFERENCES, MAPS), {"padding_mask": 1}, "padding_mask"),
    ],
)
def test_a_call_of_the_multi_scale_module_that_does_not_fit_is_refused_by_name(arguments, options, argument):
    module = MultiScaleDeformableAttention(CHANNELS, num_heads=HEADS, num_levels=len(SHAPES), num_points=2)
    with pytest.raises((ValueError, TypeError), match=f"^{argument}: expected .*, got "):
        module(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ((QUERY[..., :-1], REFERENCES, MAPS[0]), "query"),
        ((QUERY, REFERENCES[..., :1], MAPS[0]), "reference_points"),
        ((QUERY, REFERENCES[:, :, None], MAPS[0]), "reference_points"),
        ((QUERY, REFERENCES[:1], MAPS[0]), "reference_points"),
        ((QUERY, REFERENCES, MAPS[0].flatten(2)), "features"),
        ((QUERY, REFERENCES, MAPS[0][:1]), "features"),
        ((QUERY, REFERENCES, MAPS), "features"),
    ],
)
def test_a_call_of_the_single_scale_module_that_does_not_fit_is_refused_by_name(arguments, argument):
    module = DeformableAttention(CHANNELS, num_heads=HEADS, num_points=2)
    with pytest.raises((ValueError, TypeError), match=f"^{argument}: expected .*, got "):
        module(*arguments)


def test_encoder_reference_points_are_the_pixel_centres_on_every_level():
    actual = encoder_reference_points([(2, 3), (1, 2)])
    centres = [((x + 0.5) / 3, (y + 0.5) / 2) for y in range(2) for x in range(3)]
    centres += [((x + 0.5) / 2, 0.5) for x in range(2)]
    expected = torch.tensor(centres)[None, :, None].expand(1, 8, 2, 2)
    torch.testing.assert_close(actual, expected)


def test_encoder_reference_points_keep_their_place_in_the_picture_under_padding():
    ratios = torch.tensor([[[0.5, 0.8], [0.6, 1.0]]], dtype=torch.float64)  # (x, y) of the two levels
    actual = encoder_reference_points([(2, 3), (1, 2)], ratios)
    assert actual.shape == (1, 8, 2, 2)
    # The second pixel of the first row of level 0: picture coordinates, then the place on level 1.
    x, y = 1.5 / 3 / 0.5, 0.5 / 2 / 0.8
    torch.testing.assert_close(actual[0, 1, 0], torch.tensor([1.5 / 3, 0.5 / 2], dtype=torch.float64))
    torch.testing.assert_close(actual[0, 1, 1], torch.tensor([x * 0.6, y * 1.0], dtype=torch.float64))


def test_encoder_reference_points_take_device_and_dtype_and_refuse_ratios_of_other_levels():
    assert encoder_reference_points([(2, 3)], device="meta", dtype=torch.float64).device.type == "meta"
    assert encoder_reference_points([(2, 3)], dtype=torch.float64).dtype == torch.float64
    assert encoder_reference_points([(2, 0)]).shape == (1, 0, 1, 2)
    with pytest.raises(ValueError, match=r"^valid_ratios: expected \[N, L = 1, 2 = 2\], got \[1, 2, 2\]"):
        encoder_reference_points([(2, 3)], torch.ones(1, 2, 2))


def twice(module, args, output):
    return 2 * output


def through_a_forward_of_its_own(module):
    linear = module.sampling_offsets
    stock = linear.forward
    linear.forward = lambda query: 2 * stock(query)


def through_a_parametrisation(module):
    class Twice(nn.Module):
        def forward(self, parameter):
            return 2 * parameter

    nn.utils.parametrize.register_parametrization(module.sampling_offsets, "weight", Twice())
    nn.utils.parametrize.register_parametrization(module.sampling_offsets, "bias", Twice())


def through_another_class(module):
    class Twice(nn.Linear):
        def forward(self, query):
            return 2 * super().forward(query)

    module.sampling_offsets.__class__ = Twice


@pytest.mark.parametrize(
    "double",
    [
        lambda module: module.sampling_offsets.register_forward_hook(twice),
        through_a_forward_of_its_own,
        through_a_parametrisation,
        through_another_class,
    ],
    ids=["hook", "forward", "parametrisation", "class"],
)
def test_whatever_is_hung_on_the_two_query_projections_is_called(double):
    module = multi_scale()
    query, references, features = (
        draw(BATCH, QUERIES, CHANNELS),
        points(BATCH, QUERIES, 2),
        draw(BATCH, PIXELS, CHANNELS),
    )
    _, plain = module(query, references, features, SHAPES, return_sampling=True)
    double(module)
    _, doubled = module(query, references, features, SHAPES, return_sampling=True)
    steps = [locations - references[:, :, None, None, None] for locations in (plain.locations, doubled.locations)]
    torch.testing.assert_close(steps[1], 2 * steps[0])


def test_a_pre_hook_of_one_query_projection_is_called():
    module, seen = multi_scale(), []
    module.attention_weights.register_forward_pre_hook(lambda called, args: seen.append(called))
    module(draw(BATCH, QUERIES, CHANNELS), points(BATCH, QUERIES, 2), draw(BATCH, PIXELS, CHANNELS), SHAPES)
    assert seen == [module.attention_weights]


def test_a_global_hook_sees_the_two_query_projections():
    module, seen = multi_scale(), []
    handle = nn.modules.module.register_module_forward_hook(lambda called, args, output: seen.append(called))
    try:
        module(draw(BATCH, QUERIES, CHANNELS), points(BATCH, QUERIES, 2), draw(BATCH, PIXELS, CHANNELS), SHAPES)
    finally:
        handle.remove()
    assert {module.sampling_offsets, module.attention_weights} <= set(seen)


@pytest.mark.parametrize("build", [multi_scale, lambda: redrawn(DeformableAttention(CHANNELS, num_heads=HEADS))])
@pytest.mark.parametrize("wrong", ["query", "features"])
def test_a_tensor_of_another_dtype_than_the_module_is_refused_by_name(build, wrong):
    module = build()
    tensors = {"query": draw(BATCH, QUERIES, CHANNELS), "features": draw(BATCH, CHANNELS, 7, 11)}
    tensors[wrong] = tensors[wrong].float()
    features = tensors["features"]
    if isinstance(module, MultiScaleDeformableAttention):
        features = [features, features, features]
    with pytest.raises(TypeError, match=f"^{wrong}: expected the module's dtype float64, got float32"):
        module(tensors["query"], points(BATCH, QUERIES, 2), features)


def test_features_and_masks_of_another_batch_are_refused_by_name():
    module = multi_scale()
    query, references = draw(BATCH, QUERIES, CHANNELS), points(BATCH, QUERIES, 2)
    maps = [draw(BATCH + 1, CHANNELS, H, W) for H, W in SHAPES]
    with pytest.raises(ValueError, match=r"^features\[0\]: expected \[N = 2"):
        module(query, references, maps)
    with pytest.raises(ValueError, match=r"^features: expected \[N = 2"):
        module(query, references, draw(BATCH + 1, PIXELS, CHANNELS), SHAPES)
    masks = [torch.zeros(BATCH + 1, H, W, dtype=torch.bool) for H, W in SHAPES]
    with pytest.raises(ValueError, match=r"^padding_mask: expected .* N = 2"):
        module(query, references, [x[:BATCH] for x in maps], padding_mask=masks)


def test_a_weight_that_is_no_plain_parameter_is_left_to_its_layer():
    class Quantised(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is torch.cat:
                raise NotImplementedError("cat of quantised weights")
            if func is not nn.functional.linear:
                return super().__torch_function__(func, types, args, kwargs or {})
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))

    module = multi_scale()
    inputs = draw(BATCH, QUERIES, CHANNELS), points(BATCH, QUERIES, 2), draw(BATCH, PIXELS, CHANNELS), SHAPES
    expected = module(*inputs)
    weight = module.sampling_offsets.weight.detach().as_subclass(Quantised)
    module.sampling_offsets.weight = nn.Parameter(weight)
    torch.testing.assert_close(module(*inputs), expected)


def test_bfloat16_reference_points_of_an_encoder_are_rounded_once():
    exact = encoder_reference_points([(1, 400)], dtype=torch.float64)
    assert torch.equal(encoder_reference_points([(1, 400)], dtype=torch.bfloat16), exact.bfloat16())


@pytest.mark.parametrize("build", [multi_scale, lambda: redrawn(DeformableAttention(CHANNELS, num_heads=HEADS))])
def test_the_modules_survive_deepcopy_pickle_and_save(build, tmp_path):
    module = build()
    features = [draw(BATCH, CHANNELS, H, W, seed=H) for H, W in SHAPES]
    features = features if isinstance(module, MultiScaleDeformableAttention) else features[0]
    inputs = draw(BATCH, QUERIES, CHANNELS), points(BATCH, QUERIES, 2), features
    expected = module(*inputs)
    torch.save(module, tmp_path / "module.pt")
    torch.save(module.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "module.pt", weights_only=False)
    other = build()
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded, other):
        assert torch.equal(twin(*inputs), expected)


@pytest.mark.parametrize("build", [multi_scale, lambda: redrawn(DeformableAttention(CHANNELS, num_heads=HEADS))])
def test_the_modules_compile_without_a_graph_break(build):
    module = build()
    features = [draw(BATCH, CHANNELS, H, W, seed=H) for H, W in SHAPES]
    features = features if isinstance(module, MultiScaleDeformableAttention) else features[0]
    inputs = draw(BATCH, QUERIES, CHANNELS), points(BATCH, QUERIES, 2), features
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), module(*inputs))
