"""The benchmark: what its cases are, that it judges before it times, and that the page says what was measured."""

import json
import re
from dataclasses import replace
from importlib.metadata import version
from itertools import chain, islice, pairwise, repeat

import pytest
import torch

from benchmarks import detector, limit, measure, memory, plot, report, run, series, stories
from benchmarks.cases import BEYOND, CANONICAL, CASES, MEMORY, map_size_series, query_series
from benchmarks.peers import EAGER, PEERS, Peer
from deform_attn import timing
from deform_attn.timing import DEC300, ENC640, ENC800

TINY = replace(DEC300, spatial_shapes=((9, 13), (5, 7), (3, 4), (2, 3)), queries=21, heads=3, channels=10)
SHOWN = {name for path in report.DOCUMENTS for _, _, name, *_ in report.BLOCK.findall(path.read_text())}
AWAITED = set()  # those that a page has a place for, and that are not measured yet
COMMITTED = sorted(name for name in SHOWN if (report.RESULTS / f"{name}.json").exists())


def with_a_wrong_point(op):
    """Return `op` with the first query's first point somewhere else."""

    def wrong(value, locations, weights):
        moved = locations.clone()
        moved[:, 0, 0, 0, 0] += 0.2
        return op(value, moved, weights)

    return wrong


def test_the_canonical_cases_have_the_sizes_of_the_models():
    assert [(case.name, case.query_count, case.pixels) for case in CANONICAL] == [
        ("enc800", 22223, 22223),
        ("enc640", 8500, 8500),
        ("dec300", 300, 22223),
        ("rtdetr", 300, 8400),
        ("bev", 40000, 40000),
    ]
    assert all((case.heads, case.channels, set(case.num_points)) == (8, 32, {4}) for case in CANONICAL)
    assert {case.channels for case in BEYOND} == {16, 30, 32, 64}
    assert {case.dtype for case in BEYOND} == set(measure.TOLERANCES)
    assert {case.batch for case in BEYOND} == {1, 2, 8}
    assert len(CASES) == len(CANONICAL) + len(BEYOND)


@pytest.mark.parametrize(
    "case",
    [TINY, replace(TINY, num_points=(3, 6, 3, 2)), replace(TINY, batch=2, queries=None), *CASES.values()],
    ids=lambda case: case.name,
)
def test_the_tensors_of_a_case_fit_it(case):
    if case.name in CASES:
        case = replace(case, queries=5)
    inputs = case.inputs()
    N, Q, M, T = case.batch, case.query_count, case.heads, sum(case.num_points)
    points = (len(case.spatial_shapes), case.num_points[0]) if case.equal_points else (T,)
    assert inputs.value.shape == (N, case.pixels, M, case.channels)
    assert inputs.value.dtype == case.dtype
    assert inputs.locations.shape == inputs.offsets.shape == (N, Q, M, *points, 2)
    assert inputs.weights.shape == (N, Q, M, *points)
    assert inputs.logits.shape == (N, Q, M, T)
    torch.testing.assert_close(inputs.weights.reshape(N, Q, M, T).sum(-1), torch.ones_like(inputs.logits[..., 0]))


def test_a_case_gives_the_same_tensors_each_time():
    for first, second in zip(TINY.inputs(), TINY.inputs(), strict=True):
        assert torch.equal(first, second)


def test_offsets_are_three_pixels_wide_around_the_references():
    inputs = replace(TINY, queries=500).inputs()
    sizes = torch.tensor([(W, H) for H, W in TINY.spatial_shapes])[:, None]
    pixels = (inputs.locations - inputs.references[:, :, None, None]) * sizes
    assert pixels.std(dim=(0, 1, 2, 4)).sub(3).abs().max() < 0.1
    assert pixels.mean(dim=(0, 1, 2, 4)).abs().max() < 0.1


