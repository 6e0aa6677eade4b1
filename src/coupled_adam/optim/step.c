/* The two sweeps of a coupled step on a CPU, for float or, with BFLOAT16 defined, bfloat16.

   native.py compiles this file and says what the functions are for. Sums over rows are kept column
   by column, so that the compiler can use vector instructions without changing the arithmetic. */

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

/* Rows that are read at once, from four places far apart: a single stream does not keep a
   processor's memory busy. */
#define STREAMS 4
/* Rows of each stream whose squares are added in single precision before they go into the total. */
#define AT_ONCE 64
/* Elements of a cache line, and how many lines ahead each stream is asked for. */
#define LINE (64 / (int64_t)sizeof(element))
#define AHEAD 4

#if defined(__GNUC__)
#define ASK_FOR(address) __builtin_prefetch(address)
#else
#define ASK_FOR(address)
#endif

static void add_squares(const element *restrict a, const element *restrict b,
                        const element *restrict c, const element *restrict d, int64_t rows,
                        int64_t columns, int64_t stride, float *restrict part) {
    for (int64_t row = 0; row < rows; row++, a += stride, b += stride, c += stride, d += stride)
        for (int64_t line = 0; line < columns; line += LINE) {
            int64_t ahead = line + AHEAD * LINE, end = line + LINE < columns ? line + LINE : columns;
            ASK_FOR(a + ahead);
            ASK_FOR(b + ahead);
            ASK_FOR(c + ahead);
            ASK_FOR(d + ahead);
            for (int64_t k = line; k < end; k++) {
                float w = load(a[k]), x = load(b[k]), y = load(c[k]), z = load(d[k]);
                part[k] += (w * w + x * x) + (y * y + z * z);
            }
        }
}

/* total[k] = sum over the rows of gradient[row][k] squared; part: room for as many floats. */
void sum_of_squares(const element *gradient, int64_t rows, int64_t columns, int64_t stride,
                    float *restrict part, double *restrict total) {
    int64_t each = rows / STREAMS, apart = each * stride;
    memset(total, 0, columns * sizeof *total);
    for (int64_t first = 0; first < each; first += AT_ONCE) {
        int64_t count = each - first < AT_ONCE ? each - first : AT_ONCE;
        const element *a = gradient + first * stride;
        memset(part, 0, columns * sizeof *part);
        add_squares(a, a + apart, a + 2 * apart, a + 3 * apart, count, columns, stride, part);
        for (int64_t k = 0; k < columns; k++) total[k] += part[k];
    }
    for (int64_t row = STREAMS * each; row < rows; row++)
        for (int64_t k = 0; k < columns; k++) {
            double x = load(gradient[row * stride + k]);
            total[k] += x * x;
        }
}

/* m += weight * (sign * g - m); p += decay * p + factor * m. */
void update(element *parameter, const element *gradient, element *first_moment,
            const float *restrict factor, int64_t rows, int64_t columns, int64_t parameter_stride,
            int64_t gradient_stride, int64_t moment_stride, float sign, float weight, float decay) {
    for (int64_t row = 0; row < rows; row++) {
        element *restrict p = parameter + row * parameter_stride;
        const element *restrict g = gradient + row * gradient_stride;
        element *restrict m = first_moment + row * moment_stride;
        for (int64_t k = 0; k < columns; k++) {
            float before = load(p[k]), moment = load(m[k]);
            moment += weight * (sign * load(g[k]) - moment);
            m[k] = store(moment);
            p[k] = store(before + (decay * before + factor[k] * moment));
        }
    }
}
