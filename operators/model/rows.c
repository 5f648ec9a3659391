/* Rounding activations to bytes, and what the product of bytes gives back to bf16: one pass each where
 * torch's operators take a dozen. Every result equals that of the operators to the last bit (see
 * operators/model/rows.py, which calls these), so nothing depends on whether this file could be compiled.
 */
#include <stdint.h>
#include <string.h>

#if __GNUC__ < 11 || defined(__clang__) || !defined(__x86_64__) || !defined(__gnu_linux__)
#error "not compiled: only GCC from 11 on makes it for several x86-64 processors, and torch's operators do the same"
#endif
#define EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))

/* Added and taken away again it rounds a float below 2^22 to the nearest whole number, half to even. */
static const float WHOLE = 12582912.0f;

static inline float widened(uint16_t bf16) {
    uint32_t bits = (uint32_t)bf16 << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint16_t narrowed(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : (uint16_t)rounded;
}

/* x bf16 [tokens, width] -> scales [tokens] and bytes, 128 standing for 0: [tokens, width]; with rest > 0
 * as many again behind them, of what the first leave, rest times finer. */
EVERY_PROCESSOR
void longstream_to_bytes(
    const uint16_t *x, int64_t tokens, int64_t width, float rest, uint8_t *bytes, float *scales
) {
    for (int64_t t = 0; t < tokens; t++) {
        const uint16_t *row = x + t * width;
        uint8_t *first = bytes + t * width, *second = bytes + (tokens + t) * width;
        uint16_t most = 0; /* without their sign, bf16 have the order of their bits, NaN last */
        for (int64_t i = 0; i < width; i++) {
            uint16_t size = row[i] & 0x7fffu;
            most = size > most ? size : most;
        }
        float largest = widened(most);
        float scale = (largest < 1e-8f ? 1e-8f : largest) / 127.0f;
        scales[t] = scale;
        if (rest > 0.0f) {
            for (int64_t i = 0; i < width; i++) {
                float exact = widened(row[i]) / scale;
                float steps = (exact + WHOLE) - WHOLE;
                float finer = ((exact - steps) * rest + WHOLE) - WHOLE;
                first[i] = (uint8_t)(int32_t)(steps + 128.0f);
                second[i] = (uint8_t)(int32_t)(finer + 128.0f);
            }
        } else {
            for (int64_t i = 0; i < width; i++) {
                float steps = (widened(row[i]) / scale + WHOLE) - WHOLE;
                first[i] = (uint8_t)(int32_t)(steps + 128.0f);
            }
        }
    }
}

/* product [tokens, width], with rest > 0 the finer rows behind: times scales [tokens], plus bias bf16
 * [width] unless that is null -> out bf16 [tokens, width]. */
EVERY_PROCESSOR
void longstream_from_product(
    const float *product, int64_t tokens, int64_t width, float rest, const float *scales,
    const uint16_t *bias, uint16_t *out
) {
    float part = rest > 0.0f ? (float)(1.0 / rest) : 0.0f;
    for (int64_t t = 0; t < tokens; t++) {
        const float *first = product + t * width, *second = product + (tokens + t) * width;
        uint16_t *to = out + t * width;
        float scale = scales[t];
        if (rest > 0.0f && bias) {
            for (int64_t i = 0; i < width; i++)
                to[i] = narrowed(__builtin_fmaf(second[i], part, first[i]) * scale + widened(bias[i]));
        } else if (rest > 0.0f) {
            for (int64_t i = 0; i < width; i++)
                to[i] = narrowed(__builtin_fmaf(second[i], part, first[i]) * scale);
        } else if (bias) {
            for (int64_t i = 0; i < width; i++)
                to[i] = narrowed(first[i] * scale + widened(bias[i]));
        } else {
            for (int64_t i = 0; i < width; i++)
                to[i] = narrowed(first[i] * scale);
        }
    }
}
