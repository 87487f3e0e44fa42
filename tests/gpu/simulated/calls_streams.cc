// Calls about streams and events.
#include <cuda_runtime_api.h>

#include "runtime.h"

using simulated::current_device;
using simulated::Event;
using simulated::runtime;
using simulated::said;
using simulated::Stream;

namespace {

Event& event_of(cudaEvent_t handle) { return *reinterpret_cast<Event*>(handle); }

}  // namespace

extern "C" {

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* made, unsigned, int) {
  READY();
  *made = reinterpret_cast<cudaStream_t>(&runtime().make_stream(current_device()));
  return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* made) { return cudaStreamCreateWithPriority(made, cudaStreamDefault, 0); }

// What was put on it is still done, as CUDA has it.
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  READY();
  Stream& stream = runtime().stream(handle);
  stream.wait();
  return said(stream.device.lost());
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  READY();
  return said(runtime().stream(handle).is_idle() ? cudaSuccess : cudaErrorNotReady);
}

cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
  *priority = 0;
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long* id, cudaGraph_t*,
                                     const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  *status = cudaStreamCaptureStatusNone;
  if (id) *id = 0;
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t what, void* with) {
  READY();
  runtime().stream(handle).work([=] { what(with); });
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  READY();
  if (auto record = event_of(event).latest()) runtime().stream(handle).put([record] { record->wait(); });
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* made, unsigned) {
  READY();
  *made = reinterpret_cast<cudaEvent_t>(new Event(current_device()));
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* made) { return cudaEventCreateWithFlags(made, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete &event_of(event);  // records that somebody waits for are theirs
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t to, unsigned) {
  READY();
  Event& event = event_of(handle);
  Stream& stream = runtime().stream(to);
  if (&event.device != &stream.device) return said(cudaErrorInvalidResourceHandle);
  stream.put([record = event.record()] { record->finish(); });
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, cudaEventRecordDefault);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  READY();
  auto record = event_of(event).latest();
  return said(!record || record->is_done() ? cudaSuccess : cudaErrorNotReady);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  READY();
  if (auto record = event_of(event).latest()) record->wait();
  return said(event_of(event).device.lost());
}

cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
  READY();
  auto begin = event_of(from).latest(), end = event_of(to).latest();
  if (!begin || !end) return said(cudaErrorInvalidResourceHandle);
  if (!begin->is_done() || !end->is_done()) return said(cudaErrorNotReady);
  *ms = static_cast<float>(end->at_ms() - begin->at_ms());
  return cudaSuccess;
}

}  // extern "C"
