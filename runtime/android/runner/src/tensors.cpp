#include "tensors.h"

#include <cmath>
#include <cstdio>
#include <filesystem>

namespace mtu {

constexpr uint64_t kLargestHeader = 4'000'000;

bool Form::read_shape(const json& list) {
  if (!list.is_array() || list.size() > 8) return false;
  size_t bytes = 4;
  for (const json& extent : list) {
    if (!extent.is_number_unsigned() || extent < 1 || extent > kLargestTensor) return false;
    bytes *= extent.get<size_t>();
    if (bytes > kLargestTensor) return false;
    shape.push_back(extent.get<int64_t>());
  }
  return true;
}

std::string Form::text() const {
  return (dtype == MTU_FLOAT32 ? "float32" : "int32") + json(shape).dump();
}

TensorFile::TensorFile(const std::string& path) : path_(path) {
  std::error_code error;
  const uint64_t size = std::filesystem::file_size(path, error);  // an error where it is no file
  if (!error) file_.open(path, std::ios::binary);
  if (error || !file_) fail(MTU_BAD_ARTEFACT, path + " cannot be read");
  unsigned char head[8] = {};
  if (size < 8 || !file_.read(reinterpret_cast<char*>(head), 8))
    fail(MTU_BAD_ARTEFACT, path + " is shorter than a safetensors header");
  uint64_t length = 0;
  for (int byte = 7; byte >= 0; --byte) length = length << 8 | head[byte];
  if (length > kLargestHeader || length > size - 8)
    fail(MTU_BAD_ARTEFACT, path + ": the header's length is not within the file and 4,000,000");
  std::string header(length, '\0');
  file_.read(header.data(), static_cast<std::streamsize>(length));
  const json entries = json::parse(header, nullptr, false);
  if (!file_ || !entries.is_object())
    fail(MTU_BAD_ARTEFACT, path + ": the header is not a JSON object");
  const uint64_t start = 8 + length, data = size - start;
  for (const auto& [name, entry] : entries.items()) {
    if (name == "__metadata__") continue;
    const std::string where = path + ": tensor " + name;
    const json dtype = entry.is_object() ? entry.value("dtype", json()) : json();
    if (dtype != "F32" && dtype != "I32") fail(MTU_BAD_ARTEFACT, where + " is neither F32 nor I32");
    Form form{dtype == "F32" ? MTU_FLOAT32 : MTU_INT32, {}};
    if (!form.read_shape(entry.value("shape", json())))
      fail(MTU_BAD_ARTEFACT, where + ": rank at most 8, extents from 1, at most 1 GiB are needed");
    const json ends = entry.value("data_offsets", json());
    if (!ends.is_array() || ends.size() != 2 || !ends[0].is_number_unsigned() ||
        !ends[1].is_number_unsigned() || ends[0] > ends[1] || ends[1] > data ||
        ends[1].get<uint64_t>() - ends[0].get<uint64_t>() != form.bytes())
      fail(MTU_BAD_ARTEFACT, where + ": data_offsets do not fit its shape and the file");
    forms_[name] = form;
    offsets_[name] = start + ends[0].get<uint64_t>();
  }
}

Tensor TensorFile::read(const std::string& name) {
  Tensor tensor{forms_.at(name), {}};
  tensor.allocate();
  file_.clear();
  file_.seekg(static_cast<std::streamoff>(offsets_.at(name)));
  if (!file_.read(reinterpret_cast<char*>(tensor.words.data()),
                  static_cast<std::streamsize>(tensor.form.bytes())))
    fail(MTU_BAD_ARTEFACT, path_ + ": tensor " + name + " cannot be read");
  for (size_t index = 0; index < tensor.words.size(); ++index)
    if (tensor.form.dtype == MTU_FLOAT32 && !std::isfinite(tensor.floats()[index]))
      fail(MTU_BAD_ARTEFACT, path_ + ": tensor " + name + " is not finite");
  return tensor;
}

void write_tensors(const std::string& path, const std::map<std::string, const Tensor*>& tensors) {
  json header = json::object();
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    const size_t begin = data.size();
    data.append(reinterpret_cast<const char*>(tensor->words.data()), tensor->form.bytes());
    header[name] = {{"dtype", tensor->form.dtype == MTU_FLOAT32 ? "F32" : "I32"},
                    {"shape", tensor->form.shape},
                    {"data_offsets", {begin, data.size()}}};
  }
  std::string words = header.dump();
  words.resize((words.size() + 7) / 8 * 8, ' ');
  std::string length;
  for (int byte = 0; byte < 8; ++byte) length += static_cast<char>(words.size() >> 8 * byte & 255);
  if (!replace_file(path, length + words + data))
    fail(MTU_PART_FAILED, path + " cannot be written");
}

bool replace_file(const std::string& path, const std::string& words) {
  const std::string scratch = path + ".part";
  std::ofstream file(scratch, std::ios::binary);
  file << words;
  file.close();
  if (file && std::rename(scratch.c_str(), path.c_str()) == 0) return true;
  std::remove(scratch.c_str());
  return false;
}

}  // namespace mtu
