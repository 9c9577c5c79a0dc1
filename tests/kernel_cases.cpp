// The cases of the CPU kernels: both passes, all number formats, one thread and several, on ordinary maps, on maps with a
// side above 2^24 and on empty levels of any size. `make sanitize` runs them under AddressSanitizer and
// UndefinedBehaviorSanitizer, `make isa` as on other processors.
//
//     kernel_cases [the instruction set that must have been chosen [n: each n-th case alone]]
//
// Each array is an allocation of its own, and what the kernels write begins as NaN. Three checks see wrong reads and
// writes: the output of the classic op is compared with scalar loops, all that is written is finite, and <grad_value,
// value> is <grad_output, output>, since the op is linear in value; the classic one in the weights, too.
// deform_attn_check must take each of these calls, and judge strange ones without an overflow.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "deform_attn.h"

namespace {

int failures = 0;
int each = 1;  // 1: all cases

void expect(bool holds, const std::string &name, const char *what) {
    if (holds) return;
    ++failures;
    std::printf("FAILED %s: %s\n", name.c_str(), what);
}

// Numbers in one of the formats, in memory of exactly their size.
struct Numbers {
    int64_t dtype;
    std::vector<uint8_t> bytes;

    Numbers(int64_t dtype, int64_t count) : dtype(dtype), bytes(size_t(count * width()), 0xff) {}  // NaN in each format
    int64_t width() const { return dtype == DEFORM_ATTN_FLOAT64 ? 8 : dtype == DEFORM_ATTN_FLOAT32 ? 4 : 2; }
    int64_t count() const { return int64_t(bytes.size()) / width(); }
    void *data() { return bytes.data(); }

    template <class T>
    T load(int64_t i) const {
        T number;
        std::memcpy(&number, bytes.data() + i * int64_t(sizeof(T)), sizeof(T));
        return number;
    }
    template <class T>
    void store(int64_t i, T number) {
        std::memcpy(bytes.data() + i * int64_t(sizeof(T)), &number, sizeof(T));
    }
    double get(int64_t i) const {
        if (dtype == DEFORM_ATTN_FLOAT64) return load<double>(i);
        if (dtype == DEFORM_ATTN_FLOAT32) return load<float>(i);
        const uint16_t bits = load<uint16_t>(i);
        const int exponent_bits = dtype == DEFORM_ATTN_BFLOAT16 ? 8 : 5, fraction_bits = 15 - exponent_bits;
        const int exponent = bits >> fraction_bits & ((1 << exponent_bits) - 1), most = (1 << exponent_bits) - 1;
        const int fraction = bits & ((1 << fraction_bits) - 1), bias = most / 2;
        const double sign = bits & 0x8000 ? -1 : 1;
        if (exponent == most) return fraction ? NAN : sign * INFINITY;
        if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
        return sign * std::ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
    }
    // Eighths between -4 and 4, exact in every format; others are for float32 and float64.
    void set(int64_t i, double number) {
        if (dtype == DEFORM_ATTN_FLOAT64) return store(i, number);
        const float single = float(number);
        if (dtype == DEFORM_ATTN_FLOAT32) return store(i, single);
        uint32_t bits;
        std::memcpy(&bits, &single, 4);
        if (dtype == DEFORM_ATTN_BFLOAT16) return store(i, uint16_t(bits >> 16));
        const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
        store(i, uint16_t(sign | (magnitude ? (magnitude - (112u << 23)) >> 13 : 0)));
    }
    bool finite() const {
        for (int64_t i = 0; i < count(); ++i) {
            if (!std::isfinite(get(i))) return false;
        }
        return true;
    }
};

struct Level {
    int64_t H, W, P;
    int64_t pixels() const { return H && W ? H * W : 0; }
};

struct Case {
    std::string name;
    std::vector<Level> levels;
    int64_t N, M, D, Q;
    int64_t dtype;           // of value
    int64_t reference_size;  // 0: the classic op
    bool nearest, border, masked;
    int64_t threads;
    std::vector<double> x, y;  // fractions that the points take in turns; empty: random ones
};

int32_t several_threads(int64_t begin, int64_t end, int64_t, void (*body)(int64_t, int64_t, void *), void *context) {
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) threads.emplace_back(body, begin, end, context);
    for (std::thread &thread : threads) thread.join();
    return 0;
}

