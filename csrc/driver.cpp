// _driver: work on the host that is not tensors. Arrays are taken as they are (a wrong type or stride is a
// TypeError, not a silent copy); hostops.py is the public face, checks the arguments, and holds a NumPy
// version of each function.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string_view>
#include <utility>
#include <vector>

#include "data/assemble.h"
#include "data/cells.h"
#include "data/distinct.h"
#include "data/negatives.h"
#include "data/read_ahead.h"

namespace py = pybind11;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;
using Ids = Array<int32_t>;
using Positions = Array<int64_t>;

void need(bool condition, const char* message) {
  if (!condition) {
    throw std::invalid_argument(message);
  }
}

// The arrays of a storage and the pointers into them.
class Storage {
 public:
  Storage(std::vector<std::optional<Ids>> columns, std::vector<std::pair<Ids, Positions>> bags,
          std::vector<Ids> events, Positions begin, Positions end)
      : columns_(std::move(columns)), bags_(std::move(bags)), events_(std::move(events)),
        begin_(std::move(begin)), end_(std::move(end)) {
    storage_.num_rows = begin_.size();
    storage_.begin = begin_.data();
    storage_.end = end_.data();
    need(end_.size() == begin_.size(), "begin and end differ in length");
    for (const auto& column : columns_) {
      need(!column || column->size() == storage_.num_rows, "a column and begin differ in length");
      storage_.columns.push_back(column ? column->data() : nullptr);
    }
    for (const auto& [ids, offsets] : bags_) {
      need(offsets.size() == storage_.num_rows + 1, "offsets of a bag must have one entry more than begin");
      storage_.bags.push_back({ids.data(), ids.size(), offsets.data()});
    }
    storage_.num_events = events_.empty() ? 0 : events_[0].size();
    for (const auto& column : events_) {
      need(column.size() == storage_.num_events, "behaviour columns differ in length");
      storage_.events.push_back(column.data());
    }
  }

  py::tuple assemble(const Positions& rows, int64_t max_history) const {
    need(max_history >= 0, "max_history is negative");
    const int64_t batch = rows.size(), width = static_cast<int64_t>(columns_.size());
    const int64_t num_bags = static_cast<int64_t>(bags_.size()), depth = static_cast<int64_t>(events_.size());
    Positions history_offsets(batch + 1), bag_offsets(batch * num_bags + 1);
    int64_t* const history_offset = history_offsets.mutable_data();
    int64_t* const bag_offset = bag_offsets.mutable_data();
    ameir_fast::Layout layout;
    {
      py::gil_scoped_release unlocked;
      layout = ameir_fast::plan_batch(storage_, rows.data(), batch, max_history, history_offset, bag_offset);
    }
    Ids fields({batch, width}), history({history_offset[batch], depth}), bag_ids(bag_offset[batch * num_bags]);
    int32_t* const field = fields.mutable_data();
    int32_t* const event = history.mutable_data();
    int32_t* const bag_id = bag_ids.mutable_data();
    {
      py::gil_scoped_release unlocked;
      ameir_fast::fill_batch(storage_, rows.data(), batch, layout, history_offset, bag_offset, field, event,
                             bag_id);
    }
    return py::make_tuple(fields, bag_ids, bag_offsets, history, history_offsets);
  }

 private:
  std::vector<std::optional<Ids>> columns_;
  std::vector<std::pair<Ids, Positions>> bags_;
  std::vector<Ids> events_;
  Positions begin_, end_;
  ameir_fast::Storage storage_{};
};

// Ranges were checked by hostops.py; the worst that a wrong one could do is a refused hint.
void read_ahead(const std::vector<py::array>& columns, const Positions& first, const Positions& last) {
  need(first.size() == last.size(), "first and last differ in length");
  const int64_t *begin = first.data(), *end = last.data();
  std::vector<std::pair<const char*, size_t>> wanted;
  for (const auto& column : columns) {
    const char* start = static_cast<const char*>(column.data());
    for (py::ssize_t k = 0; k < first.size(); ++k) {
      wanted.emplace_back(start + begin[k] * column.itemsize(), (end[k] - begin[k]) * column.itemsize());
    }
  }
  py::gil_scoped_release unlocked;
  for (const auto& [start, bytes] : wanted) {
    ameir_fast::will_need(start, bytes);
  }
}

Ids sample_negatives(const Positions& users, const Positions& user_offsets, const Ids& user_items,
                     int64_t num_items, int64_t count, uint64_t seed, const Ids& positives,
                     const std::optional<Positions>& rows, const std::optional<Positions>& starts, bool may_be_none) {
  need(count >= 0, "the number of negatives is negative");
  need(user_offsets.size() >= 1, "user_offsets is empty");
  need(num_items >= 1 && num_items <= int64_t{1} << 31, "num_items is outside 1..2147483648");
  need(positives.size() == users.size(), "positives and users differ in length");
  need(!rows || rows->size() == users.size(), "rows and users differ in length");
  need(!starts || starts->size() == num_items + 1, "starts must have one entry more than there are items");
  Ids result({static_cast<int64_t>(users.size()), count});
  int32_t* const out = result.mutable_data();
  const int64_t* const row = rows ? rows->data() : nullptr;
  const int64_t* const start = starts ? starts->data() : nullptr;
  {
    py::gil_scoped_release unlocked;
    ameir_fast::sample_negatives(users.data(), positives.data(), row, users.size(), user_offsets.data(),
                                 user_offsets.size() - 1, user_items.data(), user_items.size(), num_items, start,
                                 count, seed, may_be_none, out);
  }
  return result;
}

