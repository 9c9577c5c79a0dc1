"""Where the points of a tile of rows lie and how much each counts, four at a time: given, or made of raw numbers."""

import triton
import triton.language as tl

from deform_attn.backends.triton.kernels.geometry import in_pixels


@triton.jit
def softmax_terms(logits, at, there, T: tl.constexpr, TP: tl.constexpr, F: tl.constexpr):
    """Return of each row `[B]` the largest logit, and one over the sum of the exponentials of all above it."""
    t = tl.arange(0, TP)
    x = tl.load(logits + at[:, None] + t[None, :], mask=there[:, None] & (t < T)[None, :], other=float("-inf")).to(F)
    most = tl.max(x, 1)
    return most, 1 / tl.sum(tl.exp(x - most[:, None]), 1)


@triton.jit
def exponentials_of(logits, at, there, COUNTS: tl.constexpr, B: tl.constexpr, F: tl.constexpr):
    """Return of each group of four points the exponentials of the logits above the largest of the row, `[B, 4]`.

    And of each row one over their sum, `[B]`. In these tiles no lane does what another does, and logits are read once.
    """
    j = tl.arange(0, 4)
    tiles = ()
    largest = tl.full([B, 4], float("-inf"), F)
    done: tl.constexpr = 0
    for l in tl.static_range(len(COUNTS)):
        for k in tl.static_range((COUNTS[l] + 3) // 4):
            ok = there[:, None] & (k * 4 + j < COUNTS[l])[None, :]
            t = (done + k * 4 + j)[None, :]
            x = tl.load(logits + at[:, None] + t, mask=ok, other=float("-inf")).to(F)
            largest = tl.maximum(largest, x)
            tiles = tiles + (x,)
        done += COUNTS[l]
    most = tl.max(largest, 1)[:, None]
    exponentials = ()
    total = tl.zeros([B, 4], F)
    for i in tl.static_range(len(tiles)):
        e = tl.exp2((tiles[i] - most) * 1.4426950408889634)
        total += e
        exponentials = exponentials + (e,)
    return exponentials, 1 / tl.sum(total, 1)


@triton.jit
def shares_of(exponentials, scale, F: tl.constexpr):
    """Return the weights of a softmax, `[B, 4]`; those below the smallest normal number are 0."""
    a = exponentials * scale[:, None]
    return tl.where(a < (2.2250738585072014e-308 if F == tl.float64 else 1.1754943508222875e-38), 0.0, a)


@triton.jit
def weights_of(weights, at, ok, most, scale, FUSED: tl.constexpr, F: tl.constexpr):
    """Return the weights of four points a row, `[B, 4]`."""
    a = tl.load(weights + at, mask=ok, other=float("-inf") if FUSED else 0.0).to(F)
    if FUSED:
        a = shares_of(tl.exp(a - most[:, None]), scale, F)
    return a


@triton.jit
def references_of(references, at, there, SIZE: tl.constexpr, F: tl.constexpr):
    """Return the reference of each row, `[B]` each of x, y, w and h; of a point w and h are 1."""
    x = tl.load(references + at, mask=there, other=0.0).to(F)
    y = tl.load(references + at + 1, mask=there, other=0.0).to(F)
    if SIZE == 4:
        w = tl.load(references + at + 2, mask=there, other=0.0).to(F)
        h = tl.load(references + at + 3, mask=there, other=0.0).to(F)
        return x, y, w, h
    else:
        return x, y, x, y


@triton.jit
def quotient(x, y, inverse):
    """Return x / y for y >= 1, rounded as a division is, of which the GPU would make a call of a function.

    `inverse` is 1 / y, but for its last bits.
    """
    near = x * inverse
    left = tl.fma(-near, tl.broadcast_to(y, x.shape), x)
    exact = tl.fma(left, tl.broadcast_to(inverse, x.shape), near)
    return tl.where(left == left, exact, near)  # else x is not finite


@triton.jit
def inverses(W, H):
    """Return 1 / W and 1 / H, but for their last bits, by one division; 1 of sides of an empty map."""
    both = 1 / (W * H)
    return tl.minimum(both * H, 1.0), tl.minimum(both * W, 1.0)


@triton.jit
def beside_point(reference, offset, size, inverse):
    """Return reference + offset / size; the rounding is that of reference.py, so that both pick the same cell."""
    return reference[:, None] + quotient(offset, size, inverse)


@triton.jit
def beside_box(centre, side, offset, scale, count):
    """Return centre + offset / count * side * scale, rounded as in reference.py; `count` is of the level's points."""
    return centre[:, None] + quotient(offset, count, 1 / count) * side[:, None] * scale


@triton.jit
def locations_of(
    points,
    at,
    ok,
    rx,
    ry,
    rw,
    rh,
    H,
    W,
    scale,
    P,
    FUSED: tl.constexpr,
    NEAREST: tl.constexpr,
    F: tl.constexpr,
):
    """Return where four points of each row lie, `[B, 4]` each, in pixels of their level, and the raw offsets.

    FUSED is how many numbers a reference has, 0 where the points are locations themselves.
    """
    x = tl.load(points + at, mask=ok, other=0.0).to(F)
    y = tl.load(points + at + 1, mask=ok, other=0.0).to(F)
    if FUSED == 2:
        wide, high = W.to(F), H.to(F)
        per_wide, per_high = inverses(wide, high)
        fx = beside_point(rx, x, wide, per_wide)
        fy = beside_point(ry, y, high, per_high)
    elif FUSED == 4:
        count = tl.cast(tl.maximum(P, 1), F)
        fx = beside_box(rx, rw, x, scale, count)
        fy = beside_box(ry, rh, y, scale, count)
    else:
        fx = x
        fy = y
    return in_pixels(fx, W, NEAREST), in_pixels(fy, H, NEAREST), x, y
