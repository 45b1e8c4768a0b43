// Times the decode kernel as it is shipped (the PTX, assembled by the driver) and checks it on the GPU.
//
//   nvcc -std=c++17 -O2 -arch=sm_80 -cudart=static -Xcompiler -static-libstdc++,-static-libgcc -o bench
//       offload-cuda/kernels/bench.cu                        from the repository's root
//   ./bench [--verify-only] [--type NAME]... [--target f32|f16|bf16] [--rows N] [--columns N]
//
// nvcc 13 or later (cudaLibraryLoadData; from PyPI wheels, add -L$CUDA_HOME/lib). The program needs only a driver where
// it runs, and 12 GB of device memory.
//
// What is timed: a graph of 32 launches over so many sets of tensors that no cache holds any, seeded random bytes,
// against a kernel that copies the same number of bytes (half read, half written) per launch, in turn, medians of 7.
// Standard output: one JSON object a line.
//
//   {"check": TYPE, "target": ..., "numbers": ...}        decodes like the same code on the host, at 16 alignments
//   {"rate": "fill"|"read"|"copy"|"memcpy", "gbps": ...}  what the memory can do
//   {"type": TYPE, "target": ..., "us": ..., "gbps": ..., "copy_gbps": ..., "ratio": ...}
//
// `gbps` counts bytes read and written. TYPE `wan_14b_q4_k_m_block` is a whole transformer block in one launch. Exit
// status 1 if a check fails.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "../src/kernels/decode.cu"

// The shipped module, as text that ends with a zero.
asm(".section .rodata\n"
    ".global shipped_ptx\n"
    "shipped_ptx:\n"
    ".incbin \"offload-cuda/src/kernels/decode_80.ptx\"\n"
    ".byte 0\n"
    ".text\n");
extern "C" const char shipped_ptx[];

static void check(cudaError_t error, const char *call) {
    if (error == cudaSuccess) return;
    std::fprintf(stderr, "%s: %s\n", call, cudaGetErrorString(error));
    std::exit(2);
}
#define CHECK(CALL) check(CALL, #CALL)

struct Type {
    const char *name;
    u32 code;
    u64 block_bytes, block_numbers;
};

static const Type TYPES[] = {
    {"F32", 0, 4, 1},          {"F16", 1, 2, 1},          {"BF16", 30, 2, 1},       {"F64", 28, 8, 1},
    {"F8_E4M3", 64, 1, 1},     {"F8_E5M2", 65, 1, 1},     {"Q8_0", 8, 34, 32},      {"Q4_0", 2, 18, 32},
    {"Q4_1", 3, 20, 32},       {"Q5_0", 6, 22, 32},       {"Q5_1", 7, 24, 32},      {"Q2_K", 10, 84, 256},
    {"Q3_K", 11, 110, 256},    {"Q4_K", 12, 144, 256},    {"Q5_K", 13, 176, 256},   {"Q6_K", 14, 210, 256},
    {"IQ4_NL", 20, 18, 32},    {"IQ4_XS", 23, 136, 256},  {"MXFP4", 39, 17, 32},    {"NVFP4", 40, 36, 64},
    {"Q1_0", 41, 18, 128},     {"Q2_0", 42, 18, 64},      {"TQ1_0", 34, 54, 256},   {"TQ2_0", 35, 66, 256},
    {"IQ1_S", 19, 50, 256},    {"IQ1_M", 29, 56, 256},    {"IQ2_XXS", 16, 66, 256}, {"IQ2_XS", 17, 74, 256},
    {"IQ2_S", 22, 82, 256},    {"IQ3_XXS", 18, 98, 256},  {"IQ3_S", 21, 110, 256},  {"copy", COPY_CODE, 1, 1},
};

static const char *TARGETS[] = {"f32", "f16", "bf16"};

static const Type &type_named(const char *name) {
    for (const Type &type : TYPES) {
        if (std::strcmp(type.name, name) == 0) return type;
    }
    std::fprintf(stderr, "no type %s\n", name);
    std::exit(2);
}

static u64 number_bytes(u32 target) { return target == TO_F32 ? 4 : 2; }

// --- Tables, as mod.rs makes them. ---

struct Tensor {
    const Type *type;
    u32 target;
    u64 blocks;

    u64 source_bytes() const { return blocks * type->block_bytes; }
    u64 arrived_bytes() const {
        return type->code == COPY_CODE ? blocks : blocks * type->block_numbers * number_bytes(target);
    }
};

