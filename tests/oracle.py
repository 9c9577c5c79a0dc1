"""The oracle: deformable attention as scalar loops over Python floats (float64), from the paper's equation.

Nothing here is vectorised and nothing of the library is imported. Arrays are nested lists (`tensor.tolist()`), lists of
points are always flat and level-major, and `num_points` is always one count per level.
Zhu et al., Deformable DETR (2021): DeformAttn(z_q, p_q, x) = sum_m W_m [sum_k A_mqk W'_m x(p_q + dp_mqk)].
"""

import math

SMALLEST_WEIGHT = 2.0**-1022  # the smallest normal float64; in float32 it would be 2^-126


def taps(position, size, interpolation, padding_mode):
    """Return (index, weight, slope of the weight) of each pixel that a position in [0, 1] touches on one axis."""
    if interpolation == "nearest":
        pixel = position * size
        if padding_mode == "border":
            pixel = min(max(pixel, 0.0), size - 1.0)
        elif not 0 <= pixel < size:
            return []
        return [(math.floor(pixel), 1.0, 0.0)]
    pixel = position * size - 0.5
    if padding_mode == "border":
        rate = size if 0 <= pixel < size - 1 else 0
        pixel = min(max(pixel, 0.0), size - 1.0)
        low = math.floor(pixel)
        high = min(low + 1, size - 1)
    else:
        if not -1 < pixel < size:
            return []
        rate, low = size, math.floor(pixel)
        high = low + 1
    part = pixel - math.floor(pixel)
    both = [(low, 1 - part, -rate), (high, part, rate)]
    return [tap for tap in both if 0 <= tap[0] < size]


def corners(height, width, x, y, interpolation="bilinear", padding_mode="zeros"):
    """Return (row, column, weight, slope along x, slope along y) of each pixel that the location (x, y) touches."""
    return [
        (row, column, weight_y * weight_x, weight_y * slope_x, weight_x * slope_y)
        for row, weight_y, slope_y in taps(y, height, interpolation, padding_mode)
        for column, weight_x, slope_x in taps(x, width, interpolation, padding_mode)
    ]


def is_empty(plane):
    return len(plane) == 0 or len(plane[0]) == 0


def read(plane, x, y, interpolation="bilinear", padding_mode="zeros"):
    """Return the value of one plane, H rows of W floats, at the location (x, y); [0, 1] spans the plane."""
    if is_empty(plane):
        return 0.0
    if math.isnan(x) or math.isnan(y):
        return math.nan
    total = 0.0
    for row, column, weight, _, _ in corners(len(plane), len(plane[0]), x, y, interpolation, padding_mode):
        if weight != 0:  # a pixel of weight 0 is not read, so a NaN there does not come through
            total += weight * plane[row][column]
    return total


def slope(plane, x, y, interpolation="bilinear", padding_mode="zeros", pull=1.0):
    """Return the derivatives of `pull * read` by x and by y; on a kink those of the cell that floor picks."""
    if is_empty(plane) or math.isnan(x) or math.isnan(y):
        return 0.0, 0.0
    by_x = by_y = 0.0
    for row, column, weight, slope_x, slope_y in corners(len(plane), len(plane[0]), x, y, interpolation, padding_mode):
        pixel = plane[row][column]
        if weight == 0 and not math.isfinite(pixel):
            continue  # unread, and it counts as 0
        by_x += pull * slope_x * pixel if slope_x != 0 else 0.0  # no slope is no gradient, however bad the pull is
        by_y += pull * slope_y * pixel if slope_y != 0 else 0.0
    return by_x, by_y


def softmax(logits):
    if not logits:
        return []
    largest = max(logits)
    powers = [math.exp(logit - largest) for logit in logits]
    weights = [power / sum(powers) for power in powers]
    return [0.0 if weight < SMALLEST_WEIGHT else weight for weight in weights]


def level_starts(spatial_shapes):
    return [sum(h * w for h, w in spatial_shapes[:level]) for level in range(len(spatial_shapes))]


def level_of_each_point(num_points):
    return [level for level, count in enumerate(num_points) for _ in range(count)]


def planes_of(rows, spatial_shapes):
    """Cut `rows [S][M][D]` into planes, H rows of W floats, one per (level, head, channel)."""
    planes = {}
    heads, channels = (len(rows[0]), len(rows[0][0])) if rows else (0, 0)
    start = 0
    for level, (height, width) in enumerate(spatial_shapes):
        for m in range(heads):
            for d in range(channels):
                planes[level, m, d] = [[rows[start + r * width + c][m][d] for c in range(width)] for r in range(height)]
        start += height * width
    return planes


