#include "common.h"

#include <pthread.h>
#include <stdatomic.h>

_Static_assert(sizeof(float *) == sizeof(int64_t), "Python hands over addresses of 64 bits");

const int64_t emo_piece = PIECE, emo_blocks = BLOCKS, emo_most_threads = MOST_THREADS;

struct work {
    task *run;
    const void *context;
    int64_t tasks;
    atomic_llong next, threads;
};

static void take_tasks(void *argument) {
    struct work *w = argument;
    int64_t thread = atomic_fetch_add(&w->threads, 1);
    for (int64_t i; (i = atomic_fetch_add(&w->next, 1)) < w->tasks;) w->run(i, thread, w->context);
}

static void *take_tasks_as_helper(void *argument) {
    take_tasks(argument);
    return 0;
}

/* Where the system gives fewer threads than the team has, those that are there do it all. */
void emo_share(task *run, int64_t tasks, const struct team *team, const void *context) {
    struct work w = {run, context, tasks, 0, 0};
    if (tasks > 1 && team->pool) {
        team->pool(take_tasks, &w, (unsigned)team->threads, 0);
        return;
    }
    int64_t threads = team->threads < tasks ? team->threads : tasks;
    pthread_t helpers[MOST_THREADS];
    int64_t started = 0;
    while (started < threads - 1 && started < MOST_THREADS &&
           pthread_create(&helpers[started], 0, take_tasks_as_helper, &w) == 0)
        started++;
    take_tasks(&w);
    while (started > 0) pthread_join(helpers[--started], 0);
}

/* The concatenation of the tensors, of which tensor i ends at ends[i]. */
struct elements {
    const struct rule *rule;
    int64_t count, total;
    const int64_t *ends;
    float **p, **g, **a, **b;
    const float *scales;
    const struct hyperparameters *h;
};

static void one_piece(int64_t index, int64_t thread, const void *context) {
    const struct elements *e = context;
    int64_t begin = index * PIECE, end = begin + PIECE < e->total ? begin + PIECE : e->total;
    int64_t i = 0, last = e->count - 1; /* by bisection, i becomes the first tensor that ends behind `begin` */
    (void)thread;
    while (i < last) {
        int64_t middle = i + (last - i) / 2;
        if (e->ends[middle] > begin) last = middle;
        else i = middle + 1;
    }
    for (; begin < end; i++) {
        int64_t first = i ? e->ends[i - 1] : 0, to = e->ends[i] < end ? e->ends[i] : end;
        int64_t at = begin - first;
        if (to == begin) continue; /* an empty tensor */
        e->rule->run(to - begin, e->p[i] + at, e->g[i] + at, e->a ? e->a[i] + at : 0, e->b ? e->b[i] + at : 0,
                     e->scales ? &e->scales[i] : 0, e->h);
        begin = to;
    }
}

/* Moves `count` tensors by a rule. `a`, `b` and `scales` are null where the rule has none.

   Returns −1, or the index of the first tensor that lacks memory, and then nothing has been moved. */
int64_t emo_elementwise(const struct rule *rule, const struct team *team, int64_t count, const int64_t *ends, float **p,
                        float **g, float **a, float **b, const float *scales, const struct hyperparameters *h) {
    int64_t states = rule->state_tensors;
    for (int64_t i = 0; i < count; i++) {
        if (ends[i] == (i ? ends[i - 1] : 0)) continue;
        if (!p[i] || !g[i] || (states > 0 && !(a && a[i])) || (states > 1 && !(b && b[i]))) return i;
    }
    struct elements e = {rule, count, count ? ends[count - 1] : 0, ends, p, g, a, b, scales, h};
    emo_share(one_piece, (e.total + PIECE - 1) / PIECE, team, &e);
    return -1;
}
