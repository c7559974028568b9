/* p ← p − decay·p      p ← p − lr·sign(g) */

#include "common.h"

#include <math.h>

static void sign(int64_t n, float *restrict p, const float *restrict g, float *restrict a, float *restrict b,
                 const float *scale, const struct hyperparameters *h) {
    const struct hyperparameters z = *h;
    (void)a, (void)b, (void)scale;
    for (int64_t i = 0; i < n; i++) {
        float kept = fmaf(-z.decay, p[i], p[i]);
        p[i] = kept - signed_step(z.lr, g[i]);
    }
}

const struct rule emo_sign = {.state_tensors = 0, .run = sign};
