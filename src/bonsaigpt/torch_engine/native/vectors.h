// Sixteen floats at once, in the vector extensions of GCC and Clang: one source for AVX-512, AVX2, NEON and the rest.

#pragma once

#include <cmath>
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

constexpr int LANES = 16;

typedef float Vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int8_t Bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

constexpr int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

inline Vec spread(float x) { return Vec{} + x; }
inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }

// Compilers take a detour over 64 scalars from bytes to floats, so the conversion is spelt out where it can be.
inline Vec load(const int8_t* p) {
#if defined(__AVX512F__)
    return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
    union { __m256 half[2]; Vec whole; } out;
    for (int h = 0; h < 2; h++)
        out.half[h] = _mm256_cvtepi32_ps(
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8 * h))));
    return out.whole;
#else
    return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const Bytes*>(p), Ints), Vec);
#endif
}

inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }

inline float sum(Vec v) {
    float total[LANES];
    store(total, v);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) total[i] += total[i + half];
    return total[0];
}

inline float most(Vec v) {
    float found = v[0];
    for (int i = 1; i < LANES; i++) found = found > v[i] ? found : v[i];
    return found;
}

// e^x: x = n ln 2 + r, e^r by its series to r^7 (error below one ulp for |r| < 0.35), 2^n by the exponent's bits.
inline Vec exp(Vec x) {
    x = min(max(x, spread(-87.0f)), spread(88.0f));
    Vec n = x * 1.44269504f;
    Ints whole = __builtin_convertvector(n + (n < 0 ? spread(-0.5f) : spread(0.5f)), Ints);
    n = __builtin_convertvector(whole, Vec);
    Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec y = spread(1.0f / 5040);
    for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) y = y * r + c;
    return y * (Vec)((whole + 127) << 23);
}

// Abramowitz and Stegun 1964, formula 7.1.26: error below 1.5e-7.
inline Vec erf(Vec x) {
    Vec size = max(x, -x);
    Vec t = 1.0f / (1.0f + 0.3275911f * size);
    Vec y = spread(1.061405429f);
    for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) y = y * t + c;
    y = 1.0f - y * t * exp(-size * size);
    return x < 0 ? -y : y;
}

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }
inline Vec tanh(Vec x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }
