/* What an engine's plugin gives to mtu-bench: one exported function, `mtu_engine_1`, in plain C.
 * What can fail returns 0, or the exit code of the failure, and leaves one line in `error`. */
#ifndef MTU_ENGINE_H
#define MTU_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { MTU_FLOAT32 = 1, MTU_INT32 = 2 };
enum { MTU_OK, MTU_BAD_JOB = 2, MTU_BAD_ARTEFACT, MTU_NO_ENGINE, MTU_PART_FAILED };

typedef struct mtu_tensor {
  const char *name;
  int32_t dtype;
  int32_t rank;
  const int64_t *shape;
  void *data; /* row-major */
  uint64_t bytes;
} mtu_tensor;

typedef struct mtu_engine {
  const char *name;
  /* `library`: the engine's file, or "" for one in `folder`; threads 0: the engine's default;
   * `options`: keys and values by turns, then NULL. */
  int (*start)(const char *library, const char *folder, int32_t threads, const char **options);
  const char *(*version)(void);
  int (*open)(const char *path, const char *entry, size_t input_count, size_t output_count,
              void **part);
  /* Reads `inputs` and writes `outputs`. Refuses (3) what is not of the part's names and forms. */
  int (*run)(void *part, const mtu_tensor *inputs, const mtu_tensor *outputs);
  void (*close)(void *part);
  const char *(*error)(void);
} mtu_engine;

__attribute__((visibility("default"))) const mtu_engine *mtu_engine_1(void);

#ifdef __cplusplus
}
#endif
#endif
