// Chains of convolutions on images side by side, several as one call: a wave goes through them.
#include <map>
#include <optional>
#include <vector>

#include "beside_chain.h"
#include "bound.h"

namespace sparsewright {
namespace {

// The numbers that say how chains hang together, one after the other.
class Links {
 public:
  explicit Links(const std::vector<int64_t>& links) : links_(links) {}
  bool more() const { return at_ < links_.size(); }
  int64_t one() {
    SW_CHECK(more(), "the links of the chains end early");
    return links_[at_++];
  }
  std::vector<int64_t> several() {
    const int64_t count = one();
    SW_CHECK(0 <= count && count <= static_cast<int64_t>(links_.size() - at_),
             "the links of the chains end early");
    const auto begin = links_.begin() + static_cast<int64_t>(at_);
    at_ += static_cast<size_t>(count);
    return {begin, begin + count};
  }

 private:
  const std::vector<int64_t>& links_;
  size_t at_ = 0;
};

// One chain as the links tell it: values are the inputs, then the outputs in order.
struct Link {
  std::vector<int64_t> numbers, residuals;
  int64_t x;
  BesideChain::Bits bits;
};

// Who wrote to some memory last, and who has read it since.
struct Uses {
  std::optional<size_t> writer;
  struct Reader {
    size_t step;
    std::optional<Axis> rows;  // that it reads for a row; none: the row itself
  };
  std::vector<Reader> readers;
};

Wave::Need same_row(size_t of) { return {of, 1, 0, 0, 1}; }
// Rows that are read for a row.
Wave::Need read_for(size_t of, const Axis& h) {
  return {of, h.stride, -h.padding, h.reach() - h.padding, 1};
}
// Rows for which a row is read.
Wave::Need reads(size_t of, const Axis& h) {
  return {of, 1, h.padding - h.reach() + h.stride - 1, h.padding, h.stride};
}

class Chains {
 public:
  Chains(std::vector<Tensor> inputs, const std::vector<int64_t>& links, std::vector<int64_t> wanted)
      : values_(std::move(inputs)), wanted_(std::move(wanted)), inputs_(values_.size()) {
    Links all(links);
    while (all.more()) {
      Link link = {all.several(), all.several(), all.one(), {}};
      link.bits = {all.one(), all.one(), all.one()};
      links_.push_back(std::move(link));
    }
    // How long values are needed. What is wanted, and inputs, outlast the call.
    for (size_t s = 0; s < links_.size(); ++s) {
      last_use_[links_[s].x] = s;
      for (const int64_t v : links_[s].residuals) last_use_[v] = s;
    }
    for (const Link& link : links_) add(link);
  }

  std::vector<Tensor> run() {
    run_chains(chains_, std::move(steps_));
    std::vector<Tensor> outputs;
    for (const int64_t v : wanted_) outputs.push_back(value(v));
    return outputs;
  }

 private:
  const Tensor& value(int64_t number) const {
    SW_CHECK(0 <= number && number < static_cast<int64_t>(values_.size()), "there is no value ",
             number, " yet");
    return values_[static_cast<size_t>(number)];
  }

  void add(const Link& link) {
    const size_t step = chains_.size();
    std::vector<std::shared_ptr<const ConvBeside>> stages;
    for (const int64_t number : link.numbers) stages.push_back(conv_of(number));
    std::vector<Tensor> residuals;
    for (const int64_t v : link.residuals) residuals.push_back(value(v));
    taken_.clear();
    const auto make = [&](const auto& shape) { return memory_for(shape, step); };
    auto chain =
        std::make_unique<BesideChain>(std::move(stages), value(link.x), residuals, link.bits, make);
    SW_CHECK(chain->in().images == kBeside,
             "only whole images side by side go through a wave; got ", chain->in().images,
             " of them in patches");
    steps_.push_back(chain->step());
    SW_CHECK(steps_[step].groups == steps_[0].groups, "the chains have ", steps_[0].groups, " and ",
             steps_[step].groups, " groups of images");
    read(value(link.x), step, chain->rows());
    for (const Tensor& residual : residuals) read(residual, step, std::nullopt);
    for (const Tensor& output : chain->outputs()) {
      write(output, step);
      values_.push_back(output);
    }
    chains_.push_back(std::move(chain));
  }

