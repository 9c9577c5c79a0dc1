"""Remembered calls in other places: inside custom ops, functions of autograd and backward, in threads and copies."""

import copy
import itertools
import pickle
import threading

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from warm_calls import ENTRY_POINTS, MODULES, check, kind_of, results

from deform_attn import use_backend
from tolerances import assert_close

FORMS = pytest.mark.parametrize("form", ENTRY_POINTS)


@FORMS
def test_another_backend_inside_after_warm_calls_is_used(form, warm, short):
    kind = warm(kind_of(form))
    calls = len(short)
    with use_backend("reference"):
        with torch.profiler.profile() as profile:
            results(kind)
        assert not any("deform_attn::" in event.key for event in profile.key_averages())
    assert len(short) == calls
    kind()
    assert len(short) == calls + 1


@pytest.mark.parametrize("form", MODULES)
@pytest.mark.parametrize("remade", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_of_a_warm_module_is_independent_of_it(form, remade, warm):
    kind = warm(kind_of(form))
    expected = kind()
    other = remade(kind.function)
    assert_close(other(*kind.tensors), expected, torch.float64)
    for parameter in other.parameters():
        parameter.mul_(1.5)
        parameter.requires_grad_()
    output = other(*kind.tensors)
    assert not torch.allclose(output, expected)
    with use_backend("reference"):
        wanted = torch.autograd.grad(other(*kind.tensors).sin().sum(), list(other.parameters()))
    check(list(torch.autograd.grad(output.sin().sum(), list(other.parameters()))), list(wanted))
    assert torch.equal(kind(), expected)
    assert not kind().requires_grad


@FORMS
def test_a_custom_op_may_make_warm_calls_below_autograd(form, warm):
    kind = warm(kind_of(form))
    requires = []

    @torch.library.custom_op(f"deform_attn_warm::{form}", mutates_args=())
    def outer(value: torch.Tensor, others: list[torch.Tensor]) -> torch.Tensor:
        requires.append(value.requires_grad)
        return kind(value, *others)

    leaves = kind.leaves()
    expected = kind()
    for tensors in (kind.tensors, leaves):
        for mode in (torch.no_grad, torch.enable_grad):
            with mode():
                check(outer(tensors[0], tensors[1:]).detach(), expected)
    assert len(requires) == 4

    def backward(ctx, gradient):
        with torch.enable_grad():
            copies = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
            first, *rest = torch.autograd.grad(kind(*copies), copies, gradient)
        return first, rest

    def setup(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], *inputs[1])

    outer.register_autograd(backward, setup_context=setup)
    gradients = torch.autograd.grad(outer(leaves[0], leaves[1:]).sin().sum(), leaves)
    check(list(gradients), results(kind, "reference")[1:])


@FORMS
def test_an_autograd_function_may_make_warm_calls(form, warm):
    kind = warm(kind_of(form))

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):
            ctx.save_for_backward(*tensors)
            output = kind(*tensors)
            assert not output.requires_grad
            return 2 * output

        @staticmethod
        def backward(ctx, gradient):
            with torch.enable_grad():
                copies = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
                return torch.autograd.grad(2 * kind(*copies), copies, gradient)

    with use_backend("reference"):
        expected = results(kind, function=lambda *tensors: 2 * kind(*tensors))
    check(results(kind, function=Doubled.apply), expected)


@FORMS
def test_a_warm_call_inside_backward_of_another_is_right(form, warm):
    kind = warm(kind_of(form))
    expected = results(kind, "reference")
    inside, leaves = [], kind.leaves()
    output = kind(*leaves)

    def hook(gradient):
        with torch.enable_grad():  # which backward turns off
            inside.append((kind(*leaves), results(kind)))
        inside.append((kind(*leaves), [expected[0]]))

    output.register_hook(hook)
    gradients = torch.autograd.grad(output.sin().sum(), leaves)
    check([output.detach(), *gradients], expected)
    assert [plain.requires_grad for plain, _ in inside] == [True, False]
    for plain, nested in inside:
        check([plain.detach(), *nested], [expected[0], *expected[: len(nested)]])


