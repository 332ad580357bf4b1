#include "tensors.h"

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

namespace mtu {

using nlohmann::json;

namespace {

constexpr uint64_t kLargestHeader = 4'000'000;

bool is_count(const json& value) { return value.is_number_unsigned(); }

Form form_of(const json& entry, const std::string& where) {
  if (!entry.is_object() || !entry.contains("dtype") || !entry.contains("shape"))
    fail(MTU_BAD_ARTEFACT, where + " has no dtype and shape");
  Form form;
  if (entry["dtype"] == "F32") {
    form.dtype = MTU_FLOAT32;
  } else if (entry["dtype"] == "I32") {
    form.dtype = MTU_INT32;
  } else {
    fail(MTU_BAD_ARTEFACT, where + " is neither F32 nor I32");
  }
  if (!entry["shape"].is_array()) fail(MTU_BAD_ARTEFACT, where + ": shape is not a list");
  for (const json& extent : entry["shape"]) {
    if (!is_count(extent) || extent.get<uint64_t>() > kLargestTensor)
      fail(MTU_BAD_ARTEFACT, where + ": an extent is not a whole number within the limits");
    form.shape.push_back(extent.get<int64_t>());
  }
  if (!is_legal(form.shape))
    fail(MTU_BAD_ARTEFACT, where + ": rank at most 8, extents from 1, at most 1 GiB");
  return form;
}

}  // namespace

TensorFile::TensorFile(const std::string& path) : path_(path), file_(path, std::ios::binary) {
  file_.seekg(0, std::ios::end);
  const auto end = file_.tellg();
  if (!file_ || end < 0) fail(MTU_BAD_ARTEFACT, path + " cannot be read");
  const auto size = static_cast<uint64_t>(end);
  unsigned char head[8] = {};
  file_.seekg(0);
  if (size < 8 || !file_.read(reinterpret_cast<char*>(head), 8))
    fail(MTU_BAD_ARTEFACT, path + " is shorter than a safetensors header");
  uint64_t length = 0;
  for (int byte = 7; byte >= 0; --byte) length = length << 8 | head[byte];
  if (length > kLargestHeader || length > size - 8)
    fail(MTU_BAD_ARTEFACT, path + ": the header's length is not within the file and 4,000,000");
  std::string header(length, '\0');
  if (!file_.read(header.data(), static_cast<std::streamsize>(length)))
    fail(MTU_BAD_ARTEFACT, path + ": the header cannot be read");
  const json entries = json::parse(header, nullptr, false);
  if (!entries.is_object()) fail(MTU_BAD_ARTEFACT, path + ": the header is not a JSON object");
  const uint64_t start = 8 + length, data = size - start;
  for (const auto& [name, entry] : entries.items()) {
    if (name == "__metadata__") continue;
    const std::string where = path + ": tensor " + name;
    const Form form = form_of(entry, where);
    const json offsets = entry.value("data_offsets", json());
    if (!offsets.is_array() || offsets.size() != 2 || !is_count(offsets[0]) ||
        !is_count(offsets[1]))
      fail(MTU_BAD_ARTEFACT, where + " has no data_offsets");
    const auto from = offsets[0].get<uint64_t>(), to = offsets[1].get<uint64_t>();
    if (from > to || to > data || to - from != form.bytes())
      fail(MTU_BAD_ARTEFACT, where + ": data_offsets do not fit its shape and the file");
    forms_[name] = form;
    offsets_[name] = start + from;
  }
}

Tensor TensorFile::read(const std::string& name) {
  Tensor tensor;
  tensor.form = forms_.at(name);
  tensor.allocate();
  file_.clear();
  file_.seekg(static_cast<std::streamoff>(offsets_.at(name)));
  if (!file_.read(reinterpret_cast<char*>(tensor.words.data()),
                  static_cast<std::streamsize>(tensor.form.bytes())))
    fail(MTU_BAD_ARTEFACT, path_ + ": tensor " + name + " cannot be read");
  if (tensor.form.dtype == MTU_FLOAT32)
    for (size_t index = 0; index < tensor.words.size(); ++index)
      if (!std::isfinite(tensor.floats()[index]))
        fail(MTU_BAD_ARTEFACT, path_ + ": tensor " + name + " is not finite");
  return tensor;
}

void write_tensors(const std::string& path,
                   const std::vector<std::pair<std::string, const Tensor*>>& tensors) {
  json header = json::object();
  uint64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    const uint64_t end = offset + tensor->form.bytes();
    header[name] = {{"dtype", tensor->form.dtype == MTU_FLOAT32 ? "F32" : "I32"},
                    {"shape", tensor->form.shape},
                    {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string words = header.dump();
  words.resize((words.size() + 7) / 8 * 8, ' ');
  const std::string scratch = path + ".part";
  std::ofstream file(scratch, std::ios::binary | std::ios::trunc);
  for (int byte = 0; byte < 8; ++byte) file.put(static_cast<char>(words.size() >> 8 * byte & 255));
  file << words;
  for (const auto& [name, tensor] : tensors)
    file.write(reinterpret_cast<const char*>(tensor->words.data()),
               static_cast<std::streamsize>(tensor->form.bytes()));
  file.close();
  if (!file || std::rename(scratch.c_str(), path.c_str()) != 0) {
    std::remove(scratch.c_str());
    fail(MTU_PART_FAILED, path + " cannot be written: " + std::strerror(errno));
  }
}

}  // namespace mtu
