// Fused operations of a decode step on the CPU, for float32 and bfloat16 tensors; rl/engines/cpu_ops.py builds and calls them.
//
// Between the matrix products of a step lie many small operations: as tensor expressions each is a pass over memory, an
// allocation and a parallel region. Here each group is one pass. Arithmetic is float32; results are rounded to the tensors' type.
// A row's result depends neither on the other rows nor on the number of threads.
//
// Axis suffixes: N tokens, E hidden, I intermediate, H query heads, K key/value heads, D head dimension, R rows, L columns.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

// 16 float32 lanes; GCC and Clang map them to whatever vectors the processor has.
constexpr int LANES = 16;
typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef std::uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef std::int32_t Lanes __attribute__((vector_size(4 * LANES)));
typedef std::uint16_t Halves __attribute__((vector_size(2 * LANES)));

struct bfloat16 {
    std::uint16_t bits;
};

inline Vector load(const float* from) {
    Vector result;
    std::memcpy(&result, from, sizeof result);
    return result;
}

inline Vector load(const bfloat16* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return reinterpret_cast<Vector>(__builtin_convertvector(halves, Words) << 16);
}

inline void store(float* target, Vector value) { std::memcpy(target, &value, sizeof value); }

// Rounds to nearest even.
inline void store(bfloat16* target, Vector value) {
    const Words bits = reinterpret_cast<Words>(value);
    const Halves halves = __builtin_convertvector((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16, Halves);
    std::memcpy(target, &halves, sizeof halves);
}

// The first `count` numbers at `from`; lanes beyond them are 0.
template <typename T>
inline Vector load_first(const T* from, std::int64_t count) {
    if (count >= LANES) return load(from);
    T padded[LANES] = {};
    std::memcpy(padded, from, static_cast<std::size_t>(count) * sizeof(T));
    return load(padded);
}

template <typename T>
inline void store_first(T* target, Vector value, std::int64_t count) {
    if (count >= LANES) return store(target, value);
    T padded[LANES];
    store(padded, value);
    std::memcpy(target, padded, static_cast<std::size_t>(count) * sizeof(T));
}

// e^x, relative error below 2e-7 (Cephes' polynomial); x is taken as -87 or 88 beyond those; nan stays nan.
inline Vector exponential(Vector x) {
    x = x < -87.0f ? Vector{} - 87.0f : x;
    x = x > 88.0f ? Vector{} + 88.0f : x;
    constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const Vector shifted = x * 1.44269504f + ROUND;
    const Vector n = shifted - ROUND;
    const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * reinterpret_cast<Vector>((reinterpret_cast<Words>(shifted) << 23) + (127u << 23));
}

inline float sum(Vector value) {
    float total = 0.0f;
    for (int i = 0; i < LANES; i++) total += value[i];
    return total;
}

// Lane i of the result is the sum of the lanes of parts[i]; overwrites parts.
inline Vector sums(Vector* parts) {
    constexpr Lanes A1 = {0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30};
    constexpr Lanes B1 = {1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31};
    constexpr Lanes A2 = {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29};
    constexpr Lanes B2 = {2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31};
    constexpr Lanes A4 = {0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27};
    constexpr Lanes B4 = {4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31};
    constexpr Lanes A8 = {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23};
    constexpr Lanes B8 = {8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31};
    const auto halve = [parts](int n, Lanes a, Lanes b) {
        for (int i = 0; i < n; i++)
            parts[i] = __builtin_shuffle(parts[2 * i], parts[2 * i + 1], a) + __builtin_shuffle(parts[2 * i], parts[2 * i + 1], b);
    };
    halve(8, A1, B1);
    halve(4, A2, B2);
    halve(2, A4, B4);
    halve(1, A8, B8);
    return parts[0];
}

// out = x / sqrt(mean(x^2) + eps) * weight, for x [N, E].
template <typename T>
void rms_norm(const T* x, const T* weight, T* out, std::int64_t n, std::int64_t e, float eps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t i = 0; i < n; i++) {
        const T* row = x + i * e;
        Vector squares = {};
        for (std::int64_t j = 0; j < e; j += LANES) {
            const Vector part = load_first(row + j, e - j);
            squares += part * part;
        }
        const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(e) + eps);
        for (std::int64_t j = 0; j < e; j += LANES)
            store_first(out + i * e + j, load_first(row + j, e - j) * scale * load_first(weight + j, e - j), e - j);
    }
}

