/* The operator `Observe` of ONNX Runtime graphs: activations in, their moments out, in one visit of memory while they are in the cache.
 *
 * Inputs: x float32 (N, ...); optional scale and shift float32 (C), identity float32 like x, mask int64 (N, M) of tokens; columns int64 (K + 1)
 * and listed float32 (N, 6, columns[K]), where the K observers of a graph list their channels, or both empty; optional divisor float32 (C).
 * Attributes: layout (below), block, channels (the extent C, where the tensor is padded), sum (whether the sum is a row), number (its own).
 * Rows: x, or x / divisor if there is one; with scale y = scale * x + shift per channel, whose moments follow from those of x but for the
 * zeros; with identity the identity; with sum y + identity (x + identity without scale), which is made on the way and never stored.
 * Output: summary double (N, 7 * rows + 3): for each row count, mean, m2 = sum((a - mean)^2), minimum, maximum, zeros, nonfinite; then
 * l2(y) / l2(identity) and the cosine of both, NaN where they are undefined; then C.
 * Listed: mean, standard deviation, minimum, maximum, zeros and nonfinite of each channel of each row, one row after the other from column
 * columns[number] on. The memory comes from outside, an input that is written to: handing out as many outputs as there are
 * observers, and copying them, costs several times what filling them does.
 * Where nonfinite (NaN and infinities) is above 0, mean, m2, deviation, minimum and maximum are NaN.
 */
#include <stdlib.h>
#include <string.h>

#include "lanes.h"
#include "onnxruntime_abi.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EVERY_CPU __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define EVERY_CPU
#endif
#if defined(__GNUC__)
#define INLINED static inline __attribute__((always_inline)) /* into the clones for each kind of processor */
#else
#define INLINED static inline
#endif

#if defined(__GNUC__)
#define FETCH(place) __builtin_prefetch(place)
#else
#define FETCH(place) (void)(place)
#endif

#define MOST_ROWS 4
#define MOST_AXES 8
#define FIELDS 7 /* of a row */
#define PIECE 64           /* steps: a piece of both inputs and their sum stays in the first cache */
#define LINE 16            /* floats of a line of the cache */
#define MOST_FETCHED 4096  /* elements: half of the first cache, for two tensors */
#define MOST_TASKS 16      /* of one run, shared by the threads */
#define ELEMENTS_ALONE (1 << 17) /* of all rows: less takes less time than waking another thread */

enum { CHANNELS_FIRST = 0, CHANNELS_LAST = 1, BLOCKED = 2 }; /* (N, C, ...), (N, ..., C), (N, C / block, ..., block) */

typedef struct {
    OrtTable ort;
    int64_t layout, block, channels, sum, number;
} Kernel;

typedef struct {
    const float *data;
    int64_t extents[MOST_AXES];
    size_t axes;
} Tensor;

/* One run of one node. A unit of work is one sample and one channel, eight channels (`by_lane`) or all of them. */
typedef struct {
    const Kernel *kernel;
    const float *x, *identity, *scale, *shift, *divisor;
    const int64_t *mask;
    int64_t samples, channels, padded, elements; /* elements: of each channel and sample */
    int64_t units_each, units, tasks;
    int rows, by_lane;
    Moments *moments; /* (units, rows) */
    double *dots;     /* (units) */
    float *listed;    /* those of the first channel, or NULL */
    int64_t columns;  /* from one field of `listed` to the next */
} Run;

typedef struct {
    const Run *run;
    int64_t count;
    Lanes x, identity, sum;
    Pair pair;
    double nonfinite[MOST_ROWS][LANES];
} Unit;

typedef void (*Visit)(Unit *, int64_t offset, int64_t steps, int64_t stride, int lanes);

static const Kernels *kernels;

/* Where columns are one group they share an origin, for which there is `copy`. */
INLINED const float *origins_of(const Run *run, const float *data, float *copy) {
    if (run->by_lane) return data;
    for (int l = 0; l < LANES; l++) copy[l] = data[0];
    return copy;
}

/* Of less than eight columns. */
INLINED void begin_columns(Unit *unit, const float *x, const float *identity, int lanes) {
    for (int l = 0; l < LANES; l++) {
        const int at = unit->run->by_lane && l < lanes ? l : 0;
        begin_one(&unit->x, l, x[at]);
        if (!identity) continue;
        begin_one(&unit->identity, l, identity[at]);
        begin_one(&unit->sum, l, unit->pair.scale[l] * x[at] + unit->pair.shift[l] + identity[at]);
    }
}

