/*
 * Kernels in C, for the stable ABI of Python 3.11 and later; `kernels/__init__.py` says what they are.
 *
 * Loops over LANES have no dependence between their turns and a fixed length, so that compilers make vectors of them.
 * No expression is rounded in another way by a wider processor: wherever a fused multiplication could differ, the
 * product is exact.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <float.h>
#include <stdint.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0
#error "float arithmetic has to be rounded to float"
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "codes and numbers are taken from memory as they are: little endian"
#endif

#if defined(__GNUC__) || defined(__clang__)
#define INLINE inline __attribute__((always_inline))
#else
#define INLINE __inline
#endif

/* The same function for several processors, of which the loader picks one. */
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && defined(__x86_64__) && defined(__GLIBC__)
#define VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORISED
#endif

enum {
    BLOCK = 32,
    LANES = 32,
    WORDS = BLOCK / 8,
    GATHERED = 16 * LANES,
    BINADE = 128,
    NOT_NAMED = 255,
    LEAST_EXPONENT = 26,
    LARGEST_EXPONENT = 253,
    LOWERABLE = BINADE / 8,
};

/* Blocks of LANES rows side by side. A scale is chosen from `floors`, and that byte plus 1. */
struct tile {
    uint32_t bits[BLOCK][LANES]; /* float32 */
    float sizes[BLOCK][LANES];   /* magnitudes in units of the smaller scale */
    double wide_sizes[BLOCK][LANES];
    uint32_t largest[LANES];     /* magnitude of each lane, as bits of float32 */
    float inverse[LANES];        /* of the smaller scale */
    int32_t mantissas[LANES];    /* of the largest magnitudes, in steps of bfloat16, rounded up */
    int32_t floors[LANES];
    int32_t named[LANES];
    uint32_t words[WORDS][LANES]; /* eight codes each */
    double excess[LANES];         /* squared error with the smaller scale less that with the larger one */
    double error[LANES], signal[LANES]; /* squares, in units of the square of the smaller scale */
    uint8_t chosen[LANES];              /* whether the larger scale is taken */
    uint8_t kept[LANES];
    uint8_t clipped[LANES];
};

/* bfloat16: below 2**-23 a number counts as that, so that no square vanishes. */
#define REAL float
#define NAME(name) narrow_##name
#define SIZES sizes
#define HALVES 6291456.0f /* 1.5 * 2**22, where floats are 1/2 apart */
#define LEAST_SIZE 0x1p-23f
#include "mxfp4_quantise.h"
#undef REAL
#undef NAME
#undef SIZES
#undef HALVES
#undef LEAST_SIZE

#define REAL double
#define NAME(name) wide_##name
#define SIZES wide_sizes
#define HALVES 3377699720527872.0 /* 1.5 * 2**51 */
#define LEAST_SIZE 0x1p-300
#include "mxfp4_quantise.h"
#undef REAL
#undef NAME
#undef SIZES
#undef HALVES
#undef LEAST_SIZE

/* Sums over blocks whose `odd` flag is not set; the signal is over all. */
struct figures {
    double signal, error, least_error;
    double smaller[BINADE], larger[BINADE]; /* errors by the mantissa of the largest number */
    int64_t clipped_values, clipped_blocks, kept_blocks, odd_blocks;
    int not_finite;
};

/* Copy up to a few kilobytes, for which compilers that know the bound choose an instruction that starts slowly. */
VECTORISED static void copy_run(void *target, const void *source, size_t size) {
    size_t done = 0;
    for (; done + 64 <= size; done += 64)
        memcpy((char *)target + done, (const char *)source + done, 64);
    for (; done < size; done++)
        ((char *)target)[done] = ((const char *)source)[done];
}

struct matrix {
    const char *values;
    Py_ssize_t rows, columns;
    Py_ssize_t row_stride, column_stride; /* bytes */
    int wide;                             /* float32, else bits of bfloat16 */
};

/* Set the bits of a tile to float32 numbers that lie `row_stride` and `column_stride` bytes apart. */
static void load_wide(struct tile *tile, const char *first, Py_ssize_t row_stride, Py_ssize_t column_stride, int lanes) {
    for (int i = 0; i < BLOCK; i++)
        for (int l = 0; l < lanes; l++)
            memcpy(&tile->bits[i][l], first + l * row_stride + i * column_stride, 4);
}

