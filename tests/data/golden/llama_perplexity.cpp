// Runs `llama-perplexity --kl-divergence` of llama.cpp on logits from files instead of a model.
//
// usage: llama_perplexity CONTEXT VOCABULARY CHUNKS TOKENS.i32 BASE.f32 TEST.f32 SCRATCH
//
// TOKENS holds [chunks, context] ids; BASE and TEST hold [chunks, context, vocabulary] logits. The functions of
// perplexity.cpp write the file of the base's log-probabilities to SCRATCH, and compare the test's with it. What they
// call of llama.cpp is replaced by the functions below.

#include "perplexity.cpp"

#include <cstdarg>

static int context_size, vocabulary, chunk = -1;
static std::vector<float> test;

template <typename T> static std::vector<T> content(const char * path, size_t count) {
    std::vector<T> values(count);
    std::ifstream stream(path, std::ios::binary);
    if (!stream.read((char *) values.data(), count * sizeof(T))) {
        fprintf(stderr, "%s is too short\n", path);
        exit(1);
    }
    return values;
}

const llama_model * llama_get_model(const llama_context *) { return nullptr; }
const llama_vocab * llama_model_get_vocab(const llama_model *) { return nullptr; }
int32_t llama_vocab_n_tokens(const llama_vocab *) { return vocabulary; }
uint32_t llama_n_ctx(const llama_context *) { return context_size; }
bool llama_vocab_get_add_bos(const llama_vocab *) { return false; }
bool llama_vocab_get_add_eos(const llama_vocab *) { return false; }
llama_memory_t llama_get_memory(const llama_context *) { return nullptr; }
void llama_memory_clear(llama_memory_t, bool) { ++chunk; }
int32_t llama_process(llama_context *, llama_process_type, llama_batch_ext *) { return 0; }
float * llama_get_logits(llama_context *) { return nullptr; }
float * llama_get_logits_ith(llama_context *, int32_t i) {
    return test.data() + (size_t(chunk) * context_size + i) * vocabulary;
}
uint32_t llama_n_seq_max(const llama_context *) { return 1; }
size_t llama_max_devices() { return 1; }
void llama_synchronize(llama_context *) {}
void llama_batch_ext_free(llama_batch_ext *) {}
common_batch::common_batch(llama_context *) {}
llama_batch_ext * common_batch::get_sub_batch(int32_t, int32_t) { return nullptr; }
void common_batch::clear() {}
int32_t common_batch::add(llama_token, llama_pos, llama_seq_id, bool) { return 0; }
common_log * common_log_main() { return nullptr; }
int common_log_get_verbosity_thold() { return 3; }
void common_log_add(common_log *, ggml_log_level, const char * format, ...) {
    va_list values;
    va_start(values, format);
    vprintf(format, values);
    va_end(values);
}

int main(int, char ** arguments) {
    context_size = atoi(arguments[1]);
    vocabulary = atoi(arguments[2]);
    const int chunks = atoi(arguments[3]);
    const auto tokens = content<int>(arguments[4], size_t(chunks) * context_size);
    const auto base = content<float>(arguments[5], tokens.size() * vocabulary);
    test = content<float>(arguments[6], tokens.size() * vocabulary);
    {
        std::ofstream out(arguments[7], std::ios::binary);
        out.write("_logits_", 8);
        for (int fact : {context_size, vocabulary, chunks}) out.write((char *) &fact, sizeof(fact));
        out.write((char *) tokens.data(), tokens.size() * sizeof(int));
        const int first = context_size / 2, count = context_size - 1 - first;
        std::vector<uint16_t> packed(size_t(count) * (2 * ((vocabulary + 1) / 2) + 4));
        std::vector<std::thread> none;
        double sum = 0, squares = 0;
        for (int i = 0; i < chunks; ++i) {
            const size_t start = size_t(i) * context_size + first;
            process_logits(out, vocabulary, base.data() + start * vocabulary, tokens.data() + start, count, none, packed, sum, squares);
        }
    }
    common_params params;
    params.logits_file = arguments[7];
    params.n_batch = params.n_ctx = context_size;
    kl_divergence(nullptr, params);
}