py::tuple distinct(const Array<uint64_t>& keys, const std::optional<Array<bool>>& missing) {
  need(!missing || missing->size() == keys.size(), "missing and keys differ in length");
  need(keys.size() < int64_t{1} << 32, "there are too many keys");
  Array<uint32_t> codes(keys.size());
  uint32_t* const code = codes.mutable_data();
  std::vector<int64_t> found;
  {
    py::gil_scoped_release unlocked;
    found = ameir_fast::distinct(keys.data(), missing ? missing->data() : nullptr, keys.size(), code);
  }
  Positions first(static_cast<int64_t>(found.size()));
  std::copy(found.begin(), found.end(), first.mutable_data());
  return py::make_tuple(codes, first);
}

// Codes in the smallest of uint8, uint16 and uint32 that holds them.
py::array narrowest(const ameir_fast::CodedColumn& column) {
  const auto as = [&](auto kind) -> py::array {
    Array<decltype(kind)> codes(static_cast<py::ssize_t>(column.codes.size()));
    auto* const out = codes.mutable_data();
    {
      py::gil_scoped_release unlocked;
      std::copy(column.codes.begin(), column.codes.end(), out);
    }
    return codes;
  };
  const std::size_t values = column.first.size();
  return values <= 1u << 8 ? as(uint8_t{}) : values <= 1u << 16 ? as(uint16_t{}) : as(uint32_t{});
}

class CellCoder {
 public:
  CellCoder(char separator, int64_t width, std::vector<int64_t> wanted)
      : coder_(checked(separator, width, wanted), width, wanted) {}

  bool add(const py::bytes& data) {
    const std::string_view text = data;
    need(good_, "a line had another number of cells");
    need(!text.empty() && text.back() == '\n', "the text does not end with a newline");
    need((size_ += text.size()) < std::size_t{1} << 32, "there is too much text");
    py::gil_scoped_release unlocked;
    return good_ = coder_.add(text.data(), static_cast<int64_t>(text.size()));
  }

  // Of each column the codes, the rows of first appearance, the number of the empty cell (or -1) and the values.
  py::list columns() {
    need(good_, "a line had another number of cells");
    py::list columns;
    for (const auto& column : coder_.columns()) {
      Positions first(static_cast<py::ssize_t>(column.first.size()));
      std::copy(column.first.begin(), column.first.end(), first.mutable_data());
      columns.append(py::make_tuple(narrowest(column), first, column.missing, py::bytes(column.values)));
    }
    return columns;
  }

 private:
  static char checked(char separator, int64_t width, const std::vector<int64_t>& wanted) {
    need(separator != '\n' && separator != '\0', "the separator is a newline or NUL");
    need(width >= 1 && width <= 1 << 20, "the number of columns is outside 1..1048576");
    for (const int64_t column : wanted) need(column >= 0 && column < width, "there is no such column");
    return separator;
  }

  ameir_fast::CellCoder coder_;
  std::size_t size_ = 0;
  bool good_ = true;
};

}  // namespace

PYBIND11_MODULE(_driver, m) {
  m.doc() = "Native host work of ameir_fast; use ameir_fast.hostops.";
  m.attr("interface") = 1;  // native.py: DRIVER_INTERFACE
  py::class_<Storage>(m, "Storage")
      .def(py::init<std::vector<std::optional<Ids>>, std::vector<std::pair<Ids, Positions>>, std::vector<Ids>,
                    Positions, Positions>(),
           py::arg("columns").noconvert(), py::arg("bags").noconvert(), py::arg("events").noconvert(),
           py::arg("begin").noconvert(), py::arg("end").noconvert())
      .def("assemble", &Storage::assemble, py::arg("rows").noconvert(), py::arg("max_history"));
  m.def("read_ahead", &read_ahead, py::arg("columns").noconvert(), py::arg("first").noconvert(),
        py::arg("last").noconvert());
  m.def("sample_negatives", &sample_negatives, py::arg("users").noconvert(),
        py::arg("user_offsets").noconvert(), py::arg("user_items").noconvert(), py::arg("num_items"),
        py::arg("n"), py::arg("seed"), py::arg("positives").noconvert(), py::arg("rows").noconvert(),
        py::arg("starts").noconvert(), py::arg("may_be_none"));
  py::class_<CellCoder>(m, "CellCoder")
      .def(py::init<char, int64_t, std::vector<int64_t>>(), py::arg("separator"), py::arg("width"), py::arg("wanted"))
      .def("add", &CellCoder::add, py::arg("text"))
      .def("columns", &CellCoder::columns);
  m.def("distinct", &distinct, py::arg("keys").noconvert(), py::arg("missing").noconvert());
}
