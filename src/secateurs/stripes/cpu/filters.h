// Filters in a register: for single images whose rows are shorter than a register. A pixel is a pointer to its channels.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>

#include "registers.h"

namespace {

constexpr int MANY = ACCUMULATORS / 2, FEW = MANY / 3;  // pixels at a time
constexpr int64_t WIDE_TILE = 16 * MANY;  // pixels whose channels stay in cache

// V vectors of filters by P pixels: sums[p] = sum over c of w[c] * x[p][c].
template <int V, int P>
inline void multiply(const float* const* x, const float* w, int64_t channels, vec* sums) {
  vec sum[P][V];
#pragma GCC unroll 12
  for (int p = 0; p < P; p++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) sum[p][v] = vec{};
  for (int64_t c = 0; c < channels; c++, w += V * LANES) {
    vec values[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) values[v] = reinterpret_cast<const vec*>(w)[v];
#pragma GCC unroll 12
    for (int p = 0; p < P; p++) {
      const float pixel = x[p][c];
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) sum[p][v] += pixel * values[v];
    }
  }
#pragma GCC unroll 12
  for (int p = 0; p < P; p++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) sums[p * V + v] = sum[p][v];
}

// x: n pointers to channels, followed by MANY pointers to zeros. out: pointers to their outputs.
template <int V>
void add_wide(const float* const* x, int64_t n, const float* w, int64_t channels, float* const* out,
              const int64_t* filters, int64_t count) {
  vec sums[MANY * V];
  for (int64_t i = 0; i < n;) {
    const int64_t step = n - i >= MANY ? MANY : FEW;
    if (step == MANY)
      multiply<V, MANY>(x + i, w, channels, sums);
    else
      multiply<V, FEW>(x + i, w, channels, sums);
    for (int64_t p = 0; p < std::min(step, n - i); p++) {
      const float* own = reinterpret_cast<const float*>(sums + p * V);
      for (int64_t f = 0; f < count; f++) out[i + p][filters[f]] += own[f];
    }
    i += step;
  }
}

void filters_in_registers(const Problem& p) {
  const int64_t all = p.images * p.out_h * p.out_w, threads = at::get_num_threads();
  const int64_t tile = std::min(WIDE_TILE, up(over(all, threads), MANY));
  const std::vector<float> zeros(p.channels, 0.f);
  at::parallel_for(0, over(all, tile), 1, [&](int64_t begin, int64_t end) {
    std::vector<const float*> pixels(tile + MANY);
    std::vector<float*> sums(tile);
    for (int64_t t = begin; t < end; t++) {
      const int64_t first = t * tile, n = std::min(tile, all - first);
      float* out = p.out + first * p.outputs;
      for (int64_t i = 0; i < n; i++)
        for (int64_t o = 0; o < p.outputs; o++) out[i * p.outputs + o] = p.start(o);
      int64_t position = -1, inside = 0;
      for (const Block& b : p.blocks) {
        if (b.position != position) {
          position = b.position, inside = 0;
          for (int64_t i = 0; i < n; i++) {
            const int64_t image = (first + i) / (p.out_h * p.out_w);
            if (const int64_t at = p.reads((first + i) % (p.out_h * p.out_w), position); at >= 0) {
              pixels[inside] = p.x + (image * p.height * p.width + at) * p.channels;
              sums[inside++] = out + i * p.outputs;
            }
          }
          std::fill_n(pixels.begin() + inside, MANY, zeros.data());
        }
        const auto add = b.filters > LANES ? add_wide<2> : add_wide<1>;
        add(pixels.data(), inside, p.weights + b.weights, p.channels, sums.data(), p.filters + b.first, b.filters);
      }
    }
  });
}

}  // namespace
