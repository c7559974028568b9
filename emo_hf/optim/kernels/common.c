#include "formats.h"

#include <pthread.h>
#include <stdatomic.h>

_Static_assert(sizeof(float *) == sizeof(int64_t), "Python hands over addresses of 64 bits");

const int64_t emo_piece = PIECE, emo_blocks = BLOCKS, emo_most_threads = MOST_THREADS,
              emo_block = BLOCK, emo_has_float16 = HAS_FLOAT16;

_Static_assert(PIECE % STRETCH == 0 && STRETCH % CHUNK == 0 && CHUNK % BLOCK == 0, "no task begins within a block");

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

int64_t emo_not_finite(int64_t n, const float *x) {
    uint32_t worst = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t size = bits_of(x[i]) & 0x7fffffff;
        worst = size > worst ? size : worst;
    }
    if (worst < 0x7f800000) return 0;
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) count += !isfinite(x[i]);
    return count;
}

/* The concatenation of the tensors, of which tensor i has counts[i] elements and ends at ends[i], a multiple of BLOCK:
   what it lacks to that is nobody's. */
struct elements {
    const struct rule *rule;
    const struct layout *layout;
    int64_t count, total, plain;
    const int64_t *counts, *ends, *places;
    char **p, **g, **a, **b, **compensation;
    float **a_sizes, **b_sizes;
    const float *scales;
    _Atomic int64_t *left_out;
    const struct hyperparameters *h;
};

static void read_state(int64_t n, int64_t format, const char *from, const float *sizes, float *to) {
    if (format != SIGNED_8BIT && format != UNSIGNED_8BIT) {
        read_elements(n, format, from, to);
        return;
    }
    for (int64_t at = 0; at < n; at += BLOCK) {
        int64_t some = n - at < BLOCK ? n - at : BLOCK;
        if (format == SIGNED_8BIT) read_signed(some, (const int8_t *)from + at, sizes[at / BLOCK], to + at);
        else read_unsigned(some, (const uint8_t *)from + at, sizes[at / BLOCK], to + at);
    }
}

static void write_blocks(int64_t n, int64_t format, const float *from, const uint32_t *chance, float *sizes, char *to) {
    for (int64_t at = 0; at < n; at += BLOCK) {
        int64_t some = n - at < BLOCK ? n - at : BLOCK;
        if (format == SIGNED_8BIT) sizes[at / BLOCK] = write_signed(some, from + at, chance + at, (int8_t *)to + at);
        else sizes[at / BLOCK] = write_unsigned(some, from + at, chance + at, (uint8_t *)to + at);
    }
}

/* What one state tensor of a chunk is; `x` are its elements in float32, where they lie or in a buffer. */
struct part {
    int64_t format;
    char *at;
    float *sizes, *x;
};

static struct part part_of(int64_t format, char **tensors, float **sizes, int64_t i, int64_t at, float *buffer) {
    struct part of = {tensors ? format : NONE, 0, 0, 0};
    if (tensors) {
        of.at = tensors[i] + at * bytes_of(format);
        of.x = format == FLOAT32 ? (float *)of.at : buffer;
    }
    if (sizes) of.sizes = sizes[i] + at / BLOCK;
    return of;
}

static int64_t is_copied(const struct part *of) { return of->at && of->format != FLOAT32; }

/* Up to CHUNK elements by way of float32. Elements without a finite gradient are left out: the rule is run on what lies
   between them. */
