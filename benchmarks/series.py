"""What is measured beside the cases: threads, the cost against H*W and against Q, memory, and the whole module."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import memory
from benchmarks.cases import ENC640, ENC800, MEMORY, TINY, map_size_series, query_series
from benchmarks.measure import timed
from benchmarks.peers import EAGER, Peer
from deform_attn import (
    MultiScaleDeformableAttention,
    checks,
    encoder_reference_points,
    multi_scale_deformable_attention,
)
from deform_attn.backends.native import registration
from deform_attn.backends.native.library import row_of
from deform_attn.backends.native.rows import laid_out
from deform_attn.checks import SamplingInputs
from deform_attn.detr.config.detector import TransformerConfig
from deform_attn.detr.model.pyramid import build_pyramid
from deform_attn.detr.model.transformer import EncoderLayer
from deform_attn.timing import Call, Case, Inputs, grid_sample_op, relative_error, training
from deform_attn.torch_ops import schema

Result = dict[str, object]


def thread_scaling(threads: int, seconds: float, wait: float = 0) -> Result:
    """Time enc640 with one thread and with `threads`; the ratio of "1" is the gain."""
    result: Result = {}
    tensors = ENC640.inputs()[:3]
    direction = torch.ones_like(ENC640.op()(*tensors))
    both_ways = training(ENC640.op(), tensors, direction)
    for label, call in (("forward", partial(ENC640.op(), *tensors)), ("training", both_ways)):
        with torch.set_grad_enabled(label == "training"):
            calls = {str(count): _with_threads(call, count) for count in (1, threads)}
            rows, busy = timed(calls, seconds, str(threads), wait)
        result[label] = {"case": ENC640.name, "times": rows, "busy_elsewhere": busy}
    torch.set_num_threads(threads)
    return result


def map_sizes(seconds: float, wait: float = 0) -> Result:
    """Time 10,000 queries on maps that double: spread over the map, and all in the same window of 84 x 100 pixels.

    In the window the same pixels are read whatever the map's size, so that any growth is the algorithm's own; spread,
    they reach caches further away. Ratios are to the smallest map.
    """
    cases = map_size_series()
    first = cases[0]
    calls: dict[str, Call] = {}
    for case in cases:
        spread = case.inputs()
        window = _in_window(first, case, first.inputs())
        calls[f"{case.name} spread"] = partial(case.op(), *spread[:3])
        calls[f"{case.name} window"] = partial(case.op(), spread.value, window, spread.weights)
        calls[f"{case.name} eager"] = partial(grid_sample_op(case), *spread[:3])
    with torch.no_grad():
        rows, busy = timed(calls, seconds, f"{first.name} window", wait)
    sizes = {case.name: case.pixels for case in cases}
    return {"queries": first.query_count, "pixels": sizes, "times": rows, "busy_elsewhere": busy}


def query_counts(seconds: float, wait: float = 0) -> Result:
    """Time the maps of enc640 with more and more queries."""
    cases = query_series()
    calls: dict[str, Call] = {case.name: partial(case.op(), *case.inputs()[:3]) for case in cases}
    with torch.no_grad():
        rows, busy = timed(calls, seconds, cases[0].name, wait)
    return {"queries": {case.name: case.query_count for case in cases}, "times": rows, "busy_elsewhere": busy}


def peak_memory(peers: Sequence[Peer], threads: int, say: Callable[[str], None] = print) -> Result:
    """Return the peak growth of one call on enc640 for each competitor, forward and both ways.

    And of our forward pass with more and more queries.
    """
    reason = memory.unavailable()
    if reason is not None:
        return {"absent": reason}
    result: Result = {"case": ENC640.name, "value": ENC640.inputs().value.nbytes}
    for trains in (False, True):
        rows: Result = {}
        for name in ("ours", "ours_fused"):
            rows[name] = _memory_row(ENC640, name, trains, threads)
        for peer in peers:
            absent = peer.unavailable() or peer.unsupported(ENC640, trains)
            if peer.name == "compile":
                absent = "compiling it at its first call takes memory, too"
            rows[peer.name] = {"absent": absent} if absent else _memory_row(ENC640, peer.name, trains, threads)
            say(f"  {peer.name}: {rows[peer.name]}")
        result["training" if trains else "forward"] = rows
    result["queries"] = {str(case.query_count): _memory_row(case, "ours_fused", False, threads) for case in MEMORY}
    return result


def module(seconds: float, wait: float = 0) -> Result:
    """Time the whole module on enc800 against its matrix products alone, in float32 and bfloat16, and transformers'."""
    case = ENC800
    shapes, C, M = case.spatial_shapes, case.heads * case.channels, case.heads
    torch.manual_seed(0)
    ours = MultiScaleDeformableAttention(C, num_heads=M, num_levels=len(shapes), num_points=case.num_points).eval()
    with torch.no_grad():
        ours.sampling_offsets.weight.normal_(std=0.05)  # offsets of a few pixels, different for each query
        ours.attention_weights.weight.normal_(std=0.05)
    query, features = torch.randn(1, case.query_count, C), torch.randn(1, case.pixels, C)
    references = encoder_reference_points(shapes)[:, :, :1]
    half = (
        MultiScaleDeformableAttention(C, num_heads=M, num_levels=len(shapes), num_points=case.num_points)
        .eval()
        .bfloat16()
    )
    half.load_state_dict(ours.state_dict())
    calls: dict[str, Call] = {
        "module": partial(ours, query, references, features, shapes),
        "products": _products(ours, query, features),
        "module bfloat16": partial(half, query.bfloat16(), references, features.bfloat16(), shapes),
        "products bfloat16": _products(half, query.bfloat16(), features.bfloat16()),
    }
    result: Result = {"case": case.name}
    if EAGER.unavailable() is None:
        theirs = _transformers_module(ours)
        keywords = {
            "attention_mask": None,
            "encoder_hidden_states": features,
            "reference_points": references.expand(-1, -1, len(shapes), -1),
            "spatial_shapes": torch.tensor(shapes),
            "spatial_shapes_list": list(shapes),
            "level_start_index": None,
        }
        calls["module of transformers"] = lambda: theirs(query, **keywords)[0]
        with torch.no_grad():
            error = relative_error(calls["module"](), calls["module of transformers"]())
        if error > 1e-4:
            raise RuntimeError(f"our module and that of transformers differ by {error:.1e} of the output")
        result["relative_difference"] = float(f"{error:.1e}")
    with torch.no_grad():
        result["times"], result["busy_elsewhere"] = timed(calls, seconds, "module", wait)
    return result


