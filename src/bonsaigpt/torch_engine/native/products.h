// Products of a few rows with a matrix that lies in panels of 16 outputs, (outputs / 16, inputs, 16): a thread reads its
// part from front to back, and a panel that was read serves several rows. Each sum runs over the inputs in their order,
// by fused multiply-adds, however many rows and panels a tile has: a row's bits never depend on its neighbours.

#pragma once

#include "vectors.h"

struct Matrix {
    const void* panels;    // float, or int8_t if scales are given
    const float* scales;   // of each output, or null
    const float* bias;     // or null
    int64_t outputs, inputs;
};

// What to do with 16 outputs of a row: a reference to any ``void(int64_t row, int64_t output, Vec)``. Called through a
// pointer, so that the tiles below are compiled once and not for every use.
class Finish {
  public:
    template <typename Function>
    Finish(const Function& function)
        : function_(&function), call_([](const void* f, int64_t row, int64_t output, const Vec& v) {
              (*static_cast<const Function*>(f))(row, output, v);
          }) {}
    void operator()(int64_t row, int64_t output, const Vec& v) const { call_(function_, row, output, v); }

  private:
    const void* function_;
    void (*call_)(const void*, int64_t, int64_t, const Vec&);
};

// As many sums as the registers hold: 24 of AVX-512's 32, or 6 pairs of AVX2's 16.
#if defined(__AVX512F__)
constexpr int TALL = 12, BROAD = 2;
#else
constexpr int TALL = 6, BROAD = 1;
#endif

template <int ROWS, int PANELS, typename Weight>
inline void tile(const Matrix& m, const float* x, int64_t x_stride, int64_t panel, int64_t row, const Finish& finish) {
    const int64_t inputs = m.inputs;
    const Weight* w = static_cast<const Weight*>(m.panels) + panel * inputs * LANES;
    x += row * x_stride;
    Vec sums[ROWS][PANELS] = {};
    for (int64_t k = 0; k < inputs; k++) {
        if constexpr (ROWS > 1 && sizeof(Weight) == sizeof(float))  // busy with these panels, have the next ones fetched
            for (int p = 0; p < PANELS; p++) __builtin_prefetch(w + ((PANELS + p) * inputs + k) * LANES, 0, 2);
        Vec weights[PANELS];
        for (int p = 0; p < PANELS; p++) weights[p] = load(w + (p * inputs + k) * LANES);
        for (int r = 0; r < ROWS; r++)
            for (int p = 0; p < PANELS; p++) sums[r][p] += weights[p] * x[r * x_stride + k];
    }
    for (int r = 0; r < ROWS; r++)
        for (int p = 0; p < PANELS; p++) {
            int64_t o = (panel + p) * LANES;
            Vec y = sums[r][p];
            if (m.scales) y = y * load(m.scales + o);
            if (m.bias) y += load(m.bias + o);
            finish(row + r, o, y);
        }
}

// A tile of ``rows`` rows, which is known only now.
template <int ROWS, int PANELS, typename Weight>
inline void tile_of(int64_t rows, const Matrix& m, const float* x, int64_t x_stride, int64_t panel, int64_t row,
                    const Finish& finish) {
    if (rows == ROWS) return tile<ROWS, PANELS, Weight>(m, x, x_stride, panel, row, finish);
    if constexpr (ROWS > 1) tile_of<ROWS - 1, PANELS, Weight>(rows, m, x, x_stride, panel, row, finish);
}

// Tiles of about equal size: one with a row left over would read the panels again for it alone.
template <int PANELS, typename Weight>
inline void all_rows(const Matrix& m, const float* x, int64_t x_stride, int64_t from, int64_t to, int64_t panel,
                     const Finish& finish) {
    int64_t tiles = (to - from + TALL - 1) / TALL;
    for (int64_t t = 0, row = from; t < tiles; t++) {
        int64_t rows = (to - row) / (tiles - t);
        tile_of<TALL, PANELS, Weight>(rows, m, x, x_stride, panel, row, finish);
        row += rows;
    }
}

template <typename Weight>
void products_of(const Matrix& m, const float* x, int64_t x_stride, int64_t from, int64_t to, int64_t first,
                 int64_t last, const Finish& finish) {
    int64_t panel = first;
    if (to - from == 1)  // one row needs several panels to have enough sums under way
        for (; panel + 4 <= last; panel += 4) tile<1, 4, Weight>(m, x, x_stride, panel, from, finish);
    for (; panel + BROAD <= last; panel += BROAD) all_rows<BROAD, Weight>(m, x, x_stride, from, to, panel, finish);
    for (; panel < last; panel++) all_rows<1, Weight>(m, x, x_stride, from, to, panel, finish);
}

// Panels first .. last of x W^T + b, for rows from .. to of x.
inline void products(const Matrix& m, const float* x, int64_t x_stride, int64_t from, int64_t to, int64_t first,
                     int64_t last, const Finish& finish) {
    if (m.scales) products_of<int8_t>(m, x, x_stride, from, to, first, last, finish);
    else products_of<float>(m, x, x_stride, from, to, first, last, finish);
}
