// A thread's memory for one group, kept between calls. Included once for each instruction set, inside its namespace.
class Arena {
 public:
  // For the next group. What took several blocks gets one.
  void reset() {
    if (blocks_.size() > 1) {
      blocks_.clear();
      blocks_.emplace_back(taken_, std::numeric_limits<float>::quiet_NaN());
    }
    block_ = used_ = taken_ = 0;
  }

  // n numbers, aligned, of no particular value: NaN where AMEIR_FAST_POISON is set, so that a result that depends on
  // them shows it.
  float* take(int64_t n) {
    n = (n + 15) / 16 * 16;
    taken_ += n;
    while (block_ < blocks_.size() && used_ + n > static_cast<int64_t>(blocks_[block_].size())) ++block_, used_ = 0;
    if (block_ == blocks_.size()) {
      blocks_.emplace_back(std::max<int64_t>(n, 1 << 18), std::numeric_limits<float>::quiet_NaN());
    }
    float* found = blocks_[block_].data() + used_;
    used_ += n;
    static const char* asked = std::getenv("AMEIR_FAST_POISON");
    const bool poison = asked && *asked;
    if (poison) std::fill_n(found, n, std::numeric_limits<float>::quiet_NaN());
    return found;
  }

 private:
  std::vector<Floats> blocks_;
  size_t block_ = 0;
  int64_t used_ = 0, taken_ = 0;
};