INLINED void take_columns(Unit *unit, const float *x, const float *identity, int64_t steps, int64_t stride, int lanes) {
    for (int64_t i = 0; i < steps; i++)
        for (int l = 0; l < lanes; l++) {
            const int64_t at = i * stride + l;
            const float sum = add_one(&unit->pair, l, x[at], identity ? identity[at] : 0);
            take_one(&unit->x, l, x[at]);
            if (!identity) continue;
            take_one(&unit->identity, l, identity[at]);
            take_one(&unit->sum, l, sum);
        }
}

INLINED void visit(Unit *unit, int64_t offset, int64_t steps, int64_t stride, int lanes) {
    const Run *run = unit->run;
    const float *x = run->x + offset, *identity = run->identity ? run->identity + offset : NULL;
    float sums[PIECE * LANES], copy[LANES];
    int fresh = !unit->count;
    unit->count += run->by_lane ? steps : steps * lanes;
    if (lanes < LANES) {
        if (fresh) begin_columns(unit, x, identity, lanes);
        take_columns(unit, x, identity, steps, stride, lanes);
        return;
    }
    for (; steps > 0; steps -= PIECE, x += PIECE * stride, fresh = 0) {
        const int64_t some = steps < PIECE ? steps : PIECE;
        kernels->take(&unit->x, x, some, stride, fresh ? origins_of(run, x, copy) : NULL);
        if (identity) {
            kernels->add(&unit->pair, x, identity, some, stride, sums);
            kernels->take(&unit->identity, identity, some, stride, fresh ? origins_of(run, identity, copy) : NULL);
            if (run->kernel->sum) kernels->take(&unit->sum, sums, some, LANES, fresh ? origins_of(run, sums, copy) : NULL);
            identity += PIECE * stride;
        } else if (run->scale) {
            kernels->count_zeros(&unit->pair, x, some, stride);
        }
    }
}

/* The second visit of the few units in which something is not finite. */
static void count_nonfinite(Unit *unit, int64_t offset, int64_t steps, int64_t stride, int lanes) {
    const Run *run = unit->run;
    for (int64_t i = 0; i < steps; i++)
        for (int l = 0; l < lanes; l++) {
            const int64_t at = offset + i * stride + l;
            const float y = fmaf(unit->pair.scale[l], run->x[at], unit->pair.shift[l]);
            int row = 0;
            unit->nonfinite[row++][l] += !isfinite(run->x[at]);
            if (run->scale) unit->nonfinite[row++][l] += !isfinite(y);
            if (!run->identity) continue;
            unit->nonfinite[row++][l] += !isfinite(run->identity[at]);
            unit->nonfinite[row][l] += !isfinite(y + run->identity[at]);
        }
}

/* Pieces of one length in one piece of memory, taken as columns of eight. */
INLINED void walk_line(Unit *unit, Visit each, int64_t offset, int64_t length) {
    if (length >= LANES) each(unit, offset, length / LANES, LANES, LANES);
    if (length % LANES) each(unit, offset + length / LANES * LANES, 1, LANES, (int)(length % LANES));
}

/* Calls `each` with every piece of a unit; a token whose mask is 0 is in none. */
INLINED void walk(Unit *unit, int64_t number, Visit each) {
    const Run *run = unit->run;
    const int64_t sample = number / run->units_each, part = number % run->units_each, m = run->elements;
    if (run->kernel->layout == BLOCKED) {
        const int64_t block = run->kernel->block, first = part * LANES;
        each(unit, (sample * run->padded + first / block * block) * m + first % block, m, block, LANES);
    } else if (run->kernel->layout == CHANNELS_FIRST) {
        walk_line(unit, each, (sample * run->channels + part) * m, m);
    } else {
        const int64_t c = run->channels, *mask = run->mask ? run->mask + sample * m : NULL;
        const int64_t lanes = c - part * LANES < LANES ? c - part * LANES : LANES;
        for (int64_t token = 0; token < m;) {
            int64_t end = token;
            while (end < m && (!mask || mask[end])) end++;
            if (end > token && run->by_lane)
                each(unit, (sample * m + token) * c + part * LANES, end - token, c, (int)lanes);
            else if (end > token)
                walk_line(unit, each, (sample * m + token) * c, (end - token) * c);
            token = end + 1;
        }
    }
}

