// A hint to the operating system about memory-mapped files.
#pragma once

#include <cstddef>

namespace ameir_fast {

// These bytes will be read soon. Starts reading those that are not in memory and returns; for memory that is no
// mapped file, and on systems without such a hint, nothing happens.
void will_need(const void* start, size_t bytes);

}  // namespace ameir_fast
