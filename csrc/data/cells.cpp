// A cell of at most eight bytes is its own key: eight bytes padded with zeros, since no cell holds a NUL. Longer ones
// have a hash for a key and are compared with the first of their kind. All keys of a tile are made before the first is
// looked up, so that the table's slots are on their way from memory.
#include "data/cells.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <utility>

#include "data/table.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace ameir_fast {
namespace {

constexpr int64_t kRows = 256;  // of a tile
constexpr int64_t kStep = 64;   // bytes looked at together

// Bit i: byte i of 64 is the separator or a newline.
uint64_t marks(const char* at, char separator) {
  uint64_t found = 0;
#if defined(__SSE2__)
  const __m128i cell = _mm_set1_epi8(separator), line = _mm_set1_epi8('\n');
  for (int part = 0; part < 4; ++part) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 16 * part));
    const __m128i equal = _mm_or_si128(_mm_cmpeq_epi8(bytes, cell), _mm_cmpeq_epi8(bytes, line));
    found |= static_cast<uint64_t>(static_cast<uint32_t>(_mm_movemask_epi8(equal))) << (16 * part);
  }
#else
  for (int i = 0; i < kStep; ++i) {
    found |= static_cast<uint64_t>((at[i] == separator) | (at[i] == '\n')) << i;
  }
#endif
  return found;
}

struct Key {
  uint64_t value;
  uint32_t begin, length;
};

struct Slot {
  uint64_t key;
  uint32_t code, length;
};

// `size` bytes, at most 8, as a number. Bytes up to `end` may be read.
uint64_t word(const char* at, uint32_t size, const char* end) {
  uint64_t found = 0;
  if (at + 8 <= end) {
    std::memcpy(&found, at, 8);
    if constexpr (std::endian::native == std::endian::little) {
      return size == 8 ? found : found & ((uint64_t{1} << (8 * size)) - 1);
    }
    found = 0;
  }
  std::memcpy(&found, at, size);
  return found;
}

uint64_t hash(const char* at, uint32_t size, const char* end) {
  uint64_t found = size;
  for (uint32_t done = 0; done < size; done += 8) {
    found = mix(found ^ word(at + done, std::min<uint32_t>(8, size - done), end)) + 0x9E3779B97F4A7C15u;
  }
  return found;
}

}  // namespace

struct CellCoder::Table : ameir_fast::Table<Slot> {};

CellCoder::CellCoder(char separator, int64_t width, std::vector<int64_t> wanted)
    : separator_(separator), width_(width), wanted_(std::move(wanted)), columns_(wanted_.size()),
      tables_(wanted_.size()), ends_(static_cast<std::size_t>(kRows * width)) {}

CellCoder::~CellCoder() = default;

// Tile by tile, so that a tile's text and cells stay in the cache for all columns.
bool CellCoder::add(const char* text, int64_t size) {
  const char* const limit = text + size;
  int64_t begin = 0, cell = 0, rows = 0;  // of the tile: where it begins, its cells and lines so far
  for (int64_t start = 0; start < size; start += kStep) {
    char last[kStep] = {};
    const bool whole = start + kStep <= size;
    if (!whole) std::memcpy(last, text + start, static_cast<std::size_t>(size - start));
    for (uint64_t found = marks(whole ? text + start : last, separator_); found != 0; found &= found - 1) {
      const int64_t at = start + std::countr_zero(found);
      ends_[cell++] = static_cast<uint32_t>(at);
      const bool ends_line = cell == (rows + 1) * width_;
      if (ends_line != (text[at] == '\n')) return false;
      if (ends_line && ++rows == kRows) {
        code_tile(text, limit, begin, rows);
        begin = at + 1;
        cell = rows = 0;
      }
    }
  }
  code_tile(text, limit, begin, rows);
  return cell == rows * width_;
}

void CellCoder::code_tile(const char* text, const char* limit, int64_t begin, int64_t rows) {
  for (std::size_t i = 0; i < wanted_.size(); ++i) {
    code_column(text, limit, begin, rows, wanted_[i], tables_[i], columns_[i]);
  }
  done_ += rows;
}

void CellCoder::code_column(const char* text, const char* limit, int64_t tile, int64_t rows, int64_t column,
                            Table& table, CodedColumn& coded) {
  Key keys[kRows];
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t place = i * width_ + column;
    const auto begin = place == 0 ? static_cast<uint32_t>(tile) : ends_[place - 1] + 1;
    const uint32_t length = ends_[place] - begin;
    const char* const at = text + begin;
    keys[i] = {length <= 8 ? word(at, length, limit) : hash(at, length, limit), begin, length};
    table.prefetch(keys[i].value);
  }
  coded.codes.resize(static_cast<std::size_t>(done_ + rows));
  uint32_t* const codes = coded.codes.data() + done_;
  for (int64_t i = 0; i < rows; ++i) {
    const Key key = keys[i];
    Slot& slot = table.find(key.value, [&](const Slot& other) {
      return other.key == key.value && other.length == key.length &&
             (key.length <= 8 || coded.values.compare(coded.begin[other.code], key.length, text + key.begin, key.length) == 0);
    });
    if (slot.code != kFree) {
      codes[i] = slot.code;
      continue;
    }
    codes[i] = static_cast<uint32_t>(coded.first.size());
    slot = {key.value, codes[i], key.length};
    coded.first.push_back(done_ + i);
    coded.begin.push_back(static_cast<uint32_t>(coded.values.size()));
    if (key.length == 0) {
      coded.missing = codes[i];
    } else {
      coded.values.append(text + key.begin, key.length).push_back('\n');
    }
    if (table.full(coded.first.size())) table.grow();
  }
}

}  // namespace ameir_fast