/* Of y = scale * x + shift. */
INLINED void map_moments(const Groups *of, const Pair *pair, Groups *groups) {
    for (int l = 0; l < LANES; l++) {
        const float scale = pair->scale[l], shift = pair->shift[l];
        const float a = fmaf(scale, (float)of->minimum[l], shift), b = fmaf(scale, (float)of->maximum[l], shift);
        groups->mean[l] = scale * of->mean[l] + shift;
        groups->m2[l] = (double)scale * scale * of->m2[l];
        groups->minimum[l] = a < b ? a : b;
        groups->maximum[l] = a < b ? b : a;
        groups->zeros[l] = pair->zeros[l];
        groups->nonfinite[l] = 0;
    }
}

/* Makes those of x those of x / divisor. */
INLINED void divide_moments(Groups *of, const float *divisor, int groups) {
    for (int l = 0; l < groups; l++) {
        const double by = divisor[l], a = of->minimum[l] / by, b = of->maximum[l] / by;
        of->mean[l] /= by;
        of->m2[l] /= by * by;
        of->minimum[l] = a < b ? a : b;
        of->maximum[l] = a < b ? b : a;
    }
}

/* Columns of one group become its only one. */
INLINED void fold_lanes(Lanes *lanes) {
    for (int l = 1; l < LANES; l++) {
        lanes->sum[0] += lanes->sum[l];
        lanes->squares[0] += lanes->squares[l];
        lanes->low[0] = lanes->low[l] < lanes->low[0] ? lanes->low[l] : lanes->low[0];
        lanes->high[0] = lanes->high[l] > lanes->high[0] ? lanes->high[l] : lanes->high[0];
        lanes->zeros[0] += lanes->zeros[l];
    }
}

INLINED void fold_unit(Unit *unit) {
    fold_lanes(&unit->x);
    if (unit->run->identity) fold_lanes(&unit->identity);
    if (unit->run->kernel->sum) fold_lanes(&unit->sum);
    for (int l = 1; l < LANES; l++) unit->pair.zeros[0] += unit->pair.zeros[l];
}

INLINED void pool(const Groups *groups, int number, double count, Moments *all) {
    if (number == LANES)
        kernels->pool(groups, count, all);
    else
        pool_some(groups, number, count, all);
}

INLINED void blank_groups(Groups *groups) {
    for (int l = 0; l < LANES; l++)
        if (groups->nonfinite[l] > 0) groups->mean[l] = groups->m2[l] = groups->minimum[l] = groups->maximum[l] = NAN;
}

static const Groups NOTHING = {.minimum = {INFINITY, INFINITY, INFINITY, INFINITY, INFINITY, INFINITY, INFINITY, INFINITY},
                               .maximum = {-INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY}};

/* Moments of the groups of a unit: of the whole unit, and of each if wanted. */
INLINED void finish(Unit *unit, int64_t number, int64_t first, int groups) {
    const Run *run = unit->run;
    const double count = (double)unit->count;
    Groups rows[MOST_ROWS];
    Moments *all = run->moments + number * run->rows;
    if (unit->count) {
        double finite = 0;
        int row = 0;
        kernels->group(&unit->x, count, &rows[row++]);
        if (run->scale) map_moments(&rows[0], &unit->pair, &rows[row++]);
        if (run->divisor) divide_moments(&rows[0], run->divisor + first, groups);
        if (run->identity) kernels->group(&unit->identity, count, &rows[row++]);
        if (run->kernel->sum) kernels->group(&unit->sum, count, &rows[row++]);
        for (int i = 0; i < run->rows; i++) {
            pool(&rows[i], groups, count, &all[i]);
            finite += 0 * all[i].mean + 0 * all[i].minimum + 0 * all[i].maximum; /* 0 times anything finite */
        }
        if (finite != 0) {
            memset(unit->nonfinite, 0, sizeof unit->nonfinite);
            walk(unit, number, count_nonfinite);
            for (int i = 0; i < run->rows; i++)
                for (int l = 0; l < LANES; l++) rows[i].nonfinite[run->by_lane ? l : 0] += unit->nonfinite[i][l];
            for (int i = 0; i < run->rows; i++) {
                for (int l = 0; l < groups; l++) all[i].nonfinite += rows[i].nonfinite[l];
                blank_groups(&rows[i]);
            }
        }
        for (int l = 0; l < LANES; l++) run->dots[number] += unit->pair.dot[l];
    } else {
        for (int i = 0; i < run->rows; i++) {
            rows[i] = NOTHING;
            pool(&rows[i], groups, 0, &all[i]);
        }
    }
    for (int i = 0; i < run->rows; i++) {
        if (run->listed) {
            const int64_t sample = number / run->units_each, column = i * run->channels + first;
            float *out = run->listed + sample * LISTED * run->columns + column;
            if (groups == LANES)
                kernels->list(&rows[i], count, run->columns, out);
            else
                list_some(&rows[i], groups, count, run->columns, out);
        }
    }
}

