/* The extra step of EmoZeal, with b = (1−β1)·g:

   without a scale:   p ← p − lr·sign(g)
   with a scale s:    p ← p − lr·s·b/(1+|b|) */

#include "common.h"

#include <math.h>

static void loud(int64_t n, float *restrict p, const float *restrict g, float lr) {
    for (int64_t i = 0; i < n; i++) p[i] = p[i] - signed_step(lr, g[i]);
}

static void sized(int64_t n, float *restrict p, const float *restrict g, float lr, float gain1) {
    for (int64_t i = 0; i < n; i++) {
        float b = gain1 * g[i];
        p[i] = p[i] - lr * (b / (1 + fabsf(b)));
    }
}

static void zeal(int64_t n, float *restrict p, const float *restrict g, float *restrict a, float *restrict b,
                 const float *scale, const struct hyperparameters *h) {
    (void)a, (void)b;
    if (scale) sized(n, p, g, h->lr * *scale, h->gain1);
    else loud(n, p, g, h->lr);
}

const struct rule emo_zeal = {.state_tensors = 0, .run = zeal};
