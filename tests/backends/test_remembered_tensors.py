"""Remembered calls given tensors of the same sizes and another kind: subclasses, zeros, views, other layouts."""

import pytest
import torch
from warm_calls import ENTRY_POINTS, Ops, check, kind_of, results

from deform_attn.backends import remembered
from tolerances import assert_close

FORMS = pytest.mark.parametrize("form", ENTRY_POINTS)


class Plain(torch.Tensor):
    """A subclass that torch treats as it does by default."""


class Quiet(torch.Tensor):
    """A subclass of which functions of torch take no notice."""

    __torch_function__ = torch._C._disabled_torch_function_impl


class Wrapped(torch.Tensor):
    """A subclass that holds a tensor, and whose ops are run on what it holds."""

    seen = ()

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=inner.device, strides=inner.stride()
        )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        Wrapped.seen = (*Wrapped.seen, str(func))
        args, kwargs = torch.utils._pytree.tree_map_only(Wrapped, lambda x: x.inner, (args, kwargs or {}))
        output = func(*args, **kwargs)
        return torch.utils._pytree.tree_map_only(torch.Tensor, Wrapped, output)


@FORMS
@pytest.mark.parametrize("subclass", [Plain, Quiet])
def test_a_subclass_after_warm_calls_has_the_output_and_gradients_of_a_tensor(form, subclass, warm):
    kind = warm(kind_of(form))
    expected = results(kind, "reference")
    cold_type = {}
    for state in ("warm", "cold"):
        if state == "cold":
            remembered._calls.clear()
        for which in range(len(kind.tensors)):
            leaves = kind.leaves()
            given = [leaf.as_subclass(subclass) if i == which else leaf for i, leaf in enumerate(leaves)]
            output = kind(*given)
            assert cold_type.setdefault(which, type(output)) is type(output)
            gradients = torch.autograd.grad(output.sin().sum(), leaves)
            check([x.detach().as_subclass(torch.Tensor) for x in (output, *gradients)], expected)
            with torch.no_grad():
                check(kind(*given).as_subclass(torch.Tensor), expected[0])


@FORMS
def test_a_wrapper_subclass_after_warm_calls_sees_the_op(form, warm):
    kind = warm(kind_of(form, masked=False))
    for which in range(len(kind.tensors)):
        Wrapped.seen = ()
        output = kind(*[Wrapped(tensor) if i == which else tensor for i, tensor in enumerate(kind.tensors)])
        assert type(output) is Wrapped
        assert f"deform_attn.{kind.op}.default" in Wrapped.seen
        assert not any("judged" in name for name in Wrapped.seen)
        check(output.inner, kind.on("reference")(*kind.tensors))


@FORMS
@pytest.mark.parametrize("wrap", [torch.nn.Parameter, torch.nn.Buffer])
def test_parameters_and_buffers_after_warm_calls_are_tensors(form, wrap, warm, short):
    kind = warm(kind_of(form))
    expected = results(kind, "reference")
    given = [wrap(tensor.clone()) for tensor in kind.tensors]
    with torch.no_grad():
        check(kind(*given), expected[0])
    output = kind(*given)
    assert type(output) is torch.Tensor
    assert output.requires_grad == (wrap is torch.nn.Parameter)
    if output.requires_grad:
        check(list(torch.autograd.grad(output.sin().sum(), given)), expected[1:])


