#include "csb_code.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <numeric>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "assembler.h"
#include "cpu.h"

#if defined(SPARSEWRIGHT_X86) && defined(__linux__) && !defined(SPARSEWRIGHT_EMULATE_AVX512)
#define SPARSEWRIGHT_RUNS_CODE
#include <sys/mman.h>
#endif

namespace sparsewright {

NoCode why_no_code() {
  const char* text = std::getenv("SPARSEWRIGHT_CODE");
  const std::string wish = text ? text : "";
  if (!wish.empty() && wish != "0" && wish != "1")
    throw std::runtime_error("SPARSEWRIGHT_CODE must be 0 or 1; got '" + wish + "'");
  if (best_isa() != kIsaAvx512) return NoCode::kNoAvx512;
  if (wish == "0") return NoCode::kOff;
#ifdef SPARSEWRIGHT_RUNS_CODE
  static const bool may_run = Executable::of({0xC3}) != nullptr;
  if (!may_run) return NoCode::kForbidden;
  return wish == "1" || __builtin_cpu_is("amd") ? NoCode::kNone : NoCode::kUnasked;
#else
  return NoCode::kForbidden;
#endif
}

#ifdef SPARSEWRIGHT_RUNS_CODE

namespace {

constexpr int64_t kMostWeights = 1 << 19;  // code of more comes from afar, and slowly
constexpr int64_t kMostCode = 64 << 20;    // bytes, in which the values count as well
constexpr double kMostPresent = 0.75;      // a loop's code for more weights is as fast, and short
constexpr int64_t kPartBytes = 64 << 10;   // of code, which stay in the second cache for a tile
constexpr int64_t kMostNumber = int64_t{1} << 31;  // of rows, columns, and bytes from the first on
constexpr int64_t kLine = 64;                      // bytes that the caches hold together
constexpr int64_t kProductsOfLine = 8;             // multiply-adds for one line that is fetched
constexpr int kSums = 28;  // registers; three hold activations, and one zeros
constexpr int kActivations = 3, kZero = 31;

struct Weight {
  int32_t row, column;
  float value;
};

// Those of every group and block of rows (the second number changes faster) by taps and
// ascending columns.
class Sorted {
 public:
  Sorted(const Csb& w, const CodePlaces& places) : out_(w.out), groups_(places.ends.size()) {
    place_blocks(places);
    blocks_ = static_cast<int64_t>(first_rows_.size()) - 1;
    std::vector<Weight> all = weights(w);
    std::vector<int32_t> block_of(static_cast<size_t>(w.out));
    for (int64_t b = 0; b < blocks_; ++b)
      std::fill(block_of.begin() + first_row(b), block_of.begin() + first_row(b + 1),
                static_cast<int32_t>(b));
    std::vector<int32_t> group_of(static_cast<size_t>(w.in));
    for (size_t g = 0, c = 0; g < groups_; ++g)
      for (; static_cast<int64_t>(c) < places.ends[g]; ++c) group_of[c] = static_cast<int32_t>(g);
    const auto cell = [&](const Weight& a) {
      return static_cast<size_t>(group_of[static_cast<size_t>(a.column)] * blocks_ +
                                 block_of[static_cast<size_t>(a.row)]);
    };
    starts_.resize(groups_ * static_cast<size_t>(blocks_) + 1);
    for (const Weight& a : all) ++starts_[cell(a) + 1];
    std::partial_sum(starts_.begin(), starts_.end(), starts_.begin());
    std::vector<size_t> next(starts_.begin(), starts_.end() - 1);
    sorted_.resize(all.size());
    for (const Weight& a : all) sorted_[next[cell(a)]++] = a;
    for (size_t i = 0; i + 1 < starts_.size(); ++i)
      std::sort(sorted_.begin() + static_cast<int64_t>(starts_[i]),
                sorted_.begin() + static_cast<int64_t>(starts_[i + 1]),
                [&](const Weight& a, const Weight& b) {
                  const int32_t tap_a = places.taps[static_cast<size_t>(a.column)];
                  const int32_t tap_b = places.taps[static_cast<size_t>(b.column)];
                  return std::tie(tap_a, a.column, a.row) < std::tie(tap_b, b.column, b.row);
                });
  }
  int64_t blocks() const { return blocks_; }
  int64_t groups() const { return static_cast<int64_t>(groups_); }
  int64_t first_row(int64_t block) const { return first_rows_[static_cast<size_t>(block)]; }
  // Where the blocks of every strip end.
  const std::vector<int64_t>& last_blocks() const { return last_blocks_; }
  const Weight* begin(int64_t group, int64_t block) const {
    return sorted_.data() + starts_[static_cast<size_t>(group * blocks_ + block)];
  }
  int64_t count() const { return static_cast<int64_t>(sorted_.size()); }
  // The groups in which a block of rows begins and ends: those that have weights, or else the
  // first.
  int64_t first_group(int64_t block) const {
    for (int64_t g = 0; g < groups(); ++g)
      if (has_weights(g, block)) return g;
    return 0;
  }
  int64_t last_group(int64_t block) const {
    for (int64_t g = groups() - 1; g > 0; --g)
      if (has_weights(g, block)) return g;
    return 0;
  }
  // Rows without any weights are written all the same.
  bool is_needed(int64_t group, int64_t block) const {
    return has_weights(group, block) || (group == 0 && !has_weights(first_group(block), block));
  }

