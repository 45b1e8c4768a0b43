// The computation of matrix.rs on a GPU, bit for bit: an activation goes through the matrices of a model, and a digest
// takes notice of every byte. `build.py` in offload-cuda/kernels makes matrix_75.ptx of this.
//
// Nothing is contracted, approximated or flushed, and floats are added in an order that does not depend on the machine.
// Terms of the digest are integers, and may be added in any order.
//
// Tensors may begin at any byte: a word is read at once where it lies at a multiple of 4.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// What is carried through a pass (`STATE_BYTES` in cuda.rs).
struct State {
    u64 digest;
    u32 largest[2];  // magnitude of the largest finite product, by turns of this matrix and the one before
};

enum : u32 { WARP = 32, THREADS = 256, NAN_BITS = 0x7FC00000, EXPONENT = 0x7F800000 };

static __device__ u64 mix(u64 number)
{
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9;
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB;
    return number ^ (number >> 31);
}

static __device__ u64 term(u64 seed, u64 index, u32 word)
{
    return mix(seed ^ (index << 32 | word));
}

static __device__ bool is_finite(u32 bits)
{
    return (bits & EXPONENT) != EXPONENT;
}

static __device__ float start(u32 index)
{
    return ((float)(u32)((u64)index * 37 % 101) - 50.0f) / 50.0f;
}

// The next 4 bytes, or as many as are left.
static __device__ u32 word(const u8 *at, u64 left)
{
    if (left >= 4 && ((u64)at & 3) == 0)
        return *(const u32 *)at;
    u32 word = 0;
    for (u32 byte = 0; byte < 4 && byte < left; byte++)
        word |= (u32)at[byte] << (8 * byte);
    return word;
}

struct Pair {
    float even, odd;
};

// Two numbers, of which the second may be missing and is then anything.
struct F32 {
    enum : u32 { BYTES = 4 };
    static __device__ Pair pair(const u8 *at, u64 left)
    {
        return {__uint_as_float(word(at, left)), left > 4 ? __uint_as_float(word(at + 4, left - 4)) : 0.0f};
    }
};

struct F16 {
    enum : u32 { BYTES = 2 };
    static __device__ float number(u16 bits)
    {
        float number;
        asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(bits));
        return number;
    }
    static __device__ Pair pair(const u8 *at, u64 left)
    {
        u32 both = word(at, left);
        return {number((u16)both), number((u16)(both >> 16))};
    }
};

struct BF16 {
    enum : u32 { BYTES = 2 };
    static __device__ Pair pair(const u8 *at, u64 left)
    {
        u32 both = word(at, left);
        return {__uint_as_float(both << 16), __uint_as_float(both & 0xFFFF0000)};
    }
};

// A warp makes one product: each thread two running sums, of every 64th column.
template <class Number>
static __device__ void multiply(State *state, const u8 *matrix, u32 rows, u32 columns, const float *input,
                                float *products, u32 turn, u64 seed)
{
    u32 row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    u32 lane = threadIdx.x % WARP;
    if (row >= rows)
        return;
    const u8 *begin = matrix + (u64)row * columns * Number::BYTES;
    float even = 0.0f, odd = 0.0f;
#pragma unroll 4
    for (u32 column = 2 * lane; column < columns; column += 2 * WARP) {
        Pair pair = Number::pair(begin + (u64)column * Number::BYTES, (u64)(columns - column) * Number::BYTES);
        even += pair.even * input[column];
        if (column + 1 < columns)
            odd += pair.odd * input[column + 1];
    }
    float sum = even + odd;
    for (u32 apart = WARP / 2; apart > 0; apart /= 2)
        sum += __shfl_down_sync(0xFFFFFFFF, sum, apart);
    if (lane != 0)
        return;
    products[row] = sum;
    u32 bits = sum == sum ? __float_as_uint(sum) : (u32)NAN_BITS;
    atomicAdd(&state->digest, term(seed, row, bits));
    // Magnitudes are in the same order as their bits.
    if (is_finite(bits))
        atomicMax(&state->largest[turn], bits & 0x7FFFFFFF);
}

// One thread.
extern "C" __global__ void begin_pass(State *state)
{
    state->digest = 0;
    state->largest[0] = 0;
    state->largest[1] = 0;
}

// Values of the `length` products of the matrix before, repeated or cut to `columns`. One thread for each column.
extern "C" __global__ void make_input(State *state, const float *products, u32 length, float *input, u32 columns,
                                      u32 turn)
{
    u32 column = blockIdx.x * THREADS + threadIdx.x;
    if (column >= columns)
        return;
    // Nobody looks at this turn's before the next launch.
    if (column == 0)
        state->largest[turn] = 0;
    float largest = __uint_as_float(state->largest[turn ^ 1]);
    u32 index = column % length;
    float value = start(index);
    if (largest > 0.0f) {
        float product = products[index];
        if (is_finite(__float_as_uint(product)))
            value = product / largest;
    }
    input[column] = value;
}

#define MULTIPLY(NAME, NUMBER)                                                                                       \
    extern "C" __global__ void NAME(State *state, const u8 *matrix, u32 rows, u32 columns, const float *input,       \
                                    float *products, u32 turn, u64 seed)                                            \
    {                                                                                                                \
        multiply<NUMBER>(state, matrix, rows, columns, input, products, turn, seed);                                 \
    }
MULTIPLY(multiply_f32, F32)
MULTIPLY(multiply_f16, F16)
MULTIPLY(multiply_bf16, BF16)

// Takes notice of bytes. Any number of thread blocks.
extern "C" __global__ void read_bytes(State *state, const u8 *bytes, u64 length, u64 seed)
{
    u64 words = (length + 3) / 4;
    u64 sum = 0;
    for (u64 index = (u64)blockIdx.x * THREADS + threadIdx.x; index < words; index += (u64)gridDim.x * THREADS)
        sum += term(seed, index, word(bytes + 4 * index, length - 4 * index));
    for (u32 apart = WARP / 2; apart > 0; apart /= 2)
        sum += __shfl_down_sync(0xFFFFFFFF, sum, apart);
    if (threadIdx.x % WARP == 0)
        atomicAdd(&state->digest, sum);
}
