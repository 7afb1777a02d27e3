// Sixteen floats at once, in the vector extensions of GCC and Clang: one source for AVX-512, AVX2, NEON and the rest.
//
// A ``Vec`` is made of as many of the processor's own vectors as it takes. Compilers accept a vector that is too wide, and
// then take its sums through memory: five times slower with AVX2.

#pragma once

#include <cmath>
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

constexpr int LANES = 16;

#if defined(__AVX512F__)
constexpr int WIDE = 16;
#elif defined(__AVX__)
constexpr int WIDE = 8;
#else
constexpr int WIDE = 4;
#endif
constexpr int PARTS = LANES / WIDE;

typedef float Floats __attribute__((vector_size(WIDE * 4), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(WIDE * 4), aligned(4), may_alias));
typedef int8_t Bytes __attribute__((vector_size(WIDE), aligned(1), may_alias));

struct Vec {
    Floats part[PARTS];
};

constexpr int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

template <typename Function>
inline Vec each(const Function& function) {
    Vec out;
    for (int p = 0; p < PARTS; p++) out.part[p] = function(p);
    return out;
}

inline Vec spread(float x) {
    return each([&](int) { return Floats{} + x; });
}

inline Vec load(const float* x) {
    return each([&](int p) { return *reinterpret_cast<const Floats*>(x + p * WIDE); });
}

inline void store(float* x, const Vec& v) {
    for (int p = 0; p < PARTS; p++) *reinterpret_cast<Floats*>(x + p * WIDE) = v.part[p];
}

// Compilers take a detour over single bytes, so the conversion is spelt out where it can be.
inline Floats floats(const int8_t* x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))));
#elif defined(__AVX2__)
    return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x))));
#else
    return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const Bytes*>(x), Ints), Floats);
#endif
}

inline Vec load(const int8_t* x) {
    return each([&](int p) { return floats(x + p * WIDE); });
}

inline Vec operator+(const Vec& a, const Vec& b) {
    return each([&](int p) { return a.part[p] + b.part[p]; });
}
inline Vec operator*(const Vec& a, const Vec& b) {
    return each([&](int p) { return a.part[p] * b.part[p]; });
}
inline Vec operator+(const Vec& a, float b) { return a + spread(b); }
inline Vec operator-(const Vec& a, float b) { return a + spread(-b); }
inline Vec operator*(const Vec& a, float b) { return a * spread(b); }
inline Vec& operator+=(Vec& a, const Vec& b) { return a = a + b; }
// Of what is no number, b's: so a NaN must be in b to be seen.
inline Vec max(const Vec& a, const Vec& b) {
    return each([&](int p) { return a.part[p] > b.part[p] ? a.part[p] : b.part[p]; });
}

inline float sum(const Vec& v) {
    float total[LANES];
    store(total, v);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) total[i] += total[i + half];
    return total[0];
}

inline float most(const Vec& v) {
    float all[LANES];
    store(all, v);
    float found = all[0];
    for (int i = 1; i < LANES; i++) found = found > all[i] ? found : all[i];
    return found;
}

// e^x: x = n ln 2 + r, e^r by its series to r^7 (error below one ulp for |r| < 0.35), 2^n by the exponent's bits.
inline Floats exp(Floats x) {
    const Floats low = Floats{} - 87.0f, high = Floats{} + 88.0f, half = Floats{} + 0.5f;
    x = x < low ? low : x;  // so that NaN stays
    x = x > high ? high : x;
    Floats n = x * 1.44269504f;
    Ints whole = __builtin_convertvector(n + (n < 0 ? -half : half), Ints);
    n = __builtin_convertvector(whole, Floats);
    Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats y = Floats{} + 1.0f / 5040;
    for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) y = y * r + c;
    return y * (Floats)((whole + 127) << 23);
}

// Abramowitz and Stegun 1964, formula 7.1.26: error below 1.5e-7.
inline Floats erf(Floats x) {
    Floats size = x < 0 ? -x : x;
    Floats t = 1.0f / (1.0f + 0.3275911f * size);
    Floats y = Floats{} + 1.061405429f;
    for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) y = y * t + c;
    y = 1.0f - y * t * exp(-size * size);
    return x < 0 ? -y : y;
}

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exp(-x)); }
inline Floats tanh(Floats x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }
