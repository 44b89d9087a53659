#include "data/read_ahead.h"

#include <cstdint>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace ameir_fast {

void will_need(const void* start, size_t bytes) {
#if defined(POSIX_MADV_WILLNEED)
  static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t address = reinterpret_cast<uintptr_t>(start), first = address / page * page;
  // A hint: that it was not taken says nothing about whether reading will work.
  (void)posix_madvise(reinterpret_cast<void*>(first), address + bytes - first, POSIX_MADV_WILLNEED);
#else
  (void)start, (void)bytes;
#endif
}

}  // namespace ameir_fast