static void by_float32(const struct elements *e, int64_t i, int64_t at, int64_t n) {
    const struct layout *l = e->layout;
    float p_buffer[CHUNK], g_buffer[CHUNK], x[2][CHUNK];
    uint32_t chance[CHUNK];
    int64_t place = at + (e->places ? e->places[i] : 0);
    char *p_at = e->p[i] + at * bytes_of(l->p);
    char *c_at = l->compensation ? e->compensation[i] + at * bytes_of(l->compensation) : 0;
    const struct part a = part_of(l->a, e->a, e->a_sizes, i, at, x[0]);
    const struct part b = part_of(l->b, e->b, e->b_sizes, i, at, x[1]);

    const float *g = in_float32(n, l->g, e->g[i] + at * bytes_of(l->g), g_buffer);
    int64_t in_place = l->p == FLOAT32 && !l->compensation;
    float *p = in_place ? (float *)p_at : p_buffer;
    if (!in_place) read_parameter(n, l->p, l->compensation, p_at, c_at, p);
    if (is_copied(&a)) read_state(n, a.format, a.at, a.sizes, a.x);
    if (is_copied(&b)) read_state(n, b.format, b.at, b.sizes, b.x);
    if (a.sizes || b.sizes || l->compensation == SIGNED_8BIT) draw(n, g, place, (uint32_t)l->seed, chance);

    int64_t bad = l->leave_out ? emo_not_finite(n, g) : 0;
    if (bad) atomic_fetch_add(&e->left_out[i], bad);
    for (int64_t from = 0, to; from < n; from = to) {
        if (bad && !isfinite(g[from])) {
            to = from + 1;
            continue;
        }
        for (to = bad ? from + 1 : n; to < n && isfinite(g[to]);) to++;
        int64_t some = to - from;
        e->rule->run(some, p + from, g + from, a.at ? a.x + from : 0, b.at ? b.x + from : 0,
                     e->scales ? &e->scales[i] : 0, e->h);
        if (!in_place)
            write_parameter(some, l->p, l->compensation, p + from, chance + from, p_at + from * bytes_of(l->p),
                            c_at ? c_at + from * bytes_of(l->compensation) : 0);
        if (is_copied(&a) && !a.sizes) write_elements(some, a.format, a.x + from, a.at + from * bytes_of(a.format));
        if (is_copied(&b) && !b.sizes) write_elements(some, b.format, b.x + from, b.at + from * bytes_of(b.format));
    }
    if (a.sizes) write_blocks(n, a.format, a.x, chance, a.sizes, a.at);
    if (b.sizes) write_blocks(n, b.format, b.x, chance, b.sizes, b.at);
}

static void one_stretch(const struct elements *e, int64_t i, int64_t at, int64_t n) {
    if (!e->plain || (e->layout->leave_out && emo_not_finite(n, (const float *)e->g[i] + at))) {
        for (int64_t done = 0; done < n; done += CHUNK)
            by_float32(e, i, at + done, n - done < CHUNK ? n - done : CHUNK);
        return;
    }
    e->rule->run(n, (float *)e->p[i] + at, (const float *)e->g[i] + at, e->a ? (float *)e->a[i] + at : 0,
                 e->b ? (float *)e->b[i] + at : 0, e->scales ? &e->scales[i] : 0, e->h);
}

/* The first of `count` tensors that ends behind `place`, by bisection. */
static int64_t tensor_at(int64_t place, int64_t count, const int64_t *ends) {
    int64_t i = 0, last = count - 1;
    while (i < last) {
        int64_t middle = i + (last - i) / 2;
        if (ends[middle] > place) last = middle;
        else i = middle + 1;
    }
    return i;
}

static void one_piece(int64_t index, int64_t thread, const void *context) {
    const struct elements *e = context;
    int64_t begin = index * PIECE, end = begin + PIECE < e->total ? begin + PIECE : e->total;
    (void)thread;
    for (int64_t i = tensor_at(begin, e->count, e->ends); begin < end; i++) {
        int64_t first = i ? e->ends[i - 1] : 0, to = e->ends[i] < end ? e->ends[i] : end;
        int64_t at = begin - first, stop = to - first < e->counts[i] ? to - first : e->counts[i];
        for (; at < stop; at += STRETCH) one_stretch(e, i, at, stop - at < STRETCH ? stop - at : STRETCH);
        begin = to;
    }
}

