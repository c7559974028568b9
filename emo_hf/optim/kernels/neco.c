/* p ← (1 − decay)·p      b = (1−β1)·g + β1·m

   without a scale:   p ← p − lr·d,    d = sign(b) where sign(b) = sign(g), else 0
   with a scale s:    p ← p − lr·s·b/(1+|b|)

   m ← β2·m + (1−β2)·g */

#include "common.h"

#include <math.h>

static void cautious(int64_t n, float *restrict p, const float *restrict g, float *restrict m,
                     const struct hyperparameters *h) {
    const struct hyperparameters z = *h;
    for (int64_t i = 0; i < n; i++) {
        float gi = g[i], mi = m[i];
        float b = fmaf(z.gain1, gi, z.beta1 * mi);
        float kept = z.keep * p[i];
        float up = gi > 0 ? z.lr : 0, down = gi < 0 ? -z.lr : 0;
        p[i] = kept - (b > 0 ? up : b < 0 ? down : 0);
        m[i] = fmaf(z.gain2, gi, z.beta2 * mi);
    }
}

static void sized(int64_t n, float *restrict p, const float *restrict g, float *restrict m, float scale,
                  const struct hyperparameters *h) {
    const struct hyperparameters z = *h;
    const float lr = z.lr * scale;
    for (int64_t i = 0; i < n; i++) {
        float gi = g[i], mi = m[i];
        float b = fmaf(z.gain1, gi, z.beta1 * mi);
        float kept = z.keep * p[i];
        p[i] = kept - lr * (b / (1 + fabsf(b)));
        m[i] = fmaf(z.gain2, gi, z.beta2 * mi);
    }
}

static void neco(int64_t n, float *restrict p, const float *restrict g, float *restrict m, float *restrict b,
                 const float *scale, const struct hyperparameters *h) {
    (void)b;
    if (scale) sized(n, p, g, m, *scale, h);
    else cautious(n, p, g, m, h);
}

const struct rule emo_neco = {.state_tensors = 1, .run = neco};
