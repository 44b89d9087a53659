// Delimited text as columns of distinct values and small integers, in one pass over the text.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace ameir_fast {

// One column: codes[row] is the number of the row's cell among the distinct cells in order of first appearance.
struct CodedColumn {
  std::vector<uint32_t> codes;
  std::vector<int64_t> first;   // of each distinct cell, the row where it appears first
  std::string values;           // the distinct cells that are not empty, each with a newline
  std::vector<uint32_t> begin;  // where each lies in `values`
  int64_t missing = -1;         // the number of the empty cell, or -1
};

// Codes the `wanted` columns of lines of `width` cells, of one text after another.
class CellCoder {
 public:
  CellCoder(char separator, int64_t width, std::vector<int64_t> wanted);
  ~CellCoder();

  // `size` bytes of lines that each end with a newline, without NUL bytes; below 2^32 in all. False, and of no use from
  // then on, where a line has another number of cells.
  bool add(const char* text, int64_t size);

  std::vector<CodedColumn>& columns() { return columns_; }

 private:
  struct Table;
  void code_tile(const char* text, const char* limit, int64_t begin, int64_t rows);
  void code_column(const char* text, const char* limit, int64_t tile, int64_t rows, int64_t column, Table& table,
                   CodedColumn& coded);

  char separator_;
  int64_t width_;
  std::vector<int64_t> wanted_;
  std::vector<CodedColumn> columns_;
  std::vector<Table> tables_;
  std::vector<uint32_t> ends_;  // of a tile's cells
  int64_t done_ = 0;            // rows
};

}  // namespace ameir_fast
