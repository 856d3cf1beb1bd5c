#include "csb_code.h"

#include <algorithm>
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

#ifdef SPARSEWRIGHT_RUNS_CODE

namespace {

constexpr int64_t kMostCode = 16 << 20;   // bytes
constexpr int64_t kLeastBytes = 7;        // of a multiply-add
constexpr double kMostPresent = 0.75;     // a loop's code for more weights is as fast, and short
constexpr int64_t kPartBytes = 64 << 10;  // of code, which stay in the second cache for a tile
constexpr int64_t kMostNumber = int64_t{1} << 31;  // of rows, columns, and bytes from the first on
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
  Sorted(const Csb& w, const CodePlaces& places)
      : blocks_((w.out + kSums - 1) / kSums), out_(w.out), groups_(places.ends.size()) {
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
  int64_t first_row(int64_t block) const { return out_ * block / blocks_; }
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
  static std::vector<Weight> weights(const Csb& w) {
    std::vector<Weight> all;
    const auto* values = static_cast<const float*>(w.values.data);
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
                         static_cast<int32_t>(column + w.columns[at]), values[at]});
        }
      }
    }
    return all;
  }

  bool has_weights(int64_t group, int64_t block) const {
    return begin(group, block) < begin(group, block + 1);
  }

  int64_t blocks_, out_;
  size_t groups_;
  std::vector<size_t> starts_;
  std::vector<Weight> sorted_;
};

// The code of a function, and the values that it reads one after the other.
class Writer {
 public:
  Writer(const CodePlaces& places, bool has_bias, bool relu)
      : places_(places), has_bias_(has_bias), relu_(relu) {}

  void begin() {
    if (relu_) code.zero(kZero);
    at_ = 0, lines = 0;
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
        if (++products_ % kProductsOfLine == 0) code.prefetch(kR9, 64 * lines++);
      }
    }
    for (int i = 0; i < count; ++i) {
      if (is_last && relu_) code.positive(i, kZero);
      code.store(i, kRdx, output(row + i));
    }
  }
  void leave() { code.leave(); }

  Assembler code;
  std::vector<float> values;
  int64_t lines = 0;  // that the function fetches

 private:
  int64_t output(int64_t row) const { return 4 * row * places_.step; }
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
    values.push_back(value);
    return std::exchange(at_, at_ + 4);
  }

  static constexpr int64_t kReach = 127 * 4;
  const CodePlaces& places_;
  bool has_bias_, relu_;
  int64_t at_ = 0, products_ = 0;
};

// What the environment says, else whether this is a CPU on which it was measured to be faster.
bool is_wanted() {
  const char* text = std::getenv("SPARSEWRIGHT_CODE");
  const std::string wish = text ? text : "";
  if (wish == "0" || wish == "1") return wish == "1";
  if (!wish.empty())
    throw std::runtime_error("SPARSEWRIGHT_CODE must be 0 or 1; got '" + wish + "'");
  return __builtin_cpu_is("amd");
}

// What a first look at the weight says.
bool may_be_code(const Csb& w, const CodePlaces& places, Activation then) {
  const bool usual = then == Activation::kNone || then == Activation::kRelu;
  const int64_t steps = w.starts[2 * w.blocks * w.chunks + 1];  // of two weights, or one
  return usual && w.values.number == Number::kFloat && !w.values.scales && w.in > 0 && w.out > 0 &&
         w.in < kMostNumber && 4 * places.step < kMostNumber / w.out &&
         steps * kLeastBytes <= kMostCode;
}

}  // namespace

bool makes_code() {
  if (!is_wanted() || best_isa() != kIsaAvx512) return false;
  static const bool may_run = Executable::of({0xC3}) != nullptr;
  return may_run;
}

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
  if (weights.count() > kMostPresent * static_cast<double>(w.in * w.out)) return nullptr;
  Writer writer(places, has_bias, then == Activation::kRelu);
  struct Begin {
    int64_t group, code, value, lines;
  };
  std::vector<Begin> begins;
  for (int64_t g = 0; g < weights.groups(); ++g) {
    bool open = false;
    for (int64_t b = 0; b < weights.blocks(); ++b) {
      if (weights.is_needed(g, b)) {
        if (!open) {
          begins.push_back({g, writer.code.size(), static_cast<int64_t>(writer.values.size()), 0});
          writer.begin();
          open = true;
        }
        writer.rows(weights.first_row(b), weights.first_row(b + 1), weights.begin(g, b),
                    weights.begin(g, b + 1), g == weights.first_group(b),
                    g == weights.last_group(b));
        if (writer.code.size() > kMostCode) return nullptr;
      }
      if (!open) continue;
      const bool is_full = writer.code.size() - begins.back().code >= kPartBytes;
      if (!is_full && b + 1 < weights.blocks()) continue;
      writer.leave();
      begins.back().lines = writer.lines;
      open = false;
    }
  }
  auto made = std::make_unique<CsbCode>();
  made->code_ = Executable::of(writer.code.bytes());
  if (!made->code_) return nullptr;
  made->values_ = std::move(writer.values);
  for (const Begin& b : begins)
    made->parts_.push_back({b.group,
                            reinterpret_cast<decltype(Part::run)>(
                                reinterpret_cast<uintptr_t>(made->code_->at(b.code))),
                            made->values_.data() + b.value, b.lines});
  return made;
}

#else

bool makes_code() { return false; }
std::unique_ptr<const Executable> Executable::of(const std::vector<uint8_t>&) { return nullptr; }
Executable::~Executable() = default;
std::unique_ptr<const CsbCode> CsbCode::of(const Csb&, const CodePlaces&, bool, Activation) {
  return nullptr;
}

#endif

}  // namespace sparsewright
