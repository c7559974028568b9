/* A matrix:   r̂ = mean of g² over a row + ε           k̂ = mean of g² over a column + ε
               r ← β1·r + (1−β1)·√r̂                    k ← β1·k + (1−β1)·√k̂
               u = g / (√r·√k + ε)

   A vector:   v ← β1·v + (1−β2)·g²                    u = g / (√v + ε)

   Both:       p ← p − decay·p                         p ← p − lr·u */

#include "formats.h"

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

const struct rule emo_fact_vector = {.state_tensors = 1, .run = fact_vector};

/* A matrix of `columns` columns, or what is the same, its rows from one on. */
struct rows {
    const struct layout *layout;
    int64_t columns, first; /* `first` row of its matrix */
    char *p, *compensation;
    const char *g;
};

static struct rows rows_from(const struct rows *x, int64_t row) {
    struct rows of = *x;
    int64_t at = row * x->columns;
    of.first += row;
    of.p += at * bytes_of(x->layout->p);
    of.g += at * bytes_of(x->layout->g);
    if (of.compensation) of.compensation += at * bytes_of(x->layout->compensation);
    return of;
}

/* How many rows of n columns are worked on at once: where they are short, as many as there is room for. */
static int64_t rows_at_once(int64_t rows, int64_t n) {
    int64_t fit = n < CHUNK ? CHUNK / n : 1;
    return rows < fit ? rows : fit;
}

static float row_of_squares(int64_t n, const float *restrict g, float *restrict sums) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) {
        float squared = g[j] * g[j];
        sum += squared;
        sums[j] += squared;
    }
    return sum;
}

/* Sums of g² of some rows, and their share of the columns'. */
static void squares(int64_t rows, const struct rows *x, float *restrict row_sums, float *restrict sums) {
    const int64_t n = x->columns, format = x->layout->g, width = format == FLOAT32 || n < CHUNK ? n : CHUNK;
    float buffer[CHUNK];
    for (int64_t j = 0; j < n; j++) sums[j] = 0;
    for (int64_t i = 0, some; i < rows; i += some) {
        some = format == FLOAT32 ? 1 : rows_at_once(rows - i, n);
        for (int64_t k = 0; k < some; k++) row_sums[i + k] = 0;
        for (int64_t at = 0; at < n; at += width) {
            int64_t wide = n - at < width ? n - at : width;
            const float *g = in_float32(some * wide, format, x->g + (i * n + at) * bytes_of(format), buffer);
            for (int64_t k = 0; k < some; k++) row_sums[i + k] += row_of_squares(wide, g + k * wide, sums + at);
        }
    }
}

/* r of some rows of n columns. */
static void row_sizes(int64_t rows, int64_t n, const float *row_sums, float *restrict r,
                      const struct hyperparameters *h) {
    for (int64_t i = 0; i < rows; i++)
        r[i] = fmaf(h->gain1, sqrtf(row_sums[i] / (float)n + h->eps), h->beta1 * r[i]);
}

/* The columns' sums of g², out of `blocks` shares. */
static void add_up(int64_t n, int64_t blocks, float *restrict sums) {
    for (int64_t block = 1; block < blocks; block++)
        for (int64_t j = 0; j < n; j++) sums[j] += sums[block * n + j];
}

/* k from the columns' sums of g², which are left holding √k. */
static void column_sizes(int64_t rows, int64_t n, float *restrict sums, float *restrict k,
                         const struct hyperparameters *h) {
    for (int64_t j = 0; j < n; j++) {
        k[j] = fmaf(h->gain1, sqrtf(sums[j] / (float)rows + h->eps), h->beta1 * k[j]);
        sums[j] = sqrtf(k[j]);
    }
}

static void move_some(int64_t n, float *restrict p, const float *restrict g, float root_r,
                      const float *restrict root_k, const struct hyperparameters *h) {
    const struct hyperparameters z = *h;
    for (int64_t j = 0; j < n; j++) {
        float kept = fmaf(-z.decay, p[j], p[j]);
        p[j] = kept - z.lr * (g[j] / (root_r * root_k[j] + z.eps));
    }
}

/* p of some rows, once r and √k are known. */
static void move_rows(int64_t rows, const struct rows *x, const float *restrict r, const float *restrict root_k,
                      const struct hyperparameters *h) {
    const struct layout *l = x->layout;
    const int64_t n = x->columns;
    float p[CHUNK], buffer[CHUNK];
    uint32_t chance[CHUNK];
    if (l->p == FLOAT32 && l->g == FLOAT32) {
        for (int64_t i = 0; i < rows; i++)
            move_some(n, (float *)x->p + i * n, (const float *)x->g + i * n, sqrtf(r[i]), root_k, h);
        return;
    }
    for (int64_t i = 0, some; i < rows; i += some) {
        some = rows_at_once(rows - i, n);
        for (int64_t at = 0; at < n; at += CHUNK) {
            int64_t wide = n - at < CHUNK ? n - at : CHUNK, all = some * wide, place = i * n + at;
            const float *g = in_float32(all, l->g, x->g + place * bytes_of(l->g), buffer);
            char *p_at = x->p + place * bytes_of(l->p);
            char *c_at = l->compensation ? x->compensation + place * bytes_of(l->compensation) : 0;
            read_parameter(all, l->p, l->compensation, p_at, c_at, p);
            if (l->compensation == SIGNED_8BIT) draw(all, g, x->first * n + place, (uint32_t)l->seed, chance);
            for (int64_t k = 0; k < some; k++)
                move_some(wide, p + k * wide, g + k * wide, sqrtf(r[i + k]), root_k + at, h);
            write_parameter(all, l->p, l->compensation, p, chance, p_at, c_at);
        }
    }
}

