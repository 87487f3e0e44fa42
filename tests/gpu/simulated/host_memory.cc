#include "host_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <vector>

namespace simulated {

namespace {

constexpr size_t PAGE_BYTES = 4096;

bool holds(const std::map<char*, size_t>& parts, const void* address, size_t size_bytes) {
  char* at = static_cast<char*>(const_cast<void*>(address));
  auto found = parts.upper_bound(at);
  if (found == parts.begin()) return false;
  --found;
  return at + size_bytes <= found->first + found->second;
}

}  // namespace

HostMemory::Answer HostMemory::lock(void* address, size_t size_bytes) {
  if (!exists(address, size_bytes)) return Answer::NOT_THERE;
  std::lock_guard held(lock_);
  char* at = static_cast<char*>(address);
  size_t all_bytes = size_bytes;
  for (const auto& [begin, length] : locked_) {
    if (at < begin + length && begin < at + size_bytes) return Answer::ALREADY_LOCKED;
    all_bytes += length;
  }
  if (all_bytes > lockable_bytes_) return Answer::NO_ROOM;
  locked_[at] = size_bytes;
  return Answer::DONE;
}

HostMemory::Answer HostMemory::unlock(void* address) {
  std::lock_guard held(lock_);
  return locked_.erase(static_cast<char*>(address)) ? Answer::DONE : Answer::NOT_THERE;
}

void* HostMemory::allocate(size_t size_bytes) {
  size_bytes = (size_bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
  void* found = mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) return nullptr;
  std::lock_guard held(lock_);
  allocated_[static_cast<char*>(found)] = size_bytes;
  return found;
}

HostMemory::Answer HostMemory::free(void* address) {
  std::lock_guard held(lock_);
  auto found = allocated_.find(static_cast<char*>(address));
  if (found == allocated_.end()) return Answer::NOT_THERE;
  munmap(address, found->second);
  allocated_.erase(found);
  return Answer::DONE;
}

bool HostMemory::is_locked(const void* address, size_t size_bytes) const {
  std::lock_guard held(lock_);
  return holds(locked_, address, size_bytes) || holds(allocated_, address, size_bytes);
}

size_t HostMemory::locked_bytes() const {
  std::lock_guard held(lock_);
  size_t all_bytes = 0;
  for (const auto& each : locked_) all_bytes += each.second;
  return all_bytes;
}

bool HostMemory::exists(const void* address, size_t size_bytes) {
  if (!address || !size_bytes) return false;
  auto begin = reinterpret_cast<uintptr_t>(address) / PAGE_BYTES * PAGE_BYTES;
  auto end = reinterpret_cast<uintptr_t>(address) + size_bytes;
  std::vector<unsigned char> in_memory((end - begin + PAGE_BYTES - 1) / PAGE_BYTES);
  // mincore(2): ENOMEM where a part of it is not mapped
  return mincore(reinterpret_cast<void*>(begin), end - begin, in_memory.data()) == 0;
}

}  // namespace simulated
