// bfloat16 products with AMX: a tile of 16 outputs x 16 lanes takes 32 inputs at a time. Called on processors that have it,
// once the system has granted the tiles to the process.
#include <immintrin.h>

#include "plan/program.h"

namespace ameir_fast::plan {
namespace {

struct alignas(64) Shape {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles of this thread: all of 16 rows of 64 bytes. Loaded at every product, since other code may use tiles as well.
void shape_tiles() {
  Shape shape;
  for (int t = 0; t < 8; ++t) shape.bytes[t] = 64, shape.rows[t] = 16;
  _tile_loadconfig(&shape);
}

}  // namespace

void multiply_half_amx(const Half& map, const uint32_t* pairs, int64_t pitch, int64_t lanes, float* sums) {
  shape_tiles();
  const int64_t parts = map.input_blocks(), blocks = map.output_blocks(), stride = pitch * sizeof(float);
  constexpr int64_t kTile = kBlockOutputs * kBlockInputs, kPairs = kBlockInputs / 2;
  auto store_tile = [&](int64_t block, int64_t p) { return sums + block * kBlockOutputs * pitch + p; };
  // Two blocks of outputs with three vectors of lanes would need eleven tiles; of eight, two by two take all.
  for (int64_t block = 0; block < blocks; block += 2) {
    const uint16_t *first = map.weight.data() + block * parts * kTile, *second = first + parts * kTile;
    const bool both = block + 1 < blocks;
    int64_t p = 0;
    for (; p + 32 <= lanes && both; p += 32) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t part = 0; part < parts; ++part) {
        const uint32_t* x = pairs + part * kPairs * pitch + p;
        _tile_loadd(4, first + part * kTile, 64);
        _tile_loadd(5, second + part * kTile, 64);
        _tile_loadd(6, x, stride);
        _tile_loadd(7, x + 16, stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, store_tile(block, p), stride);
      _tile_stored(1, store_tile(block, p + 16), stride);
      _tile_stored(2, store_tile(block + 1, p), stride);
      _tile_stored(3, store_tile(block + 1, p + 16), stride);
    }
    for (; p < lanes; p += 16) {
      _tile_zero(0);
      _tile_zero(2);
      for (int64_t part = 0; part < parts; ++part) {
        _tile_loadd(4, first + part * kTile, 64);
        _tile_loadd(6, pairs + part * kPairs * pitch + p, stride);
        _tile_dpbf16ps(0, 4, 6);
        if (both) {
          _tile_loadd(5, second + part * kTile, 64);
          _tile_dpbf16ps(2, 5, 6);
        }
      }
      _tile_stored(0, store_tile(block, p), stride);
      if (both) _tile_stored(2, store_tile(block + 1, p), stride);
    }
  }
  _tile_release();
}

}  // namespace ameir_fast::plan