@pytest.mark.parametrize("dtype", measure.TOLERANCES, ids=str)
@pytest.mark.parametrize("num_points", [(4, 4, 4, 4), (3, 6, 3, 2)], ids=str)
def test_both_entry_points_and_the_eager_rival_pass_the_judge(dtype, num_points):
    case = replace(TINY, dtype=dtype, num_points=num_points)
    result = measure.compare(case, [EAGER], torch.get_num_threads(), 0, trains=True)
    assert {"ours", "ours_fused", "eager"} == set(result["times"])
    for row in result["times"].values():
        assert row["relative_error"] <= measure.TOLERANCES[dtype]
        assert row["median_ms"] > 0


def test_the_judge_catches_one_misplaced_point():
    judge = measure.Judge(TINY, TINY.inputs())
    right, wrong = TINY.op(), with_a_wrong_point(TINY.op())
    tolerance = measure.TOLERANCES[TINY.dtype]
    assert judge.output_error(right) < tolerance < 0.1 * judge.output_error(wrong)
    assert judge.gradient_error(right) < tolerance < 0.1 * judge.gradient_error(wrong)


def test_the_judge_catches_a_nan_and_a_lost_gradient():
    judge = measure.Judge(TINY, TINY.inputs())
    op = TINY.op()
    assert judge.output_error(lambda *tensors: op(*tensors) * float("nan")) == float("inf")
    assert judge.gradient_error(lambda value, *points: op(value.detach() + 0 * value, *points)) == pytest.approx(1)


class Wrong(Peer):
    def prepare(self, case, threads):
        return with_a_wrong_point(case.op())


def test_a_wrong_rival_is_not_timed():
    said = []
    result = measure.compare(TINY, [Wrong("wrong", "wrong", ())], torch.get_num_threads(), 0, say=said.append)
    assert result["times"]["wrong"]["absent"].startswith("wrong: relative error")
    assert "median_ms" not in result["times"]["wrong"]
    assert said[0].startswith("wrong is wrong on dec300")


def test_nothing_is_timed_when_we_are_wrong(monkeypatch):
    op = TINY.op()
    monkeypatch.setattr(timing.Case, "op", lambda case: with_a_wrong_point(op))
    with pytest.raises(measure.DisagreementError, match="ours is wrong on dec300"):
        measure.compare(TINY, [], torch.get_num_threads(), 0)


def test_a_rival_that_cannot_run_says_why():
    missing = Peer("missing", "missing", ("no_such_package",), trains=True)
    result = measure.compare(TINY, [missing], torch.get_num_threads(), 0)
    assert result["times"]["missing"] == {"absent": "not installed: no_such_package"}
    by_name = {peer.name: peer for peer in PEERS}
    assert "no backward" in by_name["openvino"].unsupported(ENC640, trains=True)
    assert "float32 only" in by_name["onnxruntime"].unsupported(CASES["enc640-bfloat16"])
    assert "one count of points" in by_name["torch-ms-deform-attn"].unsupported(CASES["enc640-p363"])
    assert "canonical cases only" in by_name["compile"].unsupported(CASES["enc640-d64"])


def test_calls_take_turns():
    order = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    assert [set(sample) for sample in islice(timing.rounds(calls), 4)] == [{"a", "b"}] * 4
    turns = re.findall(r"a+|b+", "".join(order))
    assert len(turns) >= 5  # at the start each of them twice, then a b, b a, a b, b a, with neighbours joined


@pytest.mark.parametrize("laps", [[0.0], [0.9, 0.0], [0.9]], ids=str)
def test_rounds_that_others_disturb_count_only_where_there_is_nothing_better(laps, monkeypatch):
    quiet = len(laps) > 1 or laps == [0.0]
    heard = chain(laps, repeat(laps[-1]))
    monkeypatch.setattr(measure.Bystanders, "lap", lambda self: next(heard))
    rows, busy = measure.timed({"a": lambda: None}, 0, "a", wait=1 if quiet else 0)
    assert rows["a"]["rounds"] >= measure.MIN_ROUNDS
    assert busy == (0.0 if quiet else 0.9)


def test_ratios_are_to_the_baseline():
    rows, _ = measure.timed({"fast": lambda: None, "slow": lambda: sum(range(20_000))}, 0, "fast")
    assert rows["fast"]["ratio"] == 1
    assert rows["slow"]["ratio"] > 5
    low, high = rows["slow"]["ratio_quartiles"]
    assert low <= high


