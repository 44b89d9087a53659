// _driver: work on the host that is not tensors. Arrays are taken as they are (a wrong type or stride is a
// TypeError, not a silent copy); hostops.py is the public face, checks the arguments, and holds a NumPy
// version of each function.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>

#include "data/assemble.h"
#include "data/negatives.h"

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

py::tuple assemble(const Positions& rows, const std::vector<std::optional<Ids>>& columns,
                   const std::vector<std::pair<Ids, Positions>>& bags, const std::vector<Ids>& events,
                   const Positions& begin, const Positions& end, int64_t max_history) {
  ameir_fast::Storage storage{};
  storage.num_rows = begin.size();
  storage.begin = begin.data();
  storage.end = end.data();
  need(max_history >= 0, "max_history is negative");
  need(end.size() == begin.size(), "begin and end differ in length");
  for (const auto& column : columns) {
    need(!column || column->size() == storage.num_rows, "a column and begin differ in length");
    storage.columns.push_back(column ? column->data() : nullptr);
  }
  for (const auto& [ids, offsets] : bags) {
    need(offsets.size() == storage.num_rows + 1, "offsets of a bag must have one entry more than begin");
    storage.bags.push_back({ids.data(), ids.size(), offsets.data()});
  }
  storage.num_events = events.empty() ? 0 : events[0].size();
  for (const auto& column : events) {
    need(column.size() == storage.num_events, "behaviour columns differ in length");
    storage.events.push_back(column.data());
  }
  const int64_t batch = rows.size(), width = static_cast<int64_t>(columns.size());
  const int64_t num_bags = static_cast<int64_t>(bags.size()), depth = static_cast<int64_t>(events.size());

  Positions history_offsets(batch + 1), bag_offsets(batch * num_bags + 1);
  int64_t* const history_offset = history_offsets.mutable_data();
  int64_t* const bag_offset = bag_offsets.mutable_data();
  ameir_fast::Layout layout;
  {
    py::gil_scoped_release unlocked;
    layout = ameir_fast::plan_batch(storage, rows.data(), batch, max_history, history_offset, bag_offset);
  }
  Ids fields({batch, width}), history({history_offset[batch], depth}), bag_ids(bag_offset[batch * num_bags]);
  int32_t* const field = fields.mutable_data();
  int32_t* const event = history.mutable_data();
  int32_t* const bag_id = bag_ids.mutable_data();
  {
    py::gil_scoped_release unlocked;
    ameir_fast::fill_batch(storage, rows.data(), batch, layout, history_offset, bag_offset, field, event,
                           bag_id);
  }
  return py::make_tuple(fields, bag_ids, bag_offsets, history, history_offsets);
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

}  // namespace

PYBIND11_MODULE(_driver, m) {
  m.doc() = "Native host work of ameir_fast; use ameir_fast.hostops.";
  m.def("assemble", &assemble, py::arg("rows").noconvert(), py::arg("columns").noconvert(),
        py::arg("bags").noconvert(), py::arg("events").noconvert(), py::arg("begin").noconvert(),
        py::arg("end").noconvert(), py::arg("max_history"));
  m.def("sample_negatives", &sample_negatives, py::arg("users").noconvert(),
        py::arg("user_offsets").noconvert(), py::arg("user_items").noconvert(), py::arg("num_items"),
        py::arg("n"), py::arg("seed"), py::arg("positives").noconvert(), py::arg("rows").noconvert(),
        py::arg("starts").noconvert(), py::arg("may_be_none"));
}
