/* A matrix:   r̂ = mean of g² over a row + ε           k̂ = mean of g² over a column + ε
               r ← β1·r + (1−β1)·√r̂                    k ← β1·k + (1−β1)·√k̂
               u = g / (√r·√k + ε)

   A vector:   v ← β1·v + (1−β2)·g²                    u = g / (√v + ε)

   Both:       p ← p − decay·p                         p ← p − lr·u */

#include "common.h"

#include <math.h>

static void fact_vector(int64_t n, float *restrict p, const float *restrict g, float *restrict v, float *restrict b,
                        const float *scale, const struct hyperparameters *h) {
    const struct hyperparameters z = *h;
    (void)b, (void)scale;
    for (int64_t i = 0; i < n; i++) {
        v[i] = fmaf(z.gain2 * g[i], g[i], z.beta1 * v[i]);
        float kept = fmaf(-z.decay, p[i], p[i]);
        p[i] = kept - z.lr * (g[i] / (sqrtf(v[i]) + z.eps));
    }
}

const struct rule emo_fact_vector = {.state_tensors = 1, .takes_scales = 0, .run = fact_vector};

/* r of some rows of a matrix of n columns, and their share of the columns' sums of g². */
static void row_sizes(int64_t rows, int64_t n, const float *restrict g, float *restrict r, float *restrict sums,
                      const struct hyperparameters *h) {
    for (int64_t j = 0; j < n; j++) sums[j] = 0;
    for (int64_t i = 0; i < rows; i++, g += n) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < n; j++) {
            float squared = g[j] * g[j];
            sum += squared;
            sums[j] += squared;
        }
        r[i] = fmaf(h->gain1, sqrtf(sum / (float)n + h->eps), h->beta1 * r[i]);
    }
}

/* k from the columns' sums of g² in `blocks` shares, of which the first is left holding √k. */
static void column_sizes(int64_t rows, int64_t n, int64_t blocks, float *restrict sums, float *restrict k,
                         const struct hyperparameters *h) {
    for (int64_t block = 1; block < blocks; block++)
        for (int64_t j = 0; j < n; j++) sums[j] += sums[block * n + j];
    for (int64_t j = 0; j < n; j++) {
        k[j] = fmaf(h->gain1, sqrtf(sums[j] / (float)rows + h->eps), h->beta1 * k[j]);
        sums[j] = sqrtf(k[j]);
    }
}

/* p of some rows of a matrix of n columns, once r and √k are known. */
static void move_rows(int64_t rows, int64_t n, float *restrict p, const float *restrict g, const float *restrict r,
                      const float *restrict root_k, const struct hyperparameters *h) {
    const struct hyperparameters z = *h;
    for (int64_t i = 0; i < rows; i++, g += n, p += n) {
        float root_r = sqrtf(r[i]);
        for (int64_t j = 0; j < n; j++) {
            float kept = fmaf(-z.decay, p[j], p[j]);
            p[j] = kept - z.lr * (g[j] / (root_r * root_k[j] + z.eps));
        }
    }
}

struct matrices {
    const int64_t *rows, *columns;
    float **p, **g, **r, **k;
    float *scratch; /* `widest` floats for each thread */
    int64_t widest;
    const struct hyperparameters *h;
};

static void whole_matrix(int64_t i, int64_t thread, const void *context) {
    const struct matrices *x = context;
    float *sums = x->scratch + thread * x->widest;
    row_sizes(x->rows[i], x->columns[i], x->g[i], x->r[i], sums, x->h);
    column_sizes(x->rows[i], x->columns[i], 1, sums, x->k[i], x->h);
    move_rows(x->rows[i], x->columns[i], x->p[i], x->g[i], x->r[i], sums, x->h);
}

/* Moves `count` matrices, each as one task. `scratch` holds `widest` floats, the most columns of any, for each thread.

   Returns −1, or the index of the first matrix that lacks memory, and then nothing has been moved. */
int64_t emo_fact_matrices(const struct team *team, int64_t count, const int64_t *rows, const int64_t *columns,
                          float **p, float **g, float **r, float **k, float *scratch, int64_t widest,
                          const struct hyperparameters *h) {
    struct matrices x = {rows, columns, p, g, r, k, scratch, widest, h};
    for (int64_t i = 0; i < count; i++)
        if (!p[i] || !g[i] || !r[i] || !k[i] || columns[i] > widest) return i;
    emo_share(whole_matrix, count, team, &x);
    return -1;
}

struct matrix {
    int64_t rows, columns, height; /* of the matrix, and rows of a block */
    float *p, *g, *r, *sums;
    const struct hyperparameters *h;
};

static int64_t rows_of_block(const struct matrix *x, int64_t block) {
    int64_t left = x->rows - block * x->height;
    return left < x->height ? left : x->height;
}

static void row_sizes_of_block(int64_t block, int64_t thread, const void *context) {
    const struct matrix *x = context;
    int64_t row = block * x->height;
    (void)thread;
    row_sizes(rows_of_block(x, block), x->columns, x->g + row * x->columns, x->r + row, x->sums + block * x->columns,
              x->h);
}

static void move_block(int64_t block, int64_t thread, const void *context) {
    const struct matrix *x = context;
    int64_t row = block * x->height, at = row * x->columns;
    (void)thread;
    move_rows(rows_of_block(x, block), x->columns, x->p + at, x->g + at, x->r + row, x->sums, x->h);
}

/* Moves one large matrix, of which all threads have a part. `sums` holds min(rows, BLOCKS)·columns floats.

   Returns −1, or 0 if it lacks memory. */
int64_t emo_fact_large_matrix(const struct team *team, int64_t rows, int64_t columns, float *p, float *g, float *r,
                              float *k, float *sums, const struct hyperparameters *h) {
    struct matrix x = {rows, columns, (rows + BLOCKS - 1) / BLOCKS, p, g, r, sums, h};
    if (rows < 1 || !p || !g || !r || !k || !sums) return 0;
    int64_t blocks = (rows + x.height - 1) / x.height;
    emo_share(row_sizes_of_block, blocks, team, &x);
    column_sizes(rows, columns, blocks, sums, k, h);
    emo_share(move_block, blocks, team, &x);
    return -1;
}