std::mt19937_64 generator(20);

int64_t up_to(int64_t most) { return int64_t(generator() % uint64_t(most + 1)); }
double fraction() { return std::ldexp(double(generator() >> 11), -53); }

void fill(Numbers &numbers) {
    const int64_t first = up_to(64);
    for (int64_t i = 0; i < numbers.count(); ++i) numbers.set(i, double((first + i * 29) % 65 - 32) / 8);
}

// One number of the map of a level, 0 off it. Coordinates are whole and may be any that the format holds.
template <class Pixel>
double read(const Level &level, double column, double row, bool border, Pixel pixel) {
    if (border) {
        column = std::min(std::max(column, 0.0), double(level.W - 1));
        row = std::min(std::max(row, 0.0), double(level.H - 1));
    }
    if (column < 0 || row < 0 || column >= double(level.W) || row >= double(level.H)) return 0;
    return pixel(int64_t(row) * level.W + int64_t(column));
}

// What a point of the classic op reads, its coordinates in F as the kernels have them; the rest in double.
template <class F, class Pixel>
double sample(const Case &c, const Level &level, F x, F y, Pixel pixel) {
    x *= F(level.W), y *= F(level.H);
    if (c.nearest) return read(level, std::floor(double(x)), std::floor(double(y)), c.border, pixel);
    double px = double(F(x - F(0.5))), py = double(F(y - F(0.5)));
    if (c.border) {
        px = std::min(std::max(px, 0.0), double(level.W - 1));
        py = std::min(std::max(py, 0.0), double(level.H - 1));
    } else if (!(px > -1 && px < double(level.W) && py > -1 && py < double(level.H))) {
        return 0;
    }
    const double left = std::floor(px), top = std::floor(py), right = px - left, below = py - top;
    double sum = 0;
    for (int k = 0; k < 4; ++k) {
        const double share = (k & 1 ? right : 1 - right) * (k & 2 ? below : 1 - below);
        if (share != 0) sum += share * read(level, left + (k & 1), top + (k >> 1), c.border, pixel);
    }
    return sum;
}

