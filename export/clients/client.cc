// Runs an exported model on an image with onnxruntime alone: client MODEL.onnx IMAGE
//
// IMAGE is a binary PGM (28x28, for a model of [batch, 784]) or PPM (480 wide, 720 high, for [batch, 3, 720, 480]).
// With a release of onnxruntime from https://github.com/microsoft/onnxruntime/releases unpacked in ORT:
//   g++ -std=c++17 -O2 client.cc -I ORT/include -L ORT/lib -lonnxruntime -Wl,-rpath,ORT/lib -o client

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <onnxruntime_cxx_api.h>

struct Image {
  int64_t channels, height, width;
  std::vector<unsigned char> pixels;  // rows from the top, channels of a pixel together
};

static Image ReadImage(const char* path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  Image image{};
  int depth = 0;
  file >> kind >> image.width >> image.height >> depth;
  file.get();  // the one blank behind the header
  if (!file || (kind != "P5" && kind != "P6") || depth != 255 || image.width < 1 || image.height < 1)
    throw std::runtime_error(std::string(path) + ": needs a binary PGM or PPM of 8 bits");
  image.channels = kind == "P5" ? 1 : 3;
  image.pixels.resize(image.channels * image.height * image.width);
  file.read(reinterpret_cast<char*>(image.pixels.data()), image.pixels.size());
  if (!file) throw std::runtime_error(std::string(path) + ": ends early");
  return image;
}

// Grey in 0..1; colour in -1..1, channel after channel.
static std::vector<float> ToInput(const Image& image) {
  std::vector<float> input(image.pixels.size());
  const int64_t plane = image.height * image.width;
  for (int64_t channel = 0; channel < image.channels; ++channel)
    for (int64_t i = 0; i < plane; ++i) {
      const float value = image.pixels[i * image.channels + channel] / 255.0f;
      input[channel * plane + i] = image.channels == 1 ? value : (value - 0.5f) / 0.5f;
    }
  return input;
}

static int Run(const char* model, const char* path) {
  const Image image = ReadImage(path);
  std::vector<float> input = ToInput(image);
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "client");
  Ort::SessionOptions options;
  options.AddConfigEntry("session.intra_op.allow_spinning", "0");
  Ort::Session session(env, model, options);
  const size_t rank = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape().size();
  std::vector<int64_t> shape{1, image.channels, image.height, image.width};
  if (rank == 2) shape = {1, static_cast<int64_t>(input.size())};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  Ort::Value value = Ort::Value::CreateTensor<float>(memory, input.data(), input.size(), shape.data(), shape.size());
  const char* inputs[] = {"input"};
  const char* outputs[] = {"output"};
  const auto results = session.Run(Ort::RunOptions{}, inputs, &value, 1, outputs, 1);
  const size_t count = results[0].GetTensorTypeAndShapeInfo().GetElementCount();
  const float* output = results[0].GetTensorData<float>();
  if (rank == 2) {
    const float* best = std::max_element(output, output + count);
    std::printf("class %d, probability %.4f\n", static_cast<int>(best - output), *best);
  } else {
    double sum = 0;
    for (size_t i = 0; i < count; ++i) sum += output[i];
    const auto range = std::minmax_element(output, output + count);
    std::printf("%zu outputs, %.4f to %.4f, mean %.4f\n", count, *range.first, *range.second, sum / count);
  }
  return 0;
}

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "client MODEL.onnx IMAGE\n");
    return 2;
  }
  try {
    return Run(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "client: %s\n", error.what());
    return 1;
  }
}
