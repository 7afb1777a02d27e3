// A decoding step of a GPT on a CPU in one call: embeddings, blocks, head, for any rows of a cache at once.
//
// A step with one row reads every weight once, so its limit is memory, and each operator of a framework costs
// microseconds on top. Here a whole step is one call. The structures are repeated in library.py.

#include <algorithm>
#include <cstring>
#include <vector>

#include "codes.h"
#include "pool.h"
#include "products.h"
#include "vectors.h"

extern "C" {

struct Layer {
    Matrix c_attn, attn_proj, c_gate, c_fc, mlp_proj;
    const float *ln_1, *ln_1_bias, *ln_2, *ln_2_bias;
    const float *q_norm, *k_norm;  // a factor for each channel of normalised queries and keys, or null
    const float* sinks;            // a score for each head, or null
    int64_t window;                // tokens that a query sees, itself included, or 0: all
};

struct Model {
    int64_t layers, width, heads, kv_heads, head_width, hidden, vocabulary;
    int64_t rows, slots;  // of the cache
    int32_t rms_norm, post_norm, mlp, rope, qk_norm;
    float eps, softcap, head_scale;
    const float *wte, *wpe, *cos, *sin, *ln_f, *ln_f_bias;
    const Layer* layer;
    Matrix head;
    // Keys lie in panels of 16 slots, (rows, layers, kv_heads, slots / 16, head_width, 16), so that 16 scores are made
    // at once; values as they come, (rows, layers, kv_heads, slots, head_width). Slots are padded to a multiple of 16.
    float *keys, *values;
    int64_t* lengths;  // (rows,), kept here and by the caller
    // Or no keys and values here: the caller is asked for the attention of each layer, see ``Buffers``.
    void (*attend)(int64_t layer);
};

// Where a caller that computes the attention itself finds what it is made of, and puts it: token i of the call at
// i times the stride. Queries, keys and values side by side, normalised, before RoPE; ``input`` is what they come from.
struct Buffers {
    float *input, *qkv, *mixed;
    int64_t input_stride, qkv_stride, mixed_stride;
};

}

namespace {

enum Mlp { GELU, GELU_TANH, SWIGLU, RELU2 };
enum Rope { NONE, HALVES, NEIGHBOURS };
enum Refusal { FINE, BAD_ROW, BAD_TOKEN, FULL };

constexpr int64_t MOST = 128;       // tokens in a call: their activations stay in a core's cache
constexpr int64_t WORTH = 1 << 15;  // multiplications below which no thread is asked to help

class Decoder {
  public:
    Decoder(const Model& model, int threads)
        : m_(model), pool_(threads), layers_(model.layer, model.layer + model.layers),
          width_(stride(m_.width)), qkv_width_(stride((m_.heads + 2 * m_.kv_heads) * m_.head_width)),
          mixed_width_(stride(m_.heads * m_.head_width)), hidden_width_(stride(m_.hidden)), slots_(padded(m_.slots)),
          x_(MOST * width_), normed_(MOST * width_), qkv_(MOST * qkv_width_), mixed_(MOST * mixed_width_),
          hidden_(MOST * hidden_width_), scores_(m_.attend ? 0 : threads * slots_) {}