void run(const Case &c) {
    const bool fused = c.reference_size > 0;
    const int64_t coordinates = c.dtype == DEFORM_ATTN_FLOAT64 ? DEFORM_ATTN_FLOAT64 : DEFORM_ATTN_FLOAT32;
    const int64_t N = c.N, M = c.M, D = c.D, Q = c.Q, L = int64_t(c.levels.size());
    std::vector<int64_t> table;
    int64_t S = 0, T = 0;
    for (const Level &level : c.levels) {
        table.insert(table.end(), {level.H, level.W, S, level.P});
        S += level.pixels();
        T += level.P;
    }
    Numbers value(c.dtype, N * S * M * D), output(c.dtype, N * Q * M * D), grad_output(c.dtype, N * Q * M * D);
    Numbers points(coordinates, N * Q * M * T * 2), weights(coordinates, N * Q * M * T);
    Numbers references(coordinates, N * Q * L * c.reference_size);
    std::vector<uint8_t> mask(size_t(c.masked ? N * S : 0));
    fill(value), fill(grad_output), fill(weights);
    for (uint8_t &masked : mask) masked = up_to(3) == 0;
    for (int64_t i = 0; i < references.count(); ++i) references.set(i, fraction());
    for (int64_t i = 0; i < points.count() / 2; ++i) {
        const bool given = !c.x.empty();
        const double spread = fused ? 8 : 1.5, shift = fused ? -4 : -0.25;
        points.set(2 * i, given ? c.x[size_t(i) % c.x.size()] : fraction() * spread + shift);
        points.set(2 * i + 1, given ? c.y[size_t(i) % c.y.size()] : fraction() * spread + shift);
    }
    Numbers grad_value(c.dtype, value.count()), grad_points(coordinates, points.count());
    Numbers grad_weights(coordinates, weights.count()), grad_references(coordinates, references.count());

    deform_attn_call call{};
    call.N = N, call.S = S, call.M = M, call.D = D, call.Q = Q, call.T = T, call.L = L;
    call.value_dtype = c.dtype, call.compute_dtype = coordinates;
    call.nearest = c.nearest, call.border = c.border;
    call.threads = c.threads, call.parallel_for = c.threads > 1 ? several_threads : nullptr;
    call.levels = table.data();
    call.value = value.data(), call.value_stride_n = S * M * D, call.value_stride_s = M * D, call.value_stride_m = D;
    call.points = points.data(), call.points_dtype = coordinates;
    call.points_stride_n = Q * M * T * 2, call.points_stride_q = M * T * 2;
    call.weights = weights.data(), call.weights_dtype = coordinates;
    call.weights_stride_n = Q * M * T, call.weights_stride_q = M * T;
    if (fused) {
        call.reference_points = references.data(), call.reference_dtype = coordinates;
        call.reference_stride_n = Q * L * c.reference_size, call.reference_stride_q = L * c.reference_size;
        call.reference_stride_l = c.reference_size, call.reference_size = c.reference_size, call.reference_levels = L;
        call.offset_scale = 0.5;
    }
    if (c.masked) call.mask = mask.data(), call.mask_stride_n = S;
    call.output = output.data();
    expect(deform_attn_check(&call) == DEFORM_ATTN_OK, c.name, "the check refused the forward call");
    expect(deform_attn_forward(&call) == DEFORM_ATTN_OK, c.name, "forward failed");
    call.grad_output = grad_output.data();
    call.grad_output_stride_n = Q * M * D, call.grad_output_stride_q = M * D;
    call.grad_value = grad_value.data(), call.grad_points = grad_points.data();
    call.grad_weights = grad_weights.data(), call.grad_reference_points = fused ? grad_references.data() : nullptr;
    expect(deform_attn_check(&call) == DEFORM_ATTN_OK, c.name, "the check refused the backward call");
    expect(deform_attn_backward(&call) == DEFORM_ATTN_OK, c.name, "backward failed");

    expect(output.finite(), c.name, "the output is not finite everywhere");
    expect(grad_value.finite(), c.name, "grad_value is not finite everywhere");
    expect(grad_points.finite(), c.name, "grad_points is not finite everywhere");
    expect(grad_weights.finite(), c.name, "grad_weights is not finite everywhere");
    if (fused) expect(grad_references.finite(), c.name, "grad_reference_points is not finite everywhere");

    const double step = c.dtype == DEFORM_ATTN_FLOAT64    ? 1e-12
                        : c.dtype == DEFORM_ATTN_FLOAT32  ? 1e-4
                        : c.dtype == DEFORM_ATTN_BFLOAT16 ? 0x1p-7
                                                          : 0x1p-10;
    double forward = 0, backward = 0, size = 1;
    for (int64_t i = 0; i < output.count(); ++i) {
        const double product = grad_output.get(i) * output.get(i);
        forward += product, size += std::abs(product);
    }
    for (int64_t i = 0; i < grad_value.count(); ++i) {
        const double gradient = grad_value.get(i);
        if (gradient == 0) continue;
        backward += gradient * value.get(i), size += std::abs(gradient * value.get(i));
    }
    expect(std::abs(forward - backward) <= step * size, c.name, "grad_value is not the transpose of the forward pass");

    if (fused) return;
    double along_weights = 0;
    for (int64_t i = 0; i < weights.count(); ++i) {
        along_weights += grad_weights.get(i) * weights.get(i);
        size += std::abs(grad_weights.get(i) * weights.get(i));
    }
    expect(std::abs(forward - along_weights) <= step * size, c.name, "grad_weights is not that of a linear function");

    for (int64_t i = 0; i < output.count(); ++i) {
        const int64_t n = i / (Q * M * D), m = i / D % M, d = i % D, row = i / D;
        double sum = 0, most = 1;
        int64_t t = 0;
        for (int64_t l = 0; l < L; ++l) {
            const int64_t first = table[size_t(4 * l + 2)];
            const auto pixel = [&](int64_t p) {
                const bool masked = c.masked && mask[size_t(n * S + first + p)];
                return masked ? 0 : value.get(((n * S + first + p) * M + m) * D + d);
            };
            for (int64_t p = 0; p < c.levels[size_t(l)].P; ++p, ++t) {
                if (!c.levels[size_t(l)].pixels()) continue;
                const double x = points.get(2 * (row * T + t)), y = points.get(2 * (row * T + t) + 1);
                const double number = coordinates == DEFORM_ATTN_FLOAT64
                                          ? sample<double>(c, c.levels[size_t(l)], x, y, pixel)
                                          : sample<float>(c, c.levels[size_t(l)], float(x), float(y), pixel);
                sum += weights.get(row * T + t) * number;
                most += std::abs(weights.get(row * T + t) * number);
            }
        }
        if (std::abs(sum - output.get(i)) > step * most) return expect(false, c.name, "the output is wrong");
    }
}