@pytest.mark.skipif(limit.unsupported(TINY) is not None, reason=str(limit.unsupported(TINY)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_limit_loads_what_the_op_loads(dtype):
    case = replace(TINY, channels=32, dtype=dtype)
    assert limit.loads(case) == 21 * 3 * 16 * 4 * 32 * dtype.itemsize // 64
    limit.prepare(case, case.inputs().value)()


@pytest.mark.skipif(memory.unavailable() is not None, reason=str(memory.unavailable()))
def test_memory_growth_counts_what_a_call_returns_at_least():
    row = memory.growth(CASES["dec300"], "ours", trains=True, threads=2)
    assert row["returned"] == 4 * (22223 * 256 + 300 * 8 * 16 * 3)
    assert row["peak_growth"] >= 0.98 * row["returned"]


@pytest.mark.skipif(memory.unavailable() is not None, reason=str(memory.unavailable()))
def test_more_queries_need_no_more_memory_beside_the_output():
    few, many = (memory.growth(case, "ours_fused", trains=False, threads=2) for case in MEMORY)
    assert many["returned"] == 4 * few["returned"]
    points = 30_000 * 8 * 16
    beside = [row["peak_growth"] - row["returned"] for row in (few, many)]
    assert beside[1] - beside[0] < 0.1 * points  # bytes; locations and weights would be 12 for each


def test_the_series_change_one_size_only():
    sizes = [case.pixels for case in map_size_series()]
    assert all(later == 2 * earlier for earlier, later in pairwise(sizes))
    assert {case.query_count for case in map_size_series()} == {10_000}
    assert {case.pixels for case in query_series()} == {ENC640.pixels}
    first, second = map_size_series()[:2]
    moved = series._in_window(first, second, first.inputs())
    (h, w), (H, W) = first.spatial_shapes[0], second.spatial_shapes[0]
    torch.testing.assert_close(moved * torch.tensor([W, H]), first.inputs().locations * torch.tensor([w, h]))


def test_a_run_writes_machine_threads_versions_and_a_plot(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(run, "CANONICAL", (replace(TINY, name="dec300"),))
    threads = torch.get_num_threads()
    arguments = ["--name", "here", "--cases", "dec300", "--seconds", "0", "--peers", "eager", "--threads", str(threads)]
    run.main([*arguments, "--only", "forward", "training"])
    result = json.loads((tmp_path / "here.json").read_text())
    assert result["threads"] == threads
    assert result["machine"]["torch"] == torch.__version__
    assert result["versions"]["torch"] == version("torch")  # the builds of a package index leave +cu130 out here
    assert set(result["machine"]) >= {"processor", "cores", "instruction_sets", "our_instruction_set", "system"}
    assert result["forward"]["dec300"]["times"]["eager"]["ratio"] > 0
    assert result["forward"]["dec300"]["case"]["spatial_shapes"][0] == [9, 13]
    assert "| dec300 | **" in report.canonical(result)
    assert plot.draw(result, tmp_path / "plot.png").stat().st_size > 10_000


def test_the_detector_is_timed_phase_by_phase(monkeypatch):
    monkeypatch.setattr(detector, "SIDES", (64,))
    result = {"detector": detector.whole_detector(seconds=0)}
    row = result["detector"]["64"]
    assert list(row["training"]["seconds"]) == [
        "reading", "forward", "matching and loss", "backward", "clipping and AdamW"
    ]  # fmt: skip
    for what in ("training", "inference"):
        assert min(row[what]["seconds"].values()) > 0
        assert sum(row[what]["shares"].values()) == pytest.approx(1, abs=0.01)
        assert row[what]["shares"]["convolutions"] > 0.05
        assert row[what]["shares"]["deformable attention"] > 0
    assert report.detector(result).count("64 x 64") == report.detector_shares(result).count("64 x 64") == 2


def test_a_run_resumes_with_what_is_missing_or_disturbed():
    assert not run.undisturbed(None)
    assert run.undisturbed({"busy_elsewhere": 0.02, "times": {}})
    assert not run.undisturbed({"forward": {"busy_elsewhere": 0.02}, "training": {"busy_elsewhere": 1.2}})


def test_the_goals_are_judged_by_the_median():
    times = {"ratio": 59.9, "ratio_quartiles": [58, 61]}
    rows = {"eager": times, "openvino": {**times, "ratio": 18}, "limit": {"ratio": 0.5}}
    result = {"forward": {"enc640": {"times": rows}}}
    missed, met, at_limit = report.goals(result).splitlines()[2:]
    assert missed.endswith("| ≥ 60x | 59.9x (58.0x - 61.0x) | 119.8x | missed by 0 % |")
    assert met.endswith("| ≥ 18x | 18.0x (58.0x - 61.0x) | 36.0x | met |")
    assert at_limit.endswith("| ≤ 2.5x | 2.00x |  | met |")


def test_a_short_report_names_the_machine_and_compares(monkeypatch):
    for name in ("ENC800", "ENC640", "DEC300"):
        monkeypatch.setattr(timing, name, replace(TINY, name=name.lower()))
    first, header, *rows = timing.report(seconds=0)
    assert f"torch {torch.__version__}" in first
    assert header.split()[-3:] == ["ours", "grid_sample", "ratio"]
    assert [row.split(",")[0] for row in rows] == ["enc800", "enc640", "dec300", "enc640"]
    assert all(re.search(r"\d ms +\d+\.\d ms +\d+\.\dx$", row) for row in rows)


def test_the_short_report_refuses_to_time_what_differs(monkeypatch):
    monkeypatch.setattr(timing, "ENC800", TINY)
    monkeypatch.setattr(timing, "grid_sample_op", lambda case: with_a_wrong_point(case.op()))
    with pytest.raises(RuntimeError, match=r"dec300: .* and grid_sample differ"):
        list(timing.report(seconds=0))


def test_the_results_that_pages_show_are_committed_unless_awaited():
    assert {*COMMITTED} | AWAITED == SHOWN


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_result_says_where_it_comes_from_and_how_quiet_it_was(name):
    result = report.load(name)
    assert {"machine", "threads", "versions", "commit", "measured"} <= set(result)
    for section in ("forward", "training"):
        for row in result.get(section, {}).values():
            assert row["backend"] == "native"
            assert row["busy_elsewhere"] is not None


def test_the_tables_of_the_documents_are_those_of_the_committed_results():
    shown = set()
    for path in report.DOCUMENTS:
        for block in report.BLOCK.finditer(path.read_text()):
            assert block["body"] == report.body(block["table"], block["result"]), f"{path.name}: {block['table']}"
            shown.add(block["table"])
    assert shown == {*report.TABLES, *stories.TABLES}


@pytest.mark.parametrize(
    "path", [path for path in report.DOCUMENTS if path.name != "README.md"], ids=lambda path: path.stem
)
def test_the_pages_have_no_measured_number_outside_those_tables(path):
    page = report.BLOCK.sub("", path.read_text())
    assert not [line for line in page.splitlines() if re.search(r"\d\s*(ms|µs|MB|GB/s)\b|\dx\b", line)]


@pytest.mark.parametrize("enlarged", [ENC800, ENC640], ids=lambda case: case.name)
def test_a_page_that_differs_from_its_result_is_noticed(enlarged, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    times = {"ours": {"median_ms": 1, "ratio": 1}, "ours_fused": {"median_ms": 2, "ratio": 2}}
    result = {"forward": {enlarged.name: {"times": times}}}
    (tmp_path / "here.json").write_text(json.dumps(result))
    page = f"<!-- canonical of here -->\n{report.body('canonical', 'here')}<!-- end -->"
    assert report.BLOCK.fullmatch(page)["body"] == report.body("canonical", "here")
    times["ours"]["median_ms"] = 3
    (tmp_path / "here.json").write_text(json.dumps(result))
    assert report.BLOCK.fullmatch(page)["body"] != report.body("canonical", "here")
