/* The two sweeps of a coupled step on a CPU, for float or, with BFLOAT16 defined, bfloat16.

   native.py compiles this file and says what the sweeps are for. A matrix is cut into tiles, blocks
   of whole rows whose number depends on the matrix alone. Threads share out the tiles, and sums are
   made tile by tile, so that the number of threads does not change a bit of the result. Sums over
   rows are kept column by column, so that the compiler can use vector instructions without changing
   the arithmetic. */

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#ifdef BFLOAT16
typedef uint16_t element;

static inline float load(element x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline element store(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t even = bits + 0x7fff + ((bits >> 16) & 1); /* to the nearest, ties to even */
    uint32_t quiet = bits | 0x400000;                   /* rounding could make NaN infinite */
    return (element)(((bits & 0x7fffffff) > 0x7f800000 ? quiet : even) >> 16);
}
#else
typedef float element;

static inline float load(element x) { return x; }
static inline element store(float value) { return value; }
#endif

/* One sweep over a matrix of rows x columns; _Sweep in native.py is its twin. Strides are in
   elements, from row to row. */
typedef struct {
    element *parameter; /* NULL in the sweep that sums squares */
    const element *gradient;
    element *first_moment;
    const float *factor; /* of each column */
    double *totals;      /* tiles x columns */
    float *sums;         /* of each column */
    int64_t rows, columns, parameter_stride, gradient_stride, moment_stride;
    int64_t tiles, shares;
    atomic_int_least64_t *taken; /* tiles of each share that a thread has taken */
    atomic_int_least64_t done;   /* tiles that are finished */
    float sign, weight, decay;
} sweep;

/* Places of a tile, far apart, that are read at once: a single stream does not keep a processor's
   memory busy, least of all where a page ends. */
#define STREAMS 4
#define HALVES 2
/* Rows of each stream whose squares are added in single precision before they go into the total. */
#define AT_ONCE 64
/* Columns whose sums are kept on the stack. */
#define BLOCK 1024
/* Elements of a cache line, how many lines ahead each stream is asked for (into the second cache,
   which can wait for more lines at a time than the first), and how many at once. */
#define LINE (64 / (int64_t)sizeof(element))
#define AHEAD 16
#define STRIP (4 * LINE)

static inline void ask_for(const element *place) {
#if defined(__GNUC__)
    for (int64_t k = 0; k < STRIP; k += LINE) __builtin_prefetch(place + AHEAD * LINE + k, 0, 2);
#else
    (void)place;
#endif
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static inline void add_strip(const element *restrict a, const element *restrict b,
                             const element *restrict c, const element *restrict d, int64_t columns,
                             float *restrict part) {
    for (int64_t k = 0; k < columns; k++) {
        float w = load(a[k]), x = load(b[k]), y = load(c[k]), z = load(d[k]);
        part[k] += (w * w + x * x) + (y * y + z * z);
    }
}

static void add_squares(const element *a, const element *b, const element *c, const element *d,
                        int64_t rows, int64_t columns, int64_t stride, float *part) {
    for (int64_t row = 0; row < rows; row++, a += stride, b += stride, c += stride, d += stride) {
        int64_t k = 0;
        for (; k + STRIP <= columns; k += STRIP) {
            ask_for(a + k);
            ask_for(b + k);
            ask_for(c + k);
            ask_for(d + k);
            add_strip(a + k, b + k, c + k, d + k, STRIP, part + k);
        }
        add_strip(a + k, b + k, c + k, d + k, columns - k, part + k);
    }
}

/* total[k] = sum over the rows of gradient[row][k] squared, for at most BLOCK columns. */
static void sum_block(const element *gradient, int64_t rows, int64_t columns, int64_t stride,
                      double *restrict total) {
    float part[BLOCK];
    int64_t each = rows / STREAMS, apart = each * stride;
    memset(total, 0, columns * sizeof *total);
    for (int64_t first = 0; first < each; first += AT_ONCE) {
        const element *a = gradient + first * stride;
        memset(part, 0, columns * sizeof *part);
        add_squares(a, a + apart, a + 2 * apart, a + 3 * apart, least(AT_ONCE, each - first),
                    columns, stride, part);
        for (int64_t k = 0; k < columns; k++) total[k] += part[k];
    }
    for (int64_t row = STREAMS * each; row < rows; row++)
        for (int64_t k = 0; k < columns; k++) {
            double x = load(gradient[row * stride + k]);
            total[k] += x * x;
        }
}

/* m += weight * (sign * g - m); p += decay * p + factor * m. */
static inline void update_strip(element *restrict p, const element *restrict g,
                                element *restrict m, const float *restrict factor, int64_t columns,
                                float sign, float weight, float decay) {
    for (int64_t k = 0; k < columns; k++) {
        float before = load(p[k]), moment = load(m[k]);
        moment += weight * (sign * load(g[k]) - moment);
        m[k] = store(moment);
        p[k] = store(before + (decay * before + factor[k] * moment));
    }
}

static void update_row(const sweep *all, int64_t row) {
    element *p = all->parameter + row * all->parameter_stride;
    const element *g = all->gradient + row * all->gradient_stride;
    element *m = all->first_moment + row * all->moment_stride;
    const float *factor = all->factor;
    float sign = all->sign, weight = all->weight, decay = all->decay;
    int64_t k = 0;
    for (; k + STRIP <= all->columns; k += STRIP) {
        ask_for(p + k);
        ask_for(g + k);
        ask_for(m + k);
        update_strip(p + k, g + k, m + k, factor + k, STRIP, sign, weight, decay);
    }
    update_strip(p + k, g + k, m + k, factor + k, all->columns - k, sign, weight, decay);
}

static void do_tile(const sweep *all, int64_t tile) {
    int64_t first = all->rows * tile / all->tiles, last = all->rows * (tile + 1) / all->tiles;
    if (all->parameter == NULL) {
        for (int64_t column = 0; column < all->columns; column += BLOCK)
            sum_block(all->gradient + first * all->gradient_stride + column, last - first,
                      least(BLOCK, all->columns - column), all->gradient_stride,
                      all->totals + tile * all->columns + column);
        return;
    }
    int64_t half = (last - first) / HALVES;
    for (int64_t row = first; row < first + half; row++) {
        update_row(all, row);
        update_row(all, row + half);
    }
    for (int64_t row = first + HALVES * half; row < last; row++) update_row(all, row);
}

/* One thread's part in a sweep: its own share of the tiles, then what is left of the others', so
   that none waits long for one that the system has put aside. A thread that comes too late finds
   nothing left, and touches no matrix. */
void take_part(sweep *all, int64_t member) {
    for (int64_t k = 0; k < all->shares; k++) {
        int64_t share = (member + k) % all->shares;
        int64_t first = all->tiles * share / all->shares;
        int64_t last = all->tiles * (share + 1) / all->shares;
        for (;;) {
            int64_t taken = atomic_fetch_add(&all->taken[share], 1);
            if (taken >= last - first) break;
            /* Backwards in the update: the rows whose squares were summed last are still at hand. */
            do_tile(all, all->parameter == NULL ? first + taken : last - 1 - taken);
            atomic_fetch_add(&all->done, 1);
        }
    }
}

/* The part of the thread that asked for the sweep; back when all of it is done. */
void lead(sweep *all) {
    take_part(all, 0);
    while (atomic_load(&all->done) < all->tiles) sched_yield();
    if (all->parameter != NULL) return;
    for (int64_t k = 0; k < all->columns; k++) {
        double sum = 0;
        for (int64_t tile = 0; tile < all->tiles; tile++)
            sum += all->totals[tile * all->columns + k];
        all->sums[k] = (float)sum;
    }
}

/* The whole sweep in the threads of an OpenMP runtime, by the entry that compilers make
   `#pragma omp parallel` into. They are handed over, so that this file brings no runtime along. */
typedef struct {
    sweep *all;
    int (*number)(void);
} member;

static void in_parallel(void *one) {
    take_part(((member *)one)->all, ((member *)one)->number());
}

void lead_team(sweep *all, void (*parallel)(void (*)(void *), void *, unsigned, unsigned),
               int (*number)(void), int threads) {
    member each = {all, number};
    parallel(in_parallel, &each, (unsigned)threads, 0);
    lead(all);
}

/* 1 if the sweeps, as compiled, are right on this processor, for a few numbers without rounding. */
int works(void) {
    enum { ROWS = 531, COLUMNS = 150 }; /* several of all that there are one after the other */
    static element p[ROWS * COLUMNS], g[ROWS * COLUMNS], m[ROWS * COLUMNS];
    float factor[COLUMNS], sums[COLUMNS];
    double totals[2 * COLUMNS];
    atomic_int_least64_t taken[1];
    for (int64_t k = 0; k < ROWS * COLUMNS; k++) {
        p[k] = store(4);
        g[k] = store((float)(k % COLUMNS % 8));
        m[k] = store(2);
    }
    for (int64_t k = 0; k < COLUMNS; k++) factor[k] = (float)(k % 4);
    for (int squares = 1; squares >= 0; squares--) {
        sweep all = {squares ? NULL : p, g, m, factor, totals, sums, ROWS, COLUMNS, COLUMNS,
                     COLUMNS, COLUMNS, 2, 1, taken, 0, -1, 0.5f, -0.25f};
        atomic_init(&taken[0], 0);
        lead(&all);
    }
    for (int64_t k = 0; k < ROWS * COLUMNS; k++) {
        float column = (float)(k % COLUMNS % 8), moment = 1 - column / 2;
        if (sums[k % COLUMNS] != ROWS * column * column || load(m[k]) != moment ||
            load(p[k]) != 3 + factor[k % COLUMNS] * moment)
            return 0;
    }
    return 1;
}
