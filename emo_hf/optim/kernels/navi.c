/* m ← β1·m + (1−β1)·g      v ← β2·v + (1−β2)·g²      p ← p − decay·p      p ← p − lr·m/(√v + ε) */

#include "common.h"

#include <math.h>

static void navi(int64_t n, float *restrict p, const float *restrict g, float *restrict m, float *restrict v,
                 const float *scale, const struct hyperparameters *h) {
    const struct hyperparameters z = *h;
    (void)scale;
    for (int64_t i = 0; i < n; i++) {
        float gi = g[i];
        m[i] = fmaf(z.gain1, gi, z.beta1 * m[i]);
        v[i] = fmaf(z.gain2 * gi, gi, z.beta2 * v[i]);
        float kept = fmaf(-z.decay, p[i], p[i]);
        p[i] = kept - z.lr * m[i] / (sqrtf(v[i]) + z.eps);
    }
}

const struct rule emo_navi = {.state_tensors = 2, .run = navi};
