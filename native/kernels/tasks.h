// How the rows of a call (one for each query and head) are shared out among threads.
#ifndef DEFORM_ATTN_TASKS_H
#define DEFORM_ATTN_TASKS_H

#include "halo_map.h"

namespace {

// Tasks 0, 1, ... are taken one after the other by whoever is free. Which thread takes which must not matter to the
// result.
struct Tasks {
    int64_t count = 0;
    int64_t next = 0;
    int32_t status = DEFORM_ATTN_OK;

    bool take(int64_t &task) {
        task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
        return task < count;
    }
    void fail(int32_t why) { __atomic_store_n(&status, why, __ATOMIC_RELAXED); }

    // Run body once on each thread, or here where there is little to do.
    int32_t run(const deform_attn_call &call, void (*body)(int64_t, int64_t, void *), void *context) {
        const double rows = double(call.N) * double(call.Q) * double(call.M);
        const bool little = rows * double(call.T) * (4.0 * double(call.D) + 32.0) < 3e5;
        if (!call.parallel_for || count < 2 || little) {
            body(0, count, context);
        } else if (call.parallel_for(0, count, 1, body, context) != 0) {
            return DEFORM_ATTN_PARALLEL_FAILED;
        }
        return status;
    }
};

// The rows of one task.
struct Rows {
    int64_t n, first_head, end_head, first_query, end_query;
};

// How often a pixel is read, on average, from where on it pays to lay out a head's map for that (halo_map.h).
constexpr int64_t reads_that_pay = 8;

// How many pixels one head of one image reads. Not an integer: Q and T may be the sizes of two arrays.
inline double reads_of(const deform_attn_call &call) {
    return double(call.Q) * double(call.T) * (call.nearest ? 1 : 4);
}

// Tasks of neighbouring queries. A task has all heads, side by side as they lie in memory; or else, where pixels are
// read many times, one head, in a map of its own (halo_map.h): in memory a pixel's head is only every M-th piece, and
// so uses one M-th of the caches.
struct RowTasks : Tasks {
    bool halo = false;
    int64_t queries = 0, blocks = 0;

    template <class F>
    void share_out(Plan<F> &plan, bool may_add_halo) {
        const deform_attn_call &call = *plan.call;
        const int64_t images = call.N * call.M;
        const double reads = reads_of(call), pay = double(reads_that_pay * larger(call.S, 1));
        halo = may_add_halo && reads >= pay && add_halo(plan);
        if (halo) {
            const int64_t wanted = (4 * larger(call.threads, 1) + images - 1) / images;
            const double most = reads / (2 * pay);
            blocks = larger(1, double(wanted) < most ? wanted : int64_t(most));
            queries = (call.Q + blocks - 1) / blocks;
        } else {
            queries = 16;
        }
        blocks = (call.Q + queries - 1) / queries;
        count = halo ? images * blocks : call.N * blocks;
    }

    Rows rows(const deform_attn_call &call, int64_t task) const {
        const int64_t block = task % blocks, image = task / blocks;
        Rows rows{image, 0, call.M, block * queries, smaller((block + 1) * queries, call.Q)};
        if (halo) {
            rows.n = image / call.M;
            rows.first_head = image % call.M;
            rows.end_head = rows.first_head + 1;
        }
        return rows;
    }
};

}  // namespace

#endif
