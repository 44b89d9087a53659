// Delimited text as columns of distinct values and small integers, in one pass over the text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace ameir_fast {

// One column: codes[row] is the number of the row's cell among the distinct cells in order of first appearance.
struct CodedColumn {
  std::vector<uint32_t> codes;
  std::vector<int64_t> first;           // of each distinct cell, the row where it appears first,
  std::vector<uint32_t> begin, length;  // and where it lies in the text
  int64_t missing = -1;                 // the number of the empty cell, or -1
};

// The `wanted` columns of `size` bytes (below 2^32): lines of `width` cells that each end with a newline, without NUL
// bytes. Nothing where a line has another number of cells.
std::optional<std::vector<CodedColumn>> code_cells(const char* text, int64_t size, char separator, int64_t width,
                                                   const std::vector<int64_t>& wanted);

// Appends the distinct cells that are not empty, each with a newline, to `out`.
void append_values(const char* text, const CodedColumn& column, std::string& out);

}  // namespace ameir_fast
