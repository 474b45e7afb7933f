// A call is refused before anything is read or written unless each array is what the kernel takes.
#include "operands.h"

#include "problem.h"

using namespace functional_adam;

namespace {

constexpr Types kShort{Type::kBFloat16, Type::kBFloat16, Type::kBFloat16, Type::kBFloat16,
                       Type::kBFloat16};
constexpr Types kLong{Type::kFloat32, Type::kFloat32, Type::kFloat32, Type::kFloat32,
                      Type::kFloat32};
const std::vector<Tiles> kLeaves = {{2, 3, 70, 3, 32, 5, 70, 210}, {1, 1, 48, 1, 48, 900, 48, 48}};

// All that differ in the arrays that they take.
std::vector<Config> all_configs() {
  std::vector<Config> found;
  for (int moments = 0; moments < 3; ++moments) {
    for (int rounding = 0; rounding < 4; ++rounding) {
      for (int flags = 0; flags < 8; ++flags) {
        found.push_back({static_cast<Moments>(moments), static_cast<Rounding>(rounding),
                         (flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0, flags > 3, flags < 5});
      }
    }
  }
  return found;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// What read_call says, having seen to it that it wrote nothing.
std::string refused(const Problem& p, const std::vector<Array>& arguments,
                    const std::vector<Array>& results) {
  std::vector<std::string> before;
  const auto contents = [&] {
    std::vector<std::string> found;
    for (const Buffer& b : p.buffers) found.emplace_back(b.data(), b.data() + b.bytes());
    return found;
  };
  before = contents();
  Call call;
  const std::string problem = read_call(p.config, p.tiles, arguments, results, call);
  CHECK(!problem.empty(), "a wrong call was taken");
  CHECK(before == contents(), "a refused call wrote: " << problem);
  return problem;
}

// One array at a time too long, too short, of each other dtype, between elements, and missing.
void check_arrays(const Problem& p, bool of_results) {
  const std::vector<Array> arguments = p.argument_arrays(), results = p.result_arrays();
  const std::vector<Array>& right = of_results ? results : arguments;
  const std::string what = of_results ? "Result" : "Argument";
  const auto say = [&](const std::vector<Array>& wrong) {
    return of_results ? refused(p, arguments, wrong) : refused(p, wrong, results);
  };
  for (size_t n = 0; n < right.size(); ++n) {
    const std::string start = what + " " + std::to_string(n + 1) + " (";
    for (int64_t size : {right[n].size - 1, right[n].size + 1, int64_t{0}, INT64_MAX, int64_t{-1}}) {
      std::vector<Array> wrong = right;
      wrong[n].size = size;
      const std::string said = say(wrong);
      CHECK(contains(said, start) && contains(said, "has " + std::to_string(size)), said);
    }
    std::vector<Array> without = right;
    without.erase(without.begin() + static_cast<std::ptrdiff_t>(n));
    say(without);
    if (bytes_of_type(right[n].type) == 1) continue;
    std::vector<Array> askew = right;
    askew[n].data = static_cast<unsigned char*>(askew[n].data) + 1;
    const std::string said = say(askew);
    CHECK(contains(said, start) && contains(said, "is not aligned"), said);
  }
  std::vector<Array> more = right;
  more.push_back(right.back());
  const std::string said = say(more);
  CHECK(contains(said, what + "s are " + std::to_string(right.size() + 1) + ", not " +
                           std::to_string(right.size())), said);
  CHECK(contains(say({}), "is missing"), "");
}

bool is_float(Type type) { return type == Type::kFloat32 || type == Type::kBFloat16; }

// Each dtype but the right one. Floats may be of another width where the caller chooses it.
void check_dtypes(const Problem& p, bool of_results) {
  const std::vector<Array> arguments = p.argument_arrays(), results = p.result_arrays();
  const std::vector<Array>& right = of_results ? results : arguments;
  for (size_t n = 0; n < right.size(); ++n) {
    for (int type = 0; type <= static_cast<int>(Type::kOther); ++type) {
      const Type other = static_cast<Type>(type);
      if (other == right[n].type || (is_float(other) && is_float(right[n].type))) continue;
      std::vector<Array> wrong = right;
      wrong[n].type = other;
      const std::string said = of_results ? refused(p, arguments, wrong) : refused(p, wrong, results);
      CHECK(contains(said, "is of "), said);
    }
  }
}

// The width of what is stored is that of its result, and rounding has parameters of 16 bits.
void check_widths() {
  const Config plain{Moments::kNearest, Rounding::kNone, true, false, false, false, false};
  for (const Types& types : {kLong, kShort}) {
    const Type other = types.m == Type::kFloat32 ? Type::kBFloat16 : Type::kFloat32;
    Problem p = make_problem(plain, types, kLeaves, true, 3);
    for (size_t n = 0; n < p.results.size(); ++n) {
      std::vector<Array> results = p.result_arrays();
      results[n].type = other;
      CHECK(contains(refused(p, p.argument_arrays(), results), "is of "), n);
    }
  }
  Config rounds = plain;
  rounds.rounding = Rounding::kSplit;
  const Problem p = make_problem(rounds, kLong, kLeaves, true, 3);
  std::vector<Array> arguments = p.argument_arrays();
  arguments[3].type = Type::kFloat32;
  refused(p, arguments, p.result_arrays());
  Config stochastic = plain;
  stochastic.moments = Moments::kStochastic;
  const Problem q = make_problem(stochastic, kLong, kLeaves, true, 3);
  arguments = q.argument_arrays();
  arguments[4].type = Type::kFloat32;
  refused(q, arguments, q.result_arrays());
}

void check_tiles() {
  const Config config{Moments::kCodes, Rounding::kNone, true, true, false, false, false};
  const Problem right = make_problem(config, kLong, kLeaves, false, 11);
  Call call;
  CHECK(right.read(call).empty(), "");
  constexpr int64_t kHuge = INT64_MAX, kBig = int64_t{1} << 32;
  const std::vector<std::vector<int64_t>> wrong = {
      {-1, 3, 70, 3, 32},        {2, -3, 70, 3, 32},       {2, 3, -70, 3, 32},
      {-2, -3, 70, 3, 32},       {2, 3, 70, 0, 32},        {2, 3, 70, -3, 32},
      {2, 3, 70, 3, 0},          {2, 3, 70, 3, -32},       {2, 3, 70, 1, 2048},
      {2, 3, 70, 5, 15},         {2, 3, 70, 2, 32},        {2, 3, 70, 4, 32},
      {kHuge, kHuge, 70, 3, 32}, {kHuge, 2, 70, 3, 32},    {2, 3, kHuge, 3, 32},
      {2, 3, 70, kHuge, 32},     {kBig, kBig, kBig, 3, 32}, {kHuge, 1, 1, 1, 32},
      {kBig, kBig, 0, 1, 32},
  };
  for (const std::vector<int64_t>& numbers : wrong) {
    Problem p = make_problem(config, kLong, kLeaves, false, 11);
    std::copy(numbers.begin(), numbers.end(), p.tiles.begin());
    const std::string said = refused(p, p.argument_arrays(), p.result_arrays());
    CHECK(contains(said, "leaf 0 has tiles that do not fit together"), said << numbers[0]);
  }
  for (size_t count : {size_t{0}, size_t{1}, size_t{7}, size_t{13}, size_t{15}, size_t{21}}) {
    Problem p = make_problem(config, kLong, kLeaves, false, 11);
    p.tiles.resize(count, 1);
    refused(p, p.argument_arrays(), p.result_arrays());
  }
}

// Leaves without elements, alone and between others, need no memory at all.
void check_empty() {
  const std::vector<std::vector<Tiles>> cases = {
      {{0, 3, 70, 3, 32, 0, 0, 0}},
      {{2, 0, 70, 3, 32, 0, 0, 0}},
      {{2, 3, 0, 1, 32, 0, 0, 0}},
      {{1, 1, 0, 1, 16, 0, 0, 0}, {1, 2, 40, 2, 32, 0, 40, 0}, {0, 1, 9, 1, 16, 0, 0, 0}},
      {},
  };
  for (const Config& config : all_configs()) {
    for (const std::vector<Tiles>& leaves : cases) {
      const Problem p = make_problem(config, kLong, leaves, config.decays, 5);
      std::vector<Array> arguments = p.argument_arrays(), results = p.result_arrays();
      for (auto* arrays : {&arguments, &results}) {
        for (Array& array : *arrays) {
          if (array.size == 0) array.data = nullptr;
        }
      }
      Call call;
      CHECK(read_call(config, p.tiles, arguments, results, call).empty(), "");
      const std::vector<Piece> work = pieces(call.leaves, 3);
      CHECK(work.size() == (leaves.size() == 3 ? 1 : 0), work.size());
      for (const Piece& piece : work) run(call, piece, kernel());
    }
  }
}

}  // namespace

int main() {
  uint64_t seed = 0;
  for (const Config& config : all_configs()) {
    for (const Types& types : {kLong, kShort}) {
      const Problem p = make_problem(config, types, kLeaves, seed % 2 == 0, seed);
      ++seed;
      Call call;
      CHECK(p.read(call).empty(), p.read(call));
      CHECK(call.leaves.size() == kLeaves.size(), "");
      for (bool of_results : {false, true}) {
        check_arrays(p, of_results);
        check_dtypes(p, of_results);
      }
    }
  }
  check_widths();
  check_tiles();
  check_empty();
  return 0;
}