def compiled(seconds: float, wait: float = 0) -> Result:
    """Time an encoder layer of the detector on the maps of enc640, as it is and under torch.compile (to the former).

    Forward without gradients, and forward and backward with those of all parameters.
    """
    torch.manual_seed(0)
    config = TransformerConfig(width=256, num_heads=8, feedforward_dim=1024)
    shapes = ENC640.spatial_shapes
    layer = EncoderLayer(config, len(shapes))
    maps = [torch.randn(1, config.width, H, W) for H, W in shapes]
    embedding = torch.randn(len(shapes), config.width)
    features, pyramid = build_pyramid(maps, [None] * len(shapes), None, embedding, 4.0, 20.0)
    fast = torch.compile(layer, fullgraph=True)
    parameters = list(layer.parameters())

    def gradients(layer: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(features, pyramid).sum(), parameters)

    result: Result = {"case": ENC640.name}
    ways: dict[str, Callable[[Callable[..., Tensor]], object]] = {
        "forward": lambda layer: layer(features, pyramid),
        "training": gradients,
    }
    for name, way in ways.items():
        with torch.set_grad_enabled(name == "training"):
            error = relative_error(layer(features, pyramid), fast(features, pyramid))
            if error > 1e-4:
                raise RuntimeError(f"the compiled layer is off by {error:.1e} of the output")
            calls: dict[str, Call] = {"eager": partial(way, layer), "compiled": partial(way, fast)}
            rows, busy = timed(calls, seconds, "eager", wait)
        result[name] = {"times": rows, "busy_elsewhere": busy}
    return result


