/* The three update rules for float32 tensors in main memory, one pass each, in the symbols of the docstrings.

   Tensors come as lists of pointers to contiguous elements. The work is cut into tasks that do not depend on the number
   of threads, so that no result does; each thread takes the next task as it gets free. Nothing here allocates or keeps
   state. */

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#define PIECE 32768 /* elements of an elementwise task: enough to hide its start, few enough to share evenly */
#define BLOCKS 16   /* row blocks in which a large matrix is taken apart */
#define MOST_THREADS 256

struct size {
    float step;  /* lr·c, the effective learning rate */
    float decay; /* lr·wd */
    float keep;  /* 1 − lr·wd */
    float beta1, gain1, beta2, gain2; /* β and 1 − β */
    float eps;
};

/* A task is called with its index and with the number of the thread that it runs on. */
typedef void task(int64_t index, int64_t thread, const void *context);

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

/* Who works. `pool` is GOMP_parallel of torch's own OpenMP: its threads are awake, and new ones would wait for a core
   until those sleep. Without it there are threads for the time of one call, which no fork can break. */
struct crew {
    int64_t threads;
    void (*pool)(void (*run)(void *), void *data, unsigned threads, unsigned flags);
};

/* Runs tasks 0 … tasks − 1 on this thread and helpers; where the system gives fewer of them, they do it all. */
static void share(task *run, int64_t tasks, const struct crew *crew, const void *context) {
    struct work w = {run, context, tasks, 0, 0};
    if (tasks > 1 && crew->pool) {
        crew->pool(take_tasks, &w, (unsigned)crew->threads, 0);
        return;
    }
    int64_t threads = crew->threads < tasks ? crew->threads : tasks;
    pthread_t helpers[MOST_THREADS];
    int64_t started = 0;
    while (started < threads - 1 && started < MOST_THREADS &&
           pthread_create(&helpers[started], 0, take_tasks_as_helper, &w) == 0)
        started++;
    take_tasks(&w);
    while (started > 0) pthread_join(helpers[--started], 0);
}

typedef void piece(int64_t n, float *p, const float *g, float *a, float *b, const struct size *s);

/* An elementwise rule over the concatenation of the tensors, of which tensor i ends at ends[i]. */
struct elementwise {
    piece *rule;
    const int64_t *ends;
    int64_t count, total;
    float **p, **g, **a, **b;
    const struct size *s;
};

static void one_piece(int64_t index, int64_t thread, const void *context) {
    const struct elementwise *e = context;
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
        e->rule(to - begin, e->p[i] + at, e->g[i] + at, e->a[i] + at, e->b ? e->b[i] + at : 0, e->s);
        begin = to;
    }
}

static void elementwise(piece *rule, const struct crew *crew, int64_t count, const int64_t *ends, float **p, float **g,
                        float **a, float **b, const struct size *s) {
    struct elementwise e = {rule, ends, count, ends[count - 1], p, g, a, b, s};
    share(one_piece, (e.total + PIECE - 1) / PIECE, crew, &e);
}

static void navi_piece(int64_t n, float *restrict p, const float *restrict g, float *restrict m, float *restrict v,
                       const struct size *s) {
    const struct size z = *s;
    for (int64_t i = 0; i < n; i++) {
        float gi = g[i];
        m[i] = fmaf(z.gain1, gi, z.beta1 * m[i]);
        v[i] = fmaf(z.gain2 * gi, gi, z.beta2 * v[i]);
        float kept = fmaf(-z.decay, p[i], p[i]);
        p[i] = kept - z.step * m[i] / (sqrtf(v[i]) + z.eps);
    }
}

static void lynx_piece(int64_t n, float *restrict p, const float *restrict g, float *restrict m, float *restrict unused,
                       const struct size *s) {
    const struct size z = *s;
    for (int64_t i = 0; i < n; i++) {
        float gi = g[i], mi = m[i];
        float blend = fmaf(z.gain1, gi, z.beta1 * mi);
        float kept = z.keep * p[i];
        p[i] = kept - (blend > 0 ? z.step : blend < 0 ? -z.step : 0);
        m[i] = fmaf(z.gain2, gi, z.beta2 * mi);
    }
}

static void fact_vector(int64_t n, float *restrict p, const float *restrict g, float *restrict v,
                        const struct size *s) {
    const struct size z = *s;
    for (int64_t i = 0; i < n; i++) {
        v[i] = fmaf(z.gain2 * g[i], g[i], z.beta1 * v[i]);
        float kept = fmaf(-z.decay, p[i], p[i]);
        p[i] = kept - z.step * (g[i] / (sqrtf(v[i]) + z.eps));
    }
}

struct matrices {
    const int64_t *rows, *columns;
    float **p, **g, **r, **k;
    float *scratch; /* `widest` floats for each thread */
    int64_t widest;
    const struct size *s;
};