/* The same for numbers of bfloat16. */
static void load_narrow(struct tile *tile, const char *first, Py_ssize_t row_stride, Py_ssize_t column_stride,
                        int lanes) {
    for (int l = 0; l < lanes; l++)
        for (int i = 0; i < BLOCK; i++) {
            uint16_t number;
            memcpy(&number, first + l * row_stride + i * column_stride, 2);
            tile->bits[i][l] = (uint32_t)number << 16;
        }
}

VECTORISED static void load_narrow_columns(struct tile *tile, const char *first, Py_ssize_t column_stride) {
    for (int i = 0; i < BLOCK; i++) {
        uint16_t line[LANES];
        memcpy(line, first + i * column_stride, sizeof line);
        for (int l = 0; l < LANES; l++)
            tile->bits[i][l] = (uint32_t)line[l] << 16;
    }
}

static void load_tile(struct tile *tile, const char *first, Py_ssize_t row_stride, Py_ssize_t column_stride, int lanes,
                      int wide) {
    if (lanes < LANES)
        memset(tile->bits, 0, sizeof tile->bits);
    if (wide)
        load_wide(tile, first, row_stride, column_stride, lanes);
    else if (row_stride == 2 && lanes == LANES)
        load_narrow_columns(tile, first, column_stride);
    else
        load_narrow(tile, first, row_stride, column_stride, lanes);
}

/* Find the largest magnitudes, and what follows from them. Returns whether all numbers are finite. */
VECTORISED static int survey_tile(struct tile *tile) {
    uint32_t largest[LANES] = {0}, most = 0;
    for (int i = 0; i < BLOCK; i++)
        for (int l = 0; l < LANES; l++) {
            uint32_t magnitude = tile->bits[i][l] & 0x7FFFFFFF;
            largest[l] = magnitude > largest[l] ? magnitude : largest[l];
        }
    for (int l = 0; l < LANES; l++) {
        int32_t exponent = (int32_t)(largest[l] >> 23);
        exponent = exponent < LEAST_EXPONENT ? LEAST_EXPONENT : exponent;
        exponent = exponent > LARGEST_EXPONENT ? LARGEST_EXPONENT : exponent;
        uint32_t inverse = (uint32_t)(256 - exponent) << 23;
        memcpy(&tile->inverse[l], &inverse, sizeof inverse);
        tile->mantissas[l] = (int32_t)(largest[l] >> 16 & (BINADE - 1)) | ((largest[l] & 0xFFFF) != 0);
        tile->floors[l] = exponent - 2;
        tile->largest[l] = largest[l];
        most = largest[l] > most ? largest[l] : most;
    }
    return most < 0x7F800000;
}

/* The sum of squares of a block of any magnitude. */
static double squared_block(const struct tile *tile, int lane) {
    double sum = 0;
    for (int i = 0; i < BLOCK; i++) {
        float value;
        memcpy(&value, &tile->bits[i][lane], sizeof value);
        sum += (double)value * (double)value;
    }
    return sum;
}

/* Quantise one tile of `lanes` rows. Outputs are those of its first block; scales and odd flags `blocks` apart. */
static void quantise_tile(struct tile *tile, int lanes, int wide, int least_raised, const uint8_t *named,
                          uint8_t *codes, uint8_t *scales, uint8_t *odd, Py_ssize_t blocks, struct figures *figures) {
    int compare = least_raised < 0 || named != NULL;
    if (!survey_tile(tile)) {
        figures->not_finite = 1;
        return;
    }
    for (int l = 0; l < LANES; l++)
        tile->named[l] = named != NULL && l < lanes ? named[l * blocks] : NOT_NAMED;
    (wide ? wide_quantise_tile : narrow_quantise_tile)(tile, least_raised, compare);
    for (int l = 0; l < lanes; l++) {
        int exponent = (int)(tile->largest[l] >> 23), name = tile->named[l];
        int up = tile->chosen[l];
        for (int word = 0; word < WORDS; word++)
            memcpy(codes + l * blocks * (BLOCK / 2) + 4 * word, &tile->words[word][l], 4);
        if (tile->largest[l] == 0) {
            scales[l * blocks] = name == NOT_NAMED ? 0 : (uint8_t)name;
            figures->kept_blocks += name != NOT_NAMED;
            continue;
        }
        double error = tile->error[l], excess = tile->excess[l];
        double smaller = up ? error + excess : error, larger = up ? error : error - excess;
        double unit = 1 / ((double)tile->inverse[l] * (double)tile->inverse[l]);
        int special = exponent < LEAST_EXPONENT || exponent > LARGEST_EXPONENT;
        int far = name != NOT_NAMED && name != tile->floors[l] && name != tile->floors[l] + 1;
        figures->signal += special ? squared_block(tile, l) : tile->signal[l] * unit;
        if (!special && !far && compare && tile->mantissas[l] < LOWERABLE) {
            /* The largest number, 4 * (1 + m), becomes 3. */
            double cut = 1 + tile->mantissas[l] / (BINADE / 4.0) - 1.0 / BINADE;
            if ((smaller < larger ? smaller : larger) > cut * cut)
                far = (wide ? wide_is_lowered_better : narrow_is_lowered_better)(tile, l, excess > 0);
        }
        if (special || far) {
            odd[l * blocks] = 1;
            figures->odd_blocks++;
            continue;
        }
        scales[l * blocks] = (uint8_t)(tile->floors[l] + up);
        figures->error += error * unit;
        figures->clipped_values += tile->clipped[l];
        figures->clipped_blocks += tile->clipped[l] != 0;
        figures->kept_blocks += tile->kept[l];
        if (compare) {
            figures->least_error += (smaller < larger ? smaller : larger) * unit;
            figures->smaller[tile->mantissas[l]] += smaller * unit;
            figures->larger[tile->mantissas[l]] += larger * unit;
        }
    }
}

