// The function that XLA calls: one call takes the step of one leaf, or of many small ones.
#include <exception>
#include <memory>

#include "operands.h"
#include "pool.h"
#include "xla/ffi/api/ffi.h"

namespace functional_adam {

namespace {

namespace ffi = xla::ffi;

Type type_of(ffi::DataType type) {
  switch (type) {
    case ffi::DataType::F32: return Type::kFloat32;
    case ffi::DataType::BF16: return Type::kBFloat16;
    case ffi::DataType::S8: return Type::kInt8;
    case ffi::DataType::U8: return Type::kUint8;
    case ffi::DataType::S16: return Type::kInt16;
    case ffi::DataType::U16: return Type::kUint16;
    case ffi::DataType::U32: return Type::kUint32;
    default: return Type::kOther;
  }
}

Array array_of(const ffi::AnyBuffer& buffer) {
  return {type_of(buffer.element_type()), buffer.untyped_data(),
          static_cast<int64_t>(buffer.element_count())};
}

std::vector<Array> arrays(const ffi::RemainingArgs& buffers) {
  std::vector<Array> found;
  found.reserve(buffers.size());
  for (size_t n = 0; n < buffers.size(); ++n) found.push_back(array_of(*buffers.get<ffi::AnyBuffer>(n)));
  return found;
}

std::vector<Array> arrays(const ffi::RemainingRets& buffers) {
  std::vector<Array> found;
  found.reserve(buffers.size());
  for (size_t n = 0; n < buffers.size(); ++n) found.push_back(array_of(**buffers.get<ffi::AnyBuffer>(n)));
  return found;
}

ffi::Error step(ffi::ThreadPool pool, int64_t moments, int64_t rounding, bool applies, bool decays,
                bool has_l2, bool has_eps_root, bool looks_ahead, ffi::Span<const int64_t> tiles,
                ffi::RemainingArgs arguments, ffi::RemainingRets results) try {
  if (moments < 0 || moments > 2 || rounding < 0 || rounding > 3) {
    return ffi::Error::InvalidArgument("functional_adam_step: no such moments or rounding");
  }
  const Config config{static_cast<Moments>(moments), static_cast<Rounding>(rounding), applies,
                      decays, has_l2, has_eps_root, looks_ahead};
  auto call = std::make_shared<Call>();
  const std::string problem = read_call(config, {tiles.begin(), tiles.end()}, arrays(arguments),
                                        arrays(results), *call);
  if (!problem.empty()) return ffi::Error::InvalidArgument("functional_adam_step: " + problem);
  const auto work = std::make_shared<const std::vector<Piece>>(pieces(call->leaves, pool.num_threads()));
  parallel(pool, static_cast<int64_t>(work->size()),
           [call, work, take = kernel()](int64_t n) noexcept { run(*call, (*work)[n], take); });
  return ffi::Error::Success();
} catch (const std::exception& problem) {  // XLA is compiled without exceptions
  return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                    std::string("functional_adam_step: no memory for its plans: ") + problem.what());
}

}  // namespace

}  // namespace functional_adam

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(functional_adam_step, functional_adam::step,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Attr<int64_t>("moments")
                                  .Attr<int64_t>("rounding")
                                  .Attr<bool>("applies")
                                  .Attr<bool>("decays")
                                  .Attr<bool>("has_l2")
                                  .Attr<bool>("has_eps_root")
                                  .Attr<bool>("looks_ahead")
                                  .Attr<xla::ffi::Span<const int64_t>>("tiles")
                                  .RemainingArgs()
                                  .RemainingRets());
#pragma GCC visibility pop
