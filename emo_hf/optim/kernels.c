/* The three update rules for float32 tensors in main memory, one pass each, in the symbols of the docstrings.

   Tensors come as lists: pointers to contiguous elements, and how many. Elementwise rules are handed a range
   [begin, end) of the concatenation of the list, so that threads can share it whatever its tensors' sizes.
   Nothing here allocates, keeps state or starts threads. */

#include <math.h>
#include <stdint.h>

struct size {
    float step;  /* lr·c, the effective learning rate */
    float decay; /* lr·wd */
    float keep;  /* 1 − lr·wd */
    float beta1, gain1, beta2, gain2; /* β and 1 − β */
    float eps;
};

typedef void piece(int64_t n, float *p, const float *g, float *a, float *b, const struct size *s);

static void over_range(piece *rule, int64_t begin, int64_t end, const int64_t *numel, float **p, float **g, float **a,
                       float **b, const struct size *s) {
    int64_t first = 0;
    for (int64_t i = 0; first < end; first += numel[i++]) {
        int64_t from = begin > first ? begin - first : 0;
        int64_t to = end - first < numel[i] ? end - first : numel[i];
        if (from < to) rule(to - from, p[i] + from, g[i] + from, a[i] + from, b ? b[i] + from : 0, s);
    }
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

/* r of some rows of a matrix of n columns, and their share of the columns' sums of g². */
void emo_fact_rows(int64_t rows, int64_t n, const float *restrict g, float *restrict r, float *restrict sums,
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
void emo_fact_columns(int64_t rows, int64_t n, int64_t blocks, float *restrict sums, float *restrict k,
                      const struct size *s) {
    for (int64_t block = 1; block < blocks; block++)
        for (int64_t j = 0; j < n; j++) sums[j] += sums[block * n + j];
    for (int64_t j = 0; j < n; j++) {
        k[j] = fmaf(s->gain1, sqrtf(sums[j] / rows + s->eps), s->beta1 * k[j]);
        sums[j] = sqrtf(k[j]);
    }
}

/* p of some rows of a matrix of n columns, once r and √k are known. */
void emo_fact_apply(int64_t rows, int64_t n, float *restrict p, const float *restrict g, const float *restrict r,
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

void emo_navi(int64_t begin, int64_t end, const int64_t *numel, float **p, float **g, float **m, float **v,
              const struct size *s) {
    over_range(navi_piece, begin, end, numel, p, g, m, v, s);
}

void emo_lynx(int64_t begin, int64_t end, const int64_t *numel, float **p, float **g, float **m,
              const struct size *s) {
    over_range(lynx_piece, begin, end, numel, p, g, m, 0, s);
}

/* Tensors first … last − 1 of the list, whole. A tensor of 0 rows is a vector, with v in the place of r. */
void emo_fact(int64_t first, int64_t last, const int64_t *rows, const int64_t *columns, float **p, float **g,
              float **r, float **k, float *scratch, const struct size *s) {
    for (int64_t i = first; i < last; i++) {
        if (rows[i] == 0) {
            fact_vector(columns[i], p[i], g[i], r[i], s);
            continue;
        }
        emo_fact_rows(rows[i], columns[i], g[i], r[i], scratch, s);
        emo_fact_columns(rows[i], columns[i], 1, scratch, k[i], s);
        emo_fact_apply(rows[i], columns[i], p[i], g[i], r[i], scratch, s);
    }
}
