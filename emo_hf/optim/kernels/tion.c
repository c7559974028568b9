/* m ← (1−α)·m + α·g      p ← p − lr·sign(m)      with α as 1 − β1 */

#include "common.h"

#include <math.h>

static void tion(int64_t n, float *restrict p, const float *restrict g, float *restrict m, float *restrict b,
                 const float *scale, const struct hyperparameters *h) {
    const struct hyperparameters z = *h;
    (void)b, (void)scale;
    for (int64_t i = 0; i < n; i++) {
        m[i] = fmaf(z.gain1, g[i], z.beta1 * m[i]);
        p[i] = p[i] - signed_step(z.lr, m[i]);
    }
}

const struct rule emo_tion = {.state_tensors = 1, .takes_scales = 0, .run = tion};
