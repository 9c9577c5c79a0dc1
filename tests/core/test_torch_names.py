"""Private names of torch: all of them in one file, and what happens where torch lacks one."""

import os
import re
from pathlib import Path

import pytest

import deform_attn
from deform_attn import torch_names

PACKAGE = Path(deform_attn.__file__).parent
# torch documents _check, in spite of its name.
PRIVATE = re.compile(r"torch(\.\w+)*\._(?!check\b)\w+|\bforward_ad\._\w+|from torch[.\w]* import .*\b_\w+")

# Each name is taken away in a process of its own, forked from one that has imported the compiler of torch, too.
SCRIPT = r'''
import os, sys
import torch, torch._dynamo  # which needs some of these names itself
from torch.autograd import forward_ad


def judge(name):
    """Run a call and its gradient without the name, and print which backend ran it and what explain says."""
    owner, _, last = name.rpartition(".")
    taken = getattr(eval(owner), last)
    delattr(eval(owner), last)
    import warnings
    warnings.simplefilter("ignore")
    import deform_attn
    torch.manual_seed(0)
    value = torch.randn(1, 6, 2, 3, requires_grad=True)
    call = value, [(2, 3)], torch.full((1, 1, 2, 1, 1, 2), 0.4), torch.ones(1, 1, 2, 1, 1)
    for _ in range(2):  # the second one would be remembered
        output = deform_attn.multi_scale_deformable_attention(*call)
    said = str(deform_attn.explain(*call))
    setattr(eval(owner), last, taken)  # torch's own backward() needs some of them, too
    output.sum().backward()
    # Four corners share a weight of 1 in each of 2 heads of 3 channels.
    assert abs(value.grad.sum().item() - 6) < 1e-5, value.grad
    backend = next(line.split()[1] for line in said.splitlines() if line.startswith("->"))
    print(name, backend, "named" if f"this torch has no {name}" in said else "unnamed")


for name in sys.argv[1:]:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            judge(name)
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        print(name, "failed", "-")
'''


def names_looked_up():
    """Return the private names that the file looks up, in its order."""
    return list(dict.fromkeys(re.findall(r'"(torch\.[\w.]*\b_\w[\w.]*)"', Path(torch_names.__file__).read_text())))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each name is taken from a fork")
def test_without_any_private_name_of_torch_calls_are_still_right_and_explain_names_what_costs_them(children):
    # The keys are attributes of compiled types, which nobody can take away. A logger's name is no attribute.
    names = [name for name in names_looked_up() if not name.startswith("torch._C.DispatchKey.")]
    names.remove(torch_names.EXPORT_LOGGER)
    result = children.run(SCRIPT, *names)
    assert result.returncode == 0, result.stderr
    found = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    expected = {}
    for name in names:
        backend = "native"
        if name in torch_names.TRANSFORMS.names:
            backend = "reference"
        elif name in torch_names.OPS.names:
            backend = "grid_sample"
        # The others cost a call on the CPU nothing, and it has nothing to say of them.
        named = name in torch_names.OPS.names + torch_names.REMEMBERED.names
        expected[name] = [backend, "named" if named else "unnamed"]
    assert len(expected) > 18
    assert found == expected, result.stderr


def test_no_other_file_uses_a_private_name_of_torch():
    wrong = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        if path.name != "torch_names.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if PRIVATE.search(line) and "__" not in PRIVATE.search(line)[0]
    ]
    assert wrong == []


def test_a_private_name_is_known_as_one():
    for line in ("torch._C.DispatchKey", "forward_ad._current_level", "from torch.autograd.function import _Single"):
        assert PRIVATE.search(line)
    for line in ("torch.nn.functional.pad(value)", "torch._check(size > 0)"):
        assert not PRIVATE.search(line)
    assert PRIVATE.search("torch._check_index(index)")