 private:
  // Strips of like numbers of rows, and of those blocks of like numbers, as few as sums allow.
  void place_blocks(const CodePlaces& places) {
    const auto end = [&](int64_t strip) {
      const int64_t row = out_ * strip / places.strips;
      return strip == places.strips ? out_ : row - row % places.align;
    };
    first_rows_ = {0};
    for (int64_t s = 0; s < places.strips; ++s) {
      const int64_t begin = first_rows_.back(), rows = end(s + 1) - begin;
      if (rows == 0) continue;
      const int64_t count = (rows + kSums - 1) / kSums;
      for (int64_t b = 1; b <= count; ++b) first_rows_.push_back(begin + rows * b / count);
      last_blocks_.push_back(static_cast<int64_t>(first_rows_.size()) - 1);
    }
  }
  // Wider than they are stored, where that is in fewer bytes; steps times their row's scale.
  static float value_of(const Values& values, int64_t at, int64_t row) {
    switch (values.number) {
      case Number::kBf16:
        return std::bit_cast<float>(uint32_t{static_cast<const Bf16*>(values.data)[at].bits} << 16);
      case Number::kInt8:
        return static_cast<const int8_t*>(values.data)[at] * values.scales[row];
      default:
        return static_cast<const float*>(values.data)[at];
    }
  }

  static std::vector<Weight> weights(const Csb& w) {
    std::vector<Weight> all;
    for (int64_t cell = 0; cell < w.blocks * w.chunks; ++cell) {
      const int32_t* const start = w.starts + 2 * cell;
      const int64_t row = cell / w.chunks * w.block, column = cell % w.chunks * w.chunk;
      int64_t at = 2 * int64_t{start[1]};
      for (const int32_t* p = w.pairs + start[0]; p < w.pairs + start[2]; ++p) {
        const int64_t steps = *p >> 16;
        for (int64_t i = 0; i < 2 * steps; ++i, ++at) {
          const int64_t mine = i % 2 == 0 ? *p & 255 : *p >> 8 & 255;
          if (w.columns[at] == kPlaces - 1) continue;
          if (row + mine >= w.out || column + w.columns[at] >= w.in)
            throw std::runtime_error("layout csb: a weight lies outside of its matrix");
          all.push_back({static_cast<int32_t>(row + mine),
                         static_cast<int32_t>(column + w.columns[at]),
                         value_of(w.values, at, row + mine)});
        }
      }
    }
    return all;
  }

  bool has_weights(int64_t group, int64_t block) const {
    return begin(group, block) < begin(group, block + 1);
  }

  int64_t out_, blocks_ = 0;
  size_t groups_;
  std::vector<int64_t> first_rows_, last_blocks_;
  std::vector<size_t> starts_;
  std::vector<Weight> sorted_;
};

// Functions one after the other, and behind each the values that it reads in order.
class Writer {
 public:
  Writer(const Sorted& weights, const CodePlaces& places, bool has_bias, bool relu)
      : code(places.lanes), weights_(weights), places_(places), has_bias_(has_bias), relu_(relu) {}

  struct Function {
    int64_t group, code, values, lines;
  };
  // Blocks [first, last) of rows; false where there is more code than may be.
  bool strip(int64_t first, int64_t last) {
    first_row_ = weights_.first_row(first);
    for (int64_t g = 0; g < weights_.groups(); ++g) {
      bool open = false;
      for (int64_t b = first; b < last; ++b) {
        if (weights_.is_needed(g, b)) {
          if (!open) begin(g);
          open = true;
          rows(g, b);
        }
        const bool full = open && code.size() - functions.back().code >= kPartBytes;
        if (full || (open && b + 1 == last)) open = false, leave();
        if (code.size() > kMostCode) return false;
      }
    }
    return true;
  }

  Assembler code;
  std::vector<Function> functions;

