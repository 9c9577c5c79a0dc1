// The D channels of a pixel: as runs of blocks where they lie, or filled up to whole vectors.
#ifndef DEFORM_ATTN_CHANNELS_H
#define DEFORM_ATTN_CHANNELS_H

#include "blocks.h"

namespace {

template <class F>
INLINE int64_t whole_vectors(int64_t D) {
    constexpr int n = Wide<F>::lanes;
    return (D + n - 1) / n * n;
}

// D numbers as whole vectors, the rest of the last one 0.
template <class V, class F>
INLINE void read_channels(const V *from, int64_t D, F *to) {
    constexpr int n = Wide<F>::lanes;
    int64_t d = 0;
    for (; d + n <= D; d += n) store(to + d, Block<V, F, n>::read(from + d));
    if (d == D) return;
    F last[n] = {};
    for (int64_t i = 0; d + i < D; ++i) last[i] = to_number(from[d + i]);
    store(to + d, load<Vector<F, n>>(last));
}

template <class V, class F>
INLINE void write_channels(const F *from, int64_t D, V *to) {
    constexpr int n = Wide<F>::lanes;
    int64_t d = 0;
    for (; d + n <= D; d += n) Block<V, F, n>::write(to + d, load<Vector<F, n>>(from + d));
    for (; d < D; ++d) from_number(from[d], to[d]);
}

// Offsets of the blocks that cover D channels: block i starts at i * channels, but the last one ends at D.
template <class Block, int blocks, bool whole>
INLINE int64_t block_at(int i, int64_t last) {
    return whole || i + 1 < blocks ? int64_t(i) * Block::lanes : last;
}

// Call step(number of blocks, whether they are whole, first channel, offset of the last block) for runs of blocks that
// together cover D channels.
template <class Block, class Step>
INLINE void over_channels(int64_t D, Step step) {
    // Blocks narrower than a full vector are for a D that has room for few of them.
    constexpr int most = Block::lanes < Wide<typename Block::Number>::lanes ? 2 : 8;
    int64_t blocks = (D + Block::lanes - 1) / Block::lanes, at = 0;
    const bool whole = D % Block::lanes == 0;
    while (blocks > 0) {
        const int64_t last = D - Block::lanes - at;
        if (blocks >= most) {
            blocks == most && !whole ? step(Constant<most>(), Constant<false>(), at, last)
                                     : step(Constant<most>(), Constant<true>(), at, last);
            blocks -= most, at += most * Block::lanes;
        } else if (most > 4 && blocks >= 4) {
            blocks == 4 && !whole ? step(Constant<4>(), Constant<false>(), at, last)
                                  : step(Constant<4>(), Constant<true>(), at, last);
            blocks -= 4, at += 4 * Block::lanes;
        } else if (blocks >= 2) {
            blocks == 2 && !whole ? step(Constant<2>(), Constant<false>(), at, last)
                                  : step(Constant<2>(), Constant<true>(), at, last);
            blocks -= 2, at += 2 * Block::lanes;
        } else {
            step(Constant<1>(), Constant<false>(), at, last);
            blocks -= 1, at += Block::lanes;
        }
    }
}

// The widest block that D channels fill.
template <class V, class F, template <class> class Body>
auto widest(int64_t D) {
    constexpr int n = Wide<F>::lanes;
    if (D >= n) return &Body<Block<V, F, n>>::run;
    if constexpr (n > 8) {
        if (D >= 8) return &Body<Block<V, F, 8>>::run;
    }
    if constexpr (n > 4) {
        if (D >= 4) return &Body<Block<V, F, 4>>::run;
    }
    if constexpr (n > 2 && sizeof(F) == 8) {
        if (D >= 2) return &Body<Block<V, F, 2>>::run;
    }
    return &Body<Block<V, F, 1>>::run;
}

// Call step(number of vectors, first channel) for runs of vectors that together are C channels.
template <class F, class Step>
INLINE void over_vectors(int64_t C, Step step) {
    constexpr int n = Wide<F>::lanes;
    int64_t at = 0;
    for (; at + 8 * n <= C; at += 8 * n) step(Constant<8>(), at);
    if (at + 4 * n <= C) step(Constant<4>(), at), at += 4 * n;
    if (at + 2 * n <= C) step(Constant<2>(), at), at += 2 * n;
    if (at < C) step(Constant<1>(), at);
}

}  // namespace

#endif
