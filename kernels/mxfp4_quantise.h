/*
 * Quantisation of one tile to MXFP4; native.c includes this once for bfloat16 and once for float32.
 *
 * REAL is a type in which all sums that decide between scales are exact. In units of the smaller scale, numbers from
 * 1/4 to 8 that round to a and b differ in their squared error by (b - a) * (2 * x - a - b), and smaller ones not at
 * all: multiples of 2**-9 below 8 for bfloat16, so that 32 of them fit the 24 bits of float, and multiples of 2**-26
 * for float32, which fit the 53 bits of double.
 */

/* Round x in [0, 8) to a code's magnitude with a scale of 1, ties to even: adding 1.5 * 2**n leaves no bits below. */
static INLINE REAL NAME(nearest)(REAL x) {
    REAL shift = x < 2 ? HALVES : x < 4 ? 2 * HALVES : 4 * HALVES;
    REAL rounded = (x + shift) - shift;
    return rounded < 6 ? rounded : 6;
}

/* The same with a scale of 2, with which x is never beyond the largest code. */
static INLINE REAL NAME(nearest_of_larger)(REAL x) {
    REAL shift = x < 4 ? 2 * HALVES : 4 * HALVES;
    return (x + shift) - shift;
}

/* The same with a scale of 1/2, with which everything above 3 is cut off. */
static INLINE REAL NAME(nearest_of_lower)(REAL x) {
    REAL shift = x < 1 ? HALVES / 2 : x < 2 ? HALVES : 2 * HALVES;
    REAL rounded = (x + shift) - shift;
    return rounded < 3 ? rounded : 3;
}

/* Quantise tile->bits of which `exponents` and `mantissas` describe the largest numbers. */
VECTORISED static void NAME(quantise_tile)(struct tile *tile, int least_raised, int compare) {
    REAL inverse[LANES], shrink[LANES], excess[LANES];
    float signal[LANES];
    double error[LANES];
    uint32_t clipped[LANES];
    static const REAL least = LEAST_SIZE;

    for (int l = 0; l < LANES; l++) {
        inverse[l] = (REAL)tile->inverse[l];
        excess[l] = 0;
        signal[l] = 0;
        error[l] = 0;
        clipped[l] = 0;
    }
    REAL (*sizes)[LANES] = tile->SIZES;
    for (int i = 0; i < BLOCK; i++) {
        for (int l = 0; l < LANES; l++) {
            uint32_t magnitude = tile->bits[i][l] & 0x7FFFFFFF;
            float value;
            memcpy(&value, &magnitude, sizeof value);
            REAL size = (REAL)value * inverse[l];
            REAL floor = magnitude ? least : 0;
            sizes[i][l] = size > floor ? size : floor;
        }
    }
    if (compare)
        for (int i = 0; i < BLOCK; i++)
            for (int l = 0; l < LANES; l++) {
                REAL x = sizes[i][l], a = NAME(nearest)(x), b = NAME(nearest_of_larger)(x);
                excess[l] += (b - a) * (2 * x - a - b);
            }
    for (int l = 0; l < LANES; l++) {
        int up = least_raised < 0 ? excess[l] > 0 : tile->mantissas[l] >= least_raised;
        int named = tile->named[l], floor = tile->floors[l];
        int near = named == floor || named == floor + 1;
        int other = named == floor + 1;
        int better = other != up && (up ? excess[l] > 0 : excess[l] < 0);
        int kept = near & !better;
        tile->kept[l] = (uint8_t)kept;
        up = kept ? other : up;
        tile->chosen[l] = (uint8_t)up;
        tile->excess[l] = (double)excess[l];
        shrink[l] = up ? (REAL)0.5 : 1;
    }
    for (int word = 0; word < WORDS; word++) {
        uint32_t codes[LANES] = {0};
        for (int j = 0; j < 8; j++) {
            int i = 8 * word + j;
            for (int l = 0; l < LANES; l++) {
                REAL x = sizes[i][l] * shrink[l];
                REAL rounded = NAME(nearest)(x);
                REAL off = x - rounded;
                error[l] += (double)off * (double)off;
                signal[l] += (float)x * (float)x;
                clipped[l] += x > 6;
                float magnitude = (float)rounded;
                uint32_t bits;
                memcpy(&bits, &magnitude, sizeof bits);
                /* Two exponent bits and one of mantissa, but for 0 and 1/2, which has code 1. */
                uint32_t code = magnitude < 1 ? (uint32_t)(magnitude > 0) : (bits >> 22) - 252;
                codes[l] |= (code | (tile->bits[i][l] >> 31) << 3) << (4 * j);
            }
        }
        for (int l = 0; l < LANES; l++)
            tile->words[word][l] = codes[l];
    }
    for (int l = 0; l < LANES; l++) {
        double unit = tile->chosen[l] ? 4 : 1;
        tile->error[l] = error[l] * unit;
        tile->signal[l] = signal[l] * unit;
        tile->clipped[l] = (uint8_t)clipped[l];
    }
}

/* Whether the next smaller scale makes less error in a lane than the two others, `larger` being the better of these. */
static int NAME(is_lowered_better)(const struct tile *tile, int lane, int larger) {
    REAL excess = 0;
    for (int i = 0; i < BLOCK; i++) {
        REAL x = tile->SIZES[i][lane], c = NAME(nearest_of_lower)(x);
        REAL a = larger ? NAME(nearest_of_larger)(x) : NAME(nearest)(x);
        excess += (c - a) * (2 * x - a - c);
    }
    return excess > 0;
}