/* r of some rows of a matrix of n columns, and their share of the columns' sums of g². */
static void fact_rows(int64_t rows, int64_t n, const float *restrict g, float *restrict r, float *restrict sums,
                      const struct size *s) {
    for (int64_t j = 0; j < n; j++) sums[j] = 0;
    for (int64_t i = 0; i < rows; i++, g += n) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < n; j++) {
            float squared = g[j] * g[j];
            sum += squared;
            sums[j] += squared;
        }
        r[i] = fmaf(s->gain1, sqrtf(sum / n + s->eps), s->beta1 * r[i]);
    }
}

/* k from the columns' sums of g² in `blocks` shares, of which the first is left holding √k. */
static void fact_columns(int64_t rows, int64_t n, int64_t blocks, float *restrict sums, float *restrict k,
                         const struct size *s) {
    for (int64_t block = 1; block < blocks; block++)
        for (int64_t j = 0; j < n; j++) sums[j] += sums[block * n + j];
    for (int64_t j = 0; j < n; j++) {
        k[j] = fmaf(s->gain1, sqrtf(sums[j] / rows + s->eps), s->beta1 * k[j]);
        sums[j] = sqrtf(k[j]);
    }
}

/* p of some rows of a matrix of n columns, once r and √k are known. */
static void fact_apply(int64_t rows, int64_t n, float *restrict p, const float *restrict g, const float *restrict r,
                       const float *restrict root_k, const struct size *s) {
    const struct size z = *s;
    for (int64_t i = 0; i < rows; i++, g += n, p += n) {
        float root_r = sqrtf(r[i]);
        for (int64_t j = 0; j < n; j++) {
            float kept = fmaf(-z.decay, p[j], p[j]);
            p[j] = kept - z.step * (g[j] / (root_r * root_k[j] + z.eps));
        }
    }
}

static void fact_whole(int64_t i, int64_t thread, const void *context) {
    const struct matrices *x = context;
    float *sums = x->scratch + thread * x->widest;
    if (x->rows[i] == 0) {
        fact_vector(x->columns[i], x->p[i], x->g[i], x->r[i], x->s);
        return;
    }
    fact_rows(x->rows[i], x->columns[i], x->g[i], x->r[i], sums, x->s);
    fact_columns(x->rows[i], x->columns[i], 1, sums, x->k[i], x->s);
    fact_apply(x->rows[i], x->columns[i], x->p[i], x->g[i], x->r[i], sums, x->s);
}

struct matrix {
    int64_t rows, columns, height; /* of the matrix, and rows of a block */
    float *p, *g, *r, *sums;
    const struct size *s;
};

static int64_t rows_of_block(const struct matrix *x, int64_t block) {
    int64_t left = x->rows - block * x->height;
    return left < x->height ? left : x->height;
}

static void block_rows(int64_t block, int64_t thread, const void *context) {
    const struct matrix *x = context;
    int64_t row = block * x->height;
    (void)thread;
    fact_rows(rows_of_block(x, block), x->columns, x->g + row * x->columns, x->r + row, x->sums + block * x->columns,
              x->s);
}

static void block_apply(int64_t block, int64_t thread, const void *context) {
    const struct matrix *x = context;
    int64_t row = block * x->height, at = row * x->columns;
    (void)thread;
    fact_apply(rows_of_block(x, block), x->columns, x->p + at, x->g + at, x->r + row, x->sums, x->s);
}

void emo_navi(const struct crew *crew, int64_t count, const int64_t *ends, float **p, float **g, float **m, float **v,
              const struct size *s) {
    elementwise(navi_piece, crew, count, ends, p, g, m, v, s);
}

void emo_lynx(const struct crew *crew, int64_t count, const int64_t *ends, float **p, float **g, float **m,
              const struct size *s) {
    elementwise(lynx_piece, crew, count, ends, p, g, m, 0, s);
}

/* Each tensor is a task. One of 0 rows is a vector, with v in the place of r. `scratch` holds `widest` floats, the most
   columns of any matrix, for each thread. */
void emo_fact(const struct crew *crew, int64_t count, const int64_t *rows, const int64_t *columns, float **p, float **g,
              float **r, float **k, float *scratch, int64_t widest, const struct size *s) {
    struct matrices x = {rows, columns, p, g, r, k, scratch, widest, s};
    share(fact_whole, count, crew, &x);
}

/* One large matrix, of which all threads have a part. `sums` holds BLOCKS · columns floats. */
void emo_fact_large(const struct crew *crew, int64_t rows, int64_t columns, float *p, float *g, float *r, float *k,
                    float *sums, const struct size *s) {
    struct matrix x = {rows, columns, (rows + BLOCKS - 1) / BLOCKS, p, g, r, sums, s};
    int64_t blocks = (rows + x.height - 1) / x.height;
    share(block_rows, blocks, crew, &x);
    fact_columns(rows, columns, blocks, sums, k, s);
    share(block_apply, blocks, crew, &x);
}