/* All tokens of a sample, which its units read in strides that no processor foresees. */
static void fetch_sample(const Run *run, int64_t sample) {
    const int64_t elements = run->elements * run->channels;
    if (elements > MOST_FETCHED) return;
    for (int64_t i = sample * elements; i < (sample + 1) * elements; i += LINE) {
        FETCH(run->x + i);
        if (run->identity) FETCH(run->identity + i);
    }
}

EVERY_CPU static void run_unit(const Run *run, int64_t number) {
    const int64_t part = number % run->units_each, first = run->by_lane ? part * LANES : part;
    const int groups = !run->by_lane ? 1 : run->channels - first < LANES ? (int)(run->channels - first) : LANES;
    Unit unit;
    unit.run = run;
    unit.count = 0;
    for (int l = 0; l < LANES; l++) {
        unit.pair.dot[l] = 0;
        unit.pair.zeros[l] = 0;
        const int64_t channel = run->by_lane && l < groups ? first + l : first;
        unit.pair.scale[l] = run->scale ? run->scale[channel] : 1;
        unit.pair.shift[l] = run->scale ? run->shift[channel] : 0;
    }
    if (run->by_lane && run->kernel->layout == CHANNELS_LAST && part == 0) fetch_sample(run, number / run->units_each);
    walk(&unit, number, visit);
    if (unit.count && !run->by_lane) fold_unit(&unit);
    finish(&unit, number, first, groups);
}

static void blank_nonfinite(Moments *of) {
    if (of->nonfinite > 0) of->mean = of->m2 = of->minimum = of->maximum = NAN;
}

static void run_task(void *state, size_t task) {
    const Run *run = state;
    const int64_t end = run->units * ((int64_t)task + 1) / run->tasks;
    for (int64_t unit = run->units * (int64_t)task / run->tasks; unit < end; unit++) run_unit(run, unit);
}

/* Chan, Golub & LeVeque 1979, equation 2.1, of many groups at once; `stride` moments lie between one and the next. */
static Moments merge(const Moments *groups, int64_t number, int stride) {
    Moments all = {.minimum = INFINITY, .maximum = -INFINITY};
    for (int64_t i = 0; i < number; i++) {
        const Moments *one = groups + i * stride;
        all.count += one->count;
        all.mean += one->count * one->mean;
        all.minimum = one->minimum < all.minimum ? one->minimum : all.minimum;
        all.maximum = one->maximum > all.maximum ? one->maximum : all.maximum;
        all.zeros += one->zeros;
        all.nonfinite += one->nonfinite;
    }
    if (!all.count) return all;
    all.mean /= all.count;
    for (int64_t i = 0; i < number; i++) {
        const double between = groups[i * stride].mean - all.mean;
        all.m2 += groups[i * stride].m2 + groups[i * stride].count * between * between;
    }
    return all;
}

static double l2(const Moments *of) { return sqrt(of->m2 + of->count * of->mean * of->mean); }

static void summarize(const Run *run, double *out) {
    for (int64_t sample = 0; sample < run->samples; sample++) {
        const int64_t first = sample * run->units_each;
        Moments rows[MOST_ROWS] = {0};
        double dot = 0, ratio = NAN, cosine = NAN;
        for (int64_t unit = first; unit < first + run->units_each; unit++) dot += run->dots[unit];
        for (int i = 0; i < run->rows; i++) {
            rows[i] = merge(run->moments + first * run->rows + i, run->units_each, run->rows);
            blank_nonfinite(&rows[i]);
            memcpy(out, &rows[i], sizeof rows[i]);
            out += FIELDS;
        }
        if (run->identity) {
            const int residual = run->scale != NULL;
            const double of_y = l2(&rows[residual]), of_identity = l2(&rows[residual + 1]);
            if (of_identity > 0) ratio = of_y / of_identity;
            if (of_y * of_identity > 0) cosine = dot / (of_y * of_identity);
        }
        *out++ = ratio;
        *out++ = cosine;
        *out++ = (double)run->channels;
    }
}

