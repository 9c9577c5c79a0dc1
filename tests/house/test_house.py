"""The house: the public names, who imports whom, what the core needs, what is unpickled, and how large files are."""

import ast
import functools
import importlib.util
import re
from pathlib import Path

import deform_attn

PACKAGE = Path(deform_attn.__file__).parent
ROOT = Path(__file__).parents[2]
EXTRAS = {"accelerate", "huggingface_hub", "matplotlib", "mpl_toolkits", "numpy", "onnx", "onnxruntime"} | {
    "onnxscript", "PIL", "pycocotools", "safetensors", "scipy", "sklearn", "tensorboard", "tomlkit", "tqdm",
    "transformers",
}  # fmt: skip
# Each row may import from its own row and from those above it.
FLOORS = [
    {
        "messages",
        "signatures",
        "torch_names",
        "tensor_checks",
        "whole_numbers",
        "checks",
        "module_checks",
        "shape_checks",
        "untraced",
        "tracing",
        "evaluating",
        "cells",
        "reference",
    },
    {"torch_ops"},
    {"backends"},
    {"functional"},
    {"modules", "recording", "reference_points"},
    {"interop", "export"},
    {"stand_ins"},
    {"detr", "explore", "timing"},
    {"cli"},
    {"__main__"},
]

DETR_FLOORS = [
    {"errors", "extra", "boxes", "device", "files"},
    {"config"},
    {"data"},
    {"model"},
    {"evaluation", "drawing"},
    {"checkpoints"},
    {"prediction", "training"},
    {"demo"},
]
# Beside the names of the root: the type of what `record` yields, and the room that writes files of ONNX.
PUBLIC = {"deform_attn.recording.Record", "deform_attn.export.Exported", "deform_attn.export.to_onnx"}
# What the detector shares with the package beyond the public names.
OPEN_TO_DETR = {("detr", "export"), ("detr", "evaluating")}
MOST_MODULES = 20  # of one folder


def modules():
    return sorted(path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))


def file_of(module):
    return PACKAGE / module.with_suffix(".py")


def found(wrong):
    """Return those modules of a mapping of which there is something to say."""
    return {module: what for module, what in wrong.items() if what}


def part(parts):
    """Return the top-level part of the package that a module belongs to."""
    return parts[0] if parts else "__init__"


def floor(name, floors=None):
    return next((i for i, names in enumerate(floors or FLOORS) if name in names), None)


