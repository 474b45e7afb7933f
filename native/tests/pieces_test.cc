// Pieces cover each block of each leaf exactly once, are enough for all threads, and not too many.
#include <map>
#include <vector>

#include "check.h"
#include "operands.h"

using namespace functional_adam;

namespace {

std::map<const Leaf*, std::vector<int>> taken;  // how often, of each block

void count_blocks(const Config&, const Scalars&, const Noise&, const Leaf& leaf, int64_t begin,
                  int64_t end) {
  std::vector<int>& blocks = taken[&leaf];
  CHECK(0 <= begin && begin <= end && end <= static_cast<int64_t>(blocks.size()),
        begin << " to " << end << " of " << blocks.size());
  for (int64_t i = begin; i < end; ++i) ++blocks[static_cast<size_t>(i)];
}

Leaf leaf_of(int64_t planes, int64_t rows, int64_t width, int64_t length) {
  Leaf leaf{};
  const int64_t blocks = width > 0 ? (width + length - 1) / length : 1;
  leaf.tiles = {planes, rows, width, blocks, length, 0, 0, 0};
  return leaf;
}

int64_t elements(const std::vector<Leaf>& leaves) {
  int64_t total = 0;
  for (const Leaf& leaf : leaves) total += leaf.tiles.planes * leaf.tiles.rows * leaf.tiles.width;
  return total;
}

void check(const std::vector<Leaf>& leaves, int64_t threads) {
  Call call;
  call.leaves = leaves;
  taken.clear();
  for (const Leaf& leaf : call.leaves) {
    const bool empty = leaf.tiles.width == 0;
    taken[&leaf].assign(empty ? 0 : static_cast<size_t>(leaf.tiles.count()), 0);
  }
  const std::vector<Piece> work = pieces(call.leaves, threads);
  for (const Piece& piece : work) run(call, piece, &count_blocks);
  for (const Leaf& leaf : call.leaves) {
    const std::vector<int>& counts = taken[&leaf];
    for (size_t i = 0; i < counts.size(); ++i) {
      CHECK(counts[i] == 1, "block " << i << " of " << counts.size() << " taken " << counts[i]
                                     << " times, " << threads << " threads");
    }
  }
  CHECK((elements(leaves) == 0) == work.empty(), work.size());
}

}  // namespace

int main() {
  Random random(17);
  for (int n = 0; n < 2000; ++n) {
    std::vector<Leaf> leaves(static_cast<size_t>(random.below(6)));
    for (Leaf& leaf : leaves) {
      const int64_t length = 1 + random.below(1024), most = random.coin() ? 4 : 300;
      leaf = leaf_of(random.below(4), random.below(most), random.below(3000), length);
    }
    check(leaves, random.below(70) - 2);
  }
  // As much work for each of the threads as there are blocks, and small leaves together.
  const std::vector<Leaf> large = {leaf_of(1, 1, 1 << 24, 128)};
  for (int64_t threads : {1, 2, 3, 16, 64}) {
    check(large, threads);
    const int64_t count = static_cast<int64_t>(pieces(large, threads).size());
    CHECK(count >= 4 * threads && count <= 1024, count << " pieces for " << threads);
  }
  const std::vector<Leaf> small(1000, leaf_of(1, 1, 100, 128));
  check(small, 2);
  CHECK(pieces(small, 2).size() <= 16, pieces(small, 2).size());
  // Of sizes that no memory has, the numbers are still right.
  const std::vector<Leaf> huge = {leaf_of(1 << 6, 1 << 6, (int64_t{1} << 24) + 3, 1024)};
  int64_t next = 0;
  for (const Piece& piece : pieces(huge, 4)) {
    CHECK(piece.begin == next && piece.end > next, piece.begin);
    next = piece.end;
  }
  CHECK(next == huge[0].tiles.count(), next);
  return 0;
}