#define TRY(call)                  \
    do {                           \
        OrtStatus *failed = call;  \
        if (failed) return failed; \
    } while (0)

static OrtStatus *read_input(const Kernel *kernel, OrtContext *context, size_t position, Tensor *tensor) {
    const OrtTable ort = kernel->ort;
    const OrtValue *value = NULL;
    OrtShape *shape;
    OrtStatus *failed;
    memset(tensor, 0, sizeof *tensor);
    TRY(INPUT(ort)(context, position, &value));
    if (!value) return NULL; /* an optional one that is absent */
    TRY(MUTABLE_DATA(ort)(value, (void **)&tensor->data));
    TRY(SHAPE_OF(ort)(value, &shape));
    failed = RANK(ort)(shape, &tensor->axes);
    if (!failed && tensor->axes > MOST_AXES) failed = CREATE_STATUS(ort)(INVALID_ARGUMENT, "Observe takes tensors of at most 8 axes");
    if (!failed) failed = EXTENTS(ort)(shape, tensor->extents, tensor->axes);
    RELEASE_SHAPE(ort)(shape);
    return failed;
}

static int64_t product(const Tensor *tensor, size_t from, size_t to) {
    int64_t all = 1;
    for (size_t i = from; i < to; i++) all *= tensor->extents[i];
    return all;
}

static OrtStatus *compute(void *state, OrtContext *context) {
    const Kernel *kernel = state;
    const OrtTable ort = kernel->ort;
    const int last = kernel->layout == CHANNELS_LAST;
    Tensor x, scale, shift, identity, mask, columns, listed, divisor;
    TRY(read_input(kernel, context, 0, &x));
    TRY(read_input(kernel, context, 1, &scale));
    TRY(read_input(kernel, context, 2, &shift));
    TRY(read_input(kernel, context, 3, &identity));
    TRY(read_input(kernel, context, 4, &mask));
    TRY(read_input(kernel, context, 5, &columns));
    TRY(read_input(kernel, context, 6, &listed));
    TRY(read_input(kernel, context, 7, &divisor));
    if (x.axes < 2) return CREATE_STATUS(ort)(INVALID_ARGUMENT, "Observe takes tensors of at least 2 axes");

    Run run = {.kernel = kernel, .x = x.data, .identity = identity.data, .scale = scale.data, .shift = shift.data};
    run.divisor = divisor.data;
    run.mask = (const int64_t *)(const void *)mask.data;
    run.samples = x.extents[0];
    run.padded = last ? x.extents[x.axes - 1] : x.extents[1];
    run.channels = kernel->layout == BLOCKED ? kernel->channels : run.padded;
    run.elements = last ? product(&x, 1, x.axes - 1) : product(&x, 2, x.axes);
    run.rows = 1 + (scale.data != NULL) + (identity.data != NULL) + (int)kernel->sum;
    const int listing = product(&columns, 0, columns.axes) > 0;
    run.by_lane = kernel->layout == BLOCKED || (last && listing);
    run.units_each = run.by_lane ? (run.channels + LANES - 1) / LANES : last ? 1 : run.channels;
    run.units = run.samples * run.units_each;

    const int same = x.axes == identity.axes && !memcmp(x.extents, identity.extents, sizeof x.extents);
    if ((identity.data && !same) || (mask.data && product(&mask, 0, mask.axes) != run.samples * run.elements) ||
        (scale.data && (product(&scale, 0, scale.axes) != run.channels || product(&shift, 0, shift.axes) != run.channels)) ||
        (divisor.data && product(&divisor, 0, divisor.axes) != run.channels))
        return CREATE_STATUS(ort)(INVALID_ARGUMENT, "Observe: the extents of the inputs do not fit each other");

    if (listing) {
        const int64_t *own = (const int64_t *)(const void *)columns.data + kernel->number, number = columns.extents[0] - 1;
        const int fits = kernel->number < number && own[0] >= 0 && own[1] - own[0] == run.rows * run.channels;
        run.columns = listed.extents[2];
        if (!fits || listed.extents[0] != run.samples || listed.extents[1] != LISTED || own[1] > run.columns)
            return CREATE_STATUS(ort)(INVALID_ARGUMENT, "Observe: the channels do not fit where they are to be listed");
        run.listed = (float *)(uintptr_t)(listed.data + own[0]); /* written to by all observers, each in its own columns */
    }
    OrtValue *summary;
    double *sums;
    TRY(OUTPUT(ort)(context, 0, (int64_t[]){run.samples, run.rows * FIELDS + 3}, 2, &summary));
    TRY(MUTABLE_DATA(ort)(summary, (void **)&sums));

    const size_t size = (size_t)run.units * ((size_t)run.rows * sizeof(Moments) + sizeof(double));
    run.moments = calloc(1, size ? size : 1);
    if (!run.moments) return CREATE_STATUS(ort)(INVALID_ARGUMENT, "Observe: out of memory");
    run.dots = (double *)(run.moments + run.units * run.rows);
    OrtStatus *failed = NULL;
    run.tasks = run.samples * run.padded * run.elements * run.rows < ELEMENTS_ALONE ? 1 : run.units < MOST_TASKS ? run.units : MOST_TASKS;
    if (run.tasks > 1)
        failed = PARALLEL(ort)(context, run_task, (size_t)run.tasks, 0, &run);
    else
        run_task(&run, 0);
    if (!failed) summarize(&run, sums);
    free(run.moments);
    return failed;
}