// out = silu(gate) * up, for gate_up [N, 2 * I].
template <typename T>
void silu_mul(const T* gate_up, T* out, std::int64_t n, std::int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t i = 0; i < n; i++) {
        const T* gate = gate_up + i * 2 * width;
        for (std::int64_t j = 0; j < width; j += LANES) {
            const Vector g = load_first(gate + j, width - j);
            store_first(out + i * width + j, g / (1.0f + exponential(-g)) * load_first(gate + width + j, width - j), width - j);
        }
    }
}

// Rotate q and k (the halves of a head are the two coordinates, as in Llama), write q to q_out [N, H, D] and k and v to column
// column_N of row row_N of keys and values [R, K, L, D]. qkv [N, (H + 2 K) D]; cosine and sine: float32 [N, D / 2].
template <typename T>
void rope_store(const T* qkv, const float* cosine, const float* sine, const std::int64_t* rows, const std::int64_t* columns, T* q_out,
                T* keys, T* values, std::int64_t n, std::int64_t heads, std::int64_t kv_heads, std::int64_t d, std::int64_t length,
                int threads) {
    const std::int64_t half = d / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t i = 0; i < n; i++) {
        const T* token = qkv + i * (heads + 2 * kv_heads) * d;
        const auto cell = [&](std::int64_t kv_head) { return ((rows[i] * kv_heads + kv_head) * length + columns[i]) * d; };
        for (std::int64_t head = 0; head < heads + kv_heads; head++) {
            const T* from = token + head * d;
            T* to = head < heads ? q_out + (i * heads + head) * d : keys + cell(head - heads);
            for (std::int64_t j = 0; j < half; j += LANES) {
                const Vector low = load_first(from + j, half - j), high = load_first(from + half + j, half - j);
                const Vector c = load_first(cosine + i * half + j, half - j), s = load_first(sine + i * half + j, half - j);
                store_first(to + j, low * c - high * s, half - j);
                store_first(to + half + j, high * c + low * s, half - j);
            }
        }
        for (std::int64_t kv_head = 0; kv_head < kv_heads; kv_head++)
            std::memcpy(values + cell(kv_head), token + (heads + kv_heads + kv_head) * d, static_cast<std::size_t>(d) * sizeof(T));
    }
}

// The D numbers of one head as V vectors.
template <int V, typename T>
inline void load_head(const T* from, std::int64_t d, Vector* into) {
    if (d == V * LANES) {  // the loops below it are then free of tails
        for (int v = 0; v < V; v++) into[v] = load(from + v * LANES);
    } else {
        for (int v = 0; v < V; v++) into[v] = d > v * LANES ? load_first(from + v * LANES, d - v * LANES) : Vector{};
    }
}

// Scores of `count` columns become exp(score - largest); lanes past them become 0. Returns their sum.
inline float softmax_weights(Vector* scores, std::int64_t count) {
    const std::int64_t blocks = (count + LANES - 1) / LANES;
    Vector largest = scores[0], total = {};
    for (std::int64_t block = 1; block < blocks; block++) largest = scores[block] > largest ? scores[block] : largest;
    float peak = largest[0];
    for (int i = 1; i < LANES; i++) peak = largest[i] > peak ? largest[i] : peak;
    for (std::int64_t block = 0; block < blocks; block++) {
        scores[block] = exponential(scores[block] - peak);
        if (block == blocks - 1)
            for (int i = static_cast<int>(count - block * LANES); i < LANES; i++) scores[block][i] = 0.0f;
        total += scores[block];
    }
    return sum(total);
}