void ordinary_maps() {
    const int64_t channels[] = {1, 2, 3, 4, 5, 7, 8, 12, 16, 30, 32, 37, 64};
    for (int i = 0; i < 480; i += each) {
        Case c{};
        c.name = "ordinary map " + std::to_string(i);
        const int64_t levels = 1 + up_to(3);
        for (int64_t l = 0; l < levels; ++l) c.levels.push_back({up_to(9), 1 + up_to(9), up_to(4)});
        c.levels[0].P += 1;
        c.N = 1 + up_to(1), c.M = 1 + up_to(3), c.D = channels[up_to(12)];
        c.Q = up_to(3) ? 1 + up_to(20) : 100 + up_to(200);  // few reads, and so many that maps get a halo
        c.dtype = i % 4;
        c.reference_size = 2 * up_to(2);
        c.nearest = up_to(3) == 0, c.border = up_to(1), c.masked = up_to(2) == 0, c.threads = up_to(1) ? 4 : 1;
        run(c);
    }
}

void empty_levels() {
    const int64_t most = INT64_MAX;
    const Level empty[] = {{0, most, 2}, {most, 0, 2}, {0, most, 0}, {int64_t(1) << 40, 0, 3}, {0, int64_t(1) << 32, 1}};
    int number = 0;
    for (const Level &level : empty) {
        for (int i = 0; i < 24; i += each) {
            Case c{};
            c.name = "empty level " + std::to_string(number++);
            c.levels = {{2, 2, 2}, level, {3, 5, 1}};
            std::rotate(c.levels.begin(), c.levels.begin() + i % 3, c.levels.end());
            c.N = 1, c.M = 2, c.D = i % 2 ? 8 : 3, c.Q = i % 3 ? 500 : 2;
            c.dtype = i % 4, c.reference_size = 2 * up_to(2);
            c.nearest = i % 5 == 0, c.border = i % 2, c.masked = i % 7 == 0, c.threads = i % 2 ? 4 : 1;
            run(c);
        }
    }
    Case all{};
    all.name = "only empty levels";
    all.levels = {{0, most, 2}, {most, 0, 1}};
    all.N = 2, all.M = 2, all.D = 4, all.Q = 300, all.threads = 1;
    run(all);
}

void sides_above_2_24() {
    // Around both edges, off the map, and as far off as floats go.
    const std::vector<double> along = {1.0, 0.0, 0.99999994, 5.9604645e-8, 0.5, 1.0000001, -1e-7, 1e30, -1e30, 2.0};
    const std::vector<double> across = {0.5, 0.5, 0.5, 0.5, 0.25};
    for (const int64_t extra : {1, 3, 4, 7}) {
        for (int i = 0; i < 8; i += each) {
            Case c{};
            const int64_t side = (int64_t(1) << 24) + extra;
            const bool wide = i & 1;
            c.name = "side of 2^24 + " + std::to_string(extra) + ", " + std::to_string(i);
            c.levels = {wide ? Level{1, side, 2} : Level{side, 1, 2}};
            c.N = c.M = c.D = 1, c.Q = 10, c.threads = 1, c.nearest = i & 2, c.border = i & 4;
            c.dtype = extra == 7 ? DEFORM_ATTN_BFLOAT16 : extra == 4 && i < 4 ? DEFORM_ATTN_FLOAT64 : DEFORM_ATTN_FLOAT32;
            c.x = wide ? along : across, c.y = wide ? across : along;
            run(c);
        }
    }
}

