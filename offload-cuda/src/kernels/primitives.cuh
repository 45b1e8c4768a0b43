// What the machine offers, each with a portable twin, so that the same kernels also compile as plain C++ and can be
// checked on a machine without a GPU. No header of the CUDA toolkit is used.

#pragma once

#if defined(__CUDACC__)
#define BOTH __host__ __device__ __forceinline__
#else
#define BOTH inline
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Threads of a block. Host code stands in for all of them, one after another.
constexpr u32 THREADS = 256;

// Runs `body` for each thread of the block.
template <class Body>
BOTH void every_thread(Body body) {
#if defined(__CUDA_ARCH__)
    body(threadIdx.x);
#else
    for (u32 thread = 0; thread < THREADS; thread++) body(thread);
#endif
}

// Everything that any thread did before is seen by all threads after. Between two of these, threads are independent.
BOTH void barrier() {
#if defined(__CUDA_ARCH__)
    __syncthreads();
#endif
}

BOTH float float_of_bits(u32 bits) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(bits);
#else
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
#endif
}

BOTH u32 bits_of_float(float value) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(value);
#else
    u32 bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
#endif
}

// Bits `shift % 32` and 31 more above of the 64 bits that `low` and `high` make.
BOTH u32 funnel(u32 low, u32 high, u32 shift) {
#if defined(__CUDA_ARCH__)
    return __funnelshift_r(low, high, shift);
#else
    return (u32)((((u64)high << 32) | low) >> (shift % 32));
#endif
}

// Four bytes chosen from the eight of `low` and `high`: hexadecimal digit `i` of `choice`, 0 to 7, says which becomes
// byte `i`.
BOTH u32 choose(u32 low, u32 high, u32 choice) {
#if defined(__CUDA_ARCH__)
    return __byte_perm(low, high, choice);
#else
    const u64 bytes = ((u64)high << 32) | low;
    u32 chosen = 0;
    for (u32 i = 0; i < 4; i++) chosen |= (u32)(u8)(bytes >> (8 * ((choice >> (4 * i)) & 7))) << (8 * i);
    return chosen;
#endif
}

// How many bits are set.
BOTH u32 population(u32 bits) {
#if defined(__CUDA_ARCH__)
    return __popc(bits);
#else
    return __builtin_popcount(bits);
#endif
}

// `a * b + c`, rounded once.
BOTH float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
    return __fmaf_rn(a, b, c);
#else
    return __builtin_fmaf(a, b, c);
#endif
}

// The number that the lower 16 bits stand for as an f16.
BOTH float float_of_half(u32 bits) {
#if defined(__CUDA_ARCH__)
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((u16)bits));
    return value;
#else
    const u32 sign = (bits & 0x8000) << 16, exponent = (bits >> 10) & 31, mantissa = bits & 0x3ff;
    if (exponent == 31) return float_of_bits(sign | 0x7f800000 | (mantissa << 13));
    if (exponent != 0) return float_of_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
    const float magnitude = (float)mantissa * float_of_bits((127 - 24) << 23);
    return float_of_bits(sign | bits_of_float(magnitude));
#endif
}

// `value` as an f16, rounded to nearest even. Denormals are kept.
BOTH u32 half_of_float(float value) {
#if defined(__CUDA_ARCH__)
    u16 half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
#else
    const u32 bits = bits_of_float(value), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return sign | 0x7e00;
    if (magnitude >= 0x47800000) return sign | 0x7c00;  // 65536 and more
    if (magnitude < 0x38800000) {
        // Below the least normal f16 the step is 2^-24: adding 0.5 leaves that step as the last bit, rounded.
        return sign | (bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000);
    }
    const u32 odd = (magnitude >> 13) & 1;
    return sign | ((magnitude - (112u << 23) + 0xfff + odd) >> 13);
#endif
}

// Two numbers as f16, the first in the lower half.
BOTH u32 halves_of_floats(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
#else
    return half_of_float(first) | (half_of_float(second) << 16);
#endif
}

// `value` as a bf16, rounded to nearest even; NaN stays NaN.
BOTH u32 bf16_of_float(float value) {
    const u32 bits = bits_of_float(value);
    const u32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded;
}

// Two numbers as bf16, the first in the lower half.
BOTH u32 bf16s_of_floats(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
#else
    return bf16_of_float(first) | (bf16_of_float(second) << 16);
#endif
}

// `value` rounded to f32.
BOTH float float_of_double(u32 low, u32 high) {
#if defined(__CUDA_ARCH__)
    return __double2float_rn(__hiloint2double((int)high, (int)low));
#else
    const u64 bits = ((u64)high << 32) | low;
    double value;
    __builtin_memcpy(&value, &bits, 8);
    return (float)value;
#endif
}

// Reads 16 bytes from an address of that alignment.
BOTH void load_16(const u8 *from, u32 &a, u32 &b, u32 &c, u32 &d) {
#if defined(__CUDA_ARCH__)
    const uint4 words = *(const uint4 *)from;
    a = words.x, b = words.y, c = words.z, d = words.w;
#else
    u32 words[4];
    __builtin_memcpy(words, from, 16);
    a = words[0], b = words[1], c = words[2], d = words[3];
#endif
}

// Writes 16 bytes to an address of that alignment.
BOTH void store_16(u64 address, u32 a, u32 b, u32 c, u32 d) {
#if defined(__CUDA_ARCH__)
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
#else
    const u32 words[4] = {a, b, c, d};
    __builtin_memcpy((void *)address, words, 16);
#endif
}

// Copies a tile's granules of 16 bytes to shared memory, where they may be read after `stage_done` and a barrier.
// `global` is a multiple of 16. `MOST` is at least `granules / THREADS`, rounded up.
template <u32 MOST>
BOTH void stage(u32 *shared, u64 global, u32 granules, u32 thread) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    // Past the registers and the L1 cache: all of a tile is in flight at once, and nothing is read twice.
    u32 to = (u32)__cvta_generic_to_shared(shared) + 16 * thread;
    u64 from = global + 16 * thread;
#pragma unroll
    for (u32 i = 0; i < MOST; i++) {
        if (thread + i * THREADS < granules) {
            asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to + 16 * THREADS * i),
                         "l"(from + 16 * THREADS * i)
                         : "memory");
        }
    }
#elif defined(__CUDA_ARCH__)
    uint4 words[MOST];
#pragma unroll
    for (u32 i = 0; i < MOST; i++) {
        if (thread + i * THREADS < granules) {
            asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(words[i].x), "=r"(words[i].y), "=r"(words[i].z), "=r"(words[i].w)
                         : "l"(global + 16 * (thread + i * THREADS)));
        }
    }
#pragma unroll
    for (u32 i = 0; i < MOST; i++) {
        if (thread + i * THREADS < granules) ((uint4 *)shared)[thread + i * THREADS] = words[i];
    }
#else
    for (u32 i = thread; i < granules; i += THREADS) {
        __builtin_memcpy(shared + 4 * i, (const void *)(global + 16 * i), 16);
    }
#endif
}

// Waits until what this thread staged has arrived.
BOTH void stage_done() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
