"""The numbers of the CPU kernels against reference.py: dtypes and layouts that take each path through them."""

import ctypes

import pytest
import torch

from against_reference import DTYPES, classic, compare, differentiable, fused
from deform_attn import multi_scale_deformable_attention

CHANNELS = [32, 30, 16, 64, 7]  # which fill vectors, and which do not
LARGE = [(torch.float32, channels) for channels in CHANNELS] + [(torch.float64, 32), (torch.float64, 30)]
LARGE += [(torch.bfloat16, channels) for channels in (32, 30, 7)] + [(torch.float16, c) for c in (32, 64, 7)]


@pytest.mark.parametrize(("dtype", "channels"), LARGE)
def test_native_agrees_where_maps_are_large_and_read_often(dtype, channels):
    masked = (DTYPES.index(dtype) + CHANNELS.index(channels)) % 2 == 1  # each dtype with and without
    shapes, N, Q, M = [(38, 51), (19, 26), (7, 11)], 2, 1700, 3
    generator = torch.Generator().manual_seed(channels)
    S = sum(H * W for H, W in shapes)
    value = torch.randn(N, S, M, channels, generator=generator).to(dtype)
    references = torch.rand(N, Q, 3, 2, generator=generator)
    offsets = torch.randn(N, Q, M, 3, 3, 2, generator=generator) * 3
    logits = torch.randn(N, Q, M, 9, generator=generator)
    mask = torch.rand(N, S, generator=generator) < 0.2 if masked else None
    value[0, 17, 1, 2] = float("nan")
    compare(fused(shapes), (value, references, offsets, logits), dtype, padding_mask=mask)


def test_native_reads_the_two_parts_of_one_matrix_product_where_they_lie():
    N, Q, M, T, shapes = 2, 9, 3, 8, [(6, 9), (3, 5)]
    product = torch.randn(N, Q, 3 * M * T)
    offsets = product[..., : 2 * M * T].unflatten(-1, (M, T, 2))
    logits = product[..., 2 * M * T :].unflatten(-1, (M, T))
    assert not offsets.is_contiguous()
    tensors = torch.randn(N, 69, M, 32), torch.rand(N, Q, 1, 2), offsets, logits
    compare(fused(shapes), tensors, torch.float32, num_points=[4, 4])
    actual = fused(shapes)(*tensors, num_points=[4, 4], backend="native")
    with torch.profiler.profile() as profile:
        fused(shapes)(*tensors, num_points=[4, 4], backend="native")
    assert "aten::copy_" not in {event.key for event in profile.key_averages()}
    copies = [tensor.contiguous() for tensor in tensors]
    assert torch.equal(actual, fused(shapes)(*copies, num_points=[4, 4], backend="native"))


@pytest.fixture
def _huge_numbers_in_new_memory():
    perturb = getattr(ctypes.CDLL(None), "mallopt", None)
    if perturb is None:
        pytest.skip("the C library cannot fill new memory")
    perturb(-6, 0x80)  # M_PERTURB: with bytes 0x7f
    assert (torch.empty(10_000) > 1e38).all()  # small pieces may come back as they were
    yield
    perturb(-6, 0)


@pytest.mark.usefixtures("_huge_numbers_in_new_memory")
@pytest.mark.parametrize("queries", [2, 900])
@pytest.mark.parametrize("dtype", DTYPES)
def test_native_writes_all_of_its_outputs(dtype, queries):
    shapes, M, D = [(24, 37), (0, 4), (1, 3)], 3, 37
    value = torch.randn(2, 891, M, D).to(dtype)
    locations = torch.rand(2, queries, M, 9, 2) * 4 - 2
    tensors = value, locations, torch.rand(2, queries, M, 9)
    for counts in ([3, 3, 3], [0, 9, 0]):
        compare(classic(shapes), tensors, dtype, num_points=counts)
    empty = differentiable((value, locations[:, :, :, :0], torch.rand(2, queries, M, 0)))
    output = classic(shapes)(*empty, num_points=0, backend="native")
    assert not output.any()
    for tensor, grad in zip(empty, torch.autograd.grad(output.sum(), empty), strict=True):
        assert grad.shape == tensor.shape
        assert not grad.any()


def small(references):
    shapes = [(3, 4), (2, 3)]
    value = torch.randn(1, 18, 2, 3, dtype=torch.float64)
    offsets, logits = torch.randn(1, 2, 2, 2, 2, 2, dtype=torch.float64), torch.randn(1, 2, 2, 4, dtype=torch.float64)
    return shapes, (value, torch.rand(1, 2, *references, dtype=torch.float64), offsets, logits)


# The other pairs of modes are checked on every backend (DERIVATIVES in cases.py).
@pytest.mark.parametrize(("padding_mode", "interpolation"), [("zeros", "bilinear"), ("border", "nearest")])
def test_native_classic_gradients_pass_gradcheck_and_gradgradcheck(padding_mode, interpolation):
    torch.manual_seed(3)
    shapes, (value, _, offsets, logits) = small((1, 2))
    locations, weights = offsets.sigmoid() * 1.3 - 0.15, logits.sigmoid().unflatten(-1, (2, 2))
    options = {"padding_mode": padding_mode, "interpolation": interpolation, "backend": "native"}

    def function(*tensors):
        return classic(shapes)(*tensors, **options)

    tensors = differentiable((value, locations, weights))
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize(("padding_mode", "references"), [("zeros", (1, 2)), ("border", (2, 4))])
def test_native_gradients_from_raw_offsets_pass_gradcheck_and_gradgradcheck(padding_mode, references):
    torch.manual_seed(4)
    shapes, tensors = small(references)
    mask = torch.rand(1, 18) < 0.2

    def function(*tensors):
        return fused(shapes)(*tensors, padding_mask=mask, padding_mode=padding_mode, backend="native")

    assert torch.autograd.gradcheck(function, differentiable(tensors))
    assert torch.autograd.gradgradcheck(function, differentiable(tensors))


def test_native_gives_gradients_only_to_those_that_ask():
    shapes, tensors = small((1, 2))
    everything = differentiable(tensors)
    expected = torch.autograd.grad(fused(shapes)(*everything, backend="native").square().sum(), everything)
    for asking in range(4):
        some = [tensor.detach().requires_grad_(i == asking) for i, tensor in enumerate(tensors)]
        fused(shapes)(*some, backend="native").square().sum().backward()
        assert [tensor.grad is not None for tensor in some] == [i == asking for i in range(4)]
        assert torch.equal(some[asking].grad, expected[asking])


def test_native_counts_an_input_that_was_made_from_another_once():
    value = torch.rand(1, 12, 1, 2, dtype=torch.float64, requires_grad=True)

    def function(value):
        locations = value[:, :4].reshape(1, 4, 1, 1, 2)  # one tensor in two places
        return classic([(3, 4)])(value, locations, locations[..., 0], num_points=1, backend="native")

    assert torch.autograd.gradcheck(function, (value,))
    assert torch.autograd.gradgradcheck(function, (value,))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # read by the check itself
def test_native_ops_keep_the_rules_of_torch_library():
    _, tensors = small((2, 2))
    value, references, offsets, logits = differentiable(tensors)
    offsets = offsets.detach().flatten(3, 4).requires_grad_()
    flat = [3, 4, 2, 3]
    options = [2, 2], "bilinear", "zeros"
    torch.library.opcheck(
        torch.ops.deform_attn.multi_scale_deformable_attention.default,
        (value, flat, offsets, logits, *options),
    )
    torch.library.opcheck(
        torch.ops.deform_attn.deformable_attention.default,
        (value, flat, references, offsets, logits, None, 0.5, *options),
    )


@pytest.mark.slow
@pytest.mark.parametrize("pack", [False, True])
def test_native_takes_values_of_more_than_2_to_the_31_elements(pack):
    # Untouched pages of a fresh allocation take no memory: only the corners of the map are ever written or read.
    H, W, M, D = 2100, 4099, 8, 32
    value = torch.empty(1, H * W, M, D)
    assert value.numel() > 2**31
    rows = torch.tensor([0, 1, W, W + 1, W * (H - 1) - 2, W * (H - 1) - 1, H * W - 2, H * W - 1])
    value[0, rows] = torch.arange(8.0)[:, None, None] + torch.arange(8.0)[:, None] / 16
    assert pack is False or value[:, :, :1].numel() < 2**31
    locations = torch.tensor([[1.0 / W, 1.0 / H], [1 - 1.0 / W, 1 - 1.0 / H]])  # between the four pixels of a corner
    heads = M if not pack else 1
    with torch.no_grad():
        output = multi_scale_deformable_attention(
            value[:, :, M - heads :],
            [(H, W)],
            locations.reshape(1, 2, 1, 1, 1, 2).expand(1, 2, heads, 1, 1, 2),
            torch.ones(1, 2, heads, 1, 1),
            backend="native",
        ).reshape(2, heads, D)
    head = torch.arange(8.0)[M - heads :, None] / 16
    torch.testing.assert_close(output[0], (1.5 + head).expand(heads, D), rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(output[1], (5.5 + head).expand(heads, D), rtol=1e-3, atol=1e-2)