@FORMS
@pytest.mark.parametrize("make", ["subclass of Parameter", "Parameter of a subclass"])
def test_a_parameter_of_a_class_of_its_own_after_warm_calls_sees_the_op(form, make, warm):
    seen = []

    class Noted(torch.nn.Parameter if make == "subclass of Parameter" else torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return torch.Tensor.__torch_function__.__func__(cls, func, types, args, kwargs)  # Parameter has none

    kind = warm(kind_of(form))
    expected = results(kind, "reference")
    value, *others = kind.tensors
    given = Noted(value) if make == "subclass of Parameter" else torch.nn.Parameter(value.as_subclass(Noted))
    assert isinstance(given, torch.nn.Parameter)
    for mode in (torch.no_grad, torch.enable_grad):
        seen.clear()
        with mode():
            output = kind(given, *others)
        assert f"deform_attn.{kind.op}.default" in seen
        assert not any("judged" in name for name in seen)
        check(output.detach().as_subclass(torch.Tensor), expected[0])
    (gradient,) = torch.autograd.grad(output.sin().sum(), given)
    check(gradient.as_subclass(torch.Tensor), expected[1])


@pytest.mark.parametrize("subclass", [Plain, Quiet])
def test_a_mask_of_another_class_or_layout_after_warm_calls_is_read(subclass, warm):
    kind = warm(kind_of("fused"))
    expected = kind.on("reference")(*kind.tensors)
    strided = torch.stack([kind.mask, ~kind.mask], -1)[..., 0]
    for mask in (kind.mask.as_subclass(subclass), strided, torch.nn.Buffer(kind.mask.clone())):
        check(kind.function(*kind.tensors, padding_mask=mask).as_subclass(torch.Tensor), expected)
    with Ops() as ops:
        check(kind.function(*kind.tensors, padding_mask=Wrapped(kind.mask)).inner, expected)
    assert ops.seen == [f"deform_attn.{kind.op}.default"]


@FORMS
def test_efficient_zeros_after_warm_calls_are_zeros(form, warm):
    kind = warm(kind_of(form))
    for which in (0, len(kind.tensors) - 1):
        zeros = torch._efficientzerotensor(kind.tensors[which].shape, dtype=torch.float64)
        given = [zeros if i == which else tensor for i, tensor in enumerate(kind.tensors)]
        plain = [torch.zeros_like(tensor) if i == which else tensor for i, tensor in enumerate(kind.tensors)]
        expected = kind.on("reference")(*plain)
        assert_close(kind(*given), expected, torch.float64)
        assert (expected == 0).all() == (which == 0 or form == "classic")
        leaves = [tensor if i == which else tensor.clone().requires_grad_() for i, tensor in enumerate(given)]
        wanted = [tensor if i == which else tensor.clone().requires_grad_() for i, tensor in enumerate(plain)]
        others = [i for i in range(len(leaves)) if i != which]
        for a, e in zip(
            torch.autograd.grad(kind(*leaves).cos().sum() + kind(*leaves).sum(), [leaves[i] for i in others]),
            torch.autograd.grad(
                kind.on("reference")(*wanted).cos().sum() + kind.on("reference")(*wanted).sum(),
                [wanted[i] for i in others],
            ),
            strict=True,
        ):
            assert_close(a, e, torch.float64)


@FORMS
@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_negated_view_after_warm_calls_is_read_with_its_sign(form, requires_grad, warm):
    kind = warm(kind_of(form))
    expected = results(kind, "reference")
    for which in range(len(kind.tensors)):
        leaves = [leaf.requires_grad_(requires_grad) for leaf in kind.leaves()]
        given = [torch._neg_view(-leaf) if i == which else leaf for i, leaf in enumerate(leaves)]
        assert given[which].is_neg()
        output = kind(*given)
        check(output.detach(), expected[0])
        if requires_grad:
            check(list(torch.autograd.grad(output.sin().sum(), leaves)), expected[1:])


@FORMS
def test_the_imaginary_part_of_a_conjugate_after_warm_calls_is_read_with_its_sign(form, warm):
    kind = warm(kind_of(form))
    value, *others = kind.tensors
    view = torch.complex(torch.zeros_like(value), -value).conj().imag  # strided by two, and negated
    assert view.is_neg()
    check(kind(view, *others), kind.on("reference")(*kind.tensors))


@FORMS
def test_views_of_the_shapes_of_a_warm_call_are_read_by_their_strides(form, warm):
    kind = warm(kind_of(form))
    expected = results(kind, "reference")

    def strided(tensor):
        return tensor.transpose(1, -1).contiguous().transpose(1, -1)

    def offset(tensor):
        return torch.cat([torch.full((1,), torch.nan, dtype=tensor.dtype), tensor.flatten()])[1:].view(tensor.shape)

    for change in (strided, offset, lambda tensor: torch.stack([tensor, tensor * torch.nan], -1)[..., 0]):
        for which in range(len(kind.tensors)):
            leaves = kind.leaves()
            given = [change(leaf) if i == which else leaf for i, leaf in enumerate(leaves)]
            output = kind(*given)
            check([output.detach()], expected[:1])
            if change is not strided and change is not offset:
                continue  # the gradient of the other half is that of NaN
            check(list(torch.autograd.grad(output.sin().sum(), leaves)), expected[1:])
            with torch.no_grad():
                check(kind(*given), expected[0])


LAYOUTS = {
    "sparse": lambda x: x.to_sparse(),
    "hybrid": lambda x: x.to_sparse(2),
    "nested": lambda x: torch.nested.as_nested_tensor([x[0]], layout=torch.strided),
    "jagged": lambda x: torch.nested.as_nested_tensor([x[0]], layout=torch.jagged),
    "mkldnn": lambda x: x.to_mkldnn(),
}


@FORMS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_a_tensor_of_another_layout_after_warm_calls_gives_the_error_of_a_cold_call(form, layout, warm):
    kind = warm(kind_of(form, torch.float32))  # mkldnn has no float64
    for which in range(1 if layout == "mkldnn" else len(kind.tensors)):  # which has no more than five axes
        given = [LAYOUTS[layout](tensor) if i == which else tensor for i, tensor in enumerate(kind.tensors)]
        messages = []
        for state in ("warm", "cold"):
            if state == "cold":
                remembered._calls.clear()
            with pytest.raises(TypeError, match=r"^\w+: expected a dense tensor, got a") as caught:
                kind(*given)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
        warm(kind)