struct matrices {
    const struct layout *layout;
    const int64_t *rows, *columns;
    char **p, **g, **compensation;
    float **r, **k;
    float *scratch; /* `width` floats for each thread */
    int64_t width;
    int64_t *spoilt;
    const struct hyperparameters *h;
};

static void whole_matrix(int64_t i, int64_t thread, const void *context) {
    const struct matrices *x = context;
    int64_t rows = x->rows[i], columns = x->columns[i];
    struct rows of = {x->layout, columns, 0, x->p[i], x->compensation ? x->compensation[i] : 0, x->g[i]};
    float *sums = x->scratch + thread * x->width, *row_sums = sums + columns;
    squares(rows, &of, row_sums, sums);
    if (x->layout->leave_out && emo_not_finite(columns, sums)) {
        x->spoilt[i] = 1;
        return;
    }
    row_sizes(rows, columns, row_sums, x->r[i], x->h);
    column_sizes(rows, columns, sums, x->k[i], x->h);
    move_rows(rows, &of, x->r[i], sums, x->h);
}

/* Moves `count` matrices, each as one task. `scratch` holds `width` floats, the most rows and columns together of any,
   for each thread. spoilt[i] becomes 1 where a gradient is not finite (or its square is not) and such are to be left
   out: that matrix has not been moved.

   Returns −1, or the index of the first matrix that lacks memory, and then nothing has been moved. */
int64_t emo_fact_matrices(const struct team *team, int64_t count, const int64_t *rows, const int64_t *columns,
                          char **p, char **g, float **r, float **k, char **compensation, float *scratch, int64_t width,
                          int64_t *spoilt, const struct layout *layout, const struct hyperparameters *h) {
    struct matrices x = {layout, rows, columns, p, g, compensation, r, k, scratch, width, spoilt, h};
    for (int64_t i = 0; i < count; i++)
        if (!p[i] || !g[i] || !r[i] || !k[i] || rows[i] + columns[i] > width ||
            (layout->compensation && !(compensation && compensation[i])))
            return i;
    emo_share(whole_matrix, count, team, &x);
    return -1;
}

struct matrix {
    struct rows all;
    int64_t rows, height; /* of the matrix, and rows of a block */
    float *r, *sums, *row_sums;
    const struct hyperparameters *h;
};

static int64_t rows_of_block(const struct matrix *x, int64_t block) {
    int64_t left = x->rows - block * x->height;
    return left < x->height ? left : x->height;
}

static void squares_of_block(int64_t block, int64_t thread, const void *context) {
    const struct matrix *x = context;
    int64_t row = block * x->height;
    struct rows from = rows_from(&x->all, row);
    (void)thread;
    squares(rows_of_block(x, block), &from, x->row_sums + row, x->sums + block * x->all.columns);
}

static void move_block(int64_t block, int64_t thread, const void *context) {
    const struct matrix *x = context;
    int64_t row = block * x->height, rows = rows_of_block(x, block);
    struct rows from = rows_from(&x->all, row);
    (void)thread;
    row_sizes(rows, x->all.columns, x->row_sums + row, x->r + row, x->h);
    move_rows(rows, &from, x->r + row, x->sums, x->h);
}

/* Moves one large matrix, of which all threads have a part. `sums` holds min(rows, BLOCKS)·columns + rows floats.

   Returns −1; 0 if it lacks memory; or 1 if a gradient is not finite (or its square is not) and such are to be left
   out: then it has not been moved. */
int64_t emo_fact_large_matrix(const struct team *team, int64_t rows, int64_t columns, char *p, char *g, float *r,
                              float *k, char *compensation, float *sums, const struct layout *layout,
                              const struct hyperparameters *h) {
    int64_t height = (rows + BLOCKS - 1) / BLOCKS;
    if (rows < 1 || !p || !g || !r || !k || !sums || (layout->compensation && !compensation)) return 0;
    int64_t blocks = (rows + height - 1) / height;
    struct matrix x = {{layout, columns, 0, p, compensation, g}, rows, height, r, sums, sums + blocks * columns, h};
    emo_share(squares_of_block, blocks, team, &x);
    add_up(columns, blocks, sums);
    if (layout->leave_out && emo_not_finite(columns, sums)) return 1;
    column_sizes(rows, columns, sums, k, h);
    emo_share(move_block, blocks, team, &x);
    return -1;
}
