// Numbers of a cache in few bits: groups of floats to codes and fp16 scales, side by side in bytes, and back.
//
// To the bit what ../kv/quantizers.py and ../kv/packing.py compute, which say what the formats are. So nothing is
// contracted here: a product is rounded before it is added to.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#endif

extern "C" {

// Of a row: ``width`` numbers in groups. All arrays are dense.
struct Codes {
    int64_t width, group, row_bytes;
    int32_t bits;          // of a code
    int32_t is_symmetric; // codes around 0, no ``least``
};

}

namespace {

inline float from_half(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
    if (exponent == 0) {
        float size = float(fraction) * 0x1p-24f;
        return sign ? -size : size;
    }
    uint32_t bits = sign | (exponent == 31 ? 0xffu << 23 : (exponent + 112) << 23) | fraction << 13;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// To the nearest, ties to even; clamped to what is finite.
inline uint16_t to_half(float x) {
    if (x != x) return 0x7e00;
    x = std::min(std::max(x, -65504.0f), 65504.0f);
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint16_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits < 113u << 23) return sign | uint16_t(std::nearbyint(std::fabs(x) * 0x1p24f));  // below the normal ones
    return sign | uint16_t((bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13);
}

inline float divisor(uint16_t scale) {
    float wide = from_half(scale);
    return wide == 0 ? 1.0f : wide;  // of a group of zeros
}

struct Extent {
    float low, high;
};

inline Extent extent(const float* x, int64_t n) {
    Extent found{x[0], x[0]};
    for (int64_t i = 0; i < n; i++) {
        if (x[i] != x[i]) return {x[i], x[i]};  // what is no number stays to be seen
        found = {std::min(found.low, x[i]), std::max(found.high, x[i])};
    }
    return found;
}

inline void code_group(const Codes& form, const float* x, uint8_t* codes, uint16_t* least, uint16_t* step) {
    auto [low, high] = extent(x, form.group);
    float most = float((1 << form.bits) - 1), start = 0, from = 0;
    if (form.is_symmetric) {
        *step = to_half(std::max(std::fabs(low), std::fabs(high)) / 127.0f);
        from = -127, most = 127;
    } else {
        *least = to_half(low);
        start = from_half(*least);
        *step = to_half((high - start) / most);
    }
    float by = divisor(*step);
    for (int64_t i = 0; i < form.group; i++) {
        float code = std::nearbyint((x[i] - start) / by);
        codes[i] = uint8_t(int(code >= from ? std::min(code, most) : from) - int(from));  // no number: the least
    }
}

// Eight codes are as many bytes as a code has bits, the first code in the lowest.
inline void pack_codes(const uint8_t* codes, int64_t width, int bits, uint8_t* packed, int64_t bytes) {
    for (int64_t i = 0; i < width; i += 8) {
        uint64_t word = 0;
        for (int64_t j = 0; j < std::min<int64_t>(8, width - i); j++) word |= uint64_t(codes[i + j]) << bits * j;
        int64_t at = i / 8 * bits;
        for (int64_t j = 0; j < std::min<int64_t>(bits, bytes - at); j++) packed[at + j] = uint8_t(word >> 8 * j);
    }
}

template <int BITS>
inline void unpack_codes(const uint8_t* packed, int64_t width, float* x) {
    constexpr uint64_t MASK = (1 << BITS) - 1;
    int64_t i = 0;
    for (; i + 8 <= width; i += 8, packed += BITS) {
        uint64_t word = 0;
        for (int j = 0; j < BITS; j++) word |= uint64_t(packed[j]) << 8 * j;
        for (int j = 0; j < 8; j++) x[i + j] = float(int32_t(word >> BITS * j & MASK));
    }
    for (int j = 0; i < width; i++, j += BITS) {  // a code may lie in two bytes, whatever stands behind the last
        int of = packed[j / 8] >> j % 8;
        if (j % 8 + BITS > 8) of |= packed[j / 8 + 1] << (8 - j % 8);
        x[i] = float(of & int(MASK));
    }
}

template <int BITS>
void decode_rows(const Codes& form, int64_t rows, const uint8_t* packed, const uint16_t* least, const uint16_t* step,
                 float* x) {
    int64_t groups = form.width / form.group;
    for (; rows--; packed += form.row_bytes, x += form.width) {
        unpack_codes<BITS>(packed, form.width, x);
        for (int64_t g = 0; g < groups; g++) {
            float by = from_half(*step++), start = form.is_symmetric ? 0 : from_half(*least++);
            float* out = x + g * form.group;
            if (form.is_symmetric)
                for (int64_t i = 0; i < form.group; i++) out[i] = (out[i] - 127.0f) * by;
            else
                for (int64_t i = 0; i < form.group; i++) out[i] = out[i] * by + start;
        }
    }
}

}  // namespace

extern "C" {

// ``least`` and ``step`` have a number for each group of each row; without ``least`` codes are around 0.
void bonsai_encode(const Codes* form, int64_t rows, const float* x, uint8_t* packed, uint16_t* least, uint16_t* step) {
    std::vector<uint8_t> codes(form->width);
    for (; rows--; x += form->width, packed += form->row_bytes) {
        for (int64_t at = 0; at < form->width; at += form->group, least += !form->is_symmetric, step++)
            code_group(*form, x + at, &codes[at], least, step);
        pack_codes(codes.data(), form->width, form->bits, packed, form->row_bytes);
    }
}

void bonsai_decode(const Codes* form, int64_t rows, const uint8_t* packed, const uint16_t* least, const uint16_t* step,
                   float* x) {
    switch (form->bits) {
        case 2: return decode_rows<2>(*form, rows, packed, least, step, x);
        case 3: return decode_rows<3>(*form, rows, packed, least, step, x);
        case 4: return decode_rows<4>(*form, rows, packed, least, step, x);
        case 5: return decode_rows<5>(*form, rows, packed, least, step, x);
        case 6: return decode_rows<6>(*form, rows, packed, least, step, x);
        case 8: return decode_rows<8>(*form, rows, packed, least, step, x);
    }
}
}

#if defined(__clang__)
#pragma clang fp contract(fast)
#else
#pragma GCC pop_options
#endif
