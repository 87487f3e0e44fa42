// Which memory of the host is page-locked: what a copy that goes on by itself may read and write there.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>

namespace simulated {

class HostMemory {
 public:
  explicit HostMemory(size_t lockable_bytes) : lockable_bytes_(lockable_bytes) {}

  enum class Answer { DONE, NOT_THERE, ALREADY_LOCKED, NO_ROOM };

  Answer lock(void* address, size_t size_bytes);
  Answer unlock(void* address);
  // Pages that are locked from the start. Null: there is no room.
  void* allocate(size_t size_bytes);
  Answer free(void* address);

  bool is_locked(const void* address, size_t size_bytes) const;
  // What `lock` holds now, without `allocate`'s.
  size_t locked_bytes() const;

  // Whether the process has memory there at all.
  static bool exists(const void* address, size_t size_bytes);

 private:
  const size_t lockable_bytes_;
  mutable std::mutex lock_;
  std::map<char*, size_t> locked_;
  std::map<char*, size_t> allocated_;
};

}  // namespace simulated
