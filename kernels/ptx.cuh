// Instructions for which CUDA C++ has no function, one small function each: kernels contain no
// inline assembly, and the CPU simulator implements each function in C++
// (gpucnn/cudasim/native/ptx.h has the same functions; a test compares the two).
//
// Fragments are those of the PTX ISA, section "Matrix multiply-accumulate operation using mma":
// with g = lane / 4 and t = lane % 4, a lane holds of C and D (16 x 8, float)
//     c[0], c[1]  row g, columns 2t and 2t + 1;     c[2], c[3]  row g + 8, the same columns
// of A (16 rows of K) and B (K rows of 8), in registers of 32 bits,
//     tf32, K = 8   a[0..3]  (g, t) (g + 8, t) (g, t + 4) (g + 8, t + 4)    b[0..1]  (t, g) (t + 4, g)
//     16 bits, K = 8   a[0..1]  columns 2t, 2t + 1 of rows g, g + 8         b  rows 2t, 2t + 1, column g
//     16 bits, K = 16  a[2..3], b[1]  the same, 8 further along K
// Of two 16-bit numbers in a register, the one with the lower index is in the lower half.

#ifndef GPUCNN_PTX_CUH
#define GPUCNN_PTX_CUH

// --- 16-bit numbers: for storage; arithmetic is in float ---

struct half {
    unsigned short bits;
};

struct bfloat16 {
    unsigned short bits;
};

__device__ inline float to_float(half h) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(h.bits));
    return result;
}

__device__ inline half to_half(float x) {  // round to nearest, ties to even
    half result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
    return result;
}

__device__ inline float to_float(bfloat16 b) { return __uint_as_float((unsigned)b.bits << 16); }

__device__ inline bfloat16 to_bfloat16(float x) {  // round to nearest, ties to even
    unsigned bits = __float_as_uint(x);
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    bits += 0x7fffu + (bits >> 16 & 1u);
    return bfloat16{(unsigned short)(nan ? 0x7fffu : bits >> 16)};
}

// Two numbers in one register, `low` in the lower half.
__device__ inline unsigned pack(half low, half high) {
    return (unsigned)high.bits << 16 | low.bits;
}

__device__ inline unsigned pack(bfloat16 low, bfloat16 high) {
    return (unsigned)high.bits << 16 | low.bits;
}

// Kernels compiled for several types convert with these.
__device__ inline float to_float(float x) { return x; }

template <class T>
__device__ inline T from_float(float x);

template <>
__device__ inline float from_float<float>(float x) {
    return x;
}

template <>
__device__ inline half from_float<half>(float x) {
    return to_half(x);
}

template <>
__device__ inline bfloat16 from_float<bfloat16>(float x) {
    return to_bfloat16(x);
}

// Two floats, rounded, in one register: one instruction from sm_80 on.
__device__ inline unsigned pack_half(float low, float high) {
#if __CUDA_ARCH__ >= 800
    unsigned result;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
#else
    return pack(to_half(low), to_half(high));
#endif
}

__device__ inline unsigned pack_bfloat16(float low, float high) {
#if __CUDA_ARCH__ >= 800
    unsigned result;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
#else
    return pack(to_bfloat16(low), to_bfloat16(high));
#endif
}

// threadIdx.x, read anew.  After a loop that needs all registers: what is computed from threadIdx.x
// before the loop, and needed again after it, would stay in a register all the while.
__device__ inline int thread_again() {
    int result;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(result));
    return result;
}

// --- asynchronous copies, global to shared ---

// Starts an asynchronous copy of BYTES (4, 8 or 16) bytes; both addresses are multiples of BYTES.
// Only the first from_bytes are read, the rest is zero-filled: 0 for a pixel outside the image.
// Before sm_80 the copy is synchronous.
template <int BYTES>
__device__ inline void copy_async(void* to, const void* from, int from_bytes = BYTES) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "");
#if __CUDA_ARCH__ >= 800
    unsigned target = (unsigned)__cvta_generic_to_shared(to);
    if constexpr (BYTES == 16)  // .cg bypasses the L1 cache: each number is used once
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                     :: "r"(target), "l"(from), "r"(from_bytes) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                     :: "r"(target), "l"(from), "n"(BYTES), "r"(from_bytes) : "memory");
#else
    for (int i = 0; i < BYTES / 4; ++i)
        ((unsigned*)to)[i] = i < from_bytes / 4 ? ((const unsigned*)from)[i] : 0u;
#endif
}

// Commits this thread's copies since the last call as one group.
__device__ inline void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the GROUPS_LEFT newest groups of this thread are in flight.  The copies of
// other threads are visible only after a subsequent __syncthreads.
template <int GROUPS_LEFT>
__device__ inline void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" :: "n"(GROUPS_LEFT) : "memory");
#endif
}

// --- ldmatrix: 8 x 8 matrices of 16-bit numbers from shared memory to fragments ---

// Lane l passes the address of row l % 8 of matrix l / 8: 16 bytes, 16-byte aligned.  From each
// matrix, or from its transpose, a lane receives row lane / 4, columns 2 * (lane % 4) and the next.
// With fewer than four matrices the addresses of the last lanes are ignored.
__device__ inline void load_matrices(unsigned (&r)[1], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(r[0]) : "r"((unsigned)__cvta_generic_to_shared(row)) : "memory");
}

__device__ inline void load_matrices(unsigned (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"((unsigned)__cvta_generic_to_shared(row)) : "memory");
}

__device__ inline void load_matrices(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row)) : "memory");
}

__device__ inline void load_matrices_transposed(unsigned (&r)[1], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(r[0]) : "r"((unsigned)__cvta_generic_to_shared(row)) : "memory");
}

__device__ inline void load_matrices_transposed(unsigned (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"((unsigned)__cvta_generic_to_shared(row)) : "memory");
}

__device__ inline void load_matrices_transposed(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row)) : "memory");
}

// --- mma.sync: D = A B + D, 16 x 8, summed in float ---

// float16, K = 8.
__device__ inline void multiply_half(float (&d)[4], const unsigned (&a)[2], unsigned b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b));
}

#if __CUDA_ARCH__ >= 800

// float16, K = 16.
__device__ inline void multiply_half(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// bfloat16, K = 8.
__device__ inline void multiply_bfloat16(float (&d)[4], const unsigned (&a)[2], unsigned b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b));
}

// bfloat16, K = 16.
__device__ inline void multiply_bfloat16(float (&d)[4], const unsigned (&a)[4],
                                         const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// x rounded to tf32 (10-bit mantissa), ties away from zero.  Otherwise the hardware truncates the
// lower 13 bits, which biases every product towards zero.
__device__ inline unsigned to_tf32(float x) {
    unsigned result;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(x));
    return result;
}

// tf32, K = 8.
__device__ inline void multiply_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif

#endif