def multi_scale_deformable_attention(
    value, spatial_shapes, locations, weights, num_points, interpolation="bilinear", padding_mode="zeros"
):
    """Return `[N][Q][M * D]` from `value [N][S][M][D]`, `locations [N][Q][M][T][2]` and `weights [N][Q][M][T]`."""
    channels = len(value[0][0][0])
    output = []
    for n, rows in enumerate(value):
        planes = planes_of(rows, spatial_shapes)
        output.append([])
        for q, heads in enumerate(weights[n]):
            output[n].append([])
            for m, head in enumerate(heads):
                for d in range(channels):
                    total = 0.0
                    for t, level in enumerate(level_of_each_point(num_points)):
                        if 0 in spatial_shapes[level]:
                            continue  # an empty level is skipped outright
                        x, y = locations[n][q][m][t]
                        total += head[t] * read(planes[level, m, d], x, y, interpolation, padding_mode)
                    output[n][q].append(total)
    return output


def multi_scale_deformable_attention_gradients(
    value, spatial_shapes, locations, weights, num_points, grad_output, interpolation="bilinear", padding_mode="zeros"
):
    """Return grad_value, grad_sampling_locations and grad_attention_weights for `grad_output [N][Q][M * D]`."""
    starts, levels = level_starts(spatial_shapes), level_of_each_point(num_points)
    channels = len(value[0][0][0])
    grad_value = [[[[0.0 for _ in head] for head in pixel] for pixel in rows] for rows in value]
    grad_locations = [[[[[0.0, 0.0] for _ in levels] for _ in heads] for heads in rows] for rows in weights]
    grad_weights = [[[[0.0 for _ in levels] for _ in heads] for heads in rows] for rows in weights]
    for n, rows in enumerate(value):
        planes = planes_of(rows, spatial_shapes)
        for q, heads in enumerate(weights[n]):
            for m, head in enumerate(heads):
                for t, level in enumerate(levels):
                    height, width = spatial_shapes[level]
                    if 0 in (height, width):
                        continue
                    x, y = locations[n][q][m][t]
                    for d in range(channels):
                        grad, plane = grad_output[n][q][m * channels + d], planes[level, m, d]
                        grad_weights[n][q][m][t] += grad * read(plane, x, y, interpolation, padding_mode)
                        if math.isnan(x) or math.isnan(y):
                            continue  # no gradient for the location, and none passes to the value
                        by_x, by_y = slope(plane, x, y, interpolation, padding_mode, grad * head[t])
                        grad_locations[n][q][m][t][0] += by_x
                        grad_locations[n][q][m][t][1] += by_y
                        for row, column, part, _, _ in corners(height, width, x, y, interpolation, padding_mode):
                            if part != 0 or math.isfinite(plane[row][column]):
                                grad_value[n][starts[level] + row * width + column][m][d] += grad * head[t] * part
    return grad_value, grad_locations, grad_weights


def sampling_location(reference, offset, height, width, count, offset_scale=0.5):
    """Return the location (x, y) of one point of a level of (height, width) with `count` points."""
    if 0 in (height, width):
        return 0.0, 0.0  # never read
    if len(reference) == 2:
        return reference[0] + offset[0] / width, reference[1] + offset[1] / height
    x, y, box_width, box_height = reference
    return x + offset[0] / count * box_width * offset_scale, y + offset[1] / count * box_height * offset_scale


def references_of(reference_points, n, q, level_count):
    """Return the reference of each level for one query, whether the level axis is L, 1 or left out."""
    references = reference_points[n][q]
    if not isinstance(references[0], list):
        references = [references]
    return references if len(references) == level_count else references * level_count


def sampling_locations(reference_points, offsets, spatial_shapes, num_points, offset_scale):
    """Return `[N][Q][M][T][2]`, the location of each point."""
    locations = []
    for n, rows in enumerate(offsets):
        locations.append([])
        for q, heads in enumerate(rows):
            references = references_of(reference_points, n, q, len(spatial_shapes))
            locations[n].append(
                [
                    [
                        sampling_location(
                            references[level], head[t], *spatial_shapes[level], num_points[level], offset_scale
                        )
                        for t, level in enumerate(level_of_each_point(num_points))
                    ]
                    for head in heads
                ]
            )
    return locations


def masked_value(value, padding_mask):
    """Return the value with zeros wherever the mask is True, whatever was there."""
    if padding_mask is None:
        return value
    return [
        [[[0.0 for _ in head] for head in pixel] if padded else pixel for pixel, padded in zip(rows, mask, strict=True)]
        for rows, mask in zip(value, padding_mask, strict=True)
    ]


def deformable_attention(
    value,
    spatial_shapes,
    reference_points,
    offsets,
    logits,
    num_points,
    padding_mask=None,
    offset_scale=0.5,
    interpolation="bilinear",
    padding_mode="zeros",
):
    """Return `[N][Q][M * D]` from raw `offsets [N][Q][M][T][2]`, `logits [N][Q][M][T]` and a reference per query.

    `reference_points` is `[N][Q][L or 1][2 or 4]` or `[N][Q][2 or 4]`; True in `padding_mask [N][S]` is padding.
    """
    locations = sampling_locations(reference_points, offsets, spatial_shapes, num_points, offset_scale)
    weights = [[[softmax(head) for head in heads] for heads in rows] for rows in logits]
    value = masked_value(value, padding_mask)
    return multi_scale_deformable_attention(
        value, spatial_shapes, locations, weights, num_points, interpolation, padding_mode
    )


