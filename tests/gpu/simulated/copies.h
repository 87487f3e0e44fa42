// What a stream's thread does to memory of a device.
#pragma once

#include <cstddef>

#include "stream.h"

namespace simulated {

// Where a stream's thread finds an address of any device. Null where that has no such memory (any more): then the stream's device is lost,
// as by an illegal access, and `what` is named on stderr.
char* found_by(Stream& stream, const void* address, size_t size_bytes, const char* what);

}  // namespace simulated