    // Token i goes into row rows[i], after what that row holds. Logits (count - from, vocabulary) of tokens from .. on.
    int32_t step(const int64_t* rows, const int64_t* tokens, int64_t count, int64_t from, float* logits) {
        for (int64_t i = 0; i < count; i++) {
            if (rows[i] < 0 || rows[i] >= m_.rows) return BAD_ROW;
            if (tokens[i] < 0 || tokens[i] >= m_.vocabulary) return BAD_TOKEN;
        }
        for (int64_t i = 0; i < count; i++) {
            if (m_.lengths[rows[i]] == m_.slots) {
                while (i--) m_.lengths[rows[i]]--;
                return FULL;
            }
            positions_[i] = m_.lengths[rows[i]]++;
        }
        rows_ = rows;
        if (pool_.threads() == 1) {
            run(tokens, count, from, logits);
            return FINE;
        }
        Pace& pace = paces_[size_class(count)];
        auto began = std::chrono::steady_clock::now();
        pool_.use_helpers(pace.shared());
        run(tokens, count, from, logits);
        pace.note(std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
        return FINE;
    }

    Buffers buffers() {
        return {(m_.post_norm ? x_ : normed_).data(), qkv_.data(), mixed_.data(), width_, qkv_width_, mixed_width_};
    }

    // That one token a call was fastest with of late.
    int32_t threads() const { return paces_[0].pays() ? pool_.threads() : 1; }

  private:
    // Calls of about equal cost are compared with each other: 1 token, 2 to 3, 4 to 7, ...
    static int size_class(int64_t count) {
        int found = 0;
        while (count >>= 1) found++;
        return found;
    }

    // Rows a power of two apart would fall into the same few lines of a cache.
    static int64_t stride(int64_t n) { return padded(n) + LANES; }

    void run(const int64_t* tokens, int64_t count, int64_t from, float* logits) {
        for (int64_t i = 0; i < count; i++) {
            float* x = &x_[i * width_];
            std::memcpy(x, m_.wte + tokens[i] * m_.width, m_.width * sizeof(float));
            if (m_.wpe)
                for (int64_t k = 0; k < m_.width; k++) x[k] += m_.wpe[positions_[i] * m_.width + k];
        }
        for (int64_t l = 0; l + 1 < m_.layers; l++) block(l, 0, count);
        block(m_.layers - 1, from, count);
        const float* y = norm(m_.ln_f, m_.ln_f_bias, from, count);
        multiply(m_.head, y, width_, from, count, [&](int64_t i, int64_t o, Vec v) {
            v = v * m_.head_scale;
            if (m_.softcap) v = each([&](int p) { return m_.softcap * tanh(v.part[p] * (1.0f / m_.softcap)); });
            int64_t size = std::min<int64_t>(LANES, m_.vocabulary - o);
            std::memcpy(logits + (i - from) * m_.vocabulary + o, &v, size * sizeof(float));
        });
    }

    // Tokens before ``from`` leave their keys and values here and go no further: nobody asked for their logits.
    void block(int64_t l, int64_t from, int64_t count) {
        const Layer& layer = layers_[l];
        auto add = [&](int64_t i, int64_t o, Vec v) {
            float* x = &x_[i * width_ + o];
            store(x, load(x) + v);
        };
        const float* y = m_.post_norm ? x_.data() : norm(layer.ln_1, layer.ln_1_bias, 0, count);
        multiply(layer.c_attn, y, width_, 0, count,
                 [&](int64_t i, int64_t o, Vec v) { store(&qkv_[i * qkv_width_ + o], v); });
        if (m_.attend) ask(l, count);
        else look(l, from, count);
        multiply(layer.attn_proj, mixed_.data(), mixed_width_, from, count, add);
        if (m_.post_norm) norm_in_place(layer.ln_1, layer.ln_1_bias, from, count);
        y = m_.post_norm ? x_.data() : norm(layer.ln_2, layer.ln_2_bias, from, count);
        if (m_.mlp == SWIGLU)
            multiply(layer.c_gate, y, width_, from, count,
                     [&](int64_t i, int64_t o, Vec v) { store(&hidden_[i * hidden_width_ + o], silu(v)); });
        multiply(layer.c_fc, y, width_, from, count, [&](int64_t i, int64_t o, Vec v) {
            float* h = &hidden_[i * hidden_width_ + o];
            store(h, m_.mlp == SWIGLU ? load(h) * v : bend(v));
        });
        multiply(layer.mlp_proj, hidden_.data(), hidden_width_, from, count, add);
        if (m_.post_norm) norm_in_place(layer.ln_2, layer.ln_2_bias, from, count);
    }

    // The caller has keys and values, and positions: there is no RoPE here then.
    void ask(int64_t l, int64_t count) {
        for (int64_t i = 0; i < count; i++)
            for (int64_t h = 0; h < m_.heads + m_.kv_heads; h++)
                prepare(&qkv_[i * qkv_width_ + h * m_.head_width], 0,
                        h < m_.heads ? layers_[l].q_norm : layers_[l].k_norm);
        m_.attend(l);
    }

    void look(int64_t l, int64_t from, int64_t count) {
        pool_.share(count * qkv_width_ < WORTH ? 1 : count, [&](int64_t chunk, int) {
            bool one = count * qkv_width_ < WORTH;
            for (int64_t i = one ? 0 : chunk; i < (one ? count : chunk + 1); i++) remember(l, i, i >= from);
        });
        int64_t pairs = (count - from) * m_.kv_heads;
        int64_t some = std::max<int64_t>(1, pairs / (4 * pool_.threads()));
        pool_.share((pairs + some - 1) / some, [&](int64_t chunk, int thread) {
            for (int64_t i = chunk * some; i < std::min(pairs, (chunk + 1) * some); i++)
                attend(l, from + i / m_.kv_heads, i % m_.kv_heads, &scores_[thread * slots_]);
        });
    }

    // ``finish(token, output, 16 values)`` of x W^T + b for tokens from .. count.
    void multiply(const Matrix& m, const float* x, int64_t x_stride, int64_t from, int64_t count,
                  const Finish& finish) {
        int64_t panels = padded(m.outputs) / LANES, rows = count - from;
        int64_t some = m.inputs > 1024 ? 2 : 4;  // some microseconds
        if (panels * LANES * m.inputs * rows < WORTH) some = panels;
        else some = std::max(some, panels / (16 * pool_.threads()) / 4 * 4);
        pool_.share((panels + some - 1) / some, [&](int64_t chunk, int) {
            products(m, x, x_stride, from, count, chunk * some, std::min(panels, (chunk + 1) * some), finish);
        });
    }

    // ------------------------------------------------------------------ normalisation

    void normalize(const float* x, const float* scale, const float* bias, float* y) const {
        int64_t width = m_.width, whole = width / LANES * LANES;
        float mean = 0;
        if (!m_.rms_norm) {
            Vec total = {};
            for (int64_t i = 0; i < whole; i += LANES) total += load(x + i);
            mean = sum(total);
            for (int64_t i = whole; i < width; i++) mean += x[i];
            mean /= width;
        }
        Vec total = {};
        for (int64_t i = 0; i < whole; i += LANES) total += (load(x + i) - mean) * (load(x + i) - mean);
        float square = sum(total);
        for (int64_t i = whole; i < width; i++) square += (x[i] - mean) * (x[i] - mean);
        float inverse = 1.0f / std::sqrt(square / width + m_.eps);
        for (int64_t i = 0; i < width; i++) {
            float v = (x[i] - mean) * inverse;
            y[i] = v * (scale ? scale[i] : 1.0f) + (bias ? bias[i] : 0.0f);
        }
    }

    const float* norm(const float* scale, const float* bias, int64_t from, int64_t count) {
        each_token(from, count,
                   [&](int64_t i) { normalize(&x_[i * width_], scale, bias, &normed_[i * width_]); });
        return normed_.data();
    }

    // Post-norm: the normalised sum takes the place of the residual stream.
    void norm_in_place(const float* scale, const float* bias, int64_t from, int64_t count) {
        each_token(from, count, [&](int64_t i) { normalize(&x_[i * width_], scale, bias, &x_[i * width_]); });
    }

    // Eight tokens a chunk: a normalisation costs less than a claim.
    template <typename Work>
    void each_token(int64_t from, int64_t count, Work work) {
        constexpr int64_t EACH = 8;
        pool_.share((count - from + EACH - 1) / EACH, [&](int64_t chunk, int) {
            int64_t first = from + chunk * EACH;
            for (int64_t i = first; i < std::min(count, first + EACH); i++) work(i);
        });
    }

    // ------------------------------------------------------------------ attention

    void turn(float* head, int64_t position) const {
        int64_t half = m_.head_width / 2;
        const float *cos = m_.cos + position * half, *sin = m_.sin + position * half;
        for (int64_t i = 0; i < half; i++) {
            int64_t a = m_.rope == HALVES ? i : 2 * i, b = m_.rope == HALVES ? i + half : 2 * i + 1;
            float low = head[a], high = head[b];
            head[a] = low * cos[i] - high * sin[i];
            head[b] = low * sin[i] + high * cos[i];
        }
    }

    void prepare(float* head, int64_t position, const float* scale) const {
        if (m_.qk_norm) {
            float square = 0;
            for (int64_t k = 0; k < m_.head_width; k++) square += head[k] * head[k];
            float inverse = 1.0f / std::sqrt(square / m_.head_width + m_.eps);
            for (int64_t k = 0; k < m_.head_width; k++) head[k] *= inverse;
            for (int64_t k = 0; scale && k < m_.head_width; k++) head[k] *= scale[k];
        }
        if (m_.rope != NONE) turn(head, position);
    }

    int64_t place(int64_t layer, int64_t token, int64_t group) const {
        return ((rows_[token] * m_.layers + layer) * m_.kv_heads + group) * slots_ * m_.head_width;
    }

    // Queries and keys take their position; keys and values go into the cache.
    void remember(int64_t layer, int64_t token, bool asked) {
        int64_t width = m_.head_width, position = positions_[token];
        float* heads = &qkv_[token * qkv_width_];
        const Layer& own = layers_[layer];
        for (int64_t h = asked ? 0 : m_.heads; h < m_.heads + m_.kv_heads; h++)
            prepare(heads + h * width, position, h < m_.heads ? own.q_norm : own.k_norm);
        for (int64_t g = 0; g < m_.kv_heads; g++) {
            const float* key = heads + (m_.heads + g) * width;
            const float* value = heads + (m_.heads + m_.kv_heads + g) * width;
            float* keys = m_.keys + place(layer, token, g) + position / LANES * LANES * width + position % LANES;
            for (int64_t k = 0; k < width; k++) keys[k * LANES] = key[k];
            std::memcpy(m_.values + place(layer, token, g) + position * width, value, width * sizeof(float));
        }
    }

    // One token's group of query heads with the key/value head that they share.
    void attend(int64_t layer, int64_t token, int64_t group, float* scores) {
        int64_t width = m_.head_width, shared = m_.heads / m_.kv_heads, seen = positions_[token] + 1;
        int64_t window = layers_[layer].window, first = window ? std::max<int64_t>(0, seen - window) : 0;
        const float* sinks = layers_[layer].sinks;
        const float *keys = m_.keys + place(layer, token, group), *values = m_.values + place(layer, token, group);
        for (int64_t h = group * shared; h < (group + 1) * shared; h++) {
            const float* query = &qkv_[token * qkv_width_ + h * width];
            float inverse = 1.0f / softmax(query, keys, first, seen, sinks ? sinks + h : nullptr, scores);
            float* out = &mixed_[token * mixed_width_ + h * width];
            int64_t k = 0;
            for (; k + 4 * LANES <= width; k += 4 * LANES) mix<4>(scores, values + k, first, seen, inverse, out + k);
            for (; k + LANES <= width; k += LANES) mix<1>(scores, values + k, first, seen, inverse, out + k);
            for (; k < width; k++) {
                float total = 0;
                for (int64_t s = first; s < seen; s++) total += scores[s] * values[s * width + k];
                out[k] = total * inverse;
            }
        }
    }

    // e^(score - largest) of each slot, 0 beside those seen; their sum, in which a sink takes part.
    float softmax(const float* query, const float* keys, int64_t first, int64_t seen, const float* sink,
                  float* scores) const {
        int64_t begin = first / LANES * LANES, s = begin;
        for (; s + 4 * LANES <= seen; s += 4 * LANES) score<4>(query, keys, s, scores);
        for (; s < seen; s += LANES) score<1>(query, keys, s, scores);
        for (int64_t t = begin; t < first; t++) scores[t] = -INFINITY;
        for (int64_t t = seen; t < s; t++) scores[t] = -INFINITY;
        Vec top = load(scores + begin);
        for (int64_t t = begin + LANES; t < s; t += LANES) top = max(top, load(scores + t));
        float largest = sink ? std::max(most(top), *sink) : most(top);
        Vec total = {};
        for (int64_t t = begin; t < s; t += LANES) {
            Vec score = load(scores + t) - largest;
            store(scores + t, each([&](int p) { return exp(score.part[p]); }));
            for (int64_t before = t; before < std::min(first, t + LANES); before++) scores[before] = 0;  // exp is above 0
            for (int64_t beyond = std::max(seen, t); beyond < t + LANES; beyond++) scores[beyond] = 0;
            total += load(scores + t);
        }
        return sum(total) + (sink ? std::exp(*sink - largest) : 0.0f);
    }

    template <int PANELS>
    void score(const float* query, const float* keys, int64_t slot, float* scores) const {
        int64_t width = m_.head_width;
        float scale = 1.0f / std::sqrt(static_cast<float>(width));
        Vec sums[PANELS] = {};
        for (int64_t k = 0; k < width; k++)
            for (int p = 0; p < PANELS; p++)
                sums[p] += load(keys + slot * width + (p * width + k) * LANES) * query[k];
        for (int p = 0; p < PANELS; p++) store(scores + slot + p * LANES, sums[p] * scale);
    }

    template <int COUNT>
    void mix(const float* scores, const float* values, int64_t first, int64_t seen, float inverse, float* out) const {
        Vec sums[COUNT] = {};
        for (int64_t s = first; s < seen; s++)
            for (int p = 0; p < COUNT; p++) sums[p] += load(values + s * m_.head_width + p * LANES) * scores[s];
        for (int p = 0; p < COUNT; p++) store(out + p * LANES, sums[p] * inverse);
    }

    static Vec silu(const Vec& v) {
        return each([&](int p) { return v.part[p] * sigmoid(v.part[p]); });
    }

    Vec bend(const Vec& v) const {
        if (m_.mlp == RELU2) {
            Vec positive = max(Vec{}, v);
            return positive * positive;
        }
        return each([&](int p) {
            Floats x = v.part[p];
            if (m_.mlp == GELU) return 0.5f * x * (1.0f + erf(x * 0.70710678f));
            return 0.5f * x * (1.0f + tanh(0.79788456f * (x + 0.044715f * x * x * x)));
        });
    }

    Model m_;
    Pool pool_;
    // Up to MOST tokens. A prompt comes once and is much work: it shares before anything was tried.
    Pace paces_[8] = {Pace(false), Pace(false), Pace(false), Pace(false), Pace(true), Pace(true), Pace(true), Pace(true)};
    std::vector<Layer> layers_;
    int64_t width_, qkv_width_, mixed_width_, hidden_width_, slots_;  // strides of the buffers below
    std::vector<float> x_, normed_, qkv_, mixed_, hidden_, scores_;
    int64_t positions_[MOST];
    const int64_t* rows_ = nullptr;
};

}  // namespace

extern "C" {

int64_t bonsai_most_tokens() { return MOST; }
void* bonsai_open(const Model* model, int32_t threads) { return new Decoder(*model, threads); }
void bonsai_close(void* decoder) { delete static_cast<Decoder*>(decoder); }
void bonsai_buffers(void* decoder, Buffers* found) { *found = static_cast<Decoder*>(decoder)->buffers(); }
int32_t bonsai_threads(void* decoder) { return static_cast<Decoder*>(decoder)->threads(); }
int32_t bonsai_step(void* decoder, const int64_t* rows, const int64_t* tokens, int64_t count, int64_t from,
                    float* logits) {
    return static_cast<Decoder*>(decoder)->step(rows, tokens, count, from, logits);
}
}