struct Table {
    std::vector<Entry> entries;
    u32 tiles = 0;

    void add(const Tensor &tensor, u64 source, u64 destination) {
        u64 tile_blocks = 8192, arrived = 1;
        if (tensor.type->code != COPY_CODE) {
            const u64 most = std::min<u64>(TILE_BYTES / tensor.type->block_bytes, 8192 / tensor.type->block_numbers);
            for (tile_blocks = 1; 2 * tile_blocks <= most;) tile_blocks *= 2;
            arrived = tensor.type->block_numbers * number_bytes(tensor.target);
        }
        entries.push_back({source, destination, tensor.source_bytes(), tiles,
                           (u32)(tile_blocks * tensor.type->block_bytes), (u32)(tile_blocks * arrived),
                           tensor.type->code | (tensor.target << 8)});
        tiles += (u32)((tensor.blocks + tile_blocks - 1) / tile_blocks);
    }
};

// --- Device memory and kernels beside the one that is timed. ---

static u8 *allocate(u64 bytes) {
    void *memory;
    CHECK(cudaMalloc(&memory, (bytes + 255) / 256 * 256));
    return (u8 *)memory;
}

static __host__ __device__ u64 random_word(u64 i) {
    u64 z = i * 0x9e3779b97f4a7c15ull + 0x1234567;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

__global__ void fill_random(u64 *words, u64 count, u64 seed) {
    const u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        words[i] = random_word(i + seed * 0x100000000ull);
    }
}

// 16 KiB a thread block: four loads of 16 bytes in flight a thread, then four stores.
__global__ void __launch_bounds__(256) copy_kernel(const uint4 *from, uint4 *to, u64 count) {
    const u64 base = (u64)blockIdx.x * 1024 + threadIdx.x;
    uint4 words[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        if (base + 256 * i < count) words[i] = from[base + 256 * i];
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        if (base + 256 * i < count) to[base + 256 * i] = words[i];
    }
}

__global__ void __launch_bounds__(256) fill_kernel(uint4 *to, u64 count) {
    const u64 base = (u64)blockIdx.x * 1024 + threadIdx.x;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        if (base + 256 * i < count) to[base + 256 * i] = make_uint4(threadIdx.x, blockIdx.x, i, 7);
    }
}

__global__ void __launch_bounds__(256) read_kernel(const uint4 *from, u64 count, uint4 *never) {
    const u64 base = (u64)blockIdx.x * 1024 + threadIdx.x;
    uint4 words[4] = {};
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        if (base + 256 * i < count) words[i] = from[base + 256 * i];
    }
    u32 all = 0;
#pragma unroll
    for (u32 i = 0; i < 4; i++) all ^= words[i].x ^ words[i].y ^ words[i].z ^ words[i].w;
    if (all == 0x12345678 && words[0].x == 0x9abcdef0) never[0] = words[0];
}

static u32 blocks_of_copy(u64 granules) { return (u32)((granules + 1023) / 1024); }

struct Bench {
    cudaStream_t stream;
    cudaKernel_t kernel;
    u8 *pool = nullptr;
    u64 pool_bytes = 0;

    void decode(const Entry *table, u32 count, u32 tiles) const {
        void *arguments[] = {&table, &count};
        CHECK(cudaLaunchKernel((const void *)kernel, dim3(tiles), dim3(THREADS), arguments, 0, stream));
    }
};

constexpr int LAUNCHES = 32, REPEATS = 7;
constexpr u64 LEAST_BYTES = 1500000000, LEAST_SETS = 8;