 private:
  void begin(int64_t group) {
    functions.push_back({group, code.size(), 0, 0});
    if (relu_) code.zero(kZero);
    at_ = 0;
  }
  void leave() {
    code.leave();
    code.align(kLine);
    functions.back().values = code.size();
    code.data(values_);
    code.align(kLine);
    values_.clear();
  }
  void rows(int64_t group, int64_t block) {
    rows(weights_.first_row(block), weights_.first_row(block + 1), weights_.begin(group, block),
         weights_.begin(group, block + 1), group == weights_.first_group(block),
         group == weights_.last_group(block));
  }
  // Rows [row, end) of one group, whose weights are those from `w` on.
  void rows(int64_t row, int64_t end, const Weight* w, const Weight* last, bool is_first,
            bool is_last) {
    const int count = static_cast<int>(end - row);
    if (is_first)
      start(row, count);
    else
      for (int i = 0; i < count; ++i) code.load(i, kRdx, output(row + i));
    int32_t tap = -1;
    for (int x = kSums; w < last; x = x + 1 < kSums + kActivations ? x + 1 : kSums) {
      const int32_t column = w->column;
      if (places_.taps[static_cast<size_t>(column)] != tap) {
        tap = places_.taps[static_cast<size_t>(column)];
        code.load_pointer(kRax, kRdi, 8 * tap);
      }
      code.load(x, kRax, 4 * places_.shifts[static_cast<size_t>(column)]);
      for (; w < last && w->column == column; ++w) {
        code.add_product(static_cast<int>(w->row - row), x, kRsi, keep(w->value));
        if (++products_ % kProductsOfLine == 0)
          code.prefetch(kR9, kLine * functions.back().lines++);
      }
    }
    for (int i = 0; i < count; ++i) {
      if (is_last && relu_) code.positive(i, kZero);
      code.store(i, kRdx, output(row + i));
    }
  }
  int64_t output(int64_t row) const { return 4 * (row - first_row_) * places_.step; }
  // Bias, or zeros, and what is added to the output.
  void start(int64_t row, int count) {
    for (int i = 0; i < count; ++i) {
      if (has_bias_)
        code.broadcast(i, kRcx, 4 * (row + i));
      else
        code.zero(i);
    }
    const int64_t jump = code.jump_if_null(kR8);
    for (int i = 0; i < count; ++i) code.add(i, kR8, output(row + i));
    code.land(jump);
  }
  // Keeps a value -> where it lies behind the pointer, which goes on where a short displacement
  // ends.
  int64_t keep(float value) {
    if (at_ > kReach) {
      code.advance(kRsi, static_cast<int32_t>(at_ + kReach + 4));
      at_ = -kReach - 4;
    }
    values_.push_back(value);
    return std::exchange(at_, at_ + 4);
  }

  static constexpr int64_t kReach = 127 * 4;
  const Sorted& weights_;
  const CodePlaces& places_;
  bool has_bias_, relu_;
  int64_t first_row_ = 0;      // of the strip
  std::vector<float> values_;  // of the function
  int64_t at_ = 0, products_ = 0;
};

// What a first look at the weight says.
bool may_be_code(const Csb& w, const CodePlaces& places, Activation then) {
  const bool usual = then == Activation::kNone || then == Activation::kRelu;
  return usual && w.in > 0 && w.out > 0 && w.in < kMostNumber &&
         4 * places.step < kMostNumber / w.out;
}

}  // namespace

std::unique_ptr<const Executable> Executable::of(const std::vector<uint8_t>& code) {
  std::unique_ptr<Executable> it(new Executable);
  const size_t size = std::max<size_t>(code.size(), 1);
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  it->memory_ = static_cast<uint8_t*>(memory), it->size_ = size;
  std::copy(code.begin(), code.end(), it->memory_);
  if (mprotect(memory, size, PROT_READ | PROT_EXEC) != 0) return nullptr;
  return it;
}

Executable::~Executable() {
  if (memory_) munmap(memory_, size_);
}

std::unique_ptr<const CsbCode> CsbCode::of(const Csb& w, const CodePlaces& places, bool has_bias,
                                           Activation then) {
  if (!makes_code() || !may_be_code(w, places, then)) return nullptr;
  const Sorted weights(w, places);
  const double room = static_cast<double>(w.in) * static_cast<double>(w.out);
  if (weights.count() > kMostWeights || weights.count() > kMostPresent * room) return nullptr;
  Writer writer(weights, places, has_bias, then == Activation::kRelu);
  auto made = std::make_unique<CsbCode>();
  int64_t first = 0;
  for (const int64_t last : weights.last_blocks()) {
    const size_t before = writer.functions.size();
    if (!writer.strip(first, last)) return nullptr;
    made->strips_.push_back(
        {weights.first_row(first), weights.first_row(last), before, writer.functions.size()});
    first = last;
  }
  made->code_ = Executable::of(writer.code.bytes());
  if (!made->code_) return nullptr;
  int64_t end = writer.code.size();
  for (auto f = writer.functions.rbegin(); f != writer.functions.rend(); ++f) {
    const uint8_t* const code = made->code_->at(f->code);
    const auto run = reinterpret_cast<decltype(Part::run)>(reinterpret_cast<uintptr_t>(code));
    const auto* const values = reinterpret_cast<const float*>(made->code_->at(f->values));
    const Ahead all = {reinterpret_cast<const float*>(code), (end - f->code) / 4};
    made->parts_.push_back({f->group, run, values, f->lines, all});
    end = f->code;
  }
  std::reverse(made->parts_.begin(), made->parts_.end());
  return made;
}

#else

std::unique_ptr<const Executable> Executable::of(const std::vector<uint8_t>&) { return nullptr; }
Executable::~Executable() = default;
std::unique_ptr<const CsbCode> CsbCode::of(const Csb&, const CodePlaces&, bool, Activation) {
  return nullptr;
}

#endif

}  // namespace sparsewright
