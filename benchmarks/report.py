"""Tables made of results: what docs/benchmarks.md and other pages say in numbers is written here, out of the JSON."""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import stories
from benchmarks.cases import BEYOND, CANONICAL, ENC640
from benchmarks.markdown import table
from benchmarks.models import MODELS, WholeModel
from benchmarks.onnx import EXPORTED
from benchmarks.peers import PEERS
from benchmarks.research import RESEARCH

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("docs/benchmarks.md", "README.md", "docs/trees.md", "docs/evidence.md", "docs/contributing/measurements.md")
DOCUMENTS = tuple(ROOT / page for page in PAGES)
BLOCK = re.compile(r"(<!-- (?P<table>\w+) of (?P<result>[\w-]+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)

Result = Mapping[str, Any]

# (section, case, rival, at least so many times our time)
GOALS = (
    ("forward", "enc640", "eager", 60),
    ("forward", "enc800", "eager", 45),
    ("forward", "dec300", "eager", 25),
    ("training", "enc640", "eager", 25),
    ("forward", "enc640", "onnxruntime", 20),
    ("forward", "enc800", "onnxruntime", 14),
    ("forward", "dec300", "onnxruntime", 40),
    ("forward", "enc640", "openvino", 18),
    ("forward", "enc800", "openvino", 12),
    ("forward", "dec300", "openvino", 100),
    ("forward", "enc640", "torch-ms-deform-attn", 7),
    ("forward", "enc800", "torch-ms-deform-attn", 5),
    ("forward", "dec300", "torch-ms-deform-attn", 6),
    ("training", "enc640", "torch-ms-deform-attn", 5),
)
LABELS = {peer.name: peer.label for peer in PEERS}


def write_documents() -> list[Path]:
    """Write every table of the documents anew from its result, and the plot of the cases that a document shows."""
    from benchmarks import plot

    written = []
    for path in DOCUMENTS:
        text = path.read_text()
        new = BLOCK.sub(lambda found: f"{found[1]}{body(found['table'], found['result'])}{found[5]}", text)
        if new != text:
            path.write_text(new)
            written.append(path)
    shown = {found["result"] for found in BLOCK.finditer(DOCUMENTS[0].read_text()) if found["table"] == "canonical"}
    return written + [plot.draw(load(name)) for name in sorted(shown)]


def body(table: str, name: str) -> str:
    """Return what stands between the marks of the table called `table` of the result called `name`."""
    if not _path(name).exists():
        return "\nNot measured yet.\n\n"
    result = load(name)
    if table in stories.TABLES:
        return f"\n{stories.TABLES[table](result)}\n\n"
    return f"\n{TABLES[table](result) if _has(result, table) else 'Not measured yet.'}\n\n"


def load(name: str) -> Result:
    """Return the result called `name`."""
    return json.loads(_path(name).read_text())


def _path(name: str) -> Path:
    return RESULTS / f"{name}.json"


def machine(result: Result) -> str:
    """Return what it was measured on."""
    here = result["machine"]
    lines = [
        ("processor", f"{here['processor']}, {here['cores']} cores, {', '.join(here['instruction_sets'])}"),
        ("memory", f"{here['memory_gib']} GiB"),
        ("system", f"{here['system']}, Python {here['python']}"),
        ("threads", f"{result['threads']} for everybody"),
        ("instruction set of our kernels", here["our_instruction_set"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in result["versions"].items())),
        ("commit of the sources", result["commit"]),
        ("measured", ", ".join(sorted(set(result["measured"].values())))),
    ]
    return table(("", ""), lines)


def canonical(result: Result) -> str:
    """Return the forward times of the canonical cases against every rival."""
    return _cases(result, "forward", [case.name for case in CANONICAL], [peer.name for peer in PEERS])


def beyond(result: Result) -> str:
    """Return the forward times of the other cases against the rivals that can run them."""
    names = ["eager", "onnxruntime", "openvino", "torch-ms-deform-attn"]
    return _cases(result, "forward", [case.name for case in BEYOND], names)


def training(result: Result) -> str:
    """Return the times of forward and backward together."""
    names = [peer.name for peer in PEERS if peer.trains]
    return _cases(result, "training", [case.name for case in CANONICAL + BEYOND], names)


def goals(result: Result) -> str:
    """Return each goal with what was measured."""
    rows = []
    for section, case, rival, least in GOALS:
        row = result.get(section, {}).get(case, {}).get("times", {}).get(rival, {})
        if "ratio" not in row:
            continue
        what = "forward" if section == "forward" else "forward + backward"
        limit = result[section][case]["times"].get("limit", {})
        ceiling = f"{_ratio(row['ratio'] / limit['ratio'])}" if "ratio" in limit else ""
        low, high = (_ratio(quartile) for quartile in row["ratio_quartiles"])
        measured = f"{_ratio(row['ratio'])} ({low} - {high})"
        rows.append(
            (f"{case} {what}, {LABELS[rival]}", f"≥ {least}x", measured, ceiling, _verdict(row["ratio"], least))
        )
    for case in ("enc640", "enc800", "dec300"):
        row = result.get("forward", {}).get(case, {}).get("times", {}).get("limit", {})
        if "ratio" in row:
            share = 1 / row["ratio"]
            rows.append((f"{case} forward, the physical limit", "≤ 2.5x", f"{share:.2f}x", "", _verdict(2.5, share)))
    if "thread_scaling" in result:
        gain = result["thread_scaling"]["forward"]["times"]["1"]["ratio"]
        rows.append(("enc640 forward, two threads against one", "≥ 1.85x", f"{gain:.2f}x", "", _verdict(gain, 1.85)))
    if "module" in result:
        times = result["module"]["times"]
        share = 1 / times["products"]["ratio"]
        rows.append(("enc800 module, its matrix products alone", "≤ 1.25x", f"{share:.2f}x", "", _verdict(1.25, share)))
        gain = 1 / times["module bfloat16"]["ratio"]
        rows.append(("enc800 module, bfloat16 against float32", "≥ 1.8x", f"{gain:.2f}x", "", _verdict(gain, 1.8)))
    for what in ("forward", "training"):
        if "compiled" in result:
            gain = 1 / result["compiled"][what]["times"]["compiled"]["ratio"]
            label = f"encoder layer under torch.compile against eager, {what}"
            rows.append((label, "≥ 1x", f"{gain:.2f}x", "", _verdict(gain, 1)))
    if "overhead" in result:
        times = result["overhead"]["times"]
        for name in ("classic", "fused"):
            beyond = 1e3 * (times[name]["median_ms"] - times["kernel"]["median_ms"])
            rows.append(
                (f"a tiny call, {name}, beyond its kernel", "≤ 15 µs", f"{beyond:.1f} µs", "", _verdict(15, beyond))
            )
    if result.get("end_to_end"):  # empty where every model was skipped
        detr = result["end_to_end"].get("deformable_detr", {})
        for what, least in (("inference", 1.8), ("encoder", 4), ("training", 2)):
            if what in detr:
                gain = detr[what]["times"]["stock"]["ratio"]
                rows.append(
                    (f"Deformable DETR patched, {what}", f"≥ {least}x", f"{gain:.2f}x", "", _verdict(gain, least))
                )
        gains = {
            f"{name}, {what}": row[what]["times"]["stock"]["ratio"]
            for name, row in result["end_to_end"].items()
            for what in ("inference", "training")
        }
        worst = min(gains, key=gains.__getitem__)
        measured = f"{gains[worst]:.2f}x ({worst})"
        rows.append(("any model patched, at worst", "≥ 1x", measured, "", _verdict(gains[worst], 1)))
    if "forward" in result.get("memory", {}):
        memory = result["memory"]
        # Beside the output each thread may keep the one head's map that it reads, ...
        fused, maps = memory["forward"]["ours_fused"], _halo_map() * result["threads"]
        rows.append(_memory_goal("forward: the output, a head's map a thread", fused, maps, 0.01 * fused["returned"]))
        if "queries" in memory:
            # ... and nothing may grow with N*Q*M*L*P. A page more or less is a tenth of a byte for each point.
            few, many = memory["queries"].values()
            beside = [row["peak_growth"] - row["returned"] for row in (few, many)]
            points = (many["returned"] - few["returned"]) / (4 * ENC640.channels) * sum(ENC640.num_points)
            grown = max(0, beside[1] - beside[0]) / points
            what = "memory forward: a point more, beside the output"
            rows.append((what, "0 bytes", f"{grown:.2f} bytes", "", _verdict(0.1, grown)))
        for name, label in (("ours", "classic op"), ("ours_fused", "op from raw numbers")):
            # The output lives while its gradients are computed; beside them one more copy of grad_value is allowed.
            extra = memory["forward"][name]["returned"] + memory["value"]
            row = memory["training"][name]
            rows.append(_memory_goal(f"both ways, {label}: gradients and one copy", row, extra, 0.01 * extra))
    if "map_sizes" in result:
        worst = max(_growths(result, "window"))
        rows.append(("H*W doubled, same pixels read", "≤ 1.10x", f"{worst:.2f}x at worst", "", _verdict(1.1, worst)))
    return table(("goal", "", "measured", "at the limit", ""), rows)


def thread_scaling(result: Result) -> str:
    """Return the times of one thread and of all."""
    rows = []
    for what, label in (("forward", "forward"), ("training", "forward + backward")):
        times = result["thread_scaling"][what]["times"]
        (many,) = (name for name in times if name != "1")
        rows.append((label, _ms(times["1"]), _ms(times[many]), f"{times['1']['ratio']:.2f}x"))
    return table(("enc640", "1 thread", f"{result['threads']} threads", "gain"), rows)


def memory(result: Result) -> str:
    """Return what one call needs at its peak."""
    section = result["memory"]
    if "absent" in section:
        return f"Not measured: {section['absent']}."
    labels = {"ours": "ours", "ours_fused": "ours, from raw numbers", **LABELS}
    rows = []
    for name, label in labels.items():
        cells = [label]
        for what in ("forward", "training"):
            row = section[what].get(name, {"absent": ""})
            cells.append("-" if "absent" in row else _mb(row["peak_growth"]))
        if cells[1:] != ["-", "-"]:
            rows.append(tuple(cells))
    output, gradients = (section[what]["ours"]["returned"] for what in ("forward", "training"))
    rows.append(("what the call returns: output; gradients", _mb(output), _mb(gradients)))
    return table((f"{section['case']}, peak growth", "forward", "forward + backward"), rows)


def map_sizes(result: Result) -> str:
    """Return the cost of the same number of queries on larger and larger maps."""
    section = result["map_sizes"]
    times = section["times"]
    rows = [
        (
            name.removeprefix("map-"),
            *(f"{_ms(times[f'{name} {way}'])}" for way in ("window", "spread", "eager")),
        )
        for name in section["pixels"]
    ]
    return table((f"one map, {section['queries']} queries", "same window", "spread", "grid_sample, spread"), rows)


def query_counts(result: Result) -> str:
    """Return the cost of more and more queries."""
    section = result["query_counts"]
    rows = [
        (str(Q), _ms(section["times"][name]), f"{1e3 * section['times'][name]['median_ms'] / Q:.3f} µs")
        for name, Q in section["queries"].items()
    ]
    return table(("queries on the maps of enc640", "forward", "a query"), rows)


def module(result: Result) -> str:
    """Return the time of the whole module beside its parts."""
    times = result["module"]["times"]
    labels = {
        "module": "module, float32",
        "products": "its matrix products alone, float32",
        "module bfloat16": "module, bfloat16",
        "products bfloat16": "its matrix products alone, bfloat16",
        "module of transformers": "transformers' module, float32",
    }
    rows = [(label, _ms(times[name]), _ratio(times[name]["ratio"])) for name, label in labels.items() if name in times]
    return table(("enc800", "forward", "to ours"), rows)


def compiled(result: Result) -> str:
    """Return the times of an encoder layer as it is and under torch.compile."""
    rows = []
    for what, label in (("forward", "forward"), ("training", "forward + backward")):
        times = result["compiled"][what]["times"]
        gain = 1 / times["compiled"]["ratio"]
        rows.append((label, _ms(times["eager"]), _ms(times["compiled"]), f"{gain:.2f}x"))
    return table(("an encoder layer, enc640", "eager", "torch.compile", "gain"), rows)


def overhead(result: Result) -> str:
    """Return what a call costs beyond its kernel."""
    times = result["overhead"]["times"]
    rows = [(name, f"{1e3 * row['median_ms']:.1f} µs") for name, row in times.items()]
    return table(("a tiny call, one thread", "median"), rows)


def end_to_end(result: Result) -> str:
    """Return the times of whole models of transformers as they come and patched."""
    return _whole_models(result, MODELS, "one picture")


def research(result: Result) -> str:
    """Return the times of whole models of research code as they come and patched, and the torch they ran with."""
    return _whole_models(result, RESEARCH, f"one picture, torch {result['versions']['torch']}")


def _whole_models(result: Result, models: Mapping[str, WholeModel], what: str) -> str:
    rows = []
    for name, case in models.items():
        row = result["end_to_end"].get(name)
        if row is None:
            continue
        rows.append((case.label, *_gain(row["inference"]), *_gain(row["training"])))
        if "encoder" in row:
            rows.append(("its encoder alone", *_gain(row["encoder"]), "", "", ""))
        if case.use_stand_in is not None:
            times = (*_gain(row["inference"], "stand-in"), *_gain(row["training"], "stand-in"))
            rows.append(("the same model, its extension's stand-in instead of `patch`", *times))
    header = (what, "inference, stock", "patched", "gain", "training step, stock", "patched", "gain")
    return table(header, rows)


def detector(result: Result) -> str:
    """Return the seconds a picture that the compact detector takes, by phase."""
    rows = []
    for side, row in _sides(result):
        for what in ("training", "inference"):
            seconds = row[what]["seconds"]
            phases = ", ".join(f"{name} {1e3 * taken:.1f}" for name, taken in seconds.items())
            rows.append((f"{side} x {side}, {what}", f"{sum(seconds.values()):.3f} s", phases))
    return table(("", "a picture", "of which, in ms"), rows)


def detector_shares(result: Result) -> str:
    """Return the shares of the kinds of operators in the compact detector's time."""
    rows = [
        (f"{side} x {side}, {what}", *(f"{100 * share:.0f} %" for share in row[what]["shares"].values()))
        for side, row in _sides(result)
        for what in ("training", "inference")
    ]
    return table(("", *next(_sides(result))[1]["training"]["shares"]), rows)


def onnx(result: Result) -> str:
    """Return the times of whole models as files of ONNX, by runtime and form."""
    sides = {"stock": "PyTorch, stock", "patched": "PyTorch, patched"}
    rows, names = [], []
    for name, row in result["onnx"].items():
        times = row["times"]
        names = [*times]
        best = min(times, key=lambda side: times[side]["median_ms"])
        cells = [f"**{_seconds(times[side])}**" if side == best else _seconds(times[side]) for side in names]
        rows.append((EXPORTED[name].label, *cells))
    return table(("one picture", *(sides.get(name, name) for name in names)), rows)


def operators(result: Result) -> str:
    """Return the times of the op in ONNX Runtime, as our operator and as GridSample, beside that in PyTorch."""
    rows, sides = [], []
    for name, row in result["operators"].items():
        sides = [*row["times"]]
        rows.append((name, *(f"{_ms(each)} ({_ratio(each['ratio'])})" for each in row["times"].values())))
    return table(("", *sides), rows)


def _sides(result: Result) -> Iterator[tuple[str, Result]]:
    return ((side, row) for side, row in result["detector"].items() if side.isdigit())


def _gain(row: Result, side: str = "patched") -> tuple[str, str, str]:
    times = row["times"]
    return _seconds(times["stock"]), _seconds(times[side]), f"{times['stock']['ratio'] / times[side]['ratio']:.2f}x"


def _seconds(row: Result) -> str:
    return f"{row['median_ms'] / 1e3:.2f} s"


TABLES: dict[str, Callable[[Result], str]] = {
    "machine": machine,
    "canonical": canonical,
    "beyond": beyond,
    "training": training,
    "thread_scaling": thread_scaling,
    "module": module,
    "compiled": compiled,
    "overhead": overhead,
    "end_to_end": end_to_end,
    "research": research,
    "detector": detector,
    "detector_shares": detector_shares,
    "onnx": onnx,
    "operators": operators,
    "memory": memory,
    "map_sizes": map_sizes,
    "query_counts": query_counts,
    "goals": goals,
}


def tables_of(result: Result) -> str:
    """Return all tables that `result` has the sections for."""
    return "\n\n".join(TABLES[name](result) for name in TABLES if _has(result, name))


def in_a_line(row: Result) -> str:
    """Return one case in short, for the eye during a run."""
    parts = [
        f"{name} {times['median_ms']} ms ({_ratio(times['ratio'])})"
        for name, times in row["times"].items()
        if "absent" not in times
    ]
    return f"{row['backend']}: {', '.join(parts)}; {row['busy_elsewhere']} cores busy elsewhere"


def _has(result: Result, table: str) -> bool:
    """Return whether `result` has the section, or the models, that `table` shows."""
    models = {"end_to_end": MODELS, "research": RESEARCH}
    if table in models:
        return not models[table].keys().isdisjoint(result.get("end_to_end", {}))
    sections = {"canonical": "forward", "beyond": "forward", "goals": "machine", "detector_shares": "detector"}
    return sections.get(table, table) in result


def _cases(result: Result, section: str, names: list[str], rivals: list[str]) -> str:
    rows = []
    limit = section == "forward"
    for name in names:
        case = result.get(section, {}).get(name)
        if case is None:
            continue
        times = case["times"]
        cells = [name, f"**{_ms(times['ours'])}**", _ms(times["ours_fused"])]
        if limit:
            cells.append(_ms(times["limit"]) if "limit" in times else "-")
        for rival in rivals:
            row = times.get(rival, {"absent": ""})
            cells.append("-" if "absent" in row else f"{_ms(row)} ({_ratio(row['ratio'])})")
        rows.append(tuple(cells))
    header = ("", "ours", "ours, raw numbers", *(["limit"] if limit else []), *(LABELS[rival] for rival in rivals))
    return table(header, rows)


def _growths(result: Result, way: str) -> list[float]:
    section = result["map_sizes"]
    medians = [section["times"][f"{name} {way}"]["median_ms"] for name in section["pixels"]]
    return [later / earlier for earlier, later in itertools.pairwise(medians)]


def _halo_map() -> int:
    """Return the bytes of one head's map of enc640 with the halo that our kernels read it in."""
    return 4 * ENC640.channels * sum((H + 3) * (W + 1) + 2 for H, W in ENC640.spatial_shapes)


def _memory_goal(label: str, row: Result, extra: float, slack: float) -> tuple[str, ...]:
    allowed = row["returned"] + extra
    return (
        f"memory {label}",
        f"≤ {_mb(allowed)}",
        _mb(row["peak_growth"]),
        "",
        _verdict(allowed + slack, row["peak_growth"]),
    )


def _verdict(larger: float, smaller: float) -> str:
    return "met" if larger >= smaller else f"missed by {100 * (1 - larger / smaller):.0f} %"


def _ms(row: Result) -> str:
    median = row["median_ms"]
    return f"{median:.3f} ms" if median < 1 else f"{median:.2f} ms" if median < 10 else f"{median:.1f} ms"


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.1f}x"


def _mb(number: float) -> str:
    return f"{number / 1e6:.1f} MB"