def deformable_attention_gradients(
    value,
    spatial_shapes,
    reference_points,
    offsets,
    logits,
    num_points,
    grad_output,
    padding_mask=None,
    offset_scale=0.5,
    interpolation="bilinear",
    padding_mode="zeros",
):
    """Return grad_value, grad_reference_points `[N][Q][L][2 or 4]`, grad_sampling_offsets and grad_attention_logits.

    A reference without a level axis, or with one of size 1, gets the sum of its gradient over the levels.
    """
    locations = sampling_locations(reference_points, offsets, spatial_shapes, num_points, offset_scale)
    weights = [[[softmax(head) for head in heads] for heads in rows] for rows in logits]
    grad_value, grad_locations, grad_weights = multi_scale_deformable_attention_gradients(
        masked_value(value, padding_mask),
        spatial_shapes,
        locations,
        weights,
        num_points,
        grad_output,
        interpolation,
        padding_mode,
    )
    grad_value = masked_value(grad_value, padding_mask)
    grad_references, grad_offsets, grad_logits = [], [], []
    for n, rows in enumerate(weights):
        grad_references.append([])
        grad_offsets.append([])
        grad_logits.append([])
        for q, heads in enumerate(rows):
            references = references_of(reference_points, n, q, len(spatial_shapes))
            grad_references[n].append([[0.0 for _ in reference] for reference in references])
            grad_offsets[n].append([])
            grad_logits[n].append([])
            for m, head in enumerate(heads):
                grad_offsets[n][q].append([])
                mean = sum(a * g for a, g in zip(head, grad_weights[n][q][m], strict=True))
                grad_logits[n][q].append([a * (g - mean) for a, g in zip(head, grad_weights[n][q][m], strict=True)])
                for t, level in enumerate(level_of_each_point(num_points)):
                    grad_offsets[n][q][m].append([0.0, 0.0])
                    height, width = spatial_shapes[level]
                    if 0 in (height, width):
                        continue
                    for axis, size in enumerate((width, height)):
                        grad = grad_locations[n][q][m][t][axis]
                        grad_references[n][q][level][axis] += grad
                        if len(references[level]) == 2:
                            grad_offsets[n][q][m][t][axis] = grad / size
                        elif math.isfinite(locations[n][q][m][t][axis]):  # elsewhere nothing comes to be passed on
                            scale = offset_scale / num_points[level]
                            grad_offsets[n][q][m][t][axis] = grad * scale * references[level][2 + axis]
                            grad_references[n][q][level][2 + axis] += grad * scale * offsets[n][q][m][t][axis]
    return grad_value, grad_references, grad_offsets, grad_logits


def matrix_times_vector(matrix, vector):
    return [sum(entry * element for entry, element in zip(row, vector, strict=True)) for row in matrix]


def seed_attention(z_q, p_q, x, projection, bias, w, w_prime):
    """Return the paper's single-scale equation for one query, literally.

    `z_q [C]` is the query, `p_q` its reference point (x, y) in [0, 1], `x [C][H][W]` the map; `projection [3MK][C]`
    with `bias [3MK]` gives 2MK sampling offsets in pixels (head, then key, then x and y) and MK logits; `w[m]` is W_m
    `[C][C_v]` and `w_prime[m]` is W'_m `[C_v][C]`. W'_m is a matrix, so it is the same whether the map is read first
    and then multiplied, as here, or the other way round, as the other functions expect.
    """
    heads, height, width = len(w), len(x[0]), len(x[0][0])
    keys = len(projection) // (3 * heads)
    projected = [sum_ + shift for sum_, shift in zip(matrix_times_vector(projection, z_q), bias, strict=True)]
    output = [0.0] * len(z_q)
    for m in range(heads):
        first_logit = 2 * heads * keys + m * keys
        attention = softmax(projected[first_logit : first_logit + keys])
        inner = [0.0] * len(w_prime[m])
        for k in range(keys):
            offset_x, offset_y = projected[2 * (m * keys + k)], projected[2 * (m * keys + k) + 1]
            pixel = [read(plane, p_q[0] + offset_x / width, p_q[1] + offset_y / height) for plane in x]
            for channel, element in enumerate(matrix_times_vector(w_prime[m], pixel)):
                inner[channel] += attention[k] * element
        for channel, element in enumerate(matrix_times_vector(w[m], inner)):
            output[channel] += element
    return output


def central_difference(function, at, step=1e-6):
    """Return the derivative of a scalar function of one float, by central finite differences."""
    return (function(at + step) - function(at - step)) / (2 * step)