static OrtStatus *prepare(const Operator *operator, OrtTable ort, const OrtKernelInfo *info, void **state) {
    (void)operator;
    Kernel kernel = {.ort = ort};
    TRY(ATTRIBUTE(ort)(info, "layout", &kernel.layout));
    TRY(ATTRIBUTE(ort)(info, "block", &kernel.block));
    TRY(ATTRIBUTE(ort)(info, "channels", &kernel.channels));
    TRY(ATTRIBUTE(ort)(info, "sum", &kernel.sum));
    TRY(ATTRIBUTE(ort)(info, "number", &kernel.number));
    if (kernel.layout == BLOCKED && (kernel.block < LANES || kernel.block % LANES))
        return CREATE_STATUS(ort)(INVALID_ARGUMENT, "Observe: a block is a multiple of 8 channels");
    *state = malloc(sizeof kernel);
    if (!*state) return CREATE_STATUS(ort)(INVALID_ARGUMENT, "Observe: out of memory");
    memcpy(*state, &kernel, sizeof kernel);
    return NULL;
}

static const char *name(const Operator *operator) { return (void)operator, "Observe"; }
static const char *provider(const Operator *operator) { return (void)operator, NULL; }
static size_t inputs(const Operator *operator) { return (void)operator, 8; }
static size_t outputs(const Operator *operator) { return (void)operator, 1; }
static int input_type(const Operator *operator, size_t i) { return (void)operator, i == 4 || i == 5 ? INT64 : FLOAT; }
static int output_type(const Operator *operator, size_t i) { return (void)operator, (void)i, DOUBLE; }
static int input_kind(const Operator *operator, size_t i) { return (void)operator, i ? OPTIONAL : REQUIRED; }
static int output_kind(const Operator *operator, size_t i) { return (void)operator, (void)i, REQUIRED; }
static int memory(const Operator *operator, size_t i) { return (void)operator, (void)i, 0; }
static int one(const Operator *operator) { return (void)operator, 1; }
static int any(const Operator *operator) { return (void)operator, INT32_MAX; }

static const Operator OBSERVE = {
    .version = INTERFACE_VERSION,
    .name = name,
    .provider = provider,
    .input_type = input_type,
    .inputs = inputs,
    .output_type = output_type,
    .outputs = outputs,
    .destroy = free,
    .input_kind = input_kind,
    .output_kind = output_kind,
    .input_memory = memory,
    .variadic = {one, one, one, one},
    .prepare = prepare,
    .run = compute,
    .first_version = one,
    .last_version = any,
};

/* What ONNX Runtime calls when the library is registered with the options of a session. */
OrtStatus *RegisterCustomOps(OrtOptions *options, const OrtBase *base) {
    static OrtDomain *domain; /* lives as long as the process: sessions refer to it */
    const OrtTable ort = base->table_of_version(INTERFACE_VERSION);
    kernels = best_kernels();
    if (!domain) {
        OrtDomain *made;
        TRY(CREATE_DOMAIN(ort)("normscope", &made));
        TRY(ADD_OPERATOR(ort)(made, &OBSERVE));
        domain = made;
    }
    return ADD_DOMAIN(ort)(options, domain);
}