def overhead(seconds: float, wait: float = 0) -> Result:
    """Time calls on a tiny input beside their kernel alone: the rest is what the call itself costs. On one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    inputs = TINY.inputs()
    op, fused = TINY.op(), TINY.fused_op(inputs.references)
    sizes = torch.tensor(TINY.spatial_shapes)
    library = registration.loaded()
    head, _, _ = laid_out(library, schema.SAMPLE, schema.arguments(_judged(inputs)), backward=False)
    output = torch.empty(1, TINY.query_count, TINY.heads * TINY.channels)
    row = row_of([*head, output.data_ptr()])
    trained = [tensor.clone().requires_grad_() for tensor in inputs[:3]]
    calls: dict[str, Call] = {
        "kernel": lambda: library.run_row(row),
        "classic": partial(op, *inputs[:3]),
        "classic, sizes in a tensor": lambda: multi_scale_deformable_attention(
            inputs.value, sizes, inputs.locations, inputs.weights, num_points=TINY.num_points
        ),
        "fused": partial(fused, inputs.value, inputs.offsets, inputs.logits),
        "classic, with gradients": partial(op, *trained),
    }
    calls["kernel"]()
    if relative_error(calls["classic"](), output) > 1e-5:
        raise RuntimeError("the kernel alone does not compute what the call does")
    rows, busy = timed(calls, seconds, "kernel", wait)
    torch.set_num_threads(threads)
    return {"case": TINY.name, "times": rows, "busy_elsewhere": busy}


def _judged(inputs: Inputs) -> SamplingInputs:
    arguments = inputs.value, TINY.spatial_shapes, inputs.locations, inputs.weights, TINY.num_points
    return checks.sampling_inputs(*arguments, "bilinear", "zeros")


def _with_threads(call: Call, count: int) -> Call:
    def run() -> object:
        torch.set_num_threads(count)
        return call()

    return run


def _in_window(first: Case, case: Case, inputs: Inputs) -> Tensor:
    """Return the locations on the map of `case` that are the same pixels as those of `inputs` on that of `first`."""
    (h, w), (H, W) = first.spatial_shapes[0], case.spatial_shapes[0]
    return inputs.locations * torch.tensor([w / W, h / H])


def _products(layer: MultiScaleDeformableAttention, query: Tensor, features: Tensor) -> Call:
    """Return the call of the module's matrix products and nothing else: value, offsets and logits as one, output."""
    both = layer.sampling_offsets, layer.attention_weights
    weight, bias = torch.cat([x.weight for x in both]), torch.cat([x.bias for x in both])

    def run() -> tuple[Tensor, ...]:
        return (
            F.linear(features, layer.value_proj.weight, layer.value_proj.bias),
            F.linear(query, weight, bias),
            F.linear(query, layer.output_proj.weight, layer.output_proj.bias),
        )

    return run


def _transformers_module(ours: MultiScaleDeformableAttention) -> torch.nn.Module:
    """Return the module of transformers with our weights."""
    from transformers import DeformableDetrConfig
    from transformers.models.deformable_detr import modeling_deformable_detr as theirs

    config = DeformableDetrConfig(d_model=ours.embed_dim, num_feature_levels=ours.num_levels)
    layer = theirs.DeformableDetrMultiscaleDeformableAttention(config, ours.num_heads, ours.num_points[0]).eval()
    layer.load_state_dict(ours.state_dict())
    return layer


def _memory_row(case: Case, name: str, trains: bool, threads: int) -> Result:
    row = memory.growth(case, name, trains, threads)
    return {"peak_growth": row["peak_growth"], "returned": row["returned"]}