  // That of a value which nobody needs any more, or new memory: what was in use a moment ago is in
  // cache.
  template <class Shape>
  Tensor memory_for(const Shape& shape, size_t step) {
    for (size_t v = inputs_; v < values_.size(); ++v) {
      const Tensor& found = values_[v];
      const auto sizes = found.sizes();
      const auto same = [&](const Tensor& other) { return pointer(other) == pointer(found); };
      if (!std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end())) continue;
      bool free = std::none_of(taken_.begin(), taken_.end(), same);
      for (size_t other = 0; free && other < values_.size(); ++other)
        if (same(values_[other])) free = is_over(other, step);
      if (free) return taken_.emplace_back(found);
    }
    return taken_.emplace_back(new_output(shape.data(), shape.size()));
  }
  bool is_over(size_t value, size_t step) const {
    const auto number = static_cast<int64_t>(value);
    const auto last = last_use_.find(number);
    const bool wanted = std::find(wanted_.begin(), wanted_.end(), number) != wanted_.end();
    return !wanted && (last == last_use_.end() || last->second < step);
  }

  static const void* pointer(const Tensor& t) { return t.const_data_ptr(); }

  void read(const Tensor& from, size_t step, const std::optional<Axis>& rows) {
    Uses& uses = uses_[pointer(from)];
    if (uses.writer) need(step, rows ? read_for(*uses.writer, *rows) : same_row(*uses.writer));
    uses.readers.push_back({step, rows});
  }
  void write(const Tensor& to, size_t step) {
    Uses& uses = uses_[pointer(to)];
    if (uses.writer) need(step, same_row(*uses.writer));
    for (const Uses::Reader& reader : uses.readers)
      need(step, reader.rows ? reads(reader.step, *reader.rows) : same_row(reader.step));
    uses = {step, {}};
  }
  void need(size_t step, const Wave::Need& need) {
    if (need.of != step) steps_[step].needs.push_back(need);
  }

  std::vector<Tensor> values_;
  std::vector<int64_t> wanted_;
  size_t inputs_;
  std::vector<Link> links_;
  std::map<int64_t, size_t> last_use_;
  std::vector<Tensor> taken_;  // by the chain that is being added
  std::map<const void*, Uses> uses_;
  std::vector<std::unique_ptr<BesideChain>> chains_;
  std::vector<Wave::Step> steps_;
};

// inputs: of the chains; memory of one is not another's, but where one is given twice. links: of
// each chain how many numbers of bound convolutions, and these; how many values its stages add, and
// these; the value that it takes; then adds, kept and over as for beside_chain. Values are counted
// from the inputs on, then the outputs in order. wanted: those that are returned.
std::vector<Tensor> beside_wave(std::vector<Tensor> inputs, std::vector<int64_t> links,
                                std::vector<int64_t> wanted) {
  return Chains(std::move(inputs), links, std::move(wanted)).run();
}

}  // namespace

void run_chains(const std::vector<std::unique_ptr<BesideChain>>& chains,
                std::vector<Wave::Step> steps) {
  if (std::all_of(steps.begin(), steps.end(), [](const auto& step) { return step.groups == 0; }))
    return;  // however many rows the images have
  struct Mine {
    float* memory;
    ConvBeside::Around around;
  };
  int64_t memory = 0;
  for (const auto& chain : chains) memory = std::max(memory, chain->memory());
  const auto number = [&](const Wave::Task& task) {
    const Inside& out = chains[task.step]->out();
    return (task.group * out.rows + task.row) * out.tiles + task.tile;
  };
  Wave wave(std::move(steps), torch::stable::get_num_threads());
  wave.run([&] { return Mine{scratch<kShare>(memory), {}}; },
           [&](Mine& mine, const Wave::Task& task, const Wave::Task* next) {
             chains[task.step]->tile(number(task), mine.memory, mine.around,
                                     next ? chains[next->step]->newest(number(*next)) : Ahead{});
           });
}

}  // namespace sparsewright

STABLE_TORCH_LIBRARY_FRAGMENT(sparsewright, m) {
  m.def("beside_wave(Tensor[] inputs, int[] links, int[] wanted) -> Tensor[]");
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CPU, m) {
  m.impl("beside_wave", TORCH_BOX(&sparsewright::beside_wave));
}