/* Quantise a matrix tile by tile. Numbers that lie in columns are gathered, many rows of a block at a time, since
 * memory is read in longer runs than a tile has. */
static void quantise_matrix(const struct matrix *matrix, int least_raised, const uint8_t *named, uint8_t *codes,
                            uint8_t *scales, uint8_t *odd, struct figures *figures) {
    struct tile tile;
    char gathered[BLOCK * GATHERED * 4];
    Py_ssize_t blocks = matrix->columns / BLOCK, size = matrix->wide ? 4 : 2;
    int in_columns = matrix->row_stride == size && matrix->column_stride != size;
    for (Py_ssize_t first = 0; first < matrix->rows; first += GATHERED) {
        Py_ssize_t rows = matrix->rows - first < GATHERED ? matrix->rows - first : GATHERED;
        for (Py_ssize_t block = 0; block < blocks; block++) {
            const char *source =
                matrix->values + first * matrix->row_stride + block * BLOCK * matrix->column_stride;
            Py_ssize_t column_stride = matrix->column_stride;
            if (in_columns) {
                for (int i = 0; i < BLOCK; i++)
                    copy_run(gathered + i * GATHERED * size, source + i * column_stride, (size_t)(rows * size));
                source = gathered;
                column_stride = GATHERED * size;
            }
            for (Py_ssize_t row = 0; row < rows; row += LANES) {
                Py_ssize_t place = (first + row) * blocks + block;
                int lanes = rows - row < LANES ? (int)(rows - row) : LANES;
                load_tile(&tile, source + row * matrix->row_stride, matrix->row_stride, column_stride, lanes,
                          matrix->wide);
                quantise_tile(&tile, lanes, matrix->wide, least_raised, named == NULL ? NULL : named + place,
                              codes + place * (BLOCK / 2), scales + place, odd + place, blocks, figures);
                if (figures->not_finite)
                    return;
            }
        }
    }
}

static PyObject *list_of(const double *values, Py_ssize_t count) {
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list != NULL && i < count; i++) {
        PyObject *number = PyFloat_FromDouble(values[i]);
        if (number == NULL || PyList_SetItem(list, i, number) < 0)
            Py_CLEAR(list);
    }
    return list;
}

/* Whether `buffer` is a C-contiguous array of bytes `[rows, columns]`. */
static int is_bytes(const Py_buffer *buffer, Py_ssize_t rows, Py_ssize_t columns) {
    return buffer->itemsize == 1 && buffer->ndim == 2 && buffer->shape[0] == rows && buffer->shape[1] == columns;
}

static const char quantise_doc[] =
    "quantise(values, least_raised, named, codes, scales, odd)\n--\n\n"
    "Quantise `values` [rows, columns], uint16 bits of bfloat16 or float32, contiguous along one axis, to MXFP4.\n\n"
    "`least_raised` is the mantissa from which on the larger scale is taken, -1 for the least squared error; `named` is\n"
    "uint8 [rows, blocks] or None. `codes` [rows, columns / 2], `scales` and `odd` [rows, blocks] are set; of blocks\n"
    "whose `odd` is 1 scale and codes remain to be found.\n\n"
    "Returns None if a value is not finite, else (signal, error, least error, errors by mantissa with the smaller and\n"
    "with the larger scale, clipped values, clipped blocks, kept blocks, odd blocks).";