def is_type_checking(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@functools.cache
def imports(path):
    """Return (module imported, whether at the top of the file) for each import of a source file."""
    return list(imports_in(path))


def imports_in(path):
    tree = ast.parse(path.read_text())
    later = (ast.FunctionDef, ast.AsyncFunctionDef)  # what runs only when called
    blocks = [node for node in ast.walk(tree) if isinstance(node, later) or is_type_checking(node)]
    top = set(ast.walk(tree)) - {node for block in blocks for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in top
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node in top


def imports_of(module):
    return imports(file_of(module))


def upward_imports(importer, imported_names):
    """Return those of the `imported_names` that lie on a floor above that of the part `importer`."""
    wrong = []
    for name in imported_names:
        segments = name.split(".")
        if segments[0] != "deform_attn" or len(segments) == 1:
            continue
        imported = part(segments[1:])
        if imported in deform_attn.__all__ or name in PUBLIC:
            # The root, which gives out the public names, stands above interop.
            if floor(importer) <= floor("interop"):
                wrong.append(name)
        elif floor(imported) is not None and (
            floor(imported) > floor(importer)
            or (floor(importer) == floor("detr") and imported != importer and (importer, imported) not in OPEN_TO_DETR)
        ):
            wrong.append(name)
    return wrong


def upward_imports_in_detr(importer, imported_names):
    """Return those of the `imported_names` that lie on a floor of the detector above that of its part `importer`."""
    inside = [name.split(".") for name in imported_names if name.startswith("deform_attn.detr.")]
    floors = {".".join(segments): floor(segments[2], DETR_FLOORS) for segments in inside}
    return [name for name, of_name in floors.items() if of_name is None or of_name > floor(importer, DETR_FLOORS)]


def test_the_public_names_are_these():
    assert deform_attn.__all__ == [
        "DeformableAttention",
        "MultiScaleDeformableAttention",
        "deformable_attention",
        "encoder_reference_points",
        "explain",
        "multi_scale_deformable_attention",
        "patch",
        "record",
        "unpatch",
        "use_backend",
    ]
    for name in deform_attn.__all__:
        assert getattr(deform_attn, name).__doc__


def test_every_module_is_on_a_floor():
    assert {
        str(module) for module in modules() if module.parts != ("__init__",) and floor(part(module.parts)) is None
    } == set()


def test_no_module_imports_upward():
    upward = {
        str(module): upward_imports(part(module.parts), [name for name, _ in imports_of(module)])
        for module in modules()
        if module.parts != ("__init__",)
    }
    assert found(upward) == {}


def test_no_module_of_the_detector_imports_upward():
    upward = {
        str(module): upward_imports_in_detr(module.parts[1], [name for name, _ in imports_of(module)])
        for module in modules()
        if module.parts[0] == "detr" and module.parts[1] != "__init__"
    }
    assert found(upward) == {}


def test_no_folder_holds_too_many_modules():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    count = {folder: len([p for p in folder.glob("*.py") if p.stem != "__init__"]) for folder in folders}
    assert {folder.name: n for folder, n in count.items() if n > MOST_MODULES} == {}
    assert max(count.values()) > 10


def test_the_import_order_test_sees_an_upward_import():
    assert upward_imports("checks", ["deform_attn.functional.explain"]) == ["deform_attn.functional.explain"]
    assert upward_imports("detr", ["deform_attn.interop.patch"]) == ["deform_attn.interop.patch"]
    assert upward_imports("detr", ["deform_attn.record", "deform_attn.checks.x"]) == ["deform_attn.checks.x"]
    assert upward_imports("checks", ["deform_attn.recording.Record"]) == ["deform_attn.recording.Record"]
    assert upward_imports("explore", ["deform_attn.recording.Record", "deform_attn.recording.x"]) == [
        "deform_attn.recording.x"
    ]
    assert upward_imports("explore", ["deform_attn.detr.boxes.iou"]) == ["deform_attn.detr.boxes.iou"]
    to_onnx = ["deform_attn.export.onnx.to_onnx"]
    assert upward_imports("detr", to_onnx) == []
    held = ["deform_attn.evaluating.evaluating"]
    assert upward_imports("detr", held) == upward_imports("export", held) == []
    assert upward_imports("explore", held) == held
    assert upward_imports("explore", to_onnx) == upward_imports("functional", to_onnx) == to_onnx
    assert upward_imports("functional", ["deform_attn.record"]) == ["deform_attn.record"]
    assert upward_imports("interop", ["deform_attn.record"]) == ["deform_attn.record"]
    assert upward_imports("interop", ["deform_attn.recording.sampling_of", "deform_attn.functional.explain"]) == []
    assert upward_imports("functional", ["deform_attn.checks", "torch.nn"]) == []
    upward = ["deform_attn.detr.training.engine.fit"]
    assert upward_imports_in_detr("data", [*upward, "deform_attn.detr.errors.DataError", "torch"]) == upward


def test_packages_of_an_extra_are_imported_inside_the_function_that_needs_them():
    at_top = {
        str(module): [name for name, top in imports_of(module) if top and name.split(".")[0] in EXTRAS]
        for module in modules()
    }
    assert found(at_top) == {}


def test_only_the_gpu_kernels_import_triton_at_their_top_and_only_functions_import_them():
    kernels = "deform_attn.backends.triton.kernels."
    inside = {module for module in modules() if str(module).startswith("backends/triton/kernels/")}
    wrong = {
        str(module): [n for n, top in imports_of(module) if top and (n.split(".")[0] == "triton" or kernels in n)]
        for module in modules()
        if module not in inside
    }
    assert found(wrong) == {}
    assert len(inside) > 5


def test_the_backends_with_kernels_do_not_import_each_other():
    for one, other in (("native", "triton"), ("triton", "native")):
        names = {m: [n for n, _ in imports_of(m) if f".{other}." in n] for m in modules() if m.parts[1:2] == (one,)}
        assert names
        assert found(names) == {}


def test_it_is_seen_whether_an_import_is_at_the_top(tmp_path):
    source = tmp_path / "module.py"
    source.write_text("import numpy\nfrom PIL import Image\ndef f():\n    import scipy.optimize\n")
    assert imports(source) == [("numpy", True), ("PIL.Image", True), ("scipy.optimize", False)]


def unpickling(source):
    """Return the calls of a source that may run what is in a file: unpickling of more than tensors."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    found = []
    for call in calls:
        given = {each.arg: ast.unparse(each.value) for each in call.keywords}
        safe = {"torch.load": given.get("weights_only") == "True", "numpy.load": "allow_pickle" not in given}
        safe |= dict.fromkeys(("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load"), False)
        if not safe.get(ast.unparse(call.func), True):
            found.append(ast.unparse(call))
    return found


def test_no_module_unpickles_more_than_tensors():
    assert found({str(module): unpickling(file_of(module).read_text()) for module in modules()}) == {}


def test_an_unpickling_is_seen():
    wrong = ["torch.load(x)", "torch.load(x, weights_only=False)", "pickle.loads(x)", "pickle.Unpickler(x).load()"]
    wrong += ["numpy.load(x, allow_pickle=True)", "joblib.load(x)"]
    assert all(unpickling(line) for line in wrong)
    right = ["torch.load(x, weights_only=True)", "json.load(x)", "numpy.load(x)", "torch.export.load(x)"]
    assert not any(unpickling(line) for line in right)


USE = """
import sys, torch
old = set(sys.modules)
import deform_attn
value, weights = torch.ones(1, 6, 1, 1, requires_grad=True), torch.ones(1, 4, 1, 1, 2)
locations = torch.ones(1, 4, 1, 1, 2, 2) / 2
for sizes in ([(2, 3)], torch.tensor([[2, 3]])):
    deform_attn.multi_scale_deformable_attention(value, sizes, locations, weights).sum().backward()
from deform_attn.cli import build_parser
build_parser().format_help()
print(*set(sys.modules) - old)
"""


def test_neither_the_package_nor_eager_calls_nor_the_help_of_every_verb_load_an_extra_or_the_compiler_of_torch(
    children,
):
    result = children.run(USE)
    assert result.returncode == 0, result.stderr
    added = set(result.stdout.split())
    assert "deform_attn.cli.train" in added
    assert EXTRAS & added == set()
    compiler = {"torch._dynamo", "torch.fx.experimental.symbolic_shapes", "sympy"}
    assert compiler & added == set()
    assert all(importlib.util.find_spec(name) for name in compiler)


def test_a_file_says_in_its_first_line_what_it_is_and_stays_small():
    silent, long = set(), {}
    for module in modules():
        source = file_of(module).read_text()
        if not ast.get_docstring(ast.parse(source)):
            silent.add(str(module))
        if (lines := len(source.splitlines())) > (250 if module.parts[0] in ("detr", "explore", "cli") else 400):
            long[str(module)] = lines
    assert silent == set()
    assert long == {}


def test_the_layout_in_contributing_is_that_of_the_imports():
    """Each part has a row, in the order of the floors, and no row allows an import from a later one."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("| part | owns | may import |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([^|]*) \| [^|]* \| ([^|]*) \|$", text, re.MULTILINE)
    parts, allowed = ([re.findall(r"`(\w+)(?:/|\.py)`", row[i]) for row in rows] for i in (0, 1))
    floors = [{floor(name) for name in names} for names in parts]
    assert all(len(of_row) == 1 for of_row in floors)
    order = [min(of_row) for of_row in floors]
    assert order == sorted(order)
    assert {name for names in parts for name in names} == set().union(*FLOORS) - {"__main__"}
    assert all(floor(name) <= own for own, names in zip(order, allowed, strict=True) for name in names)
