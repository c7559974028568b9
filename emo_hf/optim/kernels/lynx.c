/* p ← (1 − decay)·p      p ← p − lr·sign(β1·m + (1−β1)·g)      m ← β2·m + (1−β2)·g */

#include "common.h"

#include <math.h>

static void lynx(int64_t n, float *restrict p, const float *restrict g, float *restrict m, float *restrict b,
                 const float *scale, const struct hyperparameters *h) {
    const struct hyperparameters z = *h;
    (void)b, (void)scale;
    for (int64_t i = 0; i < n; i++) {
        float gi = g[i], mi = m[i];
        float blend = fmaf(z.gain1, gi, z.beta1 * mi);
        float kept = z.keep * p[i];
        p[i] = kept - signed_step(z.lr, blend);
        m[i] = fmaf(z.gain2, gi, z.beta2 * mi);
    }
}

const struct rule emo_lynx = {.state_tensors = 1, .run = lynx};