void sizes_that_are_no_call() {
    const int64_t most = INT64_MAX, half = int64_t(1) << 32;
    const int64_t tables[][8] = {
        {half, half, 0, 1, 2, 2, 0, 1},    // pixels that overflow to 0
        {1, 3, 0, 1, most, most, 3, 1},    // and to 1
        {-2, -2, 0, 1, 0, 0, 4, 1},        // negative sides
        {2, 2, 0, -1, 0, 0, 4, 3},         // a negative count of points
        {2, 2, 0, most, 0, 0, 4, most},    // counts that overflow
        {2, 2, 1, 1, 0, 0, 4, 1},          // a gap before the first pixel
        {2, 2, 0, 1, 1, 1, 4, 1},          // more pixels than there are
        {1, 3, 0, 1, 0, 0, 3, 1},          // fewer
        {2, 2, 0, 1, 0, 0, 4, 2},          // more points
    };
    for (const auto &table : tables) {
        Numbers numbers(DEFORM_ATTN_FLOAT32, 4);
        deform_attn_call call{};
        call.N = call.M = call.D = call.Q = 1, call.S = 4, call.T = 2, call.L = 2;
        call.levels = table;
        call.value = call.points = call.weights = call.output = numbers.data();
        expect(deform_attn_check(&call) == DEFORM_ATTN_WRONG_SIZES, "wrong sizes", "the check took them");
        expect(deform_attn_forward(&call) == DEFORM_ATTN_WRONG_SIZES, "wrong sizes", "forward took them");
        expect(deform_attn_backward(&call) == DEFORM_ATTN_WRONG_SIZES, "wrong sizes", "backward took them");
    }
}

// Numbers at the ends of what a field holds, in each field of a call: the check must judge them without an overflow.
void fields_of_strangers() {
    static_assert(sizeof(deform_attn_call) % 8 == 0, "each field takes 8 bytes");
    const int64_t numbers[] = {INT64_MIN, -1, 0, 1, 3, int64_t(1) << 32, int64_t(1) << 56, INT64_MAX};
    const int64_t levels[] = {2, 2, 0, 2};
    Numbers array(DEFORM_ATTN_FLOAT64, 4);
    int refused = 0;
    for (size_t field = 0; field < sizeof(deform_attn_call) / 8; ++field) {
        if (field * 8 == offsetof(deform_attn_call, levels)) continue;  // the check reads what it points to
        for (const int64_t number : numbers) {
            deform_attn_call call{};
            call.N = call.M = call.D = call.Q = call.L = 1, call.S = 4, call.T = 2;
            call.levels = levels;
            call.value = call.points = call.weights = call.reference_points = call.output = array.data();
            call.reference_size = 2, call.reference_levels = 1;
            // L is the length of the levels: with one that is larger, the check would read on.
            if (field * 8 == offsetof(deform_attn_call, L) && number > 1 && number < int64_t(1) << 56) continue;
            std::memcpy(reinterpret_cast<char *>(&call) + field * 8, &number, 8);
            refused += deform_attn_check(&call) != DEFORM_ATTN_OK;
        }
    }
    expect(refused > 100, "fields of strangers", "the check refused few of them");
    expect(deform_attn_check(nullptr) == DEFORM_ATTN_NULL_POINTER, "no call", "the check took it");
}

}  // namespace

int main(int count, char **arguments) {
    const char *isa = deform_attn_isa();
    if (!isa) return std::printf("DEFORM_ATTN_ISA names none of %s\n", deform_attn_isas()), 2;
    if (count > 1) expect(!std::strcmp(isa, arguments[1]), isa, "this instruction set was chosen");
    if (count > 2) each = std::max(1, std::atoi(arguments[2]));
    void (*const groups[])() = {ordinary_maps, empty_levels, sides_above_2_24, sizes_that_are_no_call,
                               fields_of_strangers};
    for (const auto group : groups) group();
    std::printf("%s, %s: %s\n", arguments[0], isa, failures ? "FAILED" : "all cases passed");
    return failures ? 1 : 0;
}