def test_eight_threads_with_grad_modes_of_their_own_do_not_see_one_another(warm):
    kinds = {form: warm(kind_of(form)) for form in ENTRY_POINTS + MODULES}
    expected = {form: results(kind, "reference") for form, kind in kinds.items()}
    start, wrong = threading.Barrier(8), []

    def work(form, enabled):
        kind = kinds[form]
        start.wait()
        try:
            for _ in range(30):
                with torch.set_grad_enabled(enabled):
                    leaves = kind.leaves()
                    output = kind(*leaves)
                    assert output.requires_grad == enabled
                found = [output.detach(), *torch.autograd.grad(output.sin().sum(), leaves)] if enabled else [output]
                check(found, expected[form][: len(found)])
        except (AssertionError, RuntimeError) as error:
            wrong.append((form, enabled, error))

    threads = [threading.Thread(target=work, args=each) for each in itertools.product(kinds, (False, True))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_threads_that_warm_the_same_kinds_at_once_are_right(cold):
    kinds = {form: kind_of(form) for form in ENTRY_POINTS + MODULES}
    expected = {form: results(kind, "reference") for form, kind in kinds.items()}
    start, wrong = threading.Barrier(8), []

    def work(number):
        start.wait()
        for form in list(kinds)[number % 4 :] + list(kinds)[: number % 4]:
            try:
                for _ in range(3):
                    check(kinds[form]().detach(), expected[form][0])
                    check(results(kinds[form]), expected[form])
            except (AssertionError, RuntimeError) as error:
                wrong.append((form, error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_mode_or_a_transform_in_one_thread_is_no_matter_of_warm_calls_in_another(warm):
    kind = warm(kind_of("classic"))
    expected = results(kind, "reference")
    inside, done, found = threading.Event(), threading.Event(), []

    def work():
        inside.wait()
        found.extend([kind(), results(kind)])
        done.set()

    def loss(*tensors):
        output = kind(*tensors).sin().sum()
        inside.set()
        assert done.wait(60)
        return output + kind(*tensors).sin().sum()

    thread = threading.Thread(target=work)
    thread.start()
    gradients = torch.func.grad(loss, (0, 1, 2))(*kind.tensors)
    thread.join()
    check(list(gradients), [2 * gradient for gradient in expected[1:]])
    check([found[0], *found[1]], [expected[0], *expected])


@pytest.mark.parametrize("form", MODULES)
def test_a_module_warm_before_it_is_distributed_has_the_gradients_of_the_reference(form, warm, tmp_path):
    kind = warm(kind_of(form))
    for parameter in kind.function.parameters():
        parameter.requires_grad_()
    with use_backend("reference"):
        loss = kind().sin().sum()
        expected = torch.autograd.grad(loss, list(kind.function.parameters()))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        distributed = DistributedDataParallel(kind.function)
        for _ in range(2):
            distributed.zero_grad()
            distributed(*kind.tensors).sin().sum().backward()
            check([parameter.grad for parameter in kind.function.parameters()], list(expected))
    finally:
        dist.destroy_process_group()


@FORMS
def test_the_number_of_threads_may_change_between_warm_calls(form, warm):
    kind = warm(kind_of(form))
    expected = results(kind, "reference")
    before = torch.get_num_threads()
    try:
        outputs = []
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            outputs.append(kind())
            check(results(kind), expected)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@FORMS
def test_an_autograd_function_with_warm_calls_goes_through_transforms(form, warm):
    kind = warm(kind_of(form))
    places = tuple(range(len(kind.tensors)))

    class Doubled(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*tensors):
            return 2 * kind(*tensors)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, gradient):
            return torch.func.vjp(lambda *tensors: 2 * kind(*tensors), *ctx.saved_tensors)[1](gradient)

    def doubled(*tensors):
        return 2 * kind.on("reference")(*tensors)

    stacks = [torch.stack([tensor, tensor * 0.9]) for tensor in kind.tensors]
    for transform, tensors in (
        (lambda f: torch.func.grad(lambda *x: f(*x).sin().sum(), places), kind.tensors),
        (torch.func.vmap, stacks),
        (lambda f: torch.func.vmap(torch.func.grad(lambda *x: f(*x).sin().sum(), places)), stacks),
        (lambda f: torch.func.jacrev(f, places), kind.tensors),
    ):
        check(transform(Doubled.apply)(*tensors), transform(doubled)(*tensors))