static PyObject *quantise(PyObject *self, PyObject *args) {
    PyObject *objects[5], *named_object;
    Py_buffer buffers[5];
    int least_raised, held = 0;
    PyObject *result = NULL;
    (void)self;
    if (!PyArg_ParseTuple(args, "OiOOOO", &objects[0], &least_raised, &named_object, &objects[1], &objects[2],
                          &objects[3]))
        return NULL;
    objects[4] = named_object;
    int count = named_object == Py_None ? 4 : 5;
    for (; held < count; held++) {
        int writable = held >= 1 && held <= 3;
        int flags = held == 0 ? PyBUF_STRIDES : writable ? PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE : PyBUF_C_CONTIGUOUS;
        if (PyObject_GetBuffer(objects[held], &buffers[held], flags) < 0)
            goto done;
    }
    if (buffers[0].ndim != 2 || (buffers[0].itemsize != 2 && buffers[0].itemsize != 4)) {
        PyErr_SetString(PyExc_ValueError, "values are no matrix of bfloat16 or float32");
        goto done;
    }
    struct matrix matrix = {buffers[0].buf,        buffers[0].shape[0],   buffers[0].shape[1],
                            buffers[0].strides[0], buffers[0].strides[1], buffers[0].itemsize == 4};
    Py_ssize_t blocks = matrix.columns / BLOCK;
    if (matrix.columns % BLOCK || !is_bytes(&buffers[1], matrix.rows, matrix.columns / 2) ||
        !is_bytes(&buffers[2], matrix.rows, blocks) || !is_bytes(&buffers[3], matrix.rows, blocks) ||
        (count == 5 && !is_bytes(&buffers[4], matrix.rows, blocks))) {
        PyErr_SetString(PyExc_ValueError, "shapes do not fit each other");
        goto done;
    }
    struct figures figures;
    memset(&figures, 0, sizeof figures);
    Py_BEGIN_ALLOW_THREADS
    quantise_matrix(&matrix, least_raised, count == 5 ? buffers[4].buf : NULL, buffers[1].buf, buffers[2].buf,
                    buffers[3].buf, &figures);
    Py_END_ALLOW_THREADS
    if (figures.not_finite) {
        result = Py_NewRef(Py_None);
        goto done;
    }
    PyObject *smaller = list_of(figures.smaller, BINADE), *larger = list_of(figures.larger, BINADE);
    if (smaller != NULL && larger != NULL)
        result = Py_BuildValue("(dddOOLLLL)", figures.signal, figures.error, figures.least_error, smaller, larger,
                               (long long)figures.clipped_values, (long long)figures.clipped_blocks,
                               (long long)figures.kept_blocks, (long long)figures.odd_blocks);
    Py_XDECREF(smaller);
    Py_XDECREF(larger);
done:
    while (held > 0)
        PyBuffer_Release(&buffers[--held]);
    return result;
}

/* --- decoding ------------------------------------------------------------------------------------------------ */

/* Set LANES of `columns` to the bits of bfloat16 of blocks whose codes are zero or normal numbers.
 *
 * For a code with magnitude m of 2 or more and a scale s, exponent and mantissa are (m << 6) + ((s - 1) << 7); m = 1 is
 * 1/2, which leaves the first term out. */
VECTORISED static void decode_tile(const uint32_t words[WORDS][LANES], const uint8_t scales[LANES],
                                   uint16_t (*columns)[GATHERED]) {
    uint32_t exponents[LANES];
    for (int l = 0; l < LANES; l++)
        exponents[l] = (uint32_t)(scales[l] - 1) << 7;
    for (int word = 0; word < WORDS; word++)
        for (int j = 0; j < 8; j++)
            for (int l = 0; l < LANES; l++) {
                uint32_t code = words[word][l] >> (4 * j), size = code & 7;
                uint32_t bits = exponents[l] + (size > 1 ? size << 6 : 0);
                columns[8 * word + j][l] = (uint16_t)((size ? bits : 0) | (code & 8) << 12);
            }
}

/* Decode [rows, columns] into `stored` [columns, rows]; return whether all numbers are finite. Columns are gathered
 * for many rows of a block, since memory is written in longer runs than a tile has. */