/* Moves `count` tensors by a rule. `a`, `b`, their sizes, `compensation` and `scales` are null where there are none;
   `places` are those of the tensors' first elements in the parameters of which they are parts, null where all are whole.
   left_out[i] grows by the elements of tensor i that were left out.

   Returns −1, or the index of the first tensor that lacks memory, and then nothing has been moved. */
int64_t emo_elementwise(const struct rule *rule, const struct team *team, int64_t count, const int64_t *counts,
                        const int64_t *ends, const int64_t *places, char **p, char **g, char **a, char **b,
                        char **compensation, float **a_sizes, float **b_sizes, const float *scales, int64_t *left_out,
                        const struct layout *layout, const struct hyperparameters *h) {
    int64_t states = rule->state_tensors;
    int64_t plain = layout->p == FLOAT32 && layout->g == FLOAT32 && !layout->compensation &&
                    (states < 1 || layout->a == FLOAT32) && (states < 2 || layout->b == FLOAT32);
    for (int64_t i = 0; i < count; i++) {
        if (!counts[i]) continue;
        if (!p[i] || !g[i] || (states > 0 && !(a && a[i])) || (states > 1 && !(b && b[i]))) return i;
        if (layout->compensation && !(compensation && compensation[i])) return i;
        if ((a_sizes && !a_sizes[i]) || (b_sizes && !b_sizes[i])) return i;
    }
    struct elements e = {rule, layout,  count,   count ? ends[count - 1] : 0, plain, counts, ends, places, p, g, a, b,
                         compensation, a_sizes, b_sizes, scales, (_Atomic int64_t *)left_out, h};
    emo_share(one_piece, (e.total + PIECE - 1) / PIECE, team, &e);
    return -1;
}

/* Gradients that are only looked at, one after the other as in struct elements. */
struct gradients {
    int64_t count, total, format;
    const int64_t *counts, *ends;
    char **g;
    _Atomic int64_t *bad;
};

/* How many of n numbers in 16 bits are NaN or infinite: those whose size, without the sign, is at least `infinity`. */
static int64_t not_finite_in_16_bits(int64_t n, const uint16_t *x, uint16_t infinity) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) count += (x[i] & 0x7fff) >= infinity;
    return count;
}

static void look_at_one_piece(int64_t index, int64_t thread, const void *context) {
    const struct gradients *e = context;
    int64_t begin = index * PIECE, end = begin + PIECE < e->total ? begin + PIECE : e->total;
    (void)thread;
    for (int64_t i = tensor_at(begin, e->count, e->ends); begin < end; i++) {
        int64_t first = i ? e->ends[i - 1] : 0, to = e->ends[i] < end ? e->ends[i] : end;
        int64_t at = begin - first, stop = to - first < e->counts[i] ? to - first : e->counts[i], bad = 0;
        if (at < stop && e->format == FLOAT32) bad = emo_not_finite(stop - at, (const float *)e->g[i] + at);
        else if (at < stop)
            bad = not_finite_in_16_bits(stop - at, (const uint16_t *)e->g[i] + at,
                                        e->format == BFLOAT16 ? 0x7f80 : 0x7c00);
        if (bad) atomic_fetch_add(&e->bad[i], bad);
        begin = to;
    }
}

/* Counts elements of `count` tensors that are NaN or infinite: bad[i] grows by those of tensor i.

   Returns −1, or the index of the first tensor that lacks memory, and then nothing has been counted. */
int64_t emo_count_not_finite(const struct team *team, int64_t count, const int64_t *counts, const int64_t *ends,
                             char **g, int64_t format, int64_t *bad) {
    for (int64_t i = 0; i < count; i++)
        if (counts[i] && !g[i]) return i;
    struct gradients e = {count, count ? ends[count - 1] : 0, format, counts, ends, g, (_Atomic int64_t *)bad};
    emo_share(look_at_one_piece, (e.total + PIECE - 1) / PIECE, team, &e);
    return -1;
}
