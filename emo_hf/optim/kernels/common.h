/* What every kernel uses: the numbers of a step, a team of threads, and a walk over the elements of many tensors.

   Tensors lie in main memory and come as pointers to contiguous elements; rules work on float32. Work is cut into tasks
   in a way that does not depend on the number of threads, so that no result does. Nothing here allocates or keeps
   state. */

#ifndef EMO_COMMON_H
#define EMO_COMMON_H

#include <stdint.h>

/* Python reads these from the library's symbols emo_piece, emo_blocks and emo_most_threads. */
#define PIECE 32768 /* elements of an elementwise task: enough to hide its start, few enough to share evenly */
#define BLOCKS 16   /* row blocks in which a large matrix is taken apart */
#define MOST_THREADS 256
#define STRETCH 4096 /* elements whose gradients are looked at before they are used: they stay in the first cache */
#define CHUNK 256 /* elements that are worked on at a time in float32 buffers: small ones overlap, and stay near */

struct hyperparameters {
    float lr;    /* the learning rate that the step is taken with */
    float decay; /* the share of the parameter that decays */
    float keep;  /* 1 − decay */
    float beta1, gain1, beta2, gain2; /* β and 1 − β */
    float eps;
};

/* The threads that work. `pool` is GOMP_parallel of torch's own OpenMP: its threads are awake, and new ones would wait
   for a core until those sleep. Without it there are threads for the time of one call, which no fork can break. */
struct team {
    int64_t threads;
    void (*pool)(void (*run)(void *), void *data, unsigned threads, unsigned flags);
};

/* A task is called with its index and with the number of the thread that it runs on, below team->threads. */
typedef void task(int64_t index, int64_t thread, const void *context);

/* Runs tasks 0 … tasks − 1; each thread takes the next one as it gets free. */
void emo_share(task *run, int64_t tasks, const struct team *team, const void *context);

/* Moves n elements of a parameter p with gradient g. `a` and `b` are its first and second state tensor, null where the
   rule has fewer; `scale` is the tensor's own, null where none is given. */
typedef void piece(int64_t n, float *p, const float *g, float *a, float *b, const float *scale,
                   const struct hyperparameters *h);

/* How the tensors of one call lie in memory (enum format), and what is done with gradients that are not finite. */
struct layout {
    int64_t p, g, a, b;
    int64_t compensation; /* NONE; the format of p, for what rounding took; or SIGNED_8BIT, for 8 more bits */
    int64_t leave_out;    /* whether elements without a finite gradient stay as they are */
    int64_t seed;         /* of the step, for the rounding to 8 bits */
};

/* An elementwise rule, exported under its name. */
struct rule {
    int64_t state_tensors; /* 0, 1 or 2 */
    piece *run;
};

/* How many of n numbers are NaN or infinite. */
int64_t emo_not_finite(int64_t n, const float *x);

/* lr·sign(x), which is 0 for ±0 and NaN. */
static inline float signed_step(float lr, float x) { return x > 0 ? lr : x < 0 ? -lr : 0; }

#endif