static int decode_matrix(const uint8_t *codes, const uint8_t *scales, const uint32_t *pairs, uint16_t *stored,
                         Py_ssize_t rows, Py_ssize_t blocks) {
    enum { LEAST_NORMAL = 2, LARGEST_FINITE = 252 };
    static const uint16_t special = 0x7F80;
    uint16_t gathered[BLOCK][GATHERED];
    int finite = 1;
    for (Py_ssize_t first = 0; first < rows; first += GATHERED) {
        Py_ssize_t count = rows - first < GATHERED ? rows - first : GATHERED;
        for (Py_ssize_t block = 0; block < blocks; block++) {
            for (Py_ssize_t row = 0; row < count; row += LANES) {
                int lanes = count - row < LANES ? (int)(count - row) : LANES;
                uint32_t words[WORDS][LANES] = {{0}};
                uint8_t few[LANES];
                uint16_t (*columns)[GATHERED] = (uint16_t (*)[GATHERED])&gathered[0][row];
                int plain = 1;
                memset(few, LEAST_NORMAL, sizeof few);
                for (int l = 0; l < lanes; l++) {
                    Py_ssize_t place = (first + row + l) * blocks + block;
                    few[l] = scales[place];
                    plain &= few[l] >= LEAST_NORMAL && few[l] <= LARGEST_FINITE;
                    for (int word = 0; word < WORDS; word++)
                        memcpy(&words[word][l], codes + place * (BLOCK / 2) + 4 * word, 4);
                }
                if (plain)
                    decode_tile((const uint32_t (*)[LANES])words, few, columns);
                else
                    for (int l = 0; l < lanes; l++)
                        for (int j = 0; j < BLOCK / 2; j++) {
                            uint32_t pair = pairs[few[l] << 8 | (words[j / 4][l] >> (8 * (j % 4)) & 255)];
                            columns[2 * j][l] = (uint16_t)pair;
                            columns[2 * j + 1][l] = (uint16_t)(pair >> 16);
                            finite &= (pair & special) != special && (pair >> 16 & special) != special;
                        }
            }
            for (int i = 0; i < BLOCK; i++)
                copy_run(stored + (block * BLOCK + i) * rows + first, gathered[i], 2 * (size_t)count);
        }
    }
    return finite;
}

static const char decode_columns_doc[] =
    "decode_columns(codes, scales, pairs, stored)\n--\n\n"
    "Decode MXFP4 `codes` [rows, columns / 2] and `scales` [rows, blocks] to bits of bfloat16 in `stored` [columns, rows].\n\n"
    "`pairs` is uint32 [65536]: the two numbers for every `scale << 8 | byte`. Returns whether all numbers are finite.";

