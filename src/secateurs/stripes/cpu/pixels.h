// Neighboring pixels in a register. Padding and stride are handled once, when an image is copied. With a stride, its
// pixels are distributed into one plane for each phase, in which neighboring outputs read neighboring values, and a
// position is an offset.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>

#include "registers.h"

namespace {

constexpr int64_t BAND = 1 << 16;  // values of the copied input that are worked on at a time

// A band of output rows of one image: what it reads is copied, by phases, and its positions are offsets into the copy.
struct Band {
  int64_t most, below, columns;  // output rows; rows of a phase that they read beyond their own; columns of a phase
  bool by_row;  // outputs row by row, each in whole vectors; else all at once, the padding between rows computed as well
  int64_t out_row, plane, phase, out_plane;
  std::vector<int64_t> shift, from, to;

  explicit Band(const Problem& p)
      : below(p.dh * (p.rows_of_kernel - 1) / p.sh), columns(over(p.padded_w, p.sw)) {
    const int64_t phases = p.sh * p.sw, fits = BAND / (p.channels * phases * columns) - below;
    most = std::clamp<int64_t>(fits, 1, over(p.images * p.out_h, at::get_num_threads()));
    most = over(p.out_h, over(p.out_h, most));  // bands of nearly equal height
    by_row = up(p.out_w, LANES) <= columns;
    out_row = by_row ? up(p.out_w, LANES) : columns;
    plane = up((most + below) * columns + 2 * LANES, LANES);
    if (plane % 1024 == 0) plane += LANES;  // otherwise all channels would compete for the same cache lines
    phase = p.channels * plane;
    out_plane = up(most * out_row, LANES) + LANES;
    for (const Block& b : p.blocks) {
      const int64_t h = b.position / p.columns_of_kernel * p.dh, w = b.position % p.columns_of_kernel * p.dw;
      shift.push_back((h % p.sh * p.sw + w % p.sw) * phase + h / p.sh * columns + w / p.sw);
    }
    for (int64_t row = 0; row < (by_row ? most : 1); row++)
      for (int64_t j = 0; j < (by_row ? out_row : most * columns); j += LANES) {
        from.push_back(row * columns + j);
        to.push_back(row * out_row + j);
      }
  }

  int64_t vectors(int64_t rows) const { return by_row ? rows * (out_row / LANES) : over(rows * columns, LANES); }
};

// One channel of one phase, from the phase's row `first` on.
void copy_plane(const Problem& p, const Band& l, const float* pixels, int64_t phase_h, int64_t phase_w, int64_t first,
                int64_t rows, float* line, float* end) {
  for (int64_t r = first; r < first + rows; r++, line += l.columns) {
    const int64_t h = r * p.sh + phase_h - p.top;
    const int64_t w = phase_w - p.left;  // of the first column; column q is at w + q * sw
    const bool inside = h >= 0 && h < p.height && w < p.width;
    const int64_t low = inside ? std::min(l.columns, w >= 0 ? 0 : over(-w, p.sw)) : l.columns;
    const int64_t high = inside ? std::clamp(over(p.width - w, p.sw), low, l.columns) : l.columns;
    const float* row = pixels + h * p.width + w;
    std::fill(line, line + low, 0.f);
    if (p.sw == 1)
      std::copy(row + low, row + high, line + low);
    else
      for (int64_t q = low; q < high; q++) line[q] = row[q * p.sw];
    std::fill(line + high, line + l.columns, 0.f);
  }
  std::fill(line, end, 0.f);
}

void pixels_in_registers(const Problem& p) {
  const Band l(p);
  const bool direct = l.by_row && l.out_row == p.out_w;  // the outputs need not be copied
  const int64_t bands = over(p.out_h, l.most), phases = p.sh * p.sw;
  at::parallel_for(0, p.images * bands, 1, [&](int64_t begin, int64_t end) {
    thread_local std::vector<float> in_memory, out_memory;
    float* const in = buffer(in_memory, phases * l.phase + 4 * LANES);  // offsets read a little past the last plane
    float* const sums = direct ? nullptr : buffer(out_memory, p.outputs * l.out_plane);
    for (int64_t i = begin; i < end; i++) {
      const int64_t image = i / bands, first = i % bands * l.most, rows = std::min(l.most, p.out_h - first);
      for (int64_t k = 0; k < phases; k++)
        for (int64_t c = 0; c < p.channels; c++) {
          float* own = in + k * l.phase + c * l.plane;
          copy_plane(p, l, p.x + (image * p.channels + c) * p.height * p.width, k / p.sw, k % p.sw, first,
                     rows + l.below, own, own + l.plane);
        }
      float* const result = p.out + image * p.outputs * p.out_h * p.out_w + first * p.out_w;
      float* const target = direct ? result : sums;
      const int64_t out_plane = direct ? p.out_h * p.out_w : l.out_plane, vectors = l.vectors(rows);
      for (int64_t v = 0; v < vectors; v += TILE) {
        const int64_t m = std::min(TILE, vectors - v);
        for (int64_t o = 0; o < p.outputs; o++)
          for (int64_t j = v; j < v + m; j++) set(target + o * out_plane + l.to[j], p.start(o));
        for (size_t b = 0; b < p.blocks.size(); b++)
          ADD_TILE[p.blocks[b].filters](in + l.shift[b], l.plane, p.channels, &l.from[v],
                                        p.weights + p.blocks[b].weights, target, out_plane, &l.to[v],
                                        p.filters + p.blocks[b].first, m);
      }
      if (direct) continue;
      for (int64_t o = 0; o < p.outputs; o++)
        for (int64_t row = 0; row < rows; row++) {
          const float* line = sums + o * l.out_plane + row * l.out_row;
          std::copy(line, line + p.out_w, result + (o * p.out_h + row) * p.out_w);
        }
    }
  });
}

}  // namespace