// Softmax attention of one query a row over the first seen_N columns of its keys and values [R, K, L, D]; q and out [N, H, D].
// G query heads of a key/value head go together, so that each key and value is read and converted once for them.
template <int V, int G, typename T>
void attend_heads(const T* q, const T* keys, const T* values, const std::int64_t* seen, T* out, std::int64_t n, std::int64_t heads,
                  std::int64_t kv_heads, std::int64_t d, std::int64_t length, float scale, int threads) {
    const std::int64_t group = heads / kv_heads, max_blocks = length / LANES + 1;
#pragma omp parallel num_threads(threads)
    {
        std::vector<Vector> weights(static_cast<std::size_t>(G * max_blocks));
#pragma omp for schedule(static)
        for (std::int64_t task = 0; task < n * heads / G; task++) {
            const std::int64_t row = task * G / heads, head = task * G % heads, count = seen[row], blocks = (count + LANES - 1) / LANES;
            const T* key = keys + (row * kv_heads + head / group) * length * d;
            const T* value = values + (row * kv_heads + head / group) * length * d;
            Vector query[G][V], mixed[G][V] = {}, parts[G][LANES], column[V];
            for (int g = 0; g < G; g++) {
                load_head<V>(q + (task * G + g) * d, d, query[g]);
                for (int v = 0; v < V; v++) query[g][v] *= scale;
            }
            for (std::int64_t block = 0; block < blocks; block++) {
                const std::int64_t left = count - block * LANES;
                for (int i = 0; i < LANES; i++) {
                    // Lanes past the last column repeat it; their weights are cleared below.
                    load_head<V>(key + (block * LANES + (i < left ? i : left - 1)) * d, d, column);
                    for (int g = 0; g < G; g++) {
                        parts[g][i] = query[g][0] * column[0];
                        for (int v = 1; v < V; v++) parts[g][i] += query[g][v] * column[v];
                    }
                }
                for (int g = 0; g < G; g++) weights[g * max_blocks + block] = sums(parts[g]);
            }
            float inverse[G];
            for (int g = 0; g < G; g++) inverse[g] = 1.0f / softmax_weights(&weights[g * max_blocks], count);
            const float* weight = reinterpret_cast<const float*>(weights.data());
            for (std::int64_t l = 0; l < count; l++) {
                load_head<V>(value + l * d, d, column);
                for (int g = 0; g < G; g++)
                    for (int v = 0; v < V; v++) mixed[g][v] += weight[g * max_blocks * LANES + l] * column[v];
            }
            for (int g = 0; g < G; g++)
                for (int v = 0; v < V && v * LANES < d; v++)
                    store_first(out + (task * G + g) * d + v * LANES, mixed[g][v] * inverse[g], d - v * LANES);
        }
    }
}

template <int V, typename T, typename... Arguments>
void attend_groups(std::int64_t group, Arguments... arguments) {
    if (group % 4 == 0) return attend_heads<V, 4, T>(arguments...);
    if (group % 3 == 0) return attend_heads<V, 3, T>(arguments...);
    if (group % 2 == 0) return attend_heads<V, 2, T>(arguments...);
    attend_heads<V, 1, T>(arguments...);
}

// Returns 0, or 1 for a head dimension above 128.
template <typename T, typename... Arguments>
int attend(std::int64_t group, std::int64_t d, Arguments... arguments) {
    if (d <= LANES) attend_groups<1, T>(group, arguments...);
    else if (d <= 4 * LANES) attend_groups<4, T>(group, arguments...);
    else if (d <= 8 * LANES) attend_groups<8, T>(group, arguments...);
    else return 1;
    return 0;
}

}  // namespace

#define EXPORT(T, suffix)                                                                                                              \
    void rms_norm_##suffix(const T* x, const T* weight, T* out, std::int64_t n, std::int64_t e, float eps, int threads) {              \
        rms_norm(x, weight, out, n, e, eps, threads);                                                                                  \
    }                                                                                                                                  \
    void silu_mul_##suffix(const T* gate_up, T* out, std::int64_t n, std::int64_t width, int threads) {                                \
        silu_mul(gate_up, out, n, width, threads);                                                                                     \
    }                                                                                                                                  \
    void rope_store_##suffix(const T* qkv, const float* cosine, const float* sine, const std::int64_t* rows,                           \
                             const std::int64_t* columns, T* q_out, T* keys, T* values, std::int64_t n, std::int64_t heads,            \
                             std::int64_t kv_heads, std::int64_t d, std::int64_t length, int threads) {                                \
        rope_store(qkv, cosine, sine, rows, columns, q_out, keys, values, n, heads, kv_heads, d, length, threads);                     \
    }                                                                                                                                  \
    int attend_##suffix(const T* q, const T* keys, const T* values, const std::int64_t* seen, T* out, std::int64_t n,                  \
                        std::int64_t heads, std::int64_t kv_heads, std::int64_t d, std::int64_t length, float scale, int threads) {    \
        return attend<T>(heads / kv_heads, d, q, keys, values, seen, out, n, heads, kv_heads, d, length, scale, threads);                                      \
    }

extern "C" {
EXPORT(float, float32)
EXPORT(bfloat16, bfloat16)
}