static PyObject *decode_columns(PyObject *self, PyObject *args) {
    PyObject *objects[4], *result = NULL;
    Py_buffer buffers[4];
    int held = 0, finite;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOO", &objects[0], &objects[1], &objects[2], &objects[3]))
        return NULL;
    for (; held < 4; held++)
        if (PyObject_GetBuffer(objects[held], &buffers[held],
                               held == 3 ? PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE : PyBUF_C_CONTIGUOUS) < 0)
            goto done;
    Py_ssize_t rows = buffers[1].ndim == 2 ? buffers[1].shape[0] : -1;
    Py_ssize_t blocks = buffers[1].ndim == 2 ? buffers[1].shape[1] : -1;
    if (!is_bytes(&buffers[0], rows, blocks * (BLOCK / 2)) || !is_bytes(&buffers[1], rows, blocks) ||
        buffers[2].len != 65536 * 4 || buffers[3].ndim != 2 || buffers[3].itemsize != 2 ||
        buffers[3].shape[0] != blocks * BLOCK || buffers[3].shape[1] != rows) {
        PyErr_SetString(PyExc_ValueError, "shapes do not fit each other");
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    finite = decode_matrix(buffers[0].buf, buffers[1].buf, buffers[2].buf, buffers[3].buf, rows, blocks);
    Py_END_ALLOW_THREADS
    result = PyBool_FromLong(finite);
done:
    while (held > 0)
        PyBuffer_Release(&buffers[--held]);
    return result;
}

/* --- strings ------------------------------------------------------------------------------------------------- */

struct text {
    const unsigned char *next, *end;
};

static void skip_space(struct text *text) {
    while (text->next < text->end &&
           (*text->next == ' ' || *text->next == '\n' || *text->next == '\t' || *text->next == '\r'))
        text->next++;
}

/* Take one character between spaces; return whether it was there. */
static int take(struct text *text, unsigned char character) {
    skip_space(text);
    if (text->next == text->end || *text->next != character)
        return 0;
    text->next++;
    skip_space(text);
    return 1;
}

/* Append a JSON string to `out`, which has room. Returns NULL for one with blanks, control characters, or escapes
 * other than of quotes and slashes. */
static unsigned char *take_token(struct text *text, unsigned char *out) {
    if (text->next == text->end || *text->next++ != '"')
        return NULL;
    while (text->next < text->end) {
        unsigned char character = *text->next++;
        if (character == '"')
            return out;
        if (character <= ' ')
            return NULL;
        if (character == '\\') {
            if (text->next == text->end || (*text->next != '"' && *text->next != '\\' && *text->next != '/'))
                return NULL;
            character = *text->next++;
        }
        *out++ = character;
    }
    return NULL;
}

/* Write `left right\n` for each pair of a JSON array of pairs of strings; every pair is shorter than its JSON text.
 * Returns the end of what was written, NULL for other text. */
static unsigned char *join_all(struct text text, unsigned char *out) {
    if (!take(&text, '['))
        return NULL;
    if (!take(&text, ']')) {
        do {
            if (!take(&text, '[') || !(out = take_token(&text, out)))
                return NULL;
            *out++ = ' ';
            if (!take(&text, ',') || !(out = take_token(&text, out)) || !take(&text, ']'))
                return NULL;
            *out++ = '\n';
        } while (take(&text, ','));
        if (!take(&text, ']'))
            return NULL;
    }
    return text.next == text.end ? out : NULL;
}

static const char join_pairs_doc[] =
    "join_pairs(json)\n--\n\n"
    "Return `left right\\n` for each pair of a JSON array of pairs of strings, as UTF-8 if `json` is.\n\n"
    "Returns None for anything else, and for strings with blanks, control characters or rare escapes.";

static PyObject *join_pairs(PyObject *self, PyObject *object) {
    Py_buffer json;
    PyObject *result = NULL;
    (void)self;
    if (PyObject_GetBuffer(object, &json, PyBUF_SIMPLE) < 0)
        return NULL;
    unsigned char *joined = PyMem_Malloc((size_t)json.len + 1);
    if (joined == NULL) {
        PyErr_NoMemory();
    } else {
        const unsigned char *first = json.buf;
        struct text text = {first, first + json.len};
        const unsigned char *end = join_all(text, joined);
        result = end == NULL ? Py_NewRef(Py_None) : PyBytes_FromStringAndSize((char *)joined, end - joined);
        PyMem_Free(joined);
    }
    PyBuffer_Release(&json);
    return result;
}

static const char prefix_lengths_doc[] =
    "prefix_lengths(texts)\n--\n\n"
    "Return the texts of which each ends with a zero byte, with their lengths (uint64, little endian) before them.";

static PyObject *prefix_lengths(PyObject *self, PyObject *object) {
    Py_buffer texts;
    PyObject *result = NULL;
    (void)self;
    if (PyObject_GetBuffer(object, &texts, PyBUF_SIMPLE) < 0)
        return NULL;
    const char *first = texts.buf, *end = first + texts.len;
    Py_ssize_t count = 0;
    for (const char *at = first; at < end; at++)
        count += *at == 0;
    if (texts.len > 0 && end[-1] != 0)
        PyErr_SetString(PyExc_ValueError, "the last text has no end");
    else if (count > (PY_SSIZE_T_MAX - texts.len) / 8)
        PyErr_NoMemory();
    else
        result = PyBytes_FromStringAndSize(NULL, texts.len + 7 * count);
    if (result != NULL) {
        char *out = PyBytes_AsString(result);
        while (first < end) {
            uint64_t length = (uint64_t)((const char *)memchr(first, 0, (size_t)(end - first)) - first);
            memcpy(out, &length, 8);
            memcpy(out + 8, first, (size_t)length);
            out += 8 + length;
            first += length + 1;
        }
    }
    PyBuffer_Release(&texts);
    return result;
}

static PyMethodDef methods[] = {
    {"quantise", quantise, METH_VARARGS, quantise_doc},
    {"decode_columns", decode_columns, METH_VARARGS, decode_columns_doc},
    {"join_pairs", join_pairs, METH_O, join_pairs_doc},
    {"prefix_lengths", prefix_lengths, METH_O, prefix_lengths_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "native", "Kernels in C.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_native(void) {
    return PyModuleDef_Init(&module);
}