// A graph of `LAUNCHES` launches, of which `launch(i)` submits the i-th.
static cudaGraphExec_t graph_of(const Bench &bench, const std::function<void(int)> &launch) {
    cudaGraph_t graph;
    cudaGraphExec_t instance;
    CHECK(cudaStreamBeginCapture(bench.stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < LAUNCHES; i++) launch(i);
    CHECK(cudaStreamEndCapture(bench.stream, &graph));
    CHECK(cudaGraphInstantiate(&instance, graph, 0));
    CHECK(cudaGraphDestroy(graph));
    return instance;
}

// Seconds a launch, for each of the graphs, which run in turn.
static std::vector<double> time_in_turn(const Bench &bench, std::vector<cudaGraphExec_t> graphs) {
    cudaEvent_t begin, end;
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    std::vector<std::vector<double>> seconds(graphs.size());
    for (int repeat = -2; repeat < REPEATS; repeat++) {
        for (size_t i = 0; i < graphs.size(); i++) {
            CHECK(cudaEventRecord(begin, bench.stream));
            CHECK(cudaGraphLaunch(graphs[i], bench.stream));
            CHECK(cudaEventRecord(end, bench.stream));
            CHECK(cudaEventSynchronize(end));
            float milliseconds;
            CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
            if (repeat >= 0) seconds[i].push_back(milliseconds / 1e3 / LAUNCHES);
        }
    }
    std::vector<double> medians;
    for (auto &times : seconds) {
        std::sort(times.begin(), times.end());
        medians.push_back(times[times.size() / 2]);
    }
    for (cudaGraphExec_t graph : graphs) CHECK(cudaGraphExecDestroy(graph));
    CHECK(cudaEventDestroy(begin));
    CHECK(cudaEventDestroy(end));
    return medians;
}

static u64 padded(u64 bytes) { return (bytes + 255) / 256 * 256; }

static void time_tensors(const Bench &bench, const char *name, const char *target, const std::vector<Tensor> &tensors) {
    u64 sources = 0, arrived = 0, traffic = 0;
    for (const Tensor &tensor : tensors) {
        sources += padded(tensor.source_bytes());
        arrived += padded(tensor.arrived_bytes());
        traffic += tensor.source_bytes() + tensor.arrived_bytes();
    }
    const u64 set_bytes = sources + arrived;
    u64 sets = std::max(LEAST_SETS, (LEAST_BYTES + traffic - 1) / traffic);
    sets = std::min(sets, bench.pool_bytes / set_bytes);
    if (sets < 2) {
        std::fprintf(stderr, "%s does not fit\n", name);
        std::exit(2);
    }
    Entry *tables = (Entry *)allocate(sets * tensors.size() * sizeof(Entry));
    u32 tiles = 0;
    for (u64 set = 0; set < sets; set++) {
        Table table;
        u64 source = (u64)bench.pool + set * set_bytes, destination = source + sources;
        for (const Tensor &tensor : tensors) {
            table.add(tensor, source, destination);
            source += padded(tensor.source_bytes());
            destination += padded(tensor.arrived_bytes());
        }
        tiles = table.tiles;
        CHECK(cudaMemcpy(tables + set * tensors.size(), table.entries.data(), tensors.size() * sizeof(Entry),
                         cudaMemcpyHostToDevice));
        fill_random<<<2048, 256, 0, bench.stream>>>((u64 *)(bench.pool + set * set_bytes), sources / 8, set);
    }
    const u64 granules = traffic / 32;
    auto decode = [&](int i) { bench.decode(tables + i % sets * tensors.size(), (u32)tensors.size(), tiles); };
    auto copy = [&](int i) {
        const uint4 *from = (const uint4 *)(bench.pool + i % sets * (set_bytes / 256 * 256));
        copy_kernel<<<blocks_of_copy(granules), 256, 0, bench.stream>>>(from, (uint4 *)from + granules, granules);
    };
    const auto seconds = time_in_turn(bench, {graph_of(bench, decode), graph_of(bench, copy)});
    CHECK(cudaFree(tables));
    const double rate = traffic / seconds[0] / 1e9, copy_rate = 32.0 * granules / seconds[1] / 1e9;
    std::printf("{\"type\": \"%s\", \"target\": \"%s\", \"sets\": %llu, \"us\": %.2f, \"gbps\": %.1f, "
                "\"copy_gbps\": %.1f, \"ratio\": %.4f}\n",
                name, target, sets, seconds[0] * 1e6, rate, copy_rate, rate / copy_rate);
    std::fflush(stdout);
}

static void time_memory(const Bench &bench, u64 bytes_each) {
    const u64 granules = bytes_each / 16, sets = std::max(LEAST_SETS, LEAST_BYTES / bytes_each + 1);
    auto at = [&](int i) { return (uint4 *)bench.pool + i % sets * 2 * granules; };
    const u32 grid = blocks_of_copy(granules);
    const auto seconds = time_in_turn(
        bench, {
                   graph_of(bench, [&](int i) { fill_kernel<<<grid, 256, 0, bench.stream>>>(at(i), granules); }),
                   graph_of(bench, [&](int i) { read_kernel<<<grid, 256, 0, bench.stream>>>(at(i), granules, at(i)); }),
                   graph_of(bench,
                            [&](int i) {
                                copy_kernel<<<grid, 256, 0, bench.stream>>>(at(i), at(i) + granules, granules);
                            }),
                   graph_of(bench,
                            [&](int i) {
                                CHECK(cudaMemcpyAsync(at(i) + granules, at(i), 16 * granules,
                                                      cudaMemcpyDeviceToDevice, bench.stream));
                            }),
               });
    const char *names[] = {"fill", "read", "copy", "memcpy"};
    for (int i = 0; i < 4; i++) {
        const double bytes = (i < 2 ? 16.0 : 32.0) * granules;
        std::printf("{\"rate\": \"%s\", \"gbps\": %.1f}\n", names[i], bytes / seconds[i] / 1e9);
    }
}

// --- Checks. ---

static bool is_nan(const u8 *number, u32 target) {
    u32 bits = 0;
    std::memcpy(&bits, number, number_bytes(target));
    if (target == TO_F32) return (bits & 0x7fffffff) > 0x7f800000;
    return (bits & 0x7fff) > (target == TO_F16 ? 0x7c00u : 0x7f80u);
}

// Whether the GPU makes of tensors at every alignment what the same code makes on the host, and touches nothing else.
static bool verify(const Bench &bench, const Type &type, u32 target) {
    std::vector<Tensor> tensors;
    std::vector<u64> sources, destinations;
    u64 end = 0;
    for (u64 i = 0; i < 32; i++) {
        // Several tiles at each alignment, then less than one.
        const u64 numbers = i < 16 ? 20000 + 999 * i : 1 + 37 * (i - 16);
        tensors.push_back({&type, target, (numbers + type.block_numbers - 1) / type.block_numbers});
        sources.push_back((end + 15) / 16 * 16 + i % 16);
        end = sources.back() + tensors.back().source_bytes();
    }
    for (const Tensor &tensor : tensors) {
        destinations.push_back(padded(end));
        end = destinations.back() + tensor.arrived_bytes();
    }
    end = padded(end);
    u8 *on_host = (u8 *)std::aligned_alloc(256, end);
    for (u64 i = 0; i < end; i++) on_host[i] = (u8)random_word(i);
    std::vector<u8> from_device(end);
    CHECK(cudaMemcpy(bench.pool, on_host, end, cudaMemcpyHostToDevice));
    Table device, host;
    for (size_t i = 0; i < tensors.size(); i++) {
        device.add(tensors[i], (u64)bench.pool + sources[i], (u64)bench.pool + destinations[i]);
        host.add(tensors[i], (u64)on_host + sources[i], (u64)on_host + destinations[i]);
    }
    Entry *table = (Entry *)allocate(tensors.size() * sizeof(Entry));
    CHECK(cudaMemcpy(table, device.entries.data(), tensors.size() * sizeof(Entry), cudaMemcpyHostToDevice));
    bench.decode(table, (u32)tensors.size(), device.tiles);
    CHECK(cudaStreamSynchronize(bench.stream));
    CHECK(cudaMemcpy(from_device.data(), bench.pool, end, cudaMemcpyDeviceToHost));
    CHECK(cudaFree(table));
    static Shared shared;
    for (u32 tile = 0; tile < host.tiles; tile++) decode_tile(host.entries.data(), (u32)tensors.size(), tile, shared);
    u64 numbers = 0;
    bool same = true;
    for (size_t i = 0; i < tensors.size(); i++) {
        const u64 width = type.code == COPY_CODE ? 1 : number_bytes(target);
        for (u64 k = 0; k < tensors[i].arrived_bytes(); k += width, numbers++) {
            u8 *wanted = on_host + destinations[i] + k, *got = from_device.data() + destinations[i] + k;
            if (std::memcmp(wanted, got, width) == 0) continue;
            if (width > 1 && is_nan(wanted, target) && is_nan(got, target)) {
                std::memcpy(got, wanted, width);
                continue;
            }
            if (same) {
                u32 wanted_bits = 0, got_bits = 0;
                std::memcpy(&wanted_bits, wanted, width);
                std::memcpy(&got_bits, got, width);
                std::fprintf(stderr, "%s to %s: tensor %zu, number %llu is %#x on the GPU and %#x on the host\n",
                             type.name, TARGETS[target], i, k / width, got_bits, wanted_bits);
            }
            same = false;
        }
    }
    if (same && std::memcmp(on_host, from_device.data(), end) != 0) {
        std::fprintf(stderr, "%s to %s: bytes outside the tensors changed\n", type.name, TARGETS[target]);
        same = false;
    }
    std::free(on_host);
    if (same) {
        std::printf("{\"check\": \"%s\", \"target\": \"%s\", \"numbers\": %llu}\n", type.name, TARGETS[target],
                    numbers);
    }
    return same;
}

// A transformer block of WAN 14B as Q4_K_M stores it: the value projections and the second half of the feed-forward are
// Q6_K, what is no matrix is F32 and arrives as it is.
static std::vector<Tensor> wan_block(u32 target) {
    const Type *q4 = &type_named("Q4_K"), *q6 = &type_named("Q6_K"), *copy = &type_named("copy");
    const u64 width = 5120, wide = 13824;
    std::vector<Tensor> tensors;
    auto matrix = [&](const Type *type, u64 numbers) { tensors.push_back({type, target, numbers / 256}); };
    auto vector = [&](u64 numbers) { tensors.push_back({copy, TO_F32, 4 * numbers}); };
    vector(6 * width);
    for (int attention = 0; attention < 2; attention++) {
        for (const Type *type : {q4, q4, q6, q4}) {
            matrix(type, width * width);
            vector(width);
        }
        vector(width);
        vector(width);
    }
    vector(width);
    vector(width);
    matrix(q4, width * wide);
    vector(wide);
    matrix(q6, width * wide);
    vector(width);
    return tensors;
}

int main(int argc, char **argv) {
    std::vector<std::string> names;
    bool verify_only = false;
    u32 target = TO_BF16;
    u64 rows = 5120, columns = 13824;
    for (int i = 1; i < argc; i++) {
        const std::string option = argv[i];
        if (option == "--verify-only") {
            verify_only = true;
            continue;
        }
        const char *value = i + 1 < argc ? argv[++i] : "";
        if (option == "--type") {
            names.push_back(value);
        } else if (option == "--rows") {
            rows = std::strtoull(value, nullptr, 10);
        } else if (option == "--columns") {
            columns = std::strtoull(value, nullptr, 10);
        } else if (option == "--target") {
            for (target = 0; target < 3 && std::strcmp(TARGETS[target], value) != 0;) target++;
        }
        if (target > 2 || *value == 0) {
            std::fprintf(stderr, "what is %s %s?\n", option.c_str(), value);
            return 2;
        }
    }
    Bench bench;
    cudaLibrary_t library;
    int sms;
    CHECK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
    cudaDeviceProp properties;
    CHECK(cudaGetDeviceProperties(&properties, 0));
    CHECK(cudaStreamCreate(&bench.stream));
    CHECK(cudaLibraryLoadData(&library, shipped_ptx, nullptr, nullptr, 0, nullptr, nullptr, 0));
    CHECK(cudaLibraryGetKernel(&bench.kernel, library, "decode_block"));
    CHECK(cudaKernelSetAttributeForDevice(bench.kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                          cudaSharedmemCarveoutMaxShared, 0));
    int resident;
    const void *kernel = (const void *)bench.kernel;
    if (cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, THREADS, 0) != cudaSuccess) {
        cudaGetLastError();
        resident = -1;
    }
    std::printf("{\"device\": \"%s\", \"sms\": %d, \"thread_blocks_per_sm\": %d}\n", properties.name, sms, resident);
    bench.pool_bytes = 12000000000;
    bench.pool = allocate(bench.pool_bytes);
    std::vector<const Type *> types;
    for (const std::string &name : names) {
        if (name != "wan_14b_q4_k_m_block") types.push_back(&type_named(name.c_str()));
    }
    if (names.empty()) {
        for (const Type &type : TYPES) types.push_back(&type);
    }
    bool sound = true;
    for (const Type *type : types) {
        for (u32 to = 0; to < 3; to++) {
            // A copy has no target.
            if (type->code != COPY_CODE || to == TO_F32) sound &= verify(bench, *type, to);
        }
    }
    if (!verify_only) {
        time_memory(bench, 2 * rows * columns);
        for (const Type *type : types) {
            // A copy is counted in bytes: as many as bf16 would have.
            const u64 numbers = rows * columns;
            const u64 blocks = type->code == COPY_CODE ? 2 * numbers : numbers / type->block_numbers;
            time_tensors(bench, type->name, TARGETS[target], {{type, target, blocks}});
        }
        const bool wanted = std::find(names.begin(), names.end(), "wan_14b_q4_k_m_block") != names.end();
        if (names.empty() || wanted) time_tensors(bench, "wan_14b_q4_k_m_block", TARGETS[target], wan_block(target));
    }
    CHECK(cudaDeviceSynchronize());
    return sound ? 0 : 1;
}
