// Runs a package of AOTInductor that calls deform-attn, in a process without Python.
//
// Usage: run_package LIBRARY PACKAGE INPUTS OUTPUT
#include <dlfcn.h>
#include <fstream>
#include <iostream>
#include <iterator>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

// This program is linked with torch, so that torch is loaded before the library, and NULL is enough to find it. The 1
// has the library define the ops, which Python does elsewhere. It is called before the package is loaded.
void register_ops(const char *path) {
    void *library = dlopen(path, RTLD_NOW);
    if (!library) throw std::runtime_error(dlerror());
    using Register = const char *(const char *libtorch_cpu, int32_t define);
    auto *register_with_torch = reinterpret_cast<Register *>(dlsym(library, "deform_attn_register_with_torch"));
    if (!register_with_torch) throw std::runtime_error(dlerror());
    if (const char *reason = register_with_torch(nullptr, 1)) throw std::runtime_error(reason);
}

// Reads a list of tensors, as torch.save writes it.
std::vector<at::Tensor> read_tensors(const char *path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(std::string(path) + " cannot be read");
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    const c10::IValue list = torch::jit::pickle_load(bytes);
    std::vector<at::Tensor> tensors;
    for (const c10::IValue &value : list.toListRef()) tensors.push_back(value.toTensor());
    return tensors;
}

int main(int count, char **arguments) try {
    if (count != 5) throw std::runtime_error("usage: run_package LIBRARY PACKAGE INPUTS OUTPUT");
    register_ops(arguments[1]);
    torch::inductor::AOTIModelPackageLoader package(arguments[2]);
    const std::vector<char> bytes = torch::jit::pickle_save(package.run(read_tensors(arguments[3])).at(0));
    if (!std::ofstream(arguments[4], std::ios::binary).write(bytes.data(), bytes.size()))
        throw std::runtime_error(std::string(arguments[4]) + " cannot be written");
} catch (const std::exception &error) {
    std::cerr << error.what() << '\n';
    return 1;
}
